"""A run from a Python program: the same checks, resuming and files as a recipe, in a dozen lines."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import datasets
import pandas
import pytest
from PIL import Image

import hf_transfer as ht
from hf_transfer.data.samples import load_sample
from hf_transfer.evaluation.results import Results
from tests.conftest import REPOSITORY

FEW = {"model": "sample:vit-glyphs", "strategy": "partial", "num_train_epochs": 1, "max_train_samples_per_class": 2}
# Two kinds of precision, and an error between them, in one process.
SEVERAL_RUNS = """
import sys
import hf_transfer as ht
few = {"model": "sample:vit-glyphs", "strategy": "full", "max_train_samples_per_class": 2, "num_train_epochs": 1}
few["cache_dir"] = sys.argv[1]
first = ht.train("sample:digits", output_dir=f"{sys.argv[1]}/bf16", bf16=True, **few)
try:
    ht.train("sample:no-such", output_dir=f"{sys.argv[1]}/error", **few)
except ht.UserError as error:
    assert "sample:digits" in str(error)
second = ht.train("sample:digits", output_dir=f"{sys.argv[1]}/float32", **few)
print(first.metrics["test"] != second.metrics["test"])
"""


def test_a_folder_of_pictures_is_learned_asked_and_resumed(
    picture_folder: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The example of README, with a small model."""
    pictures, out = picture_folder(cat=12, dog=12), tmp_path / "first"
    settings = {"model": "sample:vit-glyphs", "strategy": "partial", "trainable_layers": 2, "num_train_epochs": 3}
    run = ht.train(pictures, output_dir=out, cache_dir=str(tmp_path / "cache"), **settings)
    assert run.metrics["test"]["accuracy"] == Results.read(out).metrics["test"]["accuracy"]
    files = sorted(path.name for path in out.iterdir())
    assert files == [
        ".card", ".lock", "checkpoints", "config.yaml", "confusion.png", "curves.png", "data.json", "model",
        "report.md", "results.json",
    ]  # fmt: skip

    classify = ht.load(out)
    paths = [pictures / "cat" / "000.png", pictures / "dog" / "000.png"]
    answers = classify(paths, top=2)
    assert [set(answer) for answer in answers] == [{"cat", "dog"}] * 2
    assert all(sum(answer.values()) == pytest.approx(1.0) for answer in answers)
    assert classify([Image.open(path) for path in paths], top=2) == answers

    capsys.readouterr()
    again = ht.train(pictures, output_dir=out, cache_dir=str(tmp_path / "cache"), **settings)
    assert again.results == run.results
    assert "epoch" not in capsys.readouterr().out.split("split")[0]


def test_errors_are_raised_and_end_no_process(tmp_path: Path) -> None:
    with pytest.raises(ht.UserError, match="--trainable_layers from 1 to"):
        ht.train("sample:digits", output_dir=tmp_path / "a", **FEW, trainable_layers=99)
    with pytest.raises(ht.UserError, match="settings that exist"):
        ht.train("sample:digits", output_dir=tmp_path / "b", **FEW, learning_rat=1)
    with pytest.raises(ht.UserError, match="--mixup_alpha with a strategy that trains step by step"):
        ht.train(
            "sample:digits", "sample:vit-glyphs", output_dir=tmp_path / "c", strategy="linear_probe", mixup_alpha=0.2
        )
    with pytest.raises(
        ht.UserError, match="a model without BatchNorm, with which --batch_norm_statistics has no effect"
    ):
        ht.train(
            "sample:digits", "sample:vit-glyphs", output_dir=tmp_path / "e", batch_norm_statistics="updated",
            max_train_samples_per_class=2,
        )  # fmt: skip
    with pytest.raises(ht.UserError, match="pandas frame"):
        ht.train([1, 2], "sample:vit-glyphs", output_dir=tmp_path / "d")


def test_a_frame_of_texts_and_a_data_set_dictionary_are_learned(tmp_path: Path) -> None:
    frame = pandas.DataFrame(
        {"text": [f"{word} {n}" for n in range(20) for word in ("good", "bad")], "label": ["a", "b"] * 20}
    )
    settings = {"model": "sample:minilm", "strategy": "linear_probe", "cache_dir": str(tmp_path / "cache")}
    run = ht.train(frame, output_dir=tmp_path / "frame", **settings)
    assert run.results is not None
    assert (run.results.recipe, run.results.labels) == ("text", ["a", "b"])
    assert set(ht.load(tmp_path / "frame")(["good 3"], top=1)[0]) == {"a"}
    # The same content is the same run; other content is not.
    again = ht.train(frame.copy(), output_dir=tmp_path / "frame", **settings)
    assert again.results == run.results
    with pytest.raises(ht.UserError, match=r"other settings .*dataset_name: memory:"):
        ht.train(frame[:-4], output_dir=tmp_path / "frame", **settings)

    digits = load_sample("sample:digits")["train"].train_test_split(0.5, seed=0)
    both = datasets.DatasetDict({"train": digits["train"], "test": digits["test"]})
    pictures = ht.train(both, output_dir=tmp_path / "dictionary", cache_dir=str(tmp_path / "cache"), **FEW)
    assert pictures.results is not None
    assert pictures.results.samples["test"] == len(digits["test"])


@pytest.mark.parametrize(
    ("model", "recipe"),
    [
        ("sample:vit-glyphs", "vision"),
        ("sample:minilm", "text"),
        (("sample:vit-glyphs", "sample:minilm"), "multimodal"),
    ],
)
def test_the_recipe_is_inferred_from_the_model(model: str | tuple[str, str], recipe: str) -> None:
    from hf_transfer.whole_run import _models, _recipe_for

    assert _recipe_for(_models(model, {}), "sample:glyph-names", None) == recipe


@pytest.mark.slow
def test_several_runs_in_one_process_have_their_own_precision(tmp_path: Path) -> None:
    ended = subprocess.run(
        [sys.executable, "-c", SEVERAL_RUNS, str(tmp_path)], cwd=REPOSITORY, capture_output=True, text=True, check=False
    )
    assert ended.returncode == 0, ended.stderr[-3000:]
    assert ended.stdout.splitlines()[-1] == "True"


@pytest.mark.parametrize("models", [(), ("a",), ("a", "b", "c")])
def test_two_models_are_expected_where_there_is_not_one_name(models: tuple[str, ...], tmp_path: Path) -> None:
    with pytest.raises(ht.UserError, match=f"for the images and for the texts\nFound:    {len(models)}: "):
        ht.train("sample:digits", model=models, output_dir=tmp_path)
