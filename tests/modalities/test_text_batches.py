"""From texts to batches: an order by length, little padding, masked samples in their places, whatever the target."""

import dataclasses
import itertools
from collections.abc import Sequence
from multiprocessing.reduction import ForkingPickler
from typing import Any

import datasets
import numpy as np
import numpy.typing as npt
import pytest
import torch
from accelerate import Accelerator
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from hf_transfer.data.batches import Loaders
from hf_transfer.data.splits import Split, Splits
from hf_transfer.modalities.text import TextModality
from hf_transfer.modalities.text_batches import LengthGroupedSampler, TextRows
from hf_transfer.modalities.tokens import TokenPreprocessing
from hf_transfer.targets.classes import Classes
from tests.data.conftest import TextSettings
from tests.tiny_text_models import tiny_tokenizer


def preprocessing(length: int | None = None) -> TokenPreprocessing:
    """The preprocessing of a model with 40 positions and the tiny tokenizer, which takes 32 tokens."""
    return TokenPreprocessing(tiny_tokenizer(), model_limit=40, max_seq_length=length)


def split_of(texts: Sequence[str | None], *, unreadable: Sequence[int] = ()) -> Split:
    """A split whose rows are numbered from 100 on, with two classes in turn."""
    data = datasets.Dataset.from_dict({"text": [*["filling"] * 100, *texts]})
    rows = np.arange(100, 100 + len(texts))
    return Split(
        data, rows, np.arange(len(texts)) % 2, unreadable=dict.fromkeys((100 + row for row in unreadable), "empty")
    )


def of_lengths(lengths: npt.NDArray[np.int64]) -> list[str]:
    """Texts of so many words, each beginning with its own number."""
    return [" ".join(["word9"] * length) for length in lengths.tolist()]


def loaders_of(
    settings: TextSettings, texts: Sequence[str] | Split, *, length: int | None = None,
    tokens: TokenPreprocessing | None = None, **chosen: Any,
) -> Loaders:  # fmt: skip
    """Loaders of three splits with the same texts."""
    split = texts if isinstance(texts, Split) else split_of(texts)
    splits = Splits(split, split, split, Classes(("a", "b")), {}, "texts", {}, [])
    return TextModality().loaders(
        splits, tokens or preprocessing(length), settings(**chosen), Accelerator(cpu=True), frozen_prefix=False
    )


def test_a_row_has_tokens_target_and_number_and_an_unreadable_one_is_masked_in_its_place() -> None:
    """It keeps its target, and does not count."""
    texts = ["word7 word8", None, "word9", "word7 " * 40]
    rows = TextRows(split_of(texts, unreadable=[1]), preprocessing())
    assert len(rows) == 4
    assert [rows[place]["index"] for place in range(4)] == [100, 101, 102, 103]
    assert [rows[place]["target"].item() for place in range(4)] == [0, 1, 0, 1]
    assert [rows[place]["counted"].item() for place in range(4)] == [True, False, True, True]
    tokenizer = tiny_tokenizer()
    for place, text in enumerate(texts):
        assert rows[place]["tokens"] == dict(tokenizer(text or "", truncation=True))
    assert rows.lengths.tolist() == [4, 2, 3, 32]
    assert rows.lost.tolist() == [0, 0, 0, 10]


@given(st.lists(st.integers(1, 60), min_size=1, max_size=300), st.integers(1, 9), st.integers(0, 99), st.integers(0, 9))
def test_the_order_by_length_is_a_permutation_pure_in_seed_and_epoch_with_whole_batches_first(
    lengths: list[int], batch_size: int, seed: int, epoch: int
) -> None:
    """A loader makes the same batches as the sampler: those that are not full come last."""
    array = np.asarray(lengths, dtype=np.int64)
    orders = []
    for _ in range(2):
        sampler = LengthGroupedSampler(array, batch_size, seed)
        sampler.set_epoch(epoch)
        orders.append(list(sampler))
    assert orders[0] == orders[1]
    assert sorted(orders[0]) == list(range(len(lengths)))
    # Within a batch, from the longest on: a batch that was shifted would begin somewhere in the middle.
    for start in range(0, len(lengths), batch_size):
        batch = array[orders[0][start : start + batch_size]]
        assert (np.diff(batch) <= 0).all()


def test_the_order_by_length_changes_with_the_seed_and_the_epoch() -> None:
    lengths = np.random.default_rng(0).integers(2, 60, 400)
    orders = set()
    for seed, epoch in itertools.product((0, 1), (0, 1, 2)):
        sampler = LengthGroupedSampler(lengths, 8, seed)
        sampler.set_epoch(epoch)
        orders.add(tuple(sampler))
    assert len(orders) == 6


def test_batches_do_not_come_in_the_order_of_their_lengths() -> None:
    """Else an epoch would go from long texts to short ones."""
    lengths = np.random.default_rng(0).integers(2, 60, 400)
    firsts = lengths[list(LengthGroupedSampler(lengths, 8, 0))[::8]]
    assert abs(np.corrcoef(np.arange(len(firsts)), firsts)[0, 1]) < 0.5


def padding_share(loaders: Loaders) -> float:
    masks = [batch["attention_mask"] for batch in loaders.train]
    share: float = 1 - sum(int(mask.sum()) for mask in masks) / sum(mask.numel() for mask in masks)
    return share


def test_an_order_by_length_wastes_far_less_on_padding_than_a_random_one(text_settings: TextSettings) -> None:
    texts = of_lengths(np.random.default_rng(0).integers(1, 30, 600))
    waste = {
        strategy: padding_share(
            loaders_of(text_settings, texts, train_sampling_strategy=strategy, per_device_train_batch_size=8)
        )
        for strategy in ("group_by_length", "random")
    }
    assert waste["random"] > 0.3
    assert waste["group_by_length"] < 0.1 * waste["random"]


@pytest.mark.parametrize("strategy", ["group_by_length", "random"])
def test_batches_are_equal_under_any_number_of_workers(strategy: str, text_settings: TextSettings) -> None:
    texts = of_lengths(np.random.default_rng(1).integers(1, 30, 50))

    def batches(workers: int) -> list[dict[str, Tensor]]:
        loaders = loaders_of(
            text_settings, texts, train_sampling_strategy=strategy, per_device_train_batch_size=8,
            dataloader_num_workers=workers, seed=3,
        )  # fmt: skip
        loaders.train.set_epoch(2)
        seen = list(loaders.train)
        loaders.close()
        return seen

    for ours, theirs in zip(batches(0), batches(2), strict=True):
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_workers_that_are_started_afresh_can_be_sent_what_they_need(text_settings: TextSettings) -> None:
    """As on macOS, where nothing is inherited: a closure could not be sent."""
    loaders = loaders_of(text_settings, ["word7", "word8 word9"])
    sent = ForkingPickler.dumps((loaders.train.collate_fn, loaders.train.dataset))
    assert len(sent) > 0


@pytest.mark.parametrize("size", [1, 7, 16, 33])
def test_evaluation_sees_every_sample_exactly_once_from_the_longest_on(size: int, text_settings: TextSettings) -> None:
    lengths = np.random.default_rng(size).integers(1, 30, size)
    loaders = loaders_of(text_settings, of_lengths(lengths), per_device_eval_batch_size=8)
    for name in ("validation", "test"):
        batches = list(loaders.of(name))
        assert sorted(torch.cat([batch["index"] for batch in batches]).tolist()) == list(range(100, 100 + size))
        widths = [batch["input_ids"].shape[1] for batch in batches]
        assert widths == sorted(widths, reverse=True)
        for batch in batches:
            assert batch["target"].tolist() == [(row - 100) % 2 for row in batch["index"].tolist()]
            expected = lengths[batch["index"].numpy() - 100] + 2
            assert batch["attention_mask"].sum(1).tolist() == expected.tolist()


@pytest.mark.parametrize("strategy", ["group_by_length", "random"])
def test_training_sees_every_sample_once_in_an_epoch_in_the_order_of_the_setting(
    strategy: str, text_settings: TextSettings
) -> None:
    lengths = np.random.default_rng(0).integers(1, 30, 40)
    loaders = loaders_of(
        text_settings, of_lengths(lengths), train_sampling_strategy=strategy, per_device_train_batch_size=8
    )
    index = [batch["index"] - 100 for batch in loaders.train]
    assert sorted(torch.cat(index).tolist()) == list(range(40))
    sorted_batches = [bool((np.diff(lengths[part.numpy()]) <= 0).all()) for part in index]
    assert all(sorted_batches) == (strategy == "group_by_length")


def test_inputs_targets_masks_and_row_numbers_are_separated(text_settings: TextSettings) -> None:
    split = split_of(["word7 word8", "", "word9"], unreadable=[1])
    loaders = loaders_of(text_settings, split)
    batch = next(iter(loaders.test))
    labelled = loaders.to_inputs(batch, torch.device("cpu"), "test", None)
    assert set(labelled.inputs) == {"input_ids", "token_type_ids", "attention_mask"}
    assert (labelled.targets.tolist(), labelled.rows.tolist()) == ([0, 0, 1], [100, 102, 101])
    assert labelled.counted.tolist() == [True, True, False]


def test_targets_that_are_no_class_numbers_reach_the_model_unchanged(text_settings: TextSettings) -> None:
    """Also those of rows that do not count."""
    vectors = np.random.default_rng(1).normal(size=(9, 3)) * 100
    split = dataclasses.replace(split_of(["word7 word8"] * 9, unreadable=[4]), targets=vectors)
    loaders = loaders_of(text_settings, split, per_device_train_batch_size=4)
    for name in ("train", "validation"):
        steps = [loaders.to_inputs(batch, torch.device("cpu"), name, None) for batch in loaders.of(name)]
        assert all(step.targets.dtype == torch.float64 for step in steps)
        rows = torch.cat([step.rows for step in steps])
        assert np.array_equal(torch.cat([step.targets for step in steps]).numpy(), vectors[rows.numpy() - 100])
        assert rows[~torch.cat([step.counted for step in steps])].tolist() == [104]


def test_the_fingerprint_changes_with_tokens_length_targets_mask_and_padding(text_settings: TextSettings) -> None:
    """And with nothing else: the same data twice have the same."""
    split = split_of(["word7 word8 word9", "word5", "word6 word7"])

    def fingerprint(split: Split, length: int | None = None, side: str = "right") -> str:
        tokens = preprocessing(length)
        tokens.tokenizer.padding_side = side
        return loaders_of(text_settings, split, tokens=tokens).fingerprint("train", None)

    others = [
        fingerprint(split_of(["word7 word8 word9", "word4", "word6 word7"])),
        fingerprint(split_of(["word7 word8 word9", "word5 word6", "word7"])),
        fingerprint(dataclasses.replace(split, targets=1 - split.targets)),
        fingerprint(dataclasses.replace(split, targets=split.targets * 1.0)),
        fingerprint(dataclasses.replace(split, unreadable={101: "empty"})),
        fingerprint(split, length=4),
        fingerprint(split, side="left"),
    ]
    assert fingerprint(split_of(["word7 word8 word9", "word5", "word6 word7"])) == fingerprint(split)
    assert len({fingerprint(split), *others}) == 1 + len(others)


def test_truncated_texts_and_lost_tokens_are_counted_exactly(text_settings: TextSettings) -> None:
    """By hand: at 8 tokens 6 words stay; of 4 texts two lose 1 and 14 words, in each of three splits.

    3 x (2 + 6 + 7 + 20) words and 2 special tokens for each of 12 texts make 129 tokens, of which 45 are lost.
    """
    texts = of_lengths(np.asarray([2, 6, 7, 20]))
    loaders = loaders_of(text_settings, texts, length=8)
    assert loaders.notes == (
        "Truncated to 8 tokens: 2 of 4 in train, 2 of 4 in validation, 2 of 4 in test; 45 tokens (34.9%) were lost.",
    )
    assert loaders_of(text_settings, texts[:2], length=8).notes == ()
