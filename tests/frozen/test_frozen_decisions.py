"""Whether frozen layers are stored, and what the notes say."""

import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from hf_transfer.checkpoints.files import in_units
from hf_transfer.errors import UserError
from hf_transfer.frozen import prefix, store
from hf_transfer.frozen.prefix import FrozenPrefix
from hf_transfer.frozen.store import Store
from hf_transfer.training.devices import start_accelerator
from tests.frozen.frozen_task import HELD_OUT, SAMPLES, Task, assert_equal, damage, set_costs, texts


def notes_and_files(task: Task, **more: Any) -> tuple[list[str], int]:
    return task.run(**more).notes, len(task.files())


@pytest.mark.parametrize(
    ("costs", "epochs", "used", "seconds"),
    [
        ((1.0, 0.0, 0.0), 2, True, "34.0 s with it and 68.0 s"),
        ((1.0, 0.0, 0.0), 1, False, "34.0 s with it and 34.0 s"),
        ((1.0, 0.5, 0.5), 2, False, "85.0 s with it and 68.0 s"),
        ((1.0, 0.5, 0.25), 2, False, "68.0 s with it and 68.0 s"),
        ((1.0, 0.5, 0.25), 3, True, "76.5 s with it and 102.0 s"),
    ],
)
def test_auto_stores_if_that_takes_less_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
    costs: tuple[float, float, float], epochs: int, used: bool, seconds: str,
) -> None:  # fmt: skip
    """And a note shows the numbers."""
    set_costs(monkeypatch, *costs)
    monkeypatch.setattr(prefix, "free_bytes", lambda _: 10**9)
    task = Task(tmp_path)
    size = in_units((SAMPLES + HELD_OUT) * (5 * 24 * 4 + 9))
    notes, files = notes_and_files(task, cache_frozen="auto", num_train_epochs=epochs)
    sentence = (
        f"Frozen store: {'' if used else 'not used, '}3 of 6 groups, {size} (1 GB free), about {seconds} without for "
        f"these groups in {epochs} epochs."
    )
    assert (notes, files) == ([sentence], 2 if used else 0)
    assert sentence in capsys.readouterr().out


def test_notes_taken_earlier_do_not_change_and_new_ones_continue_those_of_an_earlier_process(tmp_path: Path) -> None:
    task = Task(tmp_path)
    config = task.config()
    model, groups = task.prepared(config)
    with start_accelerator(config) as accelerator:
        frozen = FrozenPrefix(model, groups, task.passes(accelerator, config))
    earlier = ["first"]
    frozen.notes = earlier
    frozen.note("second")
    taken = frozen.notes
    frozen.note("third")
    assert (frozen.notes, taken, earlier) == (["first", "second", "third"], ["first", "second"], ["first"])


def test_auto_measures_and_leaves_no_files(tmp_path: Path) -> None:
    """For one epoch a store never pays: each sample is still computed once, and also written and read."""
    task = Task.of(tmp_path, "vit")
    notes, files = notes_and_files(task, cache_frozen="auto", num_train_epochs=1)
    assert notes[0].startswith("Frozen store: not used, 3 of 6 groups, ")
    assert (len(notes), files, list((tmp_path / "frozen").glob("*"))) == (1, 0, [])


def test_auto_does_not_store_embeddings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They cost next to nothing."""
    set_costs(monkeypatch, 1.0, 0.0, 0.0)
    task = Task(tmp_path)
    assert notes_and_files(task, cache_frozen="auto", trainable_layers=3) == ([], 0)
    assert notes_and_files(task, cache_frozen="on", trainable_layers=3) == ([], 2)


def test_the_store_of_an_earlier_run_is_always_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is measured then."""
    task = Task.of(tmp_path, "vit")
    task.run()
    monkeypatch.setattr(prefix, "measured_costs", lambda *_: pytest.fail("there is nothing to decide"))
    monkeypatch.setattr(Store, "write", lambda *_: pytest.fail("it is stored already"))
    notes = task.run(cache_frozen="auto", num_train_epochs=1).notes
    assert notes == ["Frozen store: 3 of 6 groups, as an earlier run left it."]


def test_a_disk_that_is_too_small_is_reported_with_both_numbers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    set_costs(monkeypatch, 1.0, 0.0, 0.0)
    for module in (prefix, store):
        monkeypatch.setattr(module, "free_bytes", lambda _: 3_000)
    task = Task(tmp_path)
    notes, files = notes_and_files(task, cache_frozen="auto")
    assert (len(notes), files) == (1, 0)
    assert notes[0].startswith("Frozen store: not used, 3 of 6 groups, 16.6 kB (3 kB free), about ")
    with pytest.raises(UserError) as refused:
        task.run()
    assert "16.6 kB of disk for the activations of the frozen layers" in str(refused.value)
    assert f"3 kB free in {tmp_path / 'frozen'}" in str(refused.value)


@pytest.mark.parametrize(
    ("cycle", "more", "reason"),
    [
        (0, {}, "every epoch sees new views (--cache_views 0)"),
        (1, {"mixup_alpha": 0.2}, "samples are mixed with each other, differently in every epoch"),
        (1, {"cutmix_alpha": 0.2}, "samples are mixed with each other, differently in every epoch"),
    ],
)
def test_samples_that_never_repeat_are_not_stored(
    tmp_path: Path, cycle: int, more: dict[str, Any], reason: str
) -> None:
    task = Task(tmp_path, cycle=cycle)
    with pytest.raises(UserError, match="with --cache_frozen on a model whose frozen layers can be stored") as refused:
        task.run(**more)
    assert f"Found: {reason}" in " ".join(str(refused.value).split())
    assert notes_and_files(task, cache_frozen="auto", **more) == (
        [f"Frozen store: not used for 3 of 6 groups; {reason}."], 0,
    )  # fmt: skip


LEFT = "texts are padded on the left, so the outputs for one text depend on the others"


def padded_on_the_left(task: Task) -> Task:
    for rows in (task.rows, task.validation):
        rows.inputs = {name: column.flip(1) for name, column in rows.inputs.items()}
    return task


def test_texts_padded_on_the_left_are_not_stored(tmp_path: Path) -> None:
    task = padded_on_the_left(Task.of(tmp_path, "gpt2"))
    assert notes_and_files(task, cache_frozen="auto") == ([f"Frozen store: not used for 3 of 6 groups; {LEFT}."], 0)
    with pytest.raises(UserError, match="padded on the left"):
        task.run()


def test_padding_on_the_left_is_detected_although_the_first_texts_need_none(tmp_path: Path) -> None:
    task = Task.of(tmp_path, "gpt2")
    rows, _ = texts(task)
    for column in rows.inputs.values():
        column[[0, 1]] = column[int(rows.lengths.argmax())].clone()
    rows.lengths[[0, 1]] = rows.lengths.max()
    assert notes_and_files(padded_on_the_left(task), cache_frozen="auto")[0] == [
        f"Frozen store: not used for 3 of 6 groups; {LEFT}."
    ]


@pytest.fixture
def read_only(tmp_path: Path) -> Iterator[Callable[[Path], None]]:
    """Mounts a folder read-only on itself: not even root can write to it."""
    mounted: list[Path] = []

    def mount(folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        for options in ("bind", "remount,bind,ro"):
            command = ["mount", "-o", options, str(folder), str(folder)]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode:
                pytest.skip(f"NO READ-ONLY FOLDER COULD BE MOUNTED: {done.stderr.strip()}")
            if options == "bind":
                mounted.append(folder)

    yield mount
    for folder in mounted:
        # Lazily: files in it may still be mapped.
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def test_a_read_only_folder_is_an_error_only_if_the_store_was_asked_for(
    tmp_path: Path, read_only: Callable[[Path], None]
) -> None:
    read_only(tmp_path / "cache")
    task = Task(tmp_path / "cache")
    reason = "Frozen store: not used for 3 of 6 groups; Read-only file system"
    notes, files = notes_and_files(task, cache_frozen="auto")
    assert (files, len(notes)) == (0, 1)
    assert notes[0].startswith(reason)
    with pytest.raises(UserError) as refused:
        task.run()
    assert f"a folder for activations that can be written to: {tmp_path / 'cache'}" in str(refused.value)
    assert "Read-only file system" in str(refused.value)


@pytest.mark.parametrize("wanted", ["on", "auto"])
def test_a_complete_store_is_used_in_a_read_only_folder(
    tmp_path: Path, read_only: Callable[[Path], None], wanted: str
) -> None:
    task = Task.of(tmp_path / "cache", "vit")
    first = task.run()
    read_only(tmp_path / "cache")
    assert_equal(task.run(cache_frozen=wanted), first, task.validation)


def test_a_damaged_store_in_a_read_only_folder_is_an_error(tmp_path: Path, read_only: Callable[[Path], None]) -> None:
    task = Task(tmp_path / "cache")
    task.run()
    damage(next((tmp_path / "cache").rglob("*.safetensors")))
    read_only(tmp_path / "cache")
    with pytest.raises(UserError, match="Read-only file system"):
        task.run()
