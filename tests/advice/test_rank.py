"""`hf-transfer rank` as a user runs it: which pretrained model to start from."""

import os
import shutil
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

import hf_transfer as ht
from hf_transfer import command_line
from hf_transfer.advice import scoring
from hf_transfer.models.pretrained import Checkpoint
from tests.advice.conftest import Rank, ranking
from tests.advice.known import texts

VIT, RESNET = "sample:vit-glyphs", "sample:resnet-glyphs"


def same(model: dict[str, Any]) -> dict[str, Any]:
    """What is known of a model, beside its name, its place and what differs from run to run."""
    others = ("model_name_or_path", "place", "behind_first", "equal_to_first", "rows_per_second", "peak_memory_bytes")
    return {name: value for name, value in model.items() if name not in others}


def test_models_of_images_are_ranked_with_their_costs(
    rank: Rank, picture_folder: Callable[..., Path], tmp_path: Path
) -> None:
    done = rank(picture_folder(cat=14, dog=14), "--models", VIT, RESNET)
    assert (done.code, done.err) == (0, "")
    content = ranking(tmp_path)
    assert {model["model_name_or_path"] for model in content["models"]} == {VIT, RESNET}
    scores = [model["probe"]["score"] for model in content["models"]]
    assert scores == sorted(scores, reverse=True)
    assert scores[0] > 0.9
    assert content["rows"] == 20
    assert content["folds"] == {"count": 5, "repeats": 2}
    for model in content["models"]:
        assert model["probe"]["metrics"]["accuracy"] == pytest.approx(model["probe"]["score"], abs=0.15)
        assert model["parameters"] > 100_000
        assert model["rows_per_second"] > 1
        assert model["truncated"] is None
        assert {part.partition("_")[0] for part in model["features"].split(" + ")} <= {"head", "mean"}
    lines = done.out.splitlines()
    for model in content["models"]:
        name, score = model["model_name_or_path"], model["probe"]["score"]
        assert any(line.startswith(name) and f"{score:.3f} ±" in line for line in lines)
    assert f"python recipes/vision.py --model_name_or_path {content['models'][0]['model_name_or_path']}" in done.out
    assert (tmp_path / "ranking.png").read_bytes().startswith(b"\x89PNG")


def test_the_test_split_is_not_read(rank: Rank, models: tuple[Path, Path], tmp_path: Path) -> None:
    """A test split that would be an error in a run changes nothing: other labels, and rows without a text."""
    data = texts(tmp_path / "data")
    texts(data, 12, name="validation.csv", seed=1)
    texts(data, 12, name="test.csv", seed=2)
    assert rank(data, "--models", *models).code == 0
    before = [same(model) for model in ranking(tmp_path)["models"]]
    (data / "test.csv").write_text("text,label\n,unknown class\n,a\nword1,another class\n", encoding="utf-8")
    done = rank(data, "--models", *models)
    assert done.code == 0, done.err
    assert [same(model) for model in ranking(tmp_path)["models"]] == before


def test_a_model_is_read_at_the_depth_that_suits_the_data(
    rank: Rank, models: tuple[Path, Path], tmp_path: Path
) -> None:
    """Behind the last block of this one all is noise: a probe of an earlier block is better than that of its head."""
    weights = load_file(models[0] / "model.safetensors")
    for name in weights:
        if "layer.2.output.dense" in name or "layer.2.output.LayerNorm" in name:
            weights[name] = torch.zeros_like(weights[name])
    save_file(weights, models[0] / "model.safetensors", {"format": "pt"})
    assert rank(texts(tmp_path / "data"), "--models", models[0]).code == 0
    (model,) = ranking(tmp_path)["models"]
    assert model["features"] in ("mean_1", "mean_2")
    assert model["probe"]["score"] > 0.5


def test_a_head_with_another_pooling_is_read_alone(rank: Rank, models: tuple[Path, Path], tmp_path: Path) -> None:
    assert rank(texts(tmp_path / "data"), "--models", models[0], "--pooling", "mean").code == 0
    (model,) = ranking(tmp_path)["models"]
    assert model["features"] == "head"


def test_auto_pooling_is_that_of_the_model(rank: Rank, models: tuple[Path, Path], tmp_path: Path) -> None:
    """A ranking reads all places anyway."""
    data = texts(tmp_path / "data")
    assert rank(data, "--models", models[0]).code == 0
    (model,) = ranking(tmp_path)["models"]
    assert rank(data, "--models", models[0], "--pooling", "auto").code == 0
    (again,) = ranking(tmp_path)["models"]
    assert same(model) == same(again)


def test_two_folders_with_the_same_weights_are_equal(rank: Rank, models: tuple[Path, Path], tmp_path: Path) -> None:
    copy = shutil.copytree(models[0], tmp_path / "copy")
    done = rank(texts(tmp_path / "data"), "--models", models[0], copy)
    first, second = ranking(tmp_path)["models"]
    assert same(first) == same(second)
    assert second["behind_first"] == [0.0, 0.0]
    assert first["model_name_or_path"] == str(models[0])
    assert any(line.split()[:2] == ["copy", "="] for line in done.out.splitlines())


@pytest.mark.slow
def test_a_model_whose_weights_are_shuffled_comes_behind(rank: Rank, tmp_path: Path) -> None:
    """The same values in another order: nothing is left of what it has learnt."""
    checkpoint = Path(Checkpoint(VIT).path)
    shuffled = shutil.copytree(checkpoint, tmp_path / "shuffled")
    weights = load_file(shuffled / "model.safetensors")
    generator = torch.Generator().manual_seed(0)
    for name, value in weights.items():
        order = torch.randperm(value.numel(), generator=generator)
        weights[name] = value.flatten()[order].reshape(value.shape).contiguous()
    save_file(weights, shuffled / "model.safetensors", {"format": "pt"})
    done = rank(Path("sample:digits"), "--max_train_samples_per_class", "12", "--models", shuffled, VIT)
    assert done.code == 0, done.err
    first, second = ranking(tmp_path)["models"]
    assert first["model_name_or_path"] == VIT
    assert not second["equal_to_first"]
    assert second["behind_first"][0] > 0
    assert first["neighbours"] > second["neighbours"]
    assert first["log_evidence"] > second["log_evidence"]


def test_a_model_that_cannot_be_used_does_not_stop_the_others(
    rank: Rank, picture_folder: Callable[..., Path], models: tuple[Path, Path], tmp_path: Path
) -> None:
    done = rank(picture_folder(cat=14, dog=14), "--models", models[0], VIT)
    assert done.code == 0, done.err
    content = ranking(tmp_path)
    assert [model["model_name_or_path"] for model in content["models"]] == [VIT]
    assert "Found:    " in content["failed"][str(models[0])]
    assert "a bert model" in content["failed"][str(models[0])]
    assert "bert was not ranked.\n  Expected: " in done.out


@pytest.mark.parametrize("missing", ["sample:nothing", "./nothing"])
def test_a_model_that_does_not_exist_does_not_stop_the_others(
    missing: str, rank: Rank, picture_folder: Callable[..., Path], tmp_path: Path
) -> None:
    """Nor does it matter for the recipe, which the other models imply."""
    done = rank(picture_folder(cat=14, dog=14), "--models", missing, VIT)
    assert done.code == 0, done.err
    content = ranking(tmp_path)
    assert [model["model_name_or_path"] for model in content["models"]] == [VIT]
    assert [*content["failed"]] == [missing]
    assert "nothing was not ranked." in done.out


@pytest.mark.parametrize("fails", [False, True], ids=["scored", "failed"])
def test_one_model_is_in_memory_at_a_time(
    fails: bool, rank: Rank, models: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where the first one was loaded and then turned out to be of no use."""
    scored, loaded, alive = scoring._scored, list[Any](), list[int]()

    def counted(run: Any) -> Any:
        alive.append(sum(model() is not None for model in loaded))
        loaded.append(weakref.ref(run.model))
        if fails and len(loaded) == 1:
            raise MemoryError
        return scored(run)

    monkeypatch.setattr(scoring, "_scored", counted)
    assert rank(texts(tmp_path / "data"), "--models", *models).code == 0
    assert alive == [0, 0]


def test_full_memory_is_the_reason_of_one_model(
    rank: Rank, models: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scored = scoring._scored

    def full(run: Any) -> Any:
        if run.checkpoint.name == str(models[0]):
            raise MemoryError
        return scored(run)

    monkeypatch.setattr(scoring, "_scored", full)
    done = rank(texts(tmp_path / "data"), "--models", *models)
    assert done.code == 0
    assert ranking(tmp_path)["failed"] == {
        str(models[0]): "Expected: memory for a pass through the model\nFound:    MemoryError\nDo this:  lower "
        "--per_device_eval_batch_size, or leave this model out"
    }


def test_settings_of_the_recipe_change_what_is_scored(rank: Rank, models: tuple[Path, Path], tmp_path: Path) -> None:
    data = texts(tmp_path / "data")
    assert rank(data, "--models", models[0]).code == 0
    (whole,) = ranking(tmp_path)["models"]
    assert rank(data, "--models", models[0], "--max_seq_length", "5", "--pooling", "mean").code == 0
    (short,) = ranking(tmp_path)["models"]
    assert (whole["truncated"], short["truncated"]) == (0, ranking(tmp_path)["rows"])
    assert short["log_evidence"] != whole["log_evidence"]


def test_a_file_of_settings_names_data_and_recipe(
    models: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """That of a run, whose model, strategy and folder have no part in the ranking."""
    settings = {
        "recipe": "text", "dataset_name": str(texts(tmp_path / "data")), "model_name_or_path": "another/model",
        "output_dir": str(tmp_path / "out"), "strategy": "full", "learning_rate": 1e-3, "max_seq_length": 5,
        "cache_dir": str(tmp_path / "cache"),
    }  # fmt: skip
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(settings), encoding="utf-8")
    command_line.main(["rank", "--config", str(tmp_path / "run.yaml"), "--models", str(models[0]), "--top", "1"])
    output = capsys.readouterr().out
    assert "Ignored, as they have no effect on this run: learning_rate" in output
    command = f"python recipes/text.py --model_name_or_path {models[0]} --dataset_name {tmp_path / 'data'} --config "
    assert output.count("python recipes/text.py") == output.count(command) == 1
    (line,) = (line for line in output.splitlines() if line.startswith("bert "))
    assert line.split()[-1] == "42", "all texts are cut off"
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("label", "title"), [("numbers", "absolute error"), ("labels", "F1 per sample")], ids=["numbers", "labels"]
)
def test_models_are_ranked_for_labels_and_for_numbers(
    label: str, title: str, rank: Rank, models: tuple[Path, Path], tmp_path: Path
) -> None:
    generator = np.random.default_rng(0)
    lines = ["text,label"]
    for row in range(60):
        kind = row % 3
        words = " ".join(f"word{generator.integers(20 * kind, 20 * kind + 30) % 59}" for _ in range(6))
        lines.append(
            f"{words},{kind + generator.random():.3f}" if label == "numbers" else f"{words},{'ab;b;c'[: kind * 2 + 1]}"
        )
    (tmp_path / "train.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    problem = {"numbers": "regression", "labels": "multi_label_classification"}[label]
    done = rank(tmp_path / "train.csv", "--models", models[0], "--problem_type", problem)
    assert done.code == 0, done.err
    content = ranking(tmp_path)
    assert content["score"] == title
    for model in content["models"]:
        assert model["h_score"] is None
        assert np.isfinite(model["neighbours"])
        assert np.isfinite(model["log_evidence"])
    assert f"probe: {title}" in done.out


WRONG: dict[str, tuple[list[str], str]] = {
    "a model twice": (["--models", "MODEL", "MODEL/../bert"], "which are the same"),
    "a strategy": (["--models", "MODEL", "--strategy", "full"], "Found:    --strategy"),
    "a folder for a model": (["--models", "MODEL", "--output_dir=x"], "Found:    --output_dir"),
    "a setting that does not exist": (["--models", "MODEL", "--max_seq_len", "5"], "nearest: max_seq_length"),
    "a setting of steps": (["--models", "MODEL", "--learning_rate", "1e-3"], "--learning_rate has no effect"),
    "no model": ([], "--models"),
    "one model for images with texts": (
        ["--models", "MODEL", "--config", "multimodal.yaml"], "a model with a tower for images and one for texts"
    ),
    "a model that is not there": (["--models", "./nothing"], "nothing"),
    "a negative number": (["--models", "MODEL", "--top", "-1"], "--top of at least 0"),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_mistakes_end_with_code_2_and_say_what_to_do(
    name: str, rank: Rank, models: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flags, words = WRONG[name]
    (tmp_path / "multimodal.yaml").write_text("recipe: multimodal\n", encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    done = rank(texts(tmp_path / "data"), *(flag.replace("MODEL", str(models[0])) for flag in flags))
    assert done.code == 2
    assert words in done.err
    assert "Do this:" in done.err
    assert not (tmp_path / "ranking.json").exists()


def test_reasons_of_all_models_are_named_if_none_can_be_used(
    rank: Rank, picture_folder: Callable[..., Path], models: tuple[Path, Path]
) -> None:
    done = rank(picture_folder(cat=14, dog=14), "--recipe", "vision", "--models", *models)
    assert done.code == 2
    assert "Expected: at least one model that can be used with these data" in done.err
    assert "a bert model" in done.err
    assert "a distilbert model" in done.err
    assert done.err.count("Expected: ") == 3, "and what each should have been"


def test_one_error_in_the_data_is_said_once(rank: Rank, models: tuple[Path, Path], tmp_path: Path) -> None:
    data = tmp_path / "data"
    data.mkdir()
    (data / "train.csv").write_text("text,label\nword1,a\nword2,a\nword3,a\n", encoding="utf-8")
    done = rank(data, "--models", *models)
    assert done.code == 2
    assert done.err.count("at least 2 classes to tell apart") == 1


def test_rows_that_are_all_copies_or_of_one_group_are_refused(
    rank: Rank, models: tuple[Path, Path], tmp_path: Path
) -> None:
    data = tmp_path / "data"
    data.mkdir()
    for split in ("train", "validation", "test"):
        rows = [f"word{number},{'ab'[number % 2]},one" for number in range(12)]
        (data / f"{split}.csv").write_text("\n".join(["text,label,author", *rows]) + "\n", encoding="utf-8")
    done = rank(data, "--models", *models, "--group_column_name", "author")
    assert done.code == 2
    assert "Found:    12 rows that are copies of each other, or of one group" in done.err


def test_a_file_that_cannot_be_written_is_refused_before_anything_is_loaded(
    rank: Rank, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    done = rank(tmp_path, "--models", VIT, "--output", tmp_path / "no_such_folder" / "ranking.json")
    assert done.code == 2
    assert "for --output a file NAME.json in a folder that exists" in done.err


def test_python_gets_the_same(rank: Rank, models: tuple[Path, Path], tmp_path: Path) -> None:
    data = texts(tmp_path / "data")
    assert rank(data, "--models", *models, "--max_seq_length", "16").code == 0
    got = ht.rank(data, models, max_seq_length=16, cache_dir=tmp_path / "cache")
    assert [place.model.name for place in got.places] == [
        one["model_name_or_path"] for one in ranking(tmp_path)["models"]
    ]
    assert [same(one) for one in got.as_json()["models"]] == [same(one) for one in ranking(tmp_path)["models"]]


@pytest.mark.parametrize(
    ("models", "settings", "words"),
    [
        ([], {}, r"models: a list of names\nFound:    \[\]"), ("m", {}, "Found:    'm'"),
        (["m", "m"], {}, "each model once"), (["m"], {"output_dir": "o"}, "leave --output_dir out"),
        (["sample:vit-glyphs"], {"modality": "multimodal"}, "a model with a tower for images and one for texts"),
        (["m"], {"max_len": 3}, "nearest: max_seq_length"),
    ],
)  # fmt: skip
def test_python_gets_an_error_that_says_what_to_do(models: Any, settings: dict[str, Any], words: str) -> None:
    with pytest.raises(ht.UserError, match=words):
        ht.rank("d", models, **{"modality": "text"} | settings)


def test_flags_that_no_command_knows_are_still_errors(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        command_line.main(["doctor", "--no_such_flag", os.devnull])
    assert ended.value.code == 2
    assert "unrecognized arguments: --no_such_flag" in capsys.readouterr().err
