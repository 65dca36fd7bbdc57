"""The text recipe as a user runs it: a command line, files, a model that needs none of us."""

import hashlib
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoModelForSequenceClassification

from tests.conftest import REPOSITORY, Finished
from tests.data.conftest import run_text, text_rows, write_table
from tests.recipes.test_vision import LAUNCH
from tests.tiny_text_models import save_text_checkpoint, tiny_text_model, tiny_tokenizer
from tests.training.launched import two_forks

FILES = [
    ".card", ".lock", "checkpoints", "config.yaml", "confusion.png", "curves.png", "data.json", "model",
    "report.md", "results.json",
]  # fmt: skip
# Settings without effect where nothing is trained step by step.
STEPWISE = ("num_train_epochs", "per_device_train_batch_size")
# What a machine without us does: the pipeline of transformers, in a process in which we cannot be imported.
WITHOUT_US = """
import json, sys
from importlib.abc import MetaPathFinder

class Forbidden(MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "hf_transfer":
            raise ImportError("hf_transfer is not to be imported")

sys.meta_path.insert(0, Forbidden())
try:
    import hf_transfer
    raise SystemExit("hf_transfer was imported")
except ImportError:
    pass
from transformers import pipeline
classify = pipeline("text-classification", sys.argv[1], device="cpu", batch_size=4)
print("LABELS", json.dumps([row["label"] for row in classify(json.loads(sys.argv[2]))]))
"""


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of CSV files; the first word of each text tells its label."""
    folder = tmp_path_factory.mktemp("data")
    for seed, (name, count) in enumerate({"train": 48, "validation": 17, "test": 21}.items()):
        write_table(folder / f"{name}.csv", text_rows(count, seed=seed))
    return folder


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Tiny models; GPT-2 without a pad token, as it is on the Hub."""
    folder = tmp_path_factory.mktemp("checkpoints")
    folders = {name: save_text_checkpoint(folder / name, name) for name in ("bert", "distilbert", "roberta", "deberta")}
    tiny_text_model("gpt2", pad_token_id=None).save_pretrained(folder / "gpt2")
    tiny_tokenizer(pad=False, model_input_names=["input_ids", "attention_mask"]).save_pretrained(folder / "gpt2")
    # These know no token types, as their own tokenizers say.
    for name in ("distilbert", "roberta"):
        tiny_tokenizer(model_input_names=["input_ids", "attention_mask"]).save_pretrained(folder / name)
    return folders | {"gpt2": folder / "gpt2"}


def results_of(output_dir: Path) -> dict[str, Any]:
    results: dict[str, Any] = json.loads((output_dir / "results.json").read_text(encoding="utf-8"))
    return results


def weights_digest(output_dir: Path) -> str:
    return hashlib.sha256((output_dir / "model" / "model.safetensors").read_bytes()).hexdigest()


class Run:
    """The recipe in this process, with a tiny model and data unless settings say otherwise."""

    def __init__(self, capsys: pytest.CaptureFixture[str], **defaults: object) -> None:
        self.capsys = capsys
        self.defaults = defaults

    def __call__(self, *flags: str, **settings: object) -> Finished:
        defaults = self.defaults
        if settings.get("strategy") == "linear_probe" or "--evaluate_only" in flags:
            defaults = {name: value for name, value in defaults.items() if name not in STEPWISE}
        if "--evaluate_only" in flags:
            del defaults["strategy"]
        chosen = {key: value for key, value in (defaults | settings).items() if value is not None}
        finished = run_text(self.capsys, chosen, *flags)
        assert finished.code == 0, finished.err
        return finished


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], data: Path, checkpoints: dict[str, Path], tmp_path: Path) -> Run:
    defaults = {"model_name_or_path": checkpoints["bert"], "dataset_name": data, "output_dir": tmp_path / "out"}
    return Run(capsys, **defaults, strategy="full", num_train_epochs=2, per_device_train_batch_size=8)


@pytest.mark.parametrize(
    ("strategy", "model", "epochs"),
    [
        ("full", "bert", 2),
        ("linear_probe", "distilbert", 1),
        ("lp_ft", "roberta", 3),
        ("gradual", "deberta", 2),
        ("partial", "gpt2", 2),
        ("scratch", "gpt2", 2),
    ],
)
def test_a_run_leaves_the_files_that_the_design_promises(
    strategy: str, model: str, epochs: int, run: Run, checkpoints: dict[str, Path], tmp_path: Path
) -> None:
    """Solved heads count as one epoch."""
    out = run(strategy=strategy, model_name_or_path=checkpoints[model]).out
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == FILES
    assert {"config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"} <= {
        path.name for path in (tmp_path / "out" / "model").iterdir()
    }
    results = results_of(tmp_path / "out")
    assert (results["recipe"], results["strategy"], results["labels"]) == ("text", strategy, ["a", "b"])
    assert results["samples"] == {"train": 48, "validation": 17, "test": 21}
    assert len(results["history"]) == epochs
    assert 0 < results["parameters"]["trainable"] <= results["parameters"]["total"]
    for split in ("validation", "test"):
        assert set(results["metrics"][split]) >= {"accuracy", "f1_macro", "loss"}
    table = dict(re.findall(r"^(validation|test) +(\d\.\d{4}) ", out, flags=re.MULTILINE))
    assert {name: float(value) for name, value in table.items()} == {
        name: pytest.approx(results["metrics"][name]["accuracy"], abs=1e-4) for name in ("validation", "test")
    }
    config = json.loads((tmp_path / "out" / "model" / "config.json").read_text())
    assert config["id2label"] == {"0": "a", "1": "b"}
    assert config["pad_token_id"] is not None
    assert ("padded with [SEP]" in out) == (model == "gpt2")
    assert ("texts are padded with" in (tmp_path / "out" / "report.md").read_text()) == (model == "gpt2")


@pytest.mark.slow
@pytest.mark.parametrize("model", ["bert", "gpt2"])
def test_the_model_learns_and_a_pipeline_without_us_gives_the_labels(
    model: str, run: Run, checkpoints: dict[str, Path], tmp_path: Path
) -> None:
    """The first word tells the label, in any text and any batch."""
    run(model_name_or_path=checkpoints[model], num_train_epochs=8, learning_rate=0.01)
    assert results_of(tmp_path / "out")["metrics"]["test"]["accuracy"] == 1.0
    rows = text_rows(12, seed=9)
    texts = json.dumps([row["text"] for row in rows])
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_US, str(tmp_path / "out" / "model"), texts],
        cwd=tmp_path, capture_output=True, text=True, timeout=240, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    assert json.loads(done.stdout.split("LABELS", 1)[1]) == [row["label"] for row in rows]


def test_pairs_of_texts_are_learned_too(run: Run, checkpoints: dict[str, Path], tmp_path: Path) -> None:
    """Whether the second text begins as the first does: neither text alone tells."""
    rows = [
        {
            "one": f"word{5 + n // 2 % 2}",
            "two": f"word{5 + (n // 2 + n) % 2} word{10 + n // 4}",
            "label": ["same", "other"][n % 2],
        }
        for n in range(80)
    ]
    path = write_table(tmp_path / "pairs.tsv", rows)
    run(
        dataset_name=path, text_column_name="one", text_pair_column_name="two", num_train_epochs=20,
        learning_rate=0.01, model_name_or_path=checkpoints["bert"],
    )  # fmt: skip
    results = results_of(tmp_path / "out")
    assert results["labels"] == ["other", "same"]
    assert results["metrics"]["test"]["accuracy"] == 1.0


def test_two_runs_of_one_command_give_the_same_bytes_whatever_the_number_of_workers(run: Run, tmp_path: Path) -> None:
    for name, workers in (("first", 0), ("second", 0), ("third", 2)):
        run(output_dir=tmp_path / name, dataloader_num_workers=workers, strategy="lp_ft")
    assert len({weights_digest(tmp_path / name) for name in ("first", "second", "third")}) == 1
    metrics = [results_of(tmp_path / name)["metrics"] for name in ("first", "second", "third")]
    assert metrics[0] == metrics[1] == metrics[2]
    run(output_dir=tmp_path / "other", seed=1, strategy="lp_ft")
    assert weights_digest(tmp_path / "other") != weights_digest(tmp_path / "first")


def test_the_settings_that_a_run_leaves_repeat_it(run: Run, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    run(seed=3, max_seq_length=9, train_sampling_strategy="random")
    again = run_text(capsys, {"config": tmp_path / "out" / "config.yaml", "output_dir": tmp_path / "again"})
    assert again.code == 0, again.err
    assert weights_digest(tmp_path / "again") == weights_digest(tmp_path / "out")
    assert "Truncated to 9 tokens: " in again.out


def test_a_finished_run_prints_its_table_again_and_other_settings_are_refused(
    run: Run, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    first = run()
    before = (tmp_path / "out" / "results.json").stat().st_mtime_ns
    again = run()
    assert again.out.strip().startswith(first.out[first.out.index("full from") :].strip())
    assert "nothing was trained now. --overwrite_output_dir trains again." in again.out
    assert (tmp_path / "out" / "results.json").stat().st_mtime_ns == before
    refused = run_text(capsys, run.defaults | {"max_seq_length": 12})
    assert refused.code == 2
    assert "max_seq_length: None -> 12" in refused.err


def test_a_finished_model_can_be_evaluated_alone(run: Run, tmp_path: Path) -> None:
    """On the same data the same figures, though the batches differ."""
    run()
    run(
        "--evaluate_only", model_name_or_path=tmp_path / "out" / "model", output_dir=tmp_path / "judged",
        per_device_eval_batch_size=5,
    )  # fmt: skip
    judged, trained = results_of(tmp_path / "judged"), results_of(tmp_path / "out")
    assert judged["strategy"] == "evaluate_only"
    assert judged["history"] == []
    for split in ("validation", "test"):
        assert judged["metrics"][split] == pytest.approx(trained["metrics"][split], rel=1e-5)
    assert not (tmp_path / "judged" / "model").exists()


def test_a_model_of_other_classes_is_not_evaluated(
    run: Run, capsys: pytest.CaptureFixture[str], checkpoints: dict[str, Path]
) -> None:
    defaults = {name: value for name, value in run.defaults.items() if name not in ("strategy", *STEPWISE)}
    settings = defaults | {"model_name_or_path": checkpoints["bert"]}
    refused = run_text(capsys, settings, "--evaluate_only")
    assert refused.code == 2
    assert "only classes that the model has (" in refused.err
    assert "'a' in " in refused.err


def test_truncated_texts_are_in_the_report(run: Run, tmp_path: Path) -> None:
    run(max_seq_length=5)
    assert "- Truncated to 5 tokens: " in (tmp_path / "out" / "report.md").read_text()


def test_an_adapter_of_a_model_without_a_pad_token_is_saved_and_judged(
    run: Run, checkpoints: dict[str, Path], tmp_path: Path
) -> None:
    """Its base is loaded anew, and must be told its padding once more."""
    run(strategy="lora", model_name_or_path=checkpoints["gpt2"], num_train_epochs=1)
    assert (tmp_path / "out" / "model" / "adapter_config.json").is_file()
    assert results_of(tmp_path / "out")["metrics"]["test"]["loss"] > 0


def test_a_merged_adapter_is_counted_as_the_plain_model_that_is_saved(
    run: Run, checkpoints: dict[str, Path], tmp_path: Path
) -> None:
    run("--merge_adapter", strategy="lora", model_name_or_path=checkpoints["bert"], num_train_epochs=1)
    saved = AutoModelForSequenceClassification.from_pretrained(tmp_path / "out" / "model")
    assert results_of(tmp_path / "out")["parameters"]["total"] == saved.num_parameters()


def test_the_recipe_runs_on_two_processes(data: Path, checkpoints: dict[str, Path], tmp_path: Path) -> None:
    """Each sample is judged once, which the loop asserts: 17 and 21 samples fill no two processes evenly.

    One model comes out, to be loaded by transformers.
    """
    flags = {
        "model_name_or_path": checkpoints["bert"], "dataset_name": data, "strategy": "lp_ft", "num_train_epochs": 1,
        "per_device_train_batch_size": 5, "per_device_eval_batch_size": 4, "output_dir": tmp_path / "out",
    }  # fmt: skip
    ended = two_forks("recipes/text.py", *(f"--{name}={value}" for name, value in flags.items()))
    assert ended.returncode == 0, ended.output[-3000:]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == FILES
    results = results_of(tmp_path / "out")
    assert (results["processes"], len(results["history"])) == (2, 2)
    assert ended.output.count("\ntest  ") == 1
    assert AutoModelForSequenceClassification.from_pretrained(tmp_path / "out" / "model").config.num_labels == 2


@pytest.mark.slow
def test_the_config_of_the_sample_runs_from_the_command_line(tmp_path: Path) -> None:
    """The real pretrained model on a few messages: six classes, well above chance."""
    command = [*LAUNCH, "recipes/text.py", "--config=recipes/configs/intents.yaml"]
    few = ["--max_train_samples_per_class=8", "--strategy=linear_probe", f"--output_dir={tmp_path / 'out'}"]
    ended = subprocess.run([*command, *few], cwd=REPOSITORY, capture_output=True, text=True, timeout=240, check=False)
    assert ended.returncode == 0, ended.stderr[-3000:]
    assert results_of(tmp_path / "out")["metrics"]["test"]["accuracy"] > 0.5
