"""From texts to batches: a checkpoint's own tokenizer, batches of like length, padded to their longest text."""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor
from torch.utils.data import Dataset
from transformers import PreTrainedTokenizerBase
from transformers.data.data_collator import pad_without_fast_tokenizer_warning

from hf_transfer.config import TextConfig, TextSettings, mistake
from hf_transfer.data.inputs import MASKED, Batch, EpochSampler, Loaders, loader_of
from hf_transfer.data.sources import Splits
from hf_transfer.data.splits import Split

# Beyond this a tokenizer's limit is its way of saying that it has none.
LONGEST_LIMIT = 1_000_000
WITHOUT_LIMIT = 512
# Texts are sorted within so many batches: enough for like lengths, few enough that batches differ from epoch to epoch.
BATCHES_SORTED_TOGETHER = 50
TEXTS_ENCODED_TOGETHER = 10_000
Encoded = dict[str, list[int]]


class TokenPipeline:
    """A checkpoint's tokenizer, with the length at which texts are cut.

    Attributes:
        tokenizer: it pads; where it knows no padding, its end-of-text token does.
        max_length: tokens that a text may have, with its special tokens.
        notes: what was decided about the tokenizer, in sentences.

    Raises:
        UserError: the model takes fewer tokens than asked for, or the tokenizer has no words or nothing to pad with.
    """

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, *, model_limit: int | None, max_seq_length: int | None = None
    ) -> None:
        limits = [limit for limit in (tokenizer.model_max_length, model_limit) if limit and 0 < limit < LONGEST_LIMIT]
        if limits and max_seq_length is not None and max_seq_length > min(limits):
            raise mistake(
                expected=f"--max_seq_length of at most {min(limits)}, which is what the model can take",
                found=str(max_seq_length),
                do="lower it, or leave it out",
            )
        special = set(tokenizer.all_special_tokens)
        if not any(sign.isalnum() for word in tokenizer.get_vocab() if word not in special for sign in word):
            # transformers makes one of nothing for a folder that has none, and all texts would be alike to it.
            raise mistake(
                expected="a tokenizer with a vocabulary",
                found=f"{type(tokenizer).__name__} that knows no word",
                do="save the tokenizer beside the model (tokenizer.json), or choose another --model_name_or_path",
            )
        self.notes: list[str] = []
        if tokenizer.pad_token is None:
            if tokenizer.eos_token is None:
                raise mistake(
                    expected="a tokenizer with a token to pad with",
                    found=f"{type(tokenizer).__name__} without a pad token and without an end-of-text token",
                    do="add a pad_token to its tokenizer_config.json, or choose another --model_name_or_path",
                )
            tokenizer.pad_token = tokenizer.eos_token
            self.notes.append(f"The tokenizer has no pad token: texts are padded with {tokenizer.eos_token}.")
        self.tokenizer = tokenizer
        self.max_length = max_seq_length or min(limits, default=WITHOUT_LIMIT)

    def encode(self, texts: Sequence[tuple[str, ...]]) -> tuple[list[Encoded], list[int]]:
        """Token ids of texts or pairs of texts, cut at `max_length`, and how many tokens each of them lost."""
        whole = self._encode(texts, truncation=False)
        lost = [max(0, len(text["input_ids"]) - self.max_length) for text in whole]
        too_long = [position for position, count in enumerate(lost) if count]
        cut = self._encode([texts[position] for position in too_long], truncation=True)
        for position, text in zip(too_long, cut, strict=True):
            whole[position] = text
        return [text if text["input_ids"] else self._one_token(text) for text in whole], lost

    def pad(self, texts: Sequence[Encoded]) -> Batch:
        """Model inputs [texts, tokens of the longest]."""
        batch = pad_without_fast_tokenizer_warning(self.tokenizer, list(texts), padding="longest", return_tensors="pt")
        return dict(batch)

    def inputs(self, texts: Sequence[tuple[str, ...]]) -> Batch:
        """Model inputs for texts that belong to no split."""
        return self.pad(self.encode(texts)[0])

    def example(self) -> Batch:
        """Model inputs of two short texts of different length, to trace a model with."""
        return self.inputs([("one two three",), ("one",)])

    def _one_token(self, empty: Encoded) -> Encoded:
        """What stands for a text of no tokens, which a tokenizer that adds none of its own makes of some characters."""
        values = {"input_ids": self.tokenizer.pad_token_id, "attention_mask": 1}
        return {key: [values.get(key, 0)] for key in empty}

    def _encode(self, texts: Sequence[tuple[str, ...]], *, truncation: bool) -> list[Encoded]:
        if not texts:
            return []
        columns = [list(column) for column in zip(*texts, strict=True)]
        found = self.tokenizer(*columns, truncation=truncation, max_length=self.max_length, verbose=False)
        return [dict(zip(found, values, strict=True)) for values in zip(*found.values(), strict=True)]


class TextRows(Dataset[dict[str, Any]]):
    """One split as a torch data set: tokens, label and row number of each sample.

    A bad text is masked in place: it keeps its position, it is empty, its label is `MASKED`.

    Attributes:
        lengths: tokens of each sample, after truncation [rows].
        lost: tokens that each sample lost [rows].
    """

    def __init__(self, split: Split, pipeline: TokenPipeline) -> None:
        self.split = split
        texts = [tuple(text or "" for text in texts) for texts in split.texts()]
        parts: dict[str, list[np.ndarray[Any, np.dtype[np.int32]]]] = {}
        lengths, lost = [], []
        # Not all at once: lists of Python numbers take ten times the room.
        for start in range(0, len(texts), TEXTS_ENCODED_TOGETHER):
            encoded, cut = pipeline.encode(texts[start : start + TEXTS_ENCODED_TOGETHER])
            lengths += [len(text["input_ids"]) for text in encoded]
            lost += cut
            for key in encoded[0]:
                flat = np.concatenate([np.asarray(text[key], dtype=np.int32) for text in encoded])
                parts.setdefault(key, []).append(flat)
        self._flat = {key: np.concatenate(flat) for key, flat in parts.items()}
        self.lengths = np.asarray(lengths, dtype=np.int64)
        self.lost = np.asarray(lost, dtype=np.int64)
        self._ends = self.lengths.cumsum()

    def __len__(self) -> int:
        return len(self.split)

    def __getitem__(self, position: int) -> dict[str, Any]:
        row, end = int(self.split.rows[position]), self._ends[position]
        begin = end - self.lengths[position]
        label = MASKED if row in self.split.bad else int(self.split.labels[position])
        tokens = {key: flat[begin:end].tolist() for key, flat in self._flat.items()}
        return {"tokens": tokens, "label": label, "index": row}

    def fingerprint(self) -> str:
        """A hash of all tokens and labels."""
        digest = hashlib.sha256(np.stack([self.split.rows, self.split.labels, self.lengths]).tobytes())
        digest.update(str(sorted(self.split.bad)).encode())
        for key, flat in sorted(self._flat.items()):
            digest.update(key.encode() + flat.tobytes())
        return digest.hexdigest()


class LengthGroupedSampler(EpochSampler):
    """Positions in an order, a pure function of (seed, epoch), in which each batch has texts of like length.

    Positions are shuffled, sorted by length within stretches of many batches, and the batches shuffled. A batch that
    is not full comes last, so that the others stay as they were sorted.

    Args:
        lengths: tokens of each sample.
        batch_size: samples in a batch.
        seed: seed of the order.
    """

    def __init__(self, lengths: np.ndarray[Any, np.dtype[np.int64]], batch_size: int, seed: int) -> None:
        super().__init__(len(lengths), seed)
        self.lengths = lengths
        self.batch_size = batch_size

    def __iter__(self) -> Iterator[int]:
        generator = np.random.default_rng((self.seed, self.epoch))
        order = generator.permutation(self.size)
        stretch = BATCHES_SORTED_TOGETHER * self.batch_size
        batches: list[np.ndarray[Any, np.dtype[np.int64]]] = []
        for start in range(0, self.size, stretch):
            part = order[start : start + stretch]
            part = part[np.argsort(-self.lengths[part], kind="stable")]
            batches += [part[first : first + self.batch_size] for first in range(0, len(part), self.batch_size)]
        full = [batch for batch in batches if len(batch) == self.batch_size]
        rest = [batch for batch in batches if len(batch) < self.batch_size]
        mixed = [full[number] for number in generator.permutation(len(full))]
        return iter(np.concatenate([*mixed, *rest]).tolist())


class LongestFirst(EpochSampler):
    """Positions from the longest text to the shortest, in every epoch: evaluation does not mind the order."""

    def __init__(self, lengths: np.ndarray[Any, np.dtype[np.int64]]) -> None:
        super().__init__(len(lengths), 0)
        self.order = np.argsort(-lengths, kind="stable")

    def __iter__(self) -> Iterator[int]:
        return iter(self.order.tolist())


def text_loaders(splits: Splits, pipeline: TokenPipeline, config: TextConfig, accelerator: Accelerator) -> Loaders:
    """Loaders for all three splits, with a sentence on the texts that had to be cut.

    Args:
        splits: checked splits.
        pipeline: the checkpoint's own tokenizer.
        config: batch sizes, order, workers.
        accelerator: the processes that share the batches.
    """
    rows = {name: TextRows(split, pipeline) for name, split in splits.items()}

    def loader(name: str, batch_size: int, order: EpochSampler) -> Any:
        # Tokens are in memory already: workers would only copy them.
        return loader_of(rows[name], batch_size, order, config.dataloader_num_workers or 0, accelerator, collate)

    collate = partial(collate_texts, pipeline)
    order = training_order(rows["train"].lengths, config)
    return Loaders(
        train=loader("train", config.per_device_train_batch_size, order),
        validation=loader("validation", config.per_device_eval_batch_size, LongestFirst(rows["validation"].lengths)),
        test=loader("test", config.per_device_eval_batch_size, LongestFirst(rows["test"].lengths)),
        to_inputs=_to_inputs,
        fingerprint=lambda name, _: rows[name].fingerprint(),
        notes=(*pipeline.notes, *describe_truncation(rows, pipeline.max_length)),
    )


def training_order(lengths: np.ndarray[Any, np.dtype[np.int64]], config: TextSettings) -> EpochSampler:
    """The order of training samples with so many tokens, as the settings have it."""
    by_length = config.train_sampling_strategy == "group_by_length"
    size = config.per_device_train_batch_size
    return LengthGroupedSampler(lengths, size, config.seed) if by_length else EpochSampler(len(lengths), config.seed)


def collate_texts(pipeline: TokenPipeline, samples: Sequence[Mapping[str, Any]]) -> Batch:
    """A batch of padded texts; no closure, since workers that are started afresh must be sent it."""
    batch = pipeline.pad([sample["tokens"] for sample in samples])
    batch["labels"] = torch.tensor([sample["label"] for sample in samples])
    batch["index"] = torch.tensor([sample["index"] for sample in samples])
    return batch


def _to_inputs(batch: Batch, device: torch.device, _: str, __: int | None) -> tuple[Batch, Tensor, Tensor]:
    """See `Loaders.to_inputs`."""
    moved = {name: tensor.to(device, non_blocking=True) for name, tensor in batch.items()}
    labels, index = moved.pop("labels"), moved.pop("index")
    return moved, labels, index


def describe_truncation(rows: Mapping[str, TextRows], max_length: int) -> list[str]:
    """A sentence on texts that had to be cut, if there are any."""
    cut = {name: int((part.lost > 0).sum()) for name, part in rows.items()}
    if not any(cut.values()):
        return []
    texts = ", ".join(f"{count:,} of {len(rows[name]):,} in {name}" for name, count in cut.items() if count)
    tokens = sum(int(part.lost.sum()) for part in rows.values())
    share = tokens / (tokens + sum(int(part.lengths.sum()) for part in rows.values()))
    return [f"Cut at {max_length} tokens: {texts}; {tokens:,} tokens ({share:.1%}) were lost."]
