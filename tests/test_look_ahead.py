"""What `hf-transfer doctor` prints of a machine and of a run, without leaving files."""

import re
import time
from pathlib import Path

import pytest
import yaml
from torch import Tensor

import hf_transfer as ht
from hf_transfer import command_line
from hf_transfer import look_ahead as looking
from hf_transfer.modalities.table import recipe_of
from hf_transfer.settings import training as settings_of_training
from hf_transfer.settings.parsing import load_settings
from hf_transfer.targets.classes import Classes
from hf_transfer.targets.target import LossOptions, LossSums
from tests.conftest import REPOSITORY

SECRET = "hf_" + "a1B2" * 9


# Texts for training, in six classes.
TRAINED = 24
# What a solved head does not read.
STEPWISE = ("num_train_epochs", "learning_rate", "per_device_train_batch_size")


def printed(capsys: pytest.CaptureFixture[str], *arguments: str) -> list[str]:
    """What `hf-transfer doctor` prints."""
    command_line.main(["doctor", *arguments])
    return capsys.readouterr().out.splitlines()


def settings(folder: Path, name: str, **more: object) -> Path:
    """A config of the samples, with other settings, that writes into the folder."""
    values = yaml.safe_load((REPOSITORY / f"recipes/configs/{name}.yaml").read_text())
    values |= {"output_dir": str(folder / "out"), "cache_dir": str(folder), **more}
    if values["strategy"] == "linear_probe":
        values = {key: value for key, value in values.items() if key not in STEPWISE}
    path = folder / "settings.yaml"
    path.write_text(yaml.safe_dump(values))
    return path


@pytest.mark.parametrize("token", [SECRET, None])
def test_of_the_token_only_its_presence_is_printed(
    token: str | None, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("HF_TOKEN", raising=False)
    if token:
        monkeypatch.setenv("HF_TOKEN", token)
    lines = printed(capsys)
    shown = [line.split(maxsplit=4)[-1] for line in lines if line.startswith("token for the Hub")]
    assert shown == ["present" if token else "none"]
    assert not any(SECRET in line for line in lines)


@pytest.mark.parametrize("strategy", ["linear_probe", "partial", "gradual", "full", "lora"])
def test_a_run_is_measured_and_leaves_no_files(
    strategy: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = settings(tmp_path, "digits", strategy=strategy, num_train_epochs=4)
    output = "\n".join(printed(capsys, "--config", str(path)))
    assert f"the vision recipe, --strategy {strategy}" in output
    assert "100 train, 228 validation, 269 test images of 10 classes." in output
    assert re.search(r"\nAbout \d+ (s|min|h) of computing without a store\.\n", output)
    assert ("Frozen store: " in output) == (strategy in ("partial", "gradual"))
    assert re.search(r"\nMemory: [\d.]+ [MG]B for a few steps without an optimizer", output)
    assert f"\nDisk of --output_dir {tmp_path / 'out'}: up to " in output
    assert not (tmp_path / "out").exists()
    assert not list(tmp_path.rglob("*.chunk*"))


@pytest.mark.slow
def test_without_a_strategy_it_says_what_would_be_read_and_tried(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = settings(tmp_path, "digits", strategy="auto", trainable_layers=1)
    output = "\n".join(printed(capsys, "--config", str(path)))
    assert "the vision recipe, --strategy auto" in output
    on_data, _, tried = output.partition("\nFirst ")
    assert "\n100 train, 228 validation, 269 test images of 10 classes.\n" in on_data
    assert re.match(r"(linear|deep)_probe, about \d+ s: ", tried)
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_a_run_on_texts_is_measured_too(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = "\n".join(printed(capsys, "--config", str(settings(tmp_path, "intents", max_train_samples_per_class=8))))
    assert "48 train, 150 validation, 480 test texts of 6 classes." in output
    assert "the text recipe, --strategy lp_ft" in output


def test_an_evaluation_is_measured_too(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    few = {"strategy": "linear_probe", "max_train_samples_per_class": 4, "cache_dir": str(tmp_path)}
    ht.train("sample:digits", "sample:vit-glyphs", output_dir=tmp_path / "run", augmentation="none", **few)
    path = tmp_path / "settings.yaml"
    values = {"recipe": "vision", "dataset_name": "sample:digits", "model_name_or_path": str(tmp_path / "run/model")}
    path.write_text(yaml.safe_dump(values | {"evaluate_only": True, "output_dir": str(tmp_path / "out")}))
    output = "\n".join(printed(capsys, "--config", str(path)))
    assert re.search(r"\nAbout \d+ s of evaluation\.\nMemory: [\d.]+ [MG]B for a few batches\.$", output)
    assert not (tmp_path / "out").exists()


def test_the_time_grows_with_the_epochs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And with the batches of an epoch."""
    clock = iter(range(1_000_000))
    monkeypatch.setattr(time, "perf_counter", lambda: float(next(clock)))
    times = {}
    for epochs in (2, 6):
        path = settings(tmp_path, "digits", num_train_epochs=epochs, strategy="full", per_device_eval_batch_size=64)
        config = load_settings(recipe_of(path), path)
        (times[epochs],) = [line for line in looking.look_ahead(config) if line.startswith("About ")]
    # With a clock that ticks once a batch: 4 batches of training and 4 of validation in an epoch.
    assert times == {epochs: f"About {8 * epochs} s of computing without a store." for epochs in (2, 6)}


@pytest.mark.parametrize(
    ("alpha", "samples_without", "passes"), [(0.0, 500, 1), (1.0, 1, 2), (None, TRAINED + 1, 2), (None, TRAINED, 1)]
)
def test_a_batch_is_timed_with_as_many_passes_as_in_training(
    alpha: float | None, samples_without: int, passes: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By default the number of training texts decides; of validation there are more."""
    monkeypatch.setattr(settings_of_training, "SAMPLES_WITHOUT_RDROP", samples_without)
    rows: list[int] = []

    def count(target: Classes, outputs: Tensor, targets: Tensor, counted: Tensor, options: LossOptions) -> LossSums:
        rows.append(len(targets))
        return loss(target, outputs, targets, counted, options)

    loss = Classes.loss
    monkeypatch.setattr(Classes, "loss", count)
    more = {"max_train_samples_per_class": TRAINED // 6, "strategy": "full"}
    more |= {} if alpha is None else {"rdrop_alpha": alpha}
    path = settings(tmp_path, "intents", per_device_train_batch_size=8, per_device_eval_batch_size=30, **more)
    assert list(looking.look_ahead(load_settings(recipe_of(path), path)))
    # Five batches of validation, of which four are timed, and three of training.
    assert rows == [30] * 4 + [passes * 8] * 3


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
    output = capsys.readouterr().err
    assert f"Expected: a line 'recipe: NAME' in {path}, with one of vision, text" in output
    assert found in output


def test_an_error_of_the_run_is_an_error_of_the_doctor(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        printed(capsys, "--config", str(settings(tmp_path, "digits", strategy="partial", trainable_layers=99)))
    assert ended.value.code == 2
    assert "99" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("seconds", "words"), [(0.4, "0 s"), (119, "119 s"), (120, "2 min"), (7199, "120 min"), (7200, "2.0 h")]
)
def test_times_are_in_seconds_minutes_or_hours(seconds: float, words: str) -> None:
    assert looking.in_words(seconds) == words


@pytest.mark.slow
def test_of_auto_it_says_what_would_be_tried(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    path = settings(tmp_path, "digits", strategy="auto", max_train_samples_per_class=4)
    lines = printed(capsys, "--config", str(path))
    start = lines.index(f"{path}: the vision recipe, --strategy auto")
    assert lines[start + 1] == "40 train, 228 validation, 269 test images of 10 classes."
    planned = next(number for number, line in enumerate(lines) if line.startswith("First "))
    first, second, third, *others = lines[planned:]
    assert re.match(r"First (linear|deep)_probe, about \d+ s: A head on ", first)
    assert re.match(r"Then lp_ft, about \d+ s: All layers learn, ", second)
    assert third.startswith("With --auto_seconds gradual, about ")
    assert any(line.startswith("Not lora: ") for line in others)
    assert not (tmp_path / "out").exists()
