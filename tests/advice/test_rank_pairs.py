"""`hf-transfer rank` for images with texts: every combination of two towers, each of which is run once."""

import shlex
from pathlib import Path
from typing import Any

import pytest
import yaml

import hf_transfer as ht
from hf_transfer.advice import scoring
from hf_transfer.frozen.out_of_fold import Search, predicted_out_of_fold
from hf_transfer.models.taps import vectors_of
from hf_transfer.settings.parsing import parse
from hf_transfer.settings.run import MultimodalConfig
from tests.advice.conftest import Rank, ranking
from tests.advice.test_rank import same
from tests.data.conftest import write_table
from tests.recipes.test_multimodal import rows_of, save_dual, write_split
from tests.tiny_models import save_checkpoint
from tests.tiny_text_models import save_text_checkpoint

ROWS = 48


@pytest.fixture(scope="module")
def given(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Data, two models of images, and two of texts."""
    folder = tmp_path_factory.mktemp("given")
    for seed, (name, count) in enumerate({"train": ROWS, "validation": 16, "test": 8}.items()):
        write_split(folder / "data" / name, count, seed=seed)
    for name in ("vit", "resnet_basic"):
        save_checkpoint(folder / name, name)
    for name in ("bert", "distilbert"):
        save_text_checkpoint(folder / name, name)
    return folder


@pytest.fixture
def towers(given: Path) -> list[str | Path]:
    """The flags that name two models of each kind."""
    return [
        "--image_models", given / "vit", given / "resnet_basic", "--text_models", given / "bert", given / "distilbert",
    ]  # fmt: skip


@pytest.fixture
def passes(monkeypatch: pytest.MonkeyPatch) -> list[tuple[set[str], int]]:
    """The towers that are read for features, and the samples, of each batch, as long as the test runs."""
    seen: list[tuple[set[str], int]] = []

    def noted(backbone: Any, of_taps: Any, inputs: Any) -> Any:
        seen.append(({tap.tower for tap in of_taps}, len(inputs["pixel_values"])))
        return vectors_of(backbone, of_taps, inputs)

    monkeypatch.setattr("hf_transfer.frozen.taps.vectors_of", noted)
    return seen


@pytest.fixture
def quick_heads(monkeypatch: pytest.MonkeyPatch) -> None:
    """Heads are solved with one regularisation, which takes a tenth of the time: figures do not matter."""
    monkeypatch.setattr(
        "hf_transfer.advice.scoring.predicted_out_of_fold",
        lambda *given, **more: predicted_out_of_fold(*given, **more | {"search": Search([1.0])}),
    )


def named(folder: Path, image: str, text: str) -> str:
    return f"{folder / image} + {folder / text}"


def write_settings(folder: Path, given: Path, settings: dict[str, str]) -> Path:
    """A file of settings of a run."""
    values = {"recipe": "multimodal", "dataset_name": str(given / "data"), **settings}
    (folder / "run.yaml").write_text(yaml.safe_dump(values), encoding="utf-8")
    return folder / "run.yaml"


def recommended(printed: str) -> MultimodalConfig:
    """The settings of the first command that `rank` prints."""
    command = next(line for line in printed.splitlines() if "python recipes/multimodal.py" in line)
    return parse(MultimodalConfig, shlex.split(command)[2:])


@pytest.mark.slow
@pytest.mark.usefixtures("quick_heads")
def test_every_combination_is_ranked_and_each_tower_sees_each_row_once(
    rank: Rank, given: Path, towers: list[str | Path], passes: list[tuple[set[str], int]], tmp_path: Path
) -> None:
    done = rank(given / "data", *towers)
    assert done.code == 0, done.err
    content = ranking(tmp_path)
    pairs = [(image, text) for image in ("vit", "resnet_basic") for text in ("bert", "distilbert")]
    assert {one["model_name_or_path"] for one in content["models"]} == {named(given, *pair) for pair in pairs}
    assert (content["rows"], content["failed"]) == (ROWS, {})
    scores = [one["probe"]["score"] for one in content["models"]]
    assert scores == sorted(scores, reverse=True)
    for one in content["models"]:
        assert one["model_name_or_path"] == f"{one['image_model_name_or_path']} + {one['text_model_name_or_path']}"
        assert {part.partition("_")[0] for part in one["features"].split(" + ")} == {"image", "text"}
        assert one["truncated"] == 0
    for tower in ("image", "text"):
        assert sum(samples for read, samples in passes if tower in read) == 2 * ROWS, "two models, one pass each"
    # Both of the first combination, then only what is new of each.
    kinds = [read for read, _ in passes]
    assert [read for place, read in enumerate(kinds) if place == 0 or read != kinds[place - 1]] == [
        {"image", "text"}, {"text"}, {"image"},
    ]  # fmt: skip
    best = content["models"][0]
    image, text = (best[f"{tower}_model_name_or_path"] for tower in ("image", "text"))
    command = f"python recipes/multimodal.py --image_model_name_or_path {image} --text_model_name_or_path {text} "
    out = f"--output_dir runs/{Path(image).name}+{Path(text).name}"
    assert any(line.strip().startswith(command) and line.endswith(out) for line in done.out.splitlines())
    assert any(line.startswith(f"{Path(image).name} + {Path(text).name} ") for line in done.out.splitlines())
    assert "Features: image_head, text_head: the pooled vector of a tower" in done.out


@pytest.mark.slow
def test_features_of_other_combinations_change_no_figure(
    rank: Rank, given: Path, towers: list[str | Path], tmp_path: Path
) -> None:
    """Of the last combination all features come from the stores of the others."""
    assert rank(given / "data", *towers).code == 0
    stored = {one["model_name_or_path"]: same(one) for one in ranking(tmp_path)["models"]}
    last = ["--image_models", given / "resnet_basic", "--text_models", given / "distilbert"]
    assert rank(given / "data", *last, "--cache_dir", tmp_path / "other").code == 0
    (alone,) = ranking(tmp_path)["models"]
    again = stored[alone["model_name_or_path"]]
    assert again["probe"]["score"] == alone["probe"]["score"]
    for name in ("features", "parameters", "truncated"):
        assert again[name] == alone[name]
    for name in ("neighbours", "log_evidence", "h_score"):
        assert again[name] == pytest.approx(alone[name], rel=1e-4)


@pytest.mark.usefixtures("quick_heads")
def test_the_test_split_is_not_read(rank: Rank, given: Path, tmp_path: Path) -> None:
    """A test split that would be an error in a run changes nothing: its rows have other classes."""
    one = ["--image_models", given / "vit", "--text_models", given / "bert"]
    for seed, (name, count) in enumerate({"train": ROWS, "validation": 16, "test": 8}.items()):
        write_split(tmp_path / "data" / name, count, seed=seed)
    assert rank(tmp_path / "data", *one).code == 0
    before = [same(model) for model in ranking(tmp_path)["models"]]
    wrong = [{**row, "label": "unknown"} for row in rows_of(8, seed=2)]
    write_table(tmp_path / "data" / "test" / "metadata.csv", wrong)
    done = rank(tmp_path / "data", *one)
    assert done.code == 0, done.err
    assert [same(model) for model in ranking(tmp_path)["models"]] == before


@pytest.mark.slow
@pytest.mark.usefixtures("quick_heads")
def test_a_dual_encoder_is_ranked_beside_two_models(rank: Rank, given: Path, tmp_path: Path) -> None:
    save_dual(tmp_path / "clip", "clip")
    done = rank(
        given / "data", "--recipe", "multimodal", "--models", tmp_path / "clip", "--image_models", given / "vit",
        "--text_models", given / "bert",
    )  # fmt: skip
    assert done.code == 0, done.err
    models = {one["model_name_or_path"] for one in ranking(tmp_path)["models"]}
    assert models == {str(tmp_path / "clip"), named(given, "vit", "bert")}
    assert f"python recipes/multimodal.py --model_name_or_path {tmp_path / 'clip'} " in done.out


@pytest.mark.slow
@pytest.mark.usefixtures("quick_heads")
def test_the_best_pairs_are_fine_tuned(rank: Rank, given: Path, towers: list[str | Path], tmp_path: Path) -> None:
    trained = ["--race", "--num_train_epochs", "1", "--learning_rate", "1e-3", "--augmentation", "none"]
    done = rank(given / "data", *towers, *trained)
    assert done.code == 0, done.err
    raced = ranking(tmp_path)["race"]
    assert (raced["strategy"], raced["rows"], raced["failed"]) == ("full", 16, {})
    names = [one["model_name_or_path"] for one in raced["models"]]
    assert len(names) == 2
    assert named(given, "vit", "bert") in names, "it was named first"
    assert sorted(path.name.rpartition("-")[0] for path in (tmp_path / "ranking-race").iterdir()) == sorted(
        "+".join(Path(part).name for part in name.split(" + ")) for name in names
    )


BY_TOWER = {
    "one tower": {"strategy": "full", "image_strategy": "lora"},
    "both towers": {"image_strategy": "lora", "text_strategy": "full"},
}


@pytest.mark.parametrize("name", BY_TOWER)
@pytest.mark.usefixtures("quick_heads")
def test_a_file_with_strategies_of_towers_ranks_as_without_them(
    name: str, rank: Rank, given: Path, tmp_path: Path
) -> None:
    """What trains a run has no part in a ranking; the command that trains the best one still has it."""
    models = ["--image_models", given / "vit", "--text_models", given / "bert"]
    assert rank(given / "data", *models).code == 0
    before = [same(one) for one in ranking(tmp_path)["models"]]
    file = write_settings(tmp_path, given, BY_TOWER[name])
    done = rank(given / "data", "--config", file, *models)
    assert done.code == 0, done.err
    assert [same(one) for one in ranking(tmp_path)["models"]] == before
    strategy = recommended(done.out).strategy
    assert {"image_strategy": strategy.image_strategy, "text_strategy": strategy.text_strategy}.items() <= (
        {"text_strategy": None} | BY_TOWER[name]
    ).items()


@pytest.mark.slow
@pytest.mark.parametrize("name", BY_TOWER)
@pytest.mark.usefixtures("quick_heads")
def test_a_race_trains_both_towers_with_its_own_strategy(name: str, rank: Rank, given: Path, tmp_path: Path) -> None:
    """The command that repeats it does, too, whatever the file says of towers."""
    models = ["--image_models", given / "vit", given / "resnet_basic", "--text_models", given / "bert"]
    file = write_settings(tmp_path, given, BY_TOWER[name])
    race = ["--race", "--race_strategy", "bitfit", "--num_train_epochs", "1"]
    done = rank(given / "data", "--config", file, *models, *race)
    assert done.code == 0, done.err
    assert ranking(tmp_path)["race"]["strategy"] == "bitfit"
    assert recommended(done.out).strategy.by_tower() == {"image": "bitfit", "text": "bitfit"}


def test_a_race_of_one_head_on_both_towers_needs_a_file_without_their_strategies(
    rank: Rank, given: Path, tmp_path: Path
) -> None:
    models = ["--image_models", given / "vit", "--text_models", given / "bert"]
    file = write_settings(tmp_path, given, BY_TOWER["both towers"])
    done = rank(given / "data", "--config", file, *models, "--race", "--race_strategy", "deep_probe")
    assert done.code == 2
    assert f"Found:    image_strategy in {file}" in done.err
    assert f"leave image_strategy and text_strategy out of {file}, or name another --race_strategy" in done.err


@pytest.mark.usefixtures("quick_heads")
def test_python_gets_the_same(rank: Rank, given: Path, tmp_path: Path) -> None:
    assert rank(given / "data", "--image_models", given / "vit", "--text_models", given / "bert").code == 0
    got = ht.rank(
        given / "data", image_models=[given / "vit"], text_models=[given / "bert"], cache_dir=tmp_path / "cache"
    )
    assert [same(one) for one in got.as_json()["models"]] == [same(one) for one in ranking(tmp_path)["models"]]


WRONG: dict[str, tuple[str, list[str]]] = {
    "an image model twice": (
        "--image_models vit ./vit --text_models bert",
        ["Expected: each model once in --image_models", "Found:    vit and ./vit, which are the same"],
    ),
    "a text model twice": ("--image_models vit --text_models bert bert", ["each model once in --text_models"]),
    "a text model among image models": (
        "--image_models vit bert --text_models bert",
        ["Found:    bert, a bert model", "Do this:  choose an image model in --image_models"],
    ),
    "an image model among text models": (
        "--image_models vit --text_models bert vit",
        ["Found:    vit, a vit model", "Do this:  choose a text model in --text_models"],
    ),
    "a dual encoder among image models": (
        "--image_models clip --text_models bert",
        ["Expected: in --image_models a model of images alone", "Do this:  name it in --models, for both towers"],
    ),
    "a model of one part for both": (
        "--recipe multimodal --models vit", ["Expected: a model with a tower for images and one for texts"],
    ),
    "a model that is not there": ("--image_models vit ./nothing --text_models bert", ["Found:    no folder nothing"]),
    "images alone": ("--image_models vit", ["Found:    --image_models alone", "Do this:  add the other list"]),
    "texts alone": ("--text_models bert", ["Found:    --text_models alone"]),
    "towers for samples of one part": (
        "--recipe vision --image_models vit --text_models bert",
        ["--image_models and --text_models with --recipe multimodal", "Found:    --recipe vision"],
    ),
    "a strategy of a tower": (
        "--image_models vit --text_models bert --image_strategy lora", ["Do this:  leave --image_strategy out"],
    ),
    "a setting of steps": (
        "--image_models vit --text_models bert --learning_rate 1e-3", ["--learning_rate has no effect"],
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_mistakes_are_answered_before_data_are_read(
    name: str, rank: Rank, given: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    flags, words = WRONG[name]
    if "clip" in flags and not (given / "clip").exists():
        save_dual(given / "clip", "clip")

    def read(*_: object, **__: object) -> None:
        raise AssertionError("data were read")

    monkeypatch.setattr("hf_transfer.data.checked.open_data", read)
    monkeypatch.chdir(given)
    done = rank(given / "data", *flags.split())
    assert done.code == 2
    for line in words:
        assert line in done.err
    assert "Traceback" not in done.err
    assert not (tmp_path / "ranking.json").exists()


def test_reasons_of_all_combinations_are_named_if_none_can_be_used(
    rank: Rank, given: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(run: Any) -> Any:
        raise MemoryError(run.checkpoint.name)

    monkeypatch.setattr(scoring, "_scored", full)
    text: list[str | Path] = ["--text_models", given / "bert", given / "distilbert"]
    done = rank(given / "data", "--image_models", given / "vit", *text)
    assert done.code == 2
    assert "Expected: at least one model that can be used with these data" in done.err
    for name in ("bert", "distilbert"):
        assert f"{named(given, 'vit', name)}: Expected: " in done.err


@pytest.mark.parametrize(
    ("lists", "words"),
    [
        ({"image_models": "vit", "text_models": ["bert"]}, "image_models: a list of names"),
        ({"image_models": ["vit"]}, "Found:    --image_models alone"),
        ({}, r"models: a list of names\nFound:    \(\)"),
    ],
)
def test_python_gets_an_error_that_says_what_to_do(lists: dict[str, Any], words: str) -> None:
    with pytest.raises(ht.UserError, match=words):
        ht.rank("data", **lists)
