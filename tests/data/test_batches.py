"""Orders of samples, labels in batches, and the loaders of all splits."""

import dataclasses
from typing import Any

import datasets
import numpy as np
import numpy.typing as npt
import pytest
import torch
from accelerate import Accelerator
from hypothesis import given
from hypothesis import strategies as st

from hf_transfer.data.batches import (
    Batch,
    EpochSampler,
    InputMaker,
    LabelledInputs,
    LabelRows,
    Loaders,
    loaders_of,
)
from hf_transfer.data.splits import Split
from hf_transfer.settings.run import VisionConfig
from hf_transfer.targets.classes import Classes

NO_IMAGES = datasets.Dataset.from_dict({"image": [None] * 9})


@given(st.integers(1, 200), st.integers(0, 2**32), st.integers(0, 10**4))
def test_the_order_of_an_epoch_is_a_permutation_and_pure_in_seed_and_epoch(size: int, seed: int, epoch: int) -> None:
    """A new sampler that starts at this epoch gives the same order as one that was used before."""
    fresh, used = EpochSampler(size, seed), EpochSampler(size, seed)
    used.set_epoch(epoch + 1)
    list(used)
    for sampler in (fresh, used):
        sampler.set_epoch(epoch)
    order = list(fresh)
    assert order == list(used) == list(fresh)
    assert sorted(order) == list(range(size))
    assert len(fresh) == size


def test_another_epoch_and_another_seed_give_another_order() -> None:
    orders = []
    for seed, epoch in ((0, 0), (0, 1), (1, 0), (1, 1)):
        sampler = EpochSampler(100, seed)
        sampler.set_epoch(epoch)
        orders.append(tuple(sampler))
    assert len(set(orders)) == 4


class LabelsAlone(InputMaker):
    """Inputs that are the row numbers."""

    def __call__(self, batch: Batch, device: torch.device, split: str, epoch: int | None) -> LabelledInputs:
        return super().__call__(batch, device, split, epoch)._replace(inputs={"index": batch["index"]})

    def fingerprint(self, split: str, epoch: int | None) -> str:
        return f"{split} {epoch}"


def split_with(targets: object, unreadable: dict[int, str] | None = None) -> Split:
    """Rows 2 to 8, with these targets."""
    return Split(NO_IMAGES, np.arange(2, 9), np.asarray(targets), unreadable=unreadable or {})


TARGETS: dict[str, npt.NDArray[Any]] = {
    "class numbers": np.arange(7) % 3,
    "float vectors": np.random.default_rng(0).normal(size=(7, 4)),
    "counts": np.arange(7, dtype=np.float32) - 100,
    "yes or no": np.random.default_rng(0).random((7, 3)) < 0.5,
}


@pytest.mark.parametrize("kind", TARGETS)
def test_targets_of_any_kind_pass_through_rows_unchanged_and_masked_rows_do_not_count(kind: str) -> None:
    """One by one, and several at once."""
    rows = LabelRows(split_with(TARGETS[kind], unreadable={4: "empty"}))
    samples = [rows[position] for position in range(len(rows))]
    assert len(samples) == 7
    for chosen in (samples, rows.__getitems__(range(7))):
        assert np.array_equal(np.stack([sample["target"].numpy() for sample in chosen]), TARGETS[kind])
        assert chosen[0]["target"].numpy().dtype == TARGETS[kind].dtype
        assert [sample["index"].item() for sample in chosen] == list(range(2, 9))
        assert [sample["index"].item() for sample in chosen if not sample["counted"]] == [4]


def make_loaders(split: Split, workers: int = 0) -> Loaders:
    training = VisionConfig.of(
        model_name_or_path="m", dataset_name="d", output_dir="o", per_device_train_batch_size=2,
        per_device_eval_batch_size=3,
    ).training  # fmt: skip
    rows = {name: LabelRows(split) for name in ("train", "validation", "test")}
    return loaders_of(
        rows, {"train": EpochSampler(len(split), 0)}, training, workers, Accelerator(cpu=True),
        target=Classes(("a", "b", "c")), to_inputs=LabelsAlone(), notes=("a note",),
    )  # fmt: skip


@pytest.mark.parametrize("kind", TARGETS)
def test_targets_of_any_kind_pass_through_loaders_unchanged(kind: str) -> None:
    loaders = make_loaders(split_with(TARGETS[kind], unreadable={4: "empty"}))
    for name in ("train", "validation", "test"):
        steps = [loaders.to_inputs(batch, torch.device("cpu"), name, None) for batch in loaders.of(name)]
        rows = torch.cat([step.rows for step in steps])
        targets, counted = torch.cat([step.targets for step in steps]), torch.cat([step.counted for step in steps])
        assert np.array_equal(targets.numpy(), TARGETS[kind][rows.numpy() - 2])
        assert (counted.dtype, rows[~counted].tolist()) == (torch.bool, [4])


def test_each_split_has_its_batch_size_and_its_order() -> None:
    loaders = make_loaders(split_with(np.arange(7)))
    assert [len(batch["index"]) for batch in loaders.train] == [2, 2, 2, 1]
    for name in ("validation", "test"):
        assert [batch["index"].tolist() for batch in loaders.of(name)] == [[2, 3, 4], [5, 6, 7], [8]]
    assert (loaders.notes, loaders.views, loaders.cycle) == (("a note",), 0, 1)


def test_some_samples_are_given_by_their_positions() -> None:
    loaders = make_loaders(split_with(np.arange(7) * 10, unreadable={8: "empty"}))
    labelled = loaders.some_samples("test", (6, 0), None, torch.device("cpu"))
    assert (labelled.targets.tolist(), labelled.rows.tolist()) == ([60, 0], [8, 2])
    assert labelled.counted.tolist() == [False, True]


def test_closing_loaders_without_workers_or_before_they_were_used_changes_nothing() -> None:
    for workers in (0, 2):
        loaders = make_loaders(split_with(np.arange(7)), workers)
        loaders.close()
        assert sum(len(batch["index"]) for batch in loaders.test) == 7
        loaders.close()


def test_the_fingerprint_of_a_split_changes_with_rows_targets_types_and_mask() -> None:
    split = split_with(np.arange(7))
    others = [
        split_with(np.arange(7)[::-1]),
        split_with(np.arange(7, dtype=np.float64)),
        split_with(np.arange(7).reshape(7, 1)),
        split_with(np.arange(7), unreadable={3: "empty"}),
        dataclasses.replace(split, rows=split.rows - 1),
    ]
    assert split_with(np.arange(7)).fingerprint() == split.fingerprint()
    assert len({split.fingerprint(), *(other.fingerprint() for other in others)}) == 6
