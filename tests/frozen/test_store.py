"""Stores return what was written, and do not read what is damaged, foreign or incomplete."""

import json
import shutil
import stat
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import Tensor

from hf_transfer.frozen import store as store_module
from hf_transfer.frozen.store import Chunk, Column, Store
from tests.frozen.stored_samples import COLUMNS, Labels, Samples, chunk_files, samples

pytestmark = pytest.mark.usefixtures("small_chunks")
LARGEST_HEADER = 1024
CLASS_NUMBER = Column((), torch.int64)


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
def test_samples_are_read_in_any_order(positions: Sequence[int], tmp_path: Path) -> None:
    given = samples()
    given.write(given.store(tmp_path))
    store = given.store(tmp_path)
    assert store.complete
    given.assert_read(store, positions)


@pytest.mark.parametrize(
    "targets",
    [
        torch.arange(60.0).view(30, 2) / 7,
        torch.arange(30.0, dtype=torch.float64) - 3,
        torch.arange(90).view(30, 3) % 2 > 0,
        # The mark of ignored class numbers in torch is an ordinary value of a number.
        torch.full((30,), -100, dtype=torch.int32),
    ],
    ids=["vectors", "numbers", "several labels", "minus 100"],
)
def test_targets_may_have_any_type_and_shape(targets: Tensor, tmp_path: Path) -> None:
    """And the mask stands beside them."""
    given = samples()
    given.labels = Labels(targets, given.labels.counted)
    store = given.write(given.store(tmp_path / "written"))
    given.assert_read(given.store(tmp_path / "written"), range(29, -1, -1))
    assert store.bytes == size_without_headers(store)
    filled = given.store(tmp_path / "filled")
    fill(given, filled, batch_size=3)
    assert [path.read_bytes() for path in chunk_files(filled)] == [path.read_bytes() for path in chunk_files(store)]


def test_chunks_are_read_as_they_lie_on_disk(tmp_path: Path) -> None:
    given = samples()
    store = given.write(given.store(tmp_path))
    for number, positions in enumerate(store.chunks):
        expected = [*given.joined(positions), *given.labels_of(positions)]
        assert all(torch.equal(*pair) for pair in zip(store.chunk(number), expected, strict=True))


def test_the_division_into_chunks_depends_on_the_data_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each sample is in one chunk, in order; chunks are limited in samples and bytes, and hold at least one sample."""
    given = samples()
    store = given.store(tmp_path)
    assert [len(chunk) for chunk in store.chunks] == [7, 7, 7, 7, 2]
    assert [position for chunk in store.chunks for position in chunk] == list(range(30))
    assert given.store(tmp_path, model="other").chunks == store.chunks
    monkeypatch.setattr(store_module, "CHUNK_BYTES", store.bytes // 10 + 1)
    assert [len(chunk) for chunk in given.store(tmp_path).chunks] == [3] * 10
    monkeypatch.setattr(store_module, "CHUNK_BYTES", 1)
    assert [len(chunk) for chunk in given.store(tmp_path).chunks] == [1] * 30
    assert Store(tmp_path, {}, COLUMNS[:1], 0, target=CLASS_NUMBER).chunks == []


def fill(given: Samples, store: Store, batch_size: int, side: str = "right") -> None:
    """Write a store from padded batches, as a model computes them."""
    for number in range(len(store.chunks)):
        chunk = Chunk(store.columns)
        for positions in store.batches(number, batch_size):
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
            # A model may compute in another type than that of the store.
            batch[0] = batch[0].double()
            chunk.put(positions, [*batch, *given.labels_of(positions)], mask.long())
        store.write(number, chunk.in_order())


@pytest.mark.parametrize("size", [1, 3, 100])
@pytest.mark.parametrize("side", ["left", "right"])
def test_chunks_are_the_same_bit_for_bit_whatever_the_batches(size: int, side: str, tmp_path: Path) -> None:
    """And whatever the padding contains."""
    given = samples()
    expected, store = given.write(given.store(tmp_path / "expected")), given.store(tmp_path / "filled")
    fill(given, store, size, side)
    assert len(chunk_files(store)) == 5
    for path, other in zip(chunk_files(store), chunk_files(expected), strict=True):
        assert path.read_bytes() == other.read_bytes()


def test_batches_hold_texts_of_similar_length(tmp_path: Path) -> None:
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
def test_the_size_on_disk_is_known_before_writing(columns: Sequence[Column], tmp_path: Path) -> None:
    given = samples(columns=columns)
    store = given.write(given.store(tmp_path))
    assert size_without_headers(store) == store.bytes
    assert all(header_bytes(path) < LARGEST_HEADER for path in chunk_files(store))


def header_bytes(path: Path) -> int:
    return 8 + int.from_bytes(path.read_bytes()[:8], "little")


def size_without_headers(store: Store) -> int:
    return sum(path.stat().st_size - header_bytes(path) for path in chunk_files(store))


def cut_short(store: Store, path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def emptied(store: Store, path: Path) -> None:
    path.write_bytes(b"")


def flipped_at_the_end(store: Store, path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def renamed(store: Store, path: Path) -> None:
    store._path(3).replace(path)
    samples().write(store, [3])


def of_another_key(store: Store, path: Path) -> None:
    other = samples().store(store.folder.parent, model="other")
    shutil.copy(samples().write(other)._path(2), path)


def of_another_program(store: Store, path: Path) -> None:
    path.write_bytes(safetensors.torch.save({"0": torch.ones(2)}))


def a_text(store: Store, path: Path) -> None:
    path.write_text("no chunk at all")


@pytest.mark.parametrize(
    "damage",
    [cut_short, emptied, flipped_at_the_end, renamed, of_another_key, of_another_program, a_text],
    ids=lambda function: function.__name__,
)
def test_a_damaged_chunk_is_deleted(damage: Callable[[Store, Path], None], tmp_path: Path) -> None:
    """And the others are not."""
    given = samples()
    store = given.write(given.store(tmp_path))
    damage(store, store._path(2))
    assert store.complete
    assert [store.check(number) for number in range(5)] == [True, True, False, True, True]
    assert not store._path(2).exists()
    assert not store.complete
    assert not store.check(2)
    given.write(store, [2])
    given.assert_read(given.store(tmp_path), range(30))


def test_chunks_of_another_length_are_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Even if their number is the same."""
    given = samples()
    given.write(given.store(tmp_path))
    monkeypatch.setattr(store_module, "CHUNK_SAMPLES", 6)
    store = given.store(tmp_path)
    assert len(store.chunks) == 5
    assert not any(store.check(number) for number in range(5))


def test_a_chunk_that_was_written_again_is_read_again(tmp_path: Path) -> None:
    given = samples()
    store = given.write(given.store(tmp_path))
    given.assert_read(store, range(14))
    second = [*given.joined(range(7, 14)), *given.labels_of(range(7, 14))]
    store.write(1, [torch.zeros_like(tensor) for tensor in second])
    assert not any(tensor.any() for tensor in store.read(np.arange(7, 14)))


def test_a_chunk_without_some_tokens_is_not_written(tmp_path: Path) -> None:
    """It would give the tokens of one sample to the next."""
    given = samples()
    store = given.store(tmp_path)
    tensors = [*given.joined(store.chunks[0]), *given.labels_of(store.chunks[0])]
    tensors[1] = tensors[1][1:]
    with pytest.raises(AssertionError, match="tokens are missing"):
        store.write(0, tensors)
    assert not store.check(0)


def test_a_change_of_any_byte_is_detected(tmp_path: Path) -> None:
    """A chunk that passes the check reads the same: in a header, one kind of white space may replace another."""
    given = samples(2)
    store = given.write(given.store(tmp_path))
    content, generator, detected = store._path(0).read_bytes(), np.random.default_rng(0), 0
    for place in range(len(content)):
        changed = bytearray(content)
        changed[place] ^= 1 << int(generator.integers(8))
        store._path(0).write_bytes(changed)
        fresh = given.store(tmp_path)
        if fresh.check(0):
            given.assert_read(fresh, [0, 1])
        else:
            detected += 1
    assert detected > len(content) - 8


MATERIALS: list[dict[str, Any]] = [
    {"model": "other"},
    {"further": 1},
    {"view": None},
    {"view": 0},
    {"nested": {"a": 1}},
    {"nested": {"a": 2}},
]


def test_everything_that_the_content_depends_on_makes_another_store(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = samples()
    keys = [given.store(tmp_path, **material).key for material in [{}, *MATERIALS]]
    others = [
        (Column((2, 3), torch.float32),),
        (Column((3, 2), torch.float16),),
        (Column((3, 2), torch.float32, by_token=True),),
        (*COLUMNS[:1], *COLUMNS[:1]),
        COLUMNS[::-1],
    ]
    keys += [Store(tmp_path, {"model": "m"}, columns, 30, given.lengths, target=CLASS_NUMBER).key for columns in others]
    monkeypatch.setattr(store_module, "FORMAT", store_module.FORMAT + 1)
    keys.append(given.store(tmp_path).key)
    assert len(set(keys)) == len(keys) == 13
    assert given.store(tmp_path).folder == tmp_path / keys[-1]


def test_the_order_of_the_material_and_the_folder_do_not_change_the_key(tmp_path: Path) -> None:
    one = Store(tmp_path / "one", {"a": 1, "b": 2}, COLUMNS[:1], 3, target=CLASS_NUMBER)
    assert one.key == Store(tmp_path / "other", {"b": 2, "a": 1}, COLUMNS[:1], 3, target=CLASS_NUMBER).key


def test_a_folder_describes_its_content(tmp_path: Path) -> None:
    given = samples()
    store = given.write(given.store(tmp_path, weights="abc"))
    contents = json.loads((store.folder / "contents.json").read_text())
    assert (contents["model"], contents["weights"], contents["bytes"]) == ("m", "abc", store.bytes)
    assert contents["format"] == store_module.FORMAT
    assert len(contents["columns"]) == 5


def test_a_temporary_store_of_the_first_samples_is_separate(tmp_path: Path) -> None:
    given = samples()
    store = given.write(given.store(tmp_path))
    trials = [store.first_samples(9) for _ in range(2)]
    assert len({store.key, *(trial.key for trial in trials)}) == 3
    first = trials[0]
    assert [len(chunk) for chunk in first.chunks] == [7, 2]
    given.write(first)
    given.assert_read(first, range(9))
    first.remove()
    assert list(tmp_path.iterdir()) == [store.folder]
    assert all(store.check(number) for number in range(5))
    trials[1].remove()


def test_only_their_owner_can_read_stored_activations(tmp_path: Path) -> None:
    """They tell much of a private picture or text."""
    given = samples()
    store = given.store(tmp_path)
    given.write(store)
    assert stat.S_IMODE(store.folder.stat().st_mode) == 0o700
    assert {stat.S_IMODE(path.stat().st_mode) for path in store.folder.iterdir()} == {0o600}
