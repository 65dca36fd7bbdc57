"""Stores: what is written is read; what is damaged, alien or half there is not."""

import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch

from hf_transfer.training import store as store_module
from hf_transfer.training.store import Column, Store
from tests.training.stored_samples import COLUMNS, chunk_files, samples

pytestmark = pytest.mark.usefixtures("small_chunks")
# What a header may take.
HEADER = 1024


MEGABYTE = 1 << 20


@pytest.mark.parametrize(
    "positions",
    [
        range(30),
        range(29, -1, -1),
        np.random.default_rng(1).permutation(30).tolist(),
        [3, 29, 3, 3, 0, 29],
        [14],
        [2, 0, 1],
    ],
    ids=["forwards", "backwards", "mixed", "repeated", "one", "of one chunk"],
)
def test_what_is_written_is_read_in_any_order(positions: Sequence[int], tmp_path: Path) -> None:
    given = samples()
    given.write(given.store(tmp_path))
    store = given.store(tmp_path)
    assert store.complete
    given.agrees(store, positions)


def test_chunks_are_read_as_they_lie_on_disk(tmp_path: Path) -> None:
    given = samples()
    store = given.write(given.store(tmp_path))
    for number, positions in enumerate(store.chunks):
        tensors, labels = store.chunk(number)
        assert torch.equal(labels, given.labels[positions.start : positions.stop])
        for found, expected in zip(tensors, given.joined(positions), strict=True):
            assert torch.equal(found, expected)


def test_chunks_hang_on_the_data_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every sample in one chunk, in order; none of many samples or bytes, but never of no sample."""
    given = samples()
    store = given.store(tmp_path)
    assert [len(chunk) for chunk in store.chunks] == [7, 7, 7, 7, 2]
    assert [position for chunk in store.chunks for position in chunk] == list(range(30))
    assert given.store(tmp_path, model="other").chunks == store.chunks
    monkeypatch.setattr(store_module, "CHUNK_BYTES", store.bytes // 10 + 1)
    assert [len(chunk) for chunk in given.store(tmp_path).chunks] == [3] * 10
    monkeypatch.setattr(store_module, "CHUNK_BYTES", 1)
    assert [len(chunk) for chunk in given.store(tmp_path).chunks] == [1] * 30
    assert Store(tmp_path, {}, COLUMNS[:1], 0).chunks == []


@pytest.mark.parametrize("size", [1, 3, 100])
@pytest.mark.parametrize("side", ["left", "right"])
def test_chunks_are_the_same_to_the_bit_whatever_the_batches(size: int, side: str, tmp_path: Path) -> None:
    """And whatever stands where there is no token."""
    given = samples()
    expected, store = given.write(given.store(tmp_path / "expected")), given.store(tmp_path / "found")
    for number in range(len(store.chunks)):
        chunk = store.empty_chunk(number)
        for positions in store.batches(number, size):
            assert not chunk.full
            longest = int(given.lengths[positions].max())
            mask = torch.arange(longest) < torch.from_numpy(given.lengths[positions])[:, None]
            if side == "left":
                mask = mask.flip(1)
            batch = []
            for column, joined in zip(COLUMNS, given.joined(positions), strict=True):
                padded = torch.full((*mask.shape, *column.shape), 77).to(column.dtype)
                if column.by_token:
                    padded[mask] = joined
                batch.append(padded if column.by_token else joined)
            # What a model computes is of another type than what is stored.
            batch[0] = batch[0].double()
            chunk.put(positions, batch, given.labels[positions], mask.long())
        assert chunk.full
        store.write(number, chunk.tensors, chunk.labels)
    assert len(chunk_files(store)) == 5
    for own, other in zip(chunk_files(store), chunk_files(expected), strict=True):
        assert own.read_bytes() == other.read_bytes()


def test_batches_hold_texts_of_like_length(tmp_path: Path) -> None:
    given = samples()
    store = given.store(tmp_path)
    for number, chunk in enumerate(store.chunks):
        batches = store.batches(number, 3)
        assert sorted(position for batch in batches for position in batch) == list(chunk)
        assert all(len(batch) == 3 for batch in batches[:-1])
        lengths = given.lengths[[position for batch in batches for position in batch]]
        assert lengths.tolist() == sorted(lengths, reverse=True)


@pytest.mark.parametrize(
    "columns", [COLUMNS, COLUMNS[:1], COLUMNS[1:2], COLUMNS[2:3]], ids=["all", "fixed", "by token", "numbers"]
)
def test_the_size_on_disk_is_known_beforehand(columns: Sequence[Column], tmp_path: Path) -> None:
    given = samples(columns=columns)
    store = given.write(given.store(tmp_path))
    files = [path.read_bytes() for path in chunk_files(store)]
    headers = [8 + int.from_bytes(whole[:8], "little") for whole in files]
    assert sum(map(len, files)) - sum(headers) == store.bytes
    assert max(headers) < HEADER


def cut_short(store: Store, path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def emptied(store: Store, path: Path) -> None:
    path.write_bytes(b"")


def flipped_at_the_end(store: Store, path: Path) -> None:
    whole = bytearray(path.read_bytes())
    whole[-1] ^= 1
    path.write_bytes(whole)


def renamed(store: Store, path: Path) -> None:
    store._path(3).replace(path)
    samples().write(store, [3])


def of_another_key(store: Store, path: Path) -> None:
    other = samples().store(store.folder.parent, model="other")
    shutil.copy(samples().write(other)._path(2), path)


def of_nobody(store: Store, path: Path) -> None:
    path.write_bytes(safetensors.torch.save({"0": torch.ones(2)}))


def a_text(store: Store, path: Path) -> None:
    path.write_text("no chunk at all")


@pytest.mark.parametrize(
    "damage",
    [cut_short, emptied, flipped_at_the_end, renamed, of_another_key, of_nobody, a_text],
    ids=lambda f: f.__name__,
)
def test_a_chunk_that_is_not_what_was_written_is_removed(damage: Callable[[Store, Path], None], tmp_path: Path) -> None:
    """And the others are left alone."""
    given = samples()
    store = given.write(given.store(tmp_path))
    damage(store, store._path(2))
    assert store.complete
    assert [store.sound(number) for number in range(5)] == [True, True, False, True, True]
    assert not store._path(2).exists()
    assert not store.complete
    assert not store.sound(2)
    given.write(store, [2])
    given.agrees(given.store(tmp_path), range(30))


def test_chunks_that_were_cut_otherwise_are_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Even where they are as many."""
    given = samples()
    given.write(given.store(tmp_path))
    monkeypatch.setattr(store_module, "CHUNK_SAMPLES", 6)
    store = given.store(tmp_path)
    assert len(store.chunks) == 5
    assert not any(store.sound(number) for number in range(5))


def test_a_chunk_that_is_written_again_is_read_anew(tmp_path: Path) -> None:
    given = samples()
    store = given.write(given.store(tmp_path))
    given.agrees(store, range(14))
    store.write(1, [tensor.zero_() for tensor in given.joined(range(7, 14))], torch.zeros(7, dtype=torch.int64))
    tensors, labels = store.read(np.arange(7, 14))
    assert not any(tensor.any() for tensor in [*tensors, labels])


def test_no_byte_can_change_unnoticed(tmp_path: Path) -> None:
    """What is still called sound reads the same: a header may be filled up with another space."""
    given = samples(2)
    store = given.write(given.store(tmp_path))
    whole, generator, noticed = store._path(0).read_bytes(), np.random.default_rng(0), 0
    for place in range(len(whole)):
        changed = bytearray(whole)
        changed[place] ^= 1 << int(generator.integers(8))
        store._path(0).write_bytes(changed)
        fresh = given.store(tmp_path)
        if fresh.sound(0):
            given.agrees(fresh, [0, 1])
        else:
            noticed += 1
    assert noticed > len(whole) - 8


MATERIALS: list[dict[str, Any]] = [
    {"model": "other"},
    {"further": 1},
    {"view": None},
    {"view": 0},
    {"nested": {"a": 1}},
    {"nested": {"a": 2}},
]


def test_whatever_the_content_hangs_on_makes_another_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given = samples()
    keys = [given.store(tmp_path, **material).key for material in [{}, *MATERIALS]]
    others = [
        (Column((2, 3), torch.float32),),
        (Column((3, 2), torch.float16),),
        (Column((3, 2), torch.float32, by_token=True),),
        (*COLUMNS[:1], *COLUMNS[:1]),
        COLUMNS[::-1],
    ]
    keys += [Store(tmp_path, {"model": "m"}, columns, 30, given.lengths).key for columns in others]
    monkeypatch.setattr(store_module, "FORMAT", store_module.FORMAT + 1)
    keys.append(given.store(tmp_path).key)
    assert len(set(keys)) == len(keys) == 13
    assert given.store(tmp_path).folder == tmp_path / keys[-1]


def test_the_order_of_the_material_and_the_folder_make_no_other_key(tmp_path: Path) -> None:
    one = Store(tmp_path / "one", {"a": 1, "b": 2}, COLUMNS[:1], 3)
    assert one.key == Store(tmp_path / "other", {"b": 2, "a": 1}, COLUMNS[:1], 3).key


def test_a_folder_says_what_lies_in_it(tmp_path: Path) -> None:
    given = samples()
    store = given.write(given.store(tmp_path, weights="abc"))
    told = json.loads((store.folder / "contents.json").read_text())
    assert (told["model"], told["weights"], told["bytes"], told["format"]) == ("m", "abc", store.bytes, 1)
    assert len(told["columns"]) == 5


def test_a_trial_is_a_store_of_its_own(tmp_path: Path) -> None:
    given = samples()
    store = given.write(given.store(tmp_path))
    trials = [store.first_samples(9) for _ in range(2)]
    assert len({store.key, *(trial.key for trial in trials)}) == 3
    first = trials[0]
    assert [len(chunk) for chunk in first.chunks] == [7, 2]
    given.write(first)
    given.agrees(first, range(9))
    first.remove()
    assert list(tmp_path.iterdir()) == [store.folder]
    assert all(store.sound(number) for number in range(5))
    trials[1].remove()
