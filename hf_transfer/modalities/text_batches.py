"""Batches of texts: their tokens, orders by length, padding to the longest text of a batch."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch.utils.data import Dataset

from hf_transfer.data.batches import Batch, EpochSampler, InputMaker, LabelRows
from hf_transfer.data.splits import Split
from hf_transfer.errors import user_error
from hf_transfer.modalities.stored_tokens import tokens_of_split
from hf_transfer.modalities.tokens import TokenPreprocessing
from hf_transfer.settings.data import TextSettings
from hf_transfer.settings.training import TrainingSettings

# Texts are sorted within this many batches: enough for similar lengths, few enough that batches differ between epochs.
BATCHES_SORTED_TOGETHER = 50
Lengths = npt.NDArray[np.int64]


class TextRows(Dataset[dict[str, Any]]):
    """One split as a torch data set: tokens, target, mask and row number of each sample.

    An unreadable text is masked: it keeps its position and its target, and is empty.

    Args:
        split: the texts.
        preprocessing: the tokenizer.
        cache: see `tokens_of_split`.

    Attributes:
        lengths: tokens of each sample after truncation [rows].
        lost: tokens of each sample that were cut off [rows].
        emptied: whether no word is left of a sample, or of one of the texts of a pair [rows].
    """

    def __init__(self, split: Split, preprocessing: TokenPreprocessing, cache: Path | None = None) -> None:
        self.split = split
        self._labels = LabelRows(split)
        self._tokens = tokens_of_split(split, preprocessing, cache)
        self.lengths, self.lost, self.emptied = self._tokens.lengths, self._tokens.lost, self._tokens.emptied
        self._padding = preprocessing.padding

    def __len__(self) -> int:
        return len(self.split)

    def __getitem__(self, position: int) -> dict[str, Any]:
        return {"tokens": self._tokens.of(position), **self._labels[position]}

    def fingerprint(self) -> str:
        """A hash of all tokens, how they are padded, and the targets."""
        return self._tokens.fingerprint(f"{self.split.fingerprint()} {self._padding}")


class LengthGroupedSampler(EpochSampler):
    """Positions in an order, a pure function of (seed, epoch), in which the texts of a batch have similar lengths.

    Positions are shuffled, sorted by length within stretches of many batches, and then the batches are shuffled. The
    batch that is not full comes last: elsewhere it would shift the borders of all batches after it.

    Args:
        lengths: tokens of each sample.
        batch_size: samples in a batch.
        seed: seed of the order.
    """

    def __init__(self, lengths: Lengths, batch_size: int, seed: int) -> None:
        super().__init__(len(lengths), seed)
        self.lengths = lengths
        self.batch_size = batch_size

    def __iter__(self) -> Iterator[int]:
        generator = np.random.default_rng((self.seed, self.epoch))
        order = generator.permutation(self.size)
        stretch = BATCHES_SORTED_TOGETHER * self.batch_size
        batches: list[Lengths] = []
        for start in range(0, self.size, stretch):
            part = order[start : start + stretch]
            part = part[np.argsort(-self.lengths[part], kind="stable")]
            batches += [part[first : first + self.batch_size] for first in range(0, len(part), self.batch_size)]
        full = [batch for batch in batches if len(batch) == self.batch_size]
        rest = [batch for batch in batches if len(batch) < self.batch_size]
        mixed = [full[number] for number in generator.permutation(len(full))]
        return iter(np.concatenate([*mixed, *rest]).tolist())


class TokenInputs(InputMaker):
    """Makes model inputs of padded texts: they are moved to the device as they are.

    Args:
        rows: the texts of each split.
    """

    def __init__(self, rows: Mapping[str, TextRows]) -> None:
        self.rows = rows

    def fingerprint(self, split: str, epoch: int | None) -> str:  # noqa: ARG002
        """See `InputMaker.fingerprint`."""
        return self.rows[split].fingerprint()


def orders_of(
    rows: Mapping[str, TextRows], texts: TextSettings, training: TrainingSettings
) -> dict[str, Iterable[int]]:  # fmt: skip
    """The order of each split: for training as set, else the longest text first, since results do not depend on it."""
    orders: dict[str, Iterable[int]] = {
        name: np.argsort(-part.lengths, kind="stable").tolist() for name, part in rows.items() if name != "train"
    }
    if "train" in rows:
        lengths = rows["train"].lengths
        orders["train"] = EpochSampler(len(lengths), training.seed)
        if texts.train_sampling_strategy == "group_by_length":
            size = training.train_batch_size(len(lengths))
            orders["train"] = LengthGroupedSampler(lengths, size, training.seed)
    return orders


def collate_texts(preprocessing: TokenPreprocessing, samples: Sequence[Mapping[str, Any]]) -> Batch:
    """A batch of padded texts and what else the samples have, which is all of one size.

    It is a function of the module, since spawned workers cannot be sent a closure.
    """
    batch = preprocessing.pad([sample["tokens"] for sample in samples])
    others = [name for name in samples[0] if name != "tokens"]
    return batch | {name: torch.stack([sample[name] for sample in samples]) for name in others}


def describe_truncation(rows: Mapping[str, TextRows], preprocessing: TokenPreprocessing) -> list[str]:
    """Sentences on truncated texts, and on those of which no word is left, if there are any.

    Args:
        rows: of each split.
        preprocessing: the tokenizer that has made their tokens.

    Raises:
        UserError: no word is left of any text of the training split.
    """
    max_length, prefix = preprocessing.max_length, preprocessing.text_prefix
    truncated = {name: int((part.lost > 0).sum()) for name, part in rows.items()}
    emptied = {name: int(part.emptied.sum()) for name, part in rows.items()}
    if "train" in rows and emptied["train"] == len(rows["train"]):
        raise user_error(
            expected="training texts of which a word is left",
            found=f"none among {emptied['train']:,}: only special tokens and white space, in {max_length} tokens",
            do="raise --max_seq_length, or leave it out" if truncated["train"] else "choose a model for this script",
        )
    sentences = []
    if any(truncated.values()):
        tokens = sum(int(part.lost.sum()) for part in rows.values())
        share = tokens / (tokens + sum(int(part.lengths.sum()) for part in rows.values()))
        counts = _counts(truncated, rows)
        sentences.append(f"Truncated to {max_length} tokens: {counts}; {tokens:,} tokens ({share:.1%}) were lost.")
        if prefix and preprocessing.tokenizer.truncation_side == "left":
            sentences.append(
                f"These texts have lost {prefix!r}, too, since the tokenizer truncates on the left: raise "
                "--max_seq_length, or set truncation_side to right in its tokenizer_config.json."
            )
    if any(emptied.values()):
        sentences.append(f"No word is left of a text in {max_length} tokens: {_counts(emptied, rows)}.")
    return sentences


def _counts(counts: Mapping[str, int], rows: Mapping[str, TextRows]) -> str:
    return ", ".join(f"{count:,} of {len(rows[name]):,} in {name}" for name, count in counts.items() if count)
