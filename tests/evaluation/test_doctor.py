"""A look at a machine, and ahead at a run, that leaves nothing behind."""

import re
import time
from pathlib import Path
from typing import Any

import pytest
import yaml
from torch import Tensor
from torch.nn.functional import cross_entropy

from hf_transfer import command_line
from hf_transfer.evaluation import doctor
from hf_transfer.parsing import load, recipe_of
from tests.conftest import REPOSITORY

SECRET = "hf_" + "a1B2" * 9


def looked(capsys: pytest.CaptureFixture[str], *arguments: str) -> list[str]:
    """What `hf-transfer doctor` prints."""
    command_line.main(["doctor", *arguments])
    return capsys.readouterr().out.splitlines()


def settings(folder: Path, name: str, **more: object) -> Path:
    """A config of the samples, with other settings, that writes into the folder."""
    values = yaml.safe_load((REPOSITORY / f"recipes/configs/{name}.yaml").read_text())
    path = folder / "settings.yaml"
    path.write_text(yaml.safe_dump(values | {"output_dir": str(folder / "out"), "cache_dir": str(folder), **more}))
    return path


@pytest.mark.parametrize("token", [SECRET, None])
def test_of_the_token_only_its_presence_is_told(
    token: str | None, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("HF_TOKEN", raising=False)
    if token:
        monkeypatch.setenv("HF_TOKEN", token)
    lines = looked(capsys)
    told = [line.split(maxsplit=4)[-1] for line in lines if line.startswith("token for the Hub")]
    assert told == ["present" if token else "none"]
    assert not any(SECRET in line for line in lines)


@pytest.mark.parametrize("strategy", ["linear_probe", "partial", "gradual", "full", "lora"])
def test_a_run_is_looked_at_and_nothing_stays(
    strategy: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = settings(tmp_path, "digits", strategy=strategy, num_train_epochs=4)
    said = "\n".join(looked(capsys, "--config", str(path)))
    assert f"the vision recipe, --strategy {strategy}" in said
    assert "100 train, 228 validation, 269 test images of 10 classes." in said
    assert re.search(r"\nAbout \d+ (s|min|h) of computing without a store\.\n", said)
    assert ("Frozen store: " in said) == (strategy in ("partial", "gradual"))
    assert re.search(r"\nMemory: [\d.]+ [MG]B for a few steps without an optimizer", said)
    assert f"\nDisk of --output_dir {tmp_path / 'out'}: up to " in said
    assert not (tmp_path / "out").exists()
    assert not list(tmp_path.rglob("*.chunk*"))


def test_texts_are_looked_at_too(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    said = "\n".join(looked(capsys, "--config", str(settings(tmp_path, "intents", max_train_samples_per_class=8))))
    assert "48 train, 150 validation, 480 test texts of 6 classes." in said
    assert "the text recipe, --strategy lp_ft" in said


def test_the_time_grows_with_the_epochs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And with the batches of an epoch."""
    clock = iter(range(1_000_000))
    monkeypatch.setattr(time, "perf_counter", lambda: float(next(clock)))
    found = {}
    for epochs in (2, 6):
        config = load(recipe_of(path := settings(tmp_path, "digits", num_train_epochs=epochs, strategy="full")), path)
        said = [sentence for sentence in doctor.run_ahead(config) if sentence.startswith("About ")]
        found[epochs] = said[0]
    # With a clock that ticks once a batch: 4 batches of training and 4 of validation in an epoch.
    assert found == {epochs: f"About {8 * epochs} s of computing without a store." for epochs in (2, 6)}


@pytest.mark.parametrize(("alpha", "looks"), [(0.0, 1), (1.0, 2)])
def test_a_batch_is_timed_as_often_as_training_looks_at_it(
    alpha: float, looks: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows: list[int] = []

    def count(logits: Tensor, labels: Tensor, **more: Any) -> Tensor:
        rows.append(len(labels))
        return cross_entropy(logits, labels, **more)

    monkeypatch.setattr(doctor, "cross_entropy", count)
    more = {"max_train_samples_per_class": 4, "strategy": "full", "rdrop_alpha": alpha}
    path = settings(tmp_path, "intents", per_device_train_batch_size=8, per_device_eval_batch_size=30, **more)
    assert list(doctor.run_ahead(load(recipe_of(path), path)))
    # Five batches of validation, of which four are timed, and three of training.
    assert rows == [30] * 4 + [looks * 8] * 3


@pytest.mark.parametrize(
    ("content", "found"),
    [("strategy: full\n", "Found:    None"), ("recipe: audio\n", "Found:    audio")],
)
def test_a_file_that_names_no_recipe_of_ours_is_refused(
    content: str, found: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "c.yaml"
    path.write_text(content)
    with pytest.raises(SystemExit) as ended:
        command_line.main(["doctor", "--config", str(path)])
    assert ended.value.code == 2
    said = capsys.readouterr().err
    assert f"Expected: a line 'recipe: NAME' in {path}, with one of vision, text" in said
    assert found in said


def test_what_the_run_would_stop_at_stops_the_look(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        looked(capsys, "--config", str(settings(tmp_path, "digits", strategy="partial", trainable_layers=99)))
    assert ended.value.code == 2
    assert "99" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("seconds", "words"), [(0.4, "0 s"), (119, "119 s"), (120, "2 min"), (7199, "120 min"), (7200, "2.0 h")]
)
def test_times_are_said_as_people_say_them(seconds: float, words: str) -> None:
    assert doctor._in_words(seconds) == words
