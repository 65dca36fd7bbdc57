"""results.json and report.md: every figure computed again by others, and names that try to break the page."""

import json
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
from PIL import Image
from scipy.stats import binomtest, bootstrap
from sklearn.metrics import f1_score

from hf_transfer.evaluation.report import bootstrap_f1_interval, plain, wilson_interval
from tests.evaluation.conftest import CLASSES, COUNTS, Run, start
from tests.strangers import WITHOUT_US

HOSTILE = [
    "a|b",
    "<script>alert(1)</script>",
    "line\nbreak",
    "`tick`",
    "---",
    "$x_{$",
    "# head",
    "[a](b)",
    "&lt;",
    "ü😀",
]

# What a machine without hf_transfer makes of the saved model: scikit-learn's figures of a pipeline's answers.
STRANGER = (
    WITHOUT_US
    + """
import json, sys

from pathlib import Path
from PIL import Image
from sklearn.metrics import accuracy_score, f1_score, log_loss
from transformers import pipeline

model, data = sys.argv[1:]
classify = pipeline("image-classification", model, device="cpu")
answers = {}
for split in ("validation", "test"):
    paths = sorted(Path(data, split).rglob("*.png"))
    classes = sorted({path.parent.name for path in paths})
    scores = [{row["label"]: row["score"] for row in classify(Image.open(p), top_k=len(classes))} for p in paths]
    truth = [path.parent.name for path in paths]
    found = [max(row, key=row.get) for row in scores]
    answers[split] = {
        "accuracy": accuracy_score(truth, found),
        "f1_macro": f1_score(truth, found, average="macro", labels=classes),
        "loss": log_loss(truth, [[row[name] for name in classes] for row in scores], labels=classes),
        "scores": {str(path): row for path, row in zip(paths, scores)},
    }
assert "hf_transfer" not in sys.modules
print(json.dumps(answers))
"""
)


def results(folder: Path) -> Any:
    return json.loads((folder / "results.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def stranger(finished_run: Run) -> Any:
    command = [sys.executable, "-I", "-c", STRANGER, str(finished_run.out / "model"), str(finished_run.data)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=finished_run.out)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout.splitlines()[-1])


def test_the_headline_figures_are_those_of_a_plain_pipeline_without_us(finished_run: Run, stranger: Any) -> None:
    """The saved folder alone gives the figures of results.json, computed by scikit-learn."""
    metrics = results(finished_run.out)["metrics"]
    assert set(metrics) == {"validation", "test"}
    for split in metrics:
        assert set(metrics[split]) >= {"accuracy", "f1_macro", "loss"}
        for name, value in metrics[split].items():
            assert value == pytest.approx(stranger[split][name], abs=2e-5), (split, name)
    assert 0 < metrics["test"]["accuracy"] < 1, "a test set that every model gets right shows nothing"


def test_results_have_the_keys_and_values_that_others_rely_on(finished_run: Run) -> None:
    """DESIGN, "the names others rely on"."""
    found = results(finished_run.out)
    assert (found["recipe"], found["strategy"], found["seed"]) == ("vision", "scratch", 0)
    assert found["model_name_or_path"] == "sample:vit-glyphs"
    assert found["dataset_name"] == str(finished_run.data)
    assert found["labels"] == list(CLASSES)
    assert found["samples"] == {split: 3 * count for split, count in COUNTS.items()}
    assert found["masked"] == {"train": 0, "validation": 0, "test": 0}
    from safetensors import safe_open

    with safe_open(str(finished_run.out / "model/model.safetensors"), "np") as file:
        saved = sum(file.get_tensor(name).size for name in file.keys())
    assert found["parameters"] == {"total": saved, "trainable": saved}
    assert [row["epoch"] for row in found["history"]] == [0, 1]
    assert all(
        {"train_loss", "loss", "accuracy", "f1_macro", "learning_rate", "seconds"} <= set(r) for r in found["history"]
    )
    assert found["seconds"]["total"] >= found["seconds"]["train"] > 0
    assert found["seconds"]["frozen"] == 0
    assert found["peak_memory_bytes"]["host"] > 50_000_000
    assert found["peak_memory_bytes"]["device"] >= 0
    assert (found["threads"], found["processes"]) >= (1, 1)
    assert {"python", "torch", "transformers", "datasets", "accelerate"} <= set(found["versions"])
    assert (found["commits"], found["languages"]) == ({}, [])


def test_the_kept_epoch_is_the_best_of_the_history_and_the_one_that_was_judged(finished_run: Run) -> None:
    """Equal accuracies go to the lower loss."""
    found = results(finished_run.out)
    best = max(found["history"], key=lambda row: (row["accuracy"], -row["loss"]))
    assert found["best_epoch"] == best["epoch"] + 1
    for name, value in found["metrics"]["validation"].items():
        assert value == pytest.approx(best[name], abs=1e-6)


def test_the_run_folder_holds_the_model_the_report_and_its_pictures(finished_run: Run) -> None:
    """Nothing else is left behind."""
    assert {path.name for path in finished_run.out.iterdir()} == {
        "model", "results.json", "report.md", "curves.png", "confusion.png", "config.yaml", ".lock", "checkpoints",
        ".card",
    }  # fmt: skip
    assert {path.name for path in (finished_run.out / "model").iterdir()} == {
        "config.json", "model.safetensors", "preprocessor_config.json", "README.md", "curves.png", "confusion.png",
    }  # fmt: skip
    for name in ("curves.png", "confusion.png"):
        with Image.open(finished_run.out / name) as picture:
            assert min(picture.size) > 300
            assert len(np.unique(np.asarray(picture.convert("L")))) > 20
    report = (finished_run.out / "report.md").read_text(encoding="utf-8")
    assert set(re.findall(r"!\[.*?\]\((.*?)\)", report)) == {"curves.png", "confusion.png"}


def test_the_report_states_the_figures_of_the_results(finished_run: Run, stranger: Any) -> None:
    """Its interval is scipy's, its precision and recall are counted by hand."""
    found = results(finished_run.out)
    report = (finished_run.out / "report.md").read_text(encoding="utf-8")
    accuracy, rows = found["metrics"]["test"]["accuracy"], found["samples"]["test"]
    low, high = binomtest(round(accuracy * rows), rows).proportion_ci(method="wilson")
    assert f"**Test accuracy {accuracy:.2%}** (95 % Wilson interval {low:.2%} to {high:.2%}, 21 samples)" in report
    pairs = [(Path(path).parent.name, max(row, key=row.get)) for path, row in stranger["test"]["scores"].items()]
    for name in CLASSES:
        hits = sum(pair == (name, name) for pair in pairs)
        answers, members = (sum(pair[side] == name for pair in pairs) for side in (1, 0))
        precision, recall = hits / answers if answers else 0.0, hits / members
        assert f"\n| {name} | {precision:.4f} | {recall:.4f} |" in report


def test_an_average_of_epochs_is_reported_as_one(finished_run: Run, tmp_path: Path) -> None:
    """No single epoch has the weights that were saved."""
    settings = {"seed": 3, "num_train_epochs": 4, "soup_size": 4, "metric_for_best_model": "loss"}
    assert start(finished_run.argv(output_dir=tmp_path / "out", **settings)).code == 0
    soup = sorted(results(tmp_path / "out")["soup"])
    assert len(soup) > 1, "choose a seed with which averaging gains"
    report = (tmp_path / "out" / "report.md").read_text(encoding="utf-8")
    assert f"Kept: the average of epochs {', '.join(map(str, soup))} of 4." in report
    single = results(finished_run.out)
    assert f"Kept: epoch {single['best_epoch']} of 2." in (finished_run.out / "report.md").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("successes", "trials"), [(0, 1), (1, 1), (0, 20), (20, 20), (7, 10), (81, 263), (9999, 10_000)]
)
def test_the_wilson_interval_is_scipys(successes: int, trials: int) -> None:
    """The last but one row is Newcombe's (1998) example: 81 of 263 gives 0.2553 to 0.3662."""
    expected = binomtest(successes, trials).proportion_ci(confidence_level=0.95, method="wilson")
    assert wilson_interval(successes, trials) == pytest.approx((expected.low, expected.high), abs=1e-9)
    if (successes, trials) == (81, 263):
        assert [round(bound, 4) for bound in wilson_interval(successes, trials)] == [0.2553, 0.3662]


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("a|b", "a&#124;b"),
        ("<b>", "&#60;b&#62;"),
        ("line\r\n  break", "line break"),
        ("`#`", "&#96;&#35;&#96;"),
        ("&lt;", "&#38;lt;"),
        ("$x$", "&#36;x&#36;"),
        ("x_y*z", "x&#95;y&#42;z"),
        ("grün 😀", "grün 😀"),
    ],
)
def test_a_name_stands_in_a_table_as_it_is(name: str, shown: str) -> None:
    """Escaped once: an escape of an escape would be shown as it stands."""
    assert plain(name) == shown


def test_the_results_have_figures_of_each_class_and_what_is_taken_for_what(finished_run: Run, stranger: Any) -> None:
    """Counted by hand; the most frequent confusion first."""
    found = results(finished_run.out)
    pairs = [(Path(path).parent.name, max(row, key=row.get)) for path, row in stranger["test"]["scores"].items()]
    assert [row["label"] for row in found["classes"]] == list(CLASSES)
    for row in found["classes"]:
        hits, members = (sum(pair[:side] == (row["label"],) * side for pair in pairs) for side in (2, 1))
        assert (row["recall"], row["samples"]) == (pytest.approx(hits / members), members)
    wrong = Counter(pair for pair in pairs if pair[0] != pair[1])
    counted = {(row["true"], row["predicted"]): row["samples"] for row in found["confusions"]}
    assert counted.items() <= wrong.items()
    assert sorted(counted.values(), reverse=True) == list(counted.values())
    assert max(counted.values()) == max(wrong.values())
    low, high = found["intervals"]["test"]["accuracy"]
    assert low < found["metrics"]["test"]["accuracy"] < high


@pytest.mark.parametrize(("classes", "rows"), [(2, 40), (5, 300)])
def test_the_interval_of_the_macro_f1_is_a_bootstraps(classes: int, rows: int) -> None:
    """Of scipy, which draws other rows."""
    draw = np.random.default_rng(3)
    labels = draw.integers(0, classes, rows)
    said = np.where(draw.random(rows) < 0.7, labels, draw.integers(0, classes, rows))

    def macro_f1(chosen: np.ndarray[Any, np.dtype[np.int64]]) -> float:
        return float(f1_score(labels[chosen], said[chosen], average="macro"))

    expected = bootstrap(
        (np.arange(rows),), macro_f1, n_resamples=1000, vectorized=False, method="percentile", rng=draw
    ).confidence_interval  # fmt: skip
    low, high = bootstrap_f1_interval(labels, said, classes)
    assert (low, high) == pytest.approx((expected.low, expected.high), abs=0.03)
    assert low < f1_score(labels, said, average="macro") < high
    assert bootstrap_f1_interval(labels, said, classes) == (low, high)


def cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip().removeprefix("|").removesuffix("|").split("|")]


def test_hostile_label_names_break_neither_the_report_nor_the_pictures(finished_run: Run, tmp_path: Path) -> None:
    """Label names are the user's data, or somebody else's."""
    generator = np.random.default_rng(0)
    pictures = [Image.fromarray(generator.integers(0, 255, (12, 12, 3)).astype(np.uint8)) for _ in range(80)]
    labels = [HOSTILE[number % len(HOSTILE)] for number in range(80)]
    features = datasets.Features({"image": datasets.Image(), "label": datasets.Value("string")})
    table = datasets.Dataset.from_dict({"image": pictures, "label": labels}, features=features)
    table.to_parquet(tmp_path / "train.parquet")
    ended = start(
        finished_run.argv(dataset_name=tmp_path / "train.parquet", output_dir=tmp_path / "out", num_train_epochs=1)
    )
    assert ended.code == 0, ended.err
    report = (tmp_path / "out/report.md").read_text(encoding="utf-8")
    section = report[report.index("## Classes (test)") : report.index("![Confusion matrix")]
    rows = [line for line in section.splitlines()[2:] if line]
    assert len(rows) == 2 + len(HOSTILE)
    assert {len(cells(row)) for row in rows} == {5}
    shown = [re.sub(r"&#(\d+);", lambda sign: chr(int(sign[1])), cells(row)[0]) for row in rows[2:]]
    assert shown == [" ".join(name.split()) for name in sorted(HOSTILE)]
    assert not re.search(r"<script|`tick`|\[a\]\(b\)", report)
    assert results(tmp_path / "out")["labels"] == sorted(HOSTILE)
    for name in ("curves.png", "confusion.png"):
        with Image.open(tmp_path / "out" / name) as picture:
            assert min(picture.size) > 300
