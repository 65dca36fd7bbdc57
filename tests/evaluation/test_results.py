"""results.json and report.md: every figure computed independently, earlier versions, and hostile names."""

import json
import re
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
from PIL import Image
from scipy.stats import binomtest

from hf_transfer.errors import UserError
from hf_transfer.evaluation.results import Results, Scores
from hf_transfer.evaluation.templates import plain
from tests.blocked_imports import BLOCK_HF_TRANSFER
from tests.conftest import REPOSITORY
from tests.evaluation.conftest import CLASSES, COUNTS, Run, start
from tests.evaluation.examples import INTERVALS, METRICS, results_of

VERSION_0_1 = REPOSITORY / "tests/evaluation/version_0_1"
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

# Run without hf_transfer: scikit-learn's metrics of the predictions of a transformers pipeline.
PIPELINE_PROGRAM = (
    BLOCK_HF_TRANSFER
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
    predicted = [max(row, key=row.get) for row in scores]
    answers[split] = {
        "accuracy": accuracy_score(truth, predicted),
        "f1_macro": f1_score(truth, predicted, average="macro", labels=classes),
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
def by_pipeline(finished_run: Run) -> Any:
    command = [sys.executable, "-I", "-c", PIPELINE_PROGRAM, str(finished_run.out / "model"), str(finished_run.data)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=finished_run.out)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout.splitlines()[-1])


def test_the_headline_figures_are_those_of_a_plain_pipeline_without_us(finished_run: Run, by_pipeline: Any) -> None:
    """From the saved folder alone, computed by scikit-learn."""
    metrics = results(finished_run.out)["metrics"]
    assert set(metrics) == {"validation", "test"}
    for split in metrics:
        assert set(metrics[split]) >= {"accuracy", "f1_macro", "loss"}
        for name, value in metrics[split].items():
            assert value == pytest.approx(by_pipeline[split][name], abs=2e-5), (split, name)
    assert 0 < metrics["test"]["accuracy"] < 1, "a test set that every model gets right shows nothing"


def test_results_have_the_keys_and_values_that_others_rely_on(finished_run: Run) -> None:
    """A key is removed or renamed only together with a new schema."""
    content = results(finished_run.out)
    assert (content["recipe"], content["strategy"], content["seed"]) == ("vision", "scratch", 0)
    assert content["model_name_or_path"] == "sample:vit-glyphs"
    assert content["dataset_name"] == str(finished_run.data)
    assert content["labels"] == list(CLASSES)
    assert (content["schema"], content["problem_type"], content["predicts"]) == (
        2, "single_label_classification", "3 classes",
    )  # fmt: skip
    assert content["samples"] == {split: 3 * count for split, count in COUNTS.items()}
    assert content["masked"] == {"train": 0, "validation": 0, "test": 0}
    from safetensors import safe_open

    with safe_open(str(finished_run.out / "model/model.safetensors"), "np") as file:
        saved = sum(file.get_tensor(name).size for name in file.keys())  # noqa: SIM118 (it is no mapping)
    assert content["parameters"] == {"total": saved, "trainable": saved}
    assert [row["epoch"] for row in content["history"]] == [0, 1]
    assert all(
        {"train_loss", "loss", "accuracy", "f1_macro", "learning_rate", "seconds"} <= set(r) for r in content["history"]
    )
    assert content["seconds"]["total"] >= content["seconds"]["train"] > 0
    assert content["seconds"]["frozen"] == 0
    assert content["peak_memory_bytes"]["host"] > 50_000_000
    assert content["peak_memory_bytes"]["device"] >= 0
    assert (content["threads"], content["processes"]) >= (1, 1)
    assert {"python", "torch", "transformers", "datasets", "accelerate"} <= set(content["versions"])
    assert (content["commits"], content["languages"]) == ({}, [])


def test_the_kept_epoch_is_the_best_of_the_history_and_the_one_that_was_evaluated(finished_run: Run) -> None:
    """Equal accuracies go to the lower loss."""
    content = results(finished_run.out)
    best = max(content["history"], key=lambda row: (row["accuracy"], -row["loss"]))
    assert content["best_epoch"] == best["epoch"] + 1
    for name, value in content["metrics"]["validation"].items():
        assert value == pytest.approx(best[name], abs=1e-6)


def test_the_run_folder_holds_the_model_the_report_and_its_pictures(finished_run: Run) -> None:
    """Nothing else is left behind."""
    assert {path.name for path in finished_run.out.iterdir()} == {
        "model", "results.json", "report.md", "curves.png", "confusion.png", "config.yaml", "data.json", ".lock",
        "checkpoints", ".card",
    }  # fmt: skip
    assert {path.name for path in (finished_run.out / "model").iterdir()} == {
        "config.json", "model.safetensors", "preprocessor_config.json", "preprocessing.json", "README.md",
        "curves.png", "confusion.png",
    }  # fmt: skip
    for name in ("curves.png", "confusion.png"):
        with Image.open(finished_run.out / name) as picture:
            assert min(picture.size) > 300
            assert len(np.unique(np.asarray(picture.convert("L")))) > 20
    report = (finished_run.out / "report.md").read_text(encoding="utf-8")
    assert set(re.findall(r"!\[.*?\]\((.*?)\)", report)) == {"curves.png", "confusion.png"}


def test_the_report_states_the_figures_of_the_results(finished_run: Run, by_pipeline: Any) -> None:
    """Its interval is scipy's, its precision and recall are counted by hand."""
    content = results(finished_run.out)
    report = (finished_run.out / "report.md").read_text(encoding="utf-8")
    accuracy, rows = content["metrics"]["test"]["accuracy"], content["samples"]["test"]
    low, high = binomtest(round(accuracy * rows), rows).proportion_ci(method="wilson")
    assert f"Test accuracy **{accuracy:.2%}** (95 % interval {low:.2%} to {high:.2%}, 21 samples)" in report
    pairs = [(Path(path).parent.name, max(row, key=row.get)) for path, row in by_pipeline["test"]["scores"].items()]
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


def test_the_results_have_figures_of_each_class_and_what_is_taken_for_what(finished_run: Run, by_pipeline: Any) -> None:
    """Counted by hand; the most frequent confusion first."""
    content = results(finished_run.out)
    pairs = [(Path(path).parent.name, max(row, key=row.get)) for path, row in by_pipeline["test"]["scores"].items()]
    assert [row["label"] for row in content["classes"]] == list(CLASSES)
    for row in content["classes"]:
        hits, members = (sum(pair[:side] == (row["label"],) * side for pair in pairs) for side in (2, 1))
        assert (row["recall"], row["samples"]) == (pytest.approx(hits / members), members)
    wrong = Counter(pair for pair in pairs if pair[0] != pair[1])
    counted = {(row["true"], row["predicted"]): row["samples"] for row in content["confusions"]}
    assert counted.items() <= wrong.items()
    assert sorted(counted.values(), reverse=True) == list(counted.values())
    assert max(counted.values()) == max(wrong.values())
    low, high = content["intervals"]["test"]["accuracy"]
    assert low < content["metrics"]["test"]["accuracy"] < high


def test_results_are_read_as_they_were_written(finished_run: Run, tmp_path: Path) -> None:
    read = Results.read(finished_run.out)
    read.write(tmp_path)
    assert Results.read(tmp_path) == read
    assert (tmp_path / "results.json").read_bytes() == (finished_run.out / "results.json").read_bytes()
    parts = {f"test {part}": Scores(dict(METRICS), dict(INTERVALS), 6, 3) for part in ("image_only", "text_only")}
    changed = results_of(scores=results_of().scores | parts, masked={"train": 1, "validation": 0, "test": 1})
    changed.scores["test"] = Scores(dict(METRICS), dict(INTERVALS), 8, 1)
    changed.write(tmp_path)
    assert Results.read(tmp_path) == changed


@pytest.mark.parametrize("name", ["vision", "multimodal"])
def test_results_of_version_0_1_are_read(tmp_path: Path, name: str) -> None:
    """They counted masked samples among those of a split."""
    earlier = VERSION_0_1 / f"{name}.json"
    shutil.copyfile(earlier, tmp_path / "results.json")
    content, read = json.loads(earlier.read_text()), Results.read(tmp_path)
    assert "schema" not in content
    assert (read.schema, read.problem_type) == (2, "single_label_classification")
    assert read.predicts == f"{len(content['labels'])} classes"
    assert read.metrics == content["metrics"]
    assert [list(table.rows) for table in read.tables] == [content["classes"], content["confusions"]]
    assert {name: scores.intervals for name, scores in read.scores.items()} == {
        name: {metric: tuple(bounds) for metric, bounds in rows.items()} for name, rows in content["intervals"].items()
    }
    if name == "vision":
        assert (content["samples"]["test"], content["masked"]["test"]) == (120, 1)
        assert (read.samples["test"], read.masked["test"], read.test.samples, read.test.masked) == (119, 1, 119, 1)
        assert read.shown_samples == {"train": "16", "validation": "8", "test": "119 of 120"}
    else:
        assert [scores.shown_samples for scores in read.scores.values()] == ["400", "800", "767 of 800", "742 of 800"]
    # Written again they are results of this version.
    read.write(tmp_path)
    assert Results.read(tmp_path) == read


@pytest.mark.parametrize(
    ("content", "expected", "found"),
    [
        ('{"schema": 3}', "results that this version can read (schema 2)", "schema 3 in "),
        ("{", "the results of a finished run in ", "JSONDecodeError: "),
        ('{"schema": 2}', "the results of a finished run in ", "KeyError: 'intervals'"),
        ("[1]", "the results of a finished run in ", "TypeError: "),
        (None, "the results of a finished run in ", "FileNotFoundError: "),
    ],
)
def test_results_that_cannot_be_read_are_refused(
    tmp_path: Path, content: str | None, expected: str, found: str
) -> None:
    if content is not None:
        (tmp_path / "results.json").write_text(content)
    with pytest.raises(UserError) as error:
        Results.read(tmp_path)
    assert f"Expected: {expected}" in str(error.value)
    assert f"\nFound:    {found}" in str(error.value)


def cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip().removeprefix("|").removesuffix("|").split("|")]


def test_hostile_label_names_break_neither_the_report_nor_the_pictures(finished_run: Run, tmp_path: Path) -> None:
    """Label names come from the data."""
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
    section = report[report.index("## Classes (test)") : report.index("## Most confused (test)")]
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
