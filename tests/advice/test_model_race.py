"""`hf-transfer rank --race` as a user runs it: models fine-tuned, and judged on validation rows."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from hf_transfer import run
from hf_transfer.advice.model_race import chosen_for_race
from hf_transfer.errors import user_error
from hf_transfer.targets.intervals import paired_interval
from hf_transfer.training import loop
from hf_transfer.whole_run import train
from tests.advice.conftest import Rank, ranking
from tests.advice.known import texts
from tests.advice.test_ranking import ranking_of, right, scored

TRAINED = ("--num_train_epochs", "2", "--learning_rate", "1e-3")


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Texts in three splits."""
    folder = texts(tmp_path / "data")
    texts(folder, 24, name="validation.csv", seed=1)
    return texts(folder, 12, name="test.csv", seed=2)


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The models that are trained, as long as the test runs."""
    names: list[str] = []
    train_of_run = run.Run.train

    def noted(self: run.Run) -> Any:
        names.append(Path(self.checkpoint.name).name)
        return train_of_run(self)

    monkeypatch.setattr(run.Run, "train", noted)
    return names


def race(folder: Path) -> dict[str, Any]:
    content: dict[str, Any] = ranking(folder)["race"]
    return content


def answers(folder: Path, model: str) -> npt.NDArray[np.float64]:
    """Which validation rows a model of a race has answered right: 1 or 0."""
    (path,) = (folder / "ranking-race").glob(f"{Path(model).name}-*/raced.json")
    return np.array(json.loads(path.read_text(encoding="utf-8"))["scores"])


def figures(folder: Path) -> list[tuple[str, float]]:
    return [(model["model_name_or_path"], model["score"]) for model in race(folder)["models"]]


def test_the_race_of_auto_pooling_reads_the_pooling_of_the_model_as_the_ranking_does(
    rank: Rank, models: tuple[Path, Path], data: Path, tmp_path: Path
) -> None:
    assert rank(data, "--models", models[0], "--race", *TRAINED).code == 0
    scores = figures(tmp_path)
    done = rank(data, "--models", models[0], "--race", *TRAINED, "--pooling", "auto")
    assert done.code == 0, done.err
    assert figures(tmp_path) == scores


def test_models_are_fine_tuned_and_compared_on_validation_rows(
    rank: Rank, models: tuple[Path, Path], data: Path, tmp_path: Path
) -> None:
    """The figures are those of a run with the same settings, and the interval is that of its answers."""
    done = rank(data, "--models", *models, "--race", *TRAINED)
    assert done.code == 0, done.err
    content = race(tmp_path)
    assert (content["strategy"], content["rows"], content["failed"]) == ("full", 24, {})
    first, second = content["models"]
    assert {first["model_name_or_path"], second["model_name_or_path"]} == {str(model) for model in models}
    assert first["score"] >= second["score"]
    for model in content["models"]:
        name = model["model_name_or_path"]
        alone = train(
            data, name, output_dir=tmp_path / f"run of {Path(name).name}", cache_dir=str(tmp_path / "other cache"),
            strategy="full", num_train_epochs=2, learning_rate=1e-3,
        )  # fmt: skip
        assert alone.results is not None
        assert model["metrics"] == alone.metrics["validation"]
        assert model["best_epoch"] == alone.results.best_epoch
        assert model["score"] == model["metrics"]["accuracy"]
        assert model["seconds"] > 0
    best, other = (answers(tmp_path, model["model_name_or_path"]) for model in content["models"])
    assert second["behind_first"] == list(paired_interval(best, other, np.arange(24)))
    lines = [line.split() for line in done.out.partition("Fine-tuned (--strategy full)")[2].splitlines()]
    assert [words[0] for words in lines[2:4]] == [Path(model["model_name_or_path"]).name for model in content["models"]]
    assert f"{first['score']:.3f}" in lines[2]
    assert "--learning_rate 1e-3 --strategy full --output_dir" in done.out


@pytest.mark.slow
def test_a_race_does_not_read_the_test_split(
    rank: Rank, models: tuple[Path, Path], data: Path, tmp_path: Path, trained: list[str]
) -> None:
    """A test split that would be an error in a run changes nothing: other labels, and rows without a text."""
    assert rank(data, "--models", *models, "--race", *TRAINED).code == 0
    before = figures(tmp_path)
    (data / "test.csv").write_text("text,label\n,unknown class\n,a\nword1,another class\n", encoding="utf-8")
    done = rank(data, "--models", *models, "--race", *TRAINED)
    assert done.code == 0, done.err
    assert len(trained) == 4, "a file of the data has changed, so models are trained again"
    assert figures(tmp_path) == before


@pytest.mark.slow
def test_what_is_finished_is_not_trained_again(
    rank: Rank, models: tuple[Path, Path], data: Path, tmp_path: Path, trained: list[str]
) -> None:
    """With other settings it is; a race keeps neither models nor checkpoints."""
    assert rank(data, "--models", *models, "--race", *TRAINED).code == 0
    before = figures(tmp_path)
    assert sorted(trained) == ["bert", "distilbert"]
    assert rank(data, "--models", *models, "--race", *TRAINED).code == 0
    assert (len(trained), figures(tmp_path)) == (2, before)
    assert rank(data, "--models", *models, "--race", *TRAINED, "--race_strategy", "linear_probe").code == 2
    assert rank(data, "--models", *models, "--race", "--race_strategy", "linear_probe").code == 0
    assert (len(trained), race(tmp_path)["strategy"]) == (4, "linear_probe")
    assert not [path for path in (tmp_path / "ranking-race").rglob("*") if path.name in ("model", "checkpoints")]


@pytest.mark.slow
def test_an_interrupted_race_leaves_the_ranking_and_resumes(
    rank: Rank, models: tuple[Path, Path], data: Path, tmp_path: Path, trained: list[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """The second training is interrupted behind its last epoch: the first epoch is not trained again."""
    assert rank(data, "--models", *models, "--race", *TRAINED, "--save_steps", "1").code == 0
    whole = figures(tmp_path)
    trained.clear()
    for path in (tmp_path / "ranking-race").rglob("raced.json"):
        path.unlink()
    with monkeypatch.context() as patched:
        finish = run.Run._finished_target

        def interrupted(self: run.Run) -> Any:
            if len(trained) == 2:
                raise KeyboardInterrupt
            return finish(self)

        patched.setattr(run.Run, "_finished_target", interrupted)
        assert rank(data, "--models", *models, "--race", *TRAINED, "--save_steps", "1").code == 130
    content = ranking(tmp_path)
    assert len(content["models"]) == 2
    assert "race" not in content
    train_epoch, epochs = loop.train_epoch, [0]

    def counted(*given: Any) -> Any:
        epochs[0] += 1
        return train_epoch(*given)

    monkeypatch.setattr(loop, "train_epoch", counted)
    assert rank(data, "--models", *models, "--race", *TRAINED, "--save_steps", "1").code == 0
    assert (len(trained), epochs) == (3, [1])
    assert figures(tmp_path) == whole


def test_a_model_that_fails_in_the_race_is_named_with_its_reason(
    rank: Rank, models: tuple[Path, Path], data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train_of_run = run.Run.train

    def failing(self: run.Run) -> Any:
        if self.checkpoint.name == str(models[0]):
            raise user_error(expected="room for a model", found="a full disk", do="make room")
        return train_of_run(self)

    monkeypatch.setattr(run.Run, "train", failing)
    done = rank(data, "--models", *models, "--race", *TRAINED)
    assert done.code == 0, done.err
    assert [name for name, _ in figures(tmp_path)] == [str(models[1])]
    assert race(tmp_path)["failed"] == {
        str(models[0]): "Expected: room for a model\nFound:    a full disk\nDo this:  make room"
    }
    assert "bert was not fine-tuned.\n  Expected: room for a model" in done.out
    assert done.out.count("python recipes/text.py") == 1


def test_a_race_without_a_file_leaves_nothing_behind(
    rank_without_output: Callable[..., int], models: tuple[Path, Path], data: Path, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "temporary"))
    assert rank_without_output(data, "--models", models[0], "--race", *TRAINED) == 0
    assert not list((tmp_path / "temporary").glob("hf_transfer-race-*"))


ORDER = [scored("a", right(0.5)), scored("b", right(0.9)), scored("c", right(0.7)), scored("d", right(0.6))]


@pytest.mark.parametrize(
    ("named", "count", "chosen"),
    [
        ("abcd", 2, "ba"), ("bacd", 2, "bc"), ("abcd", 3, "bac"), ("cabd", 3, "bcd"), ("abcd", 9, "bacd"),
        ("xabcd", 2, "ba"),
    ],
    ids=["best and first", "first is best", "three", "first is second", "all", "first cannot be used"],
)  # fmt: skip
def test_the_best_by_evidence_and_the_one_that_was_named_first_are_raced(named: str, count: int, chosen: str) -> None:
    assert chosen_for_race(ranking_of(*ORDER), list(named), count) == list(chosen)


WRONG: dict[str, tuple[list[str], str]] = {
    "one model": (["--race", "1"], "--race of at least 2"),
    "no number": (["--race", "two"], "invalid int value"),
    "a strategy without a race": (["--race_strategy", "full"], "--race_strategy with --race"),
    "a strategy that does not exist": (["--race", "--race_strategy", "fulll"], "invalid choice: 'fulll'"),
    "the strategy of a recipe": (["--race", "--strategy", "full"], "say --race_strategy"),
    "a setting of another strategy": (["--race", "--trainable_layers", "2"], "--trainable_layers has no effect"),
}


@pytest.mark.parametrize("name", WRONG)
def test_mistakes_are_answered_before_anything_is_loaded(name: str, rank: Rank, tmp_path: Path) -> None:
    flags, words = WRONG[name]
    done = rank(tmp_path, "--recipe", "text", "--models", "sample:minilm", *flags)
    assert done.code == 2
    assert words in done.err
    assert "Do this:" in done.err
    assert not (tmp_path / "ranking.json").exists()
