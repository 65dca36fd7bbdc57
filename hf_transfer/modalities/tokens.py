"""From texts to model inputs: a checkpoint's own tokenizer, where texts are truncated, and how they are padded."""

import hashlib
import tempfile
from collections.abc import Mapping, Sequence
from itertools import chain, takewhile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase
from transformers.data.data_collator import pad_without_fast_tokenizer_warning

from hf_transfer.data.batches import Batch
from hf_transfer.data.text_checks import fault_of_texts
from hf_transfer.errors import user_error
from hf_transfer.modalities.modality import TEXT_PREFIX, Preprocessing
from hf_transfer.modalities.text_prefixes import tokens_of_prefix

# Tokenizers without a limit state a number above this.
LONGEST_LIMIT = 1_000_000
WITHOUT_LIMIT = 512
MASK = "attention_mask"
# Outputs that differ by more than this share of the largest depend on padding; rounding gives less than 1e-5.
ROUNDING = 1e-4
# Padded to the length of the first, an encoder with convolutions sees other neighbours of the second and third.
UNEQUAL = (("one two three four five six seven eight nine",), ("one",), ("",))
# So many random texts are compared where another program makes their tokens.
DRAWN_TEXTS = 20
TOKENIZER_FILE = "tokenizer.json"
Encoded = dict[str, list[int]]


class TokenPreprocessing(Preprocessing):
    """A checkpoint's tokenizer, with the length at which texts are truncated.

    Args:
        tokenizer: of the checkpoint.
        model_limit: how many tokens the model has positions for; None: unknown.
        max_seq_length: truncate to this many tokens; None: to what tokenizer and model take.
        columns: see `Preprocessing.columns`.
        takes_mask: whether the model is told which tokens are padding.
        padded_length: see there.
        text_prefix: see there.

    Attributes:
        tokenizer: it pads; one without a pad token pads with its end-of-text token.
        max_length: tokens that a text may have, with its special tokens.
        padded_length: how many tokens all texts are padded to; None: as many as the longest text of a batch has.
        text_prefix: what the tokenizer puts before each text: see `text_prefixes.with_prefix`.
        notes: what was decided about the tokenizer, in sentences.

    Raises:
        UserError: the model takes fewer tokens than `max_seq_length`, or the tokenizer has no words or no token to pad
            with.
    """

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, *, model_limit: int | None, max_seq_length: int | None = None,
        columns: Mapping[str, str] | None = None, takes_mask: bool = True, padded_length: int | None = None,
        text_prefix: str = "",
    ) -> None:  # fmt: skip
        limits = [limit for limit in (tokenizer.model_max_length, model_limit) if limit and 0 < limit < LONGEST_LIMIT]
        if limits and max_seq_length is not None and max_seq_length > min(limits):
            raise user_error(
                expected=f"--max_seq_length of at most {min(limits)}, which is the model's limit",
                found=str(max_seq_length),
                do="lower it, or leave it out",
            )
        special = set(tokenizer.all_special_tokens)
        # For a folder without a tokenizer, transformers makes an empty one, to which all texts look the same.
        if not any(sign.isalnum() for word in tokenizer.get_vocab() if word not in special for sign in word):
            raise user_error(
                expected="a tokenizer with a vocabulary",
                found=f"{type(tokenizer).__name__} without any word",
                do="save the tokenizer beside the model (tokenizer.json), or choose another --model_name_or_path",
            )
        self.notes: list[str] = []
        if tokenizer.pad_token is None:
            if tokenizer.eos_token is None:
                raise user_error(
                    expected="a tokenizer with a token to pad with",
                    found=f"{type(tokenizer).__name__} without a pad token and without an end-of-text token",
                    do="add a pad_token to its tokenizer_config.json, or choose another --model_name_or_path",
                )
            tokenizer.pad_token = tokenizer.eos_token
            self.notes.append(f"The tokenizer has no pad token: texts are padded with {tokenizer.eos_token}.")
        self.tokenizer, self.columns, self._limit = tokenizer, columns or {}, int(tokenizer.model_max_length)
        self.max_length = max_seq_length or min(limits, default=WITHOUT_LIMIT)
        self.padded_length, self.text_prefix = padded_length, text_prefix
        self._prefix_tokens = tokens_of_prefix(tokenizer, text_prefix)
        self._special = set(tokenizer.all_special_ids) - {tokenizer.unk_token_id}
        self._words: dict[int, bool] = {}
        self._is_set = max_seq_length is not None
        names = [name for name in tokenizer.model_input_names if name != MASK]
        # So that other programs make the same inputs, and tokens on disk are of models that take the same.
        self._set_and_save("model_input_names", [*names, MASK] if takes_mask else names)

    def encode(self, texts: Sequence[tuple[str, ...]]) -> tuple[list[Encoded], list[int]]:
        """Token ids of texts or pairs, truncated to `max_length`, and how many tokens each of them lost."""
        whole = self._encode(texts, truncation=False)
        lost = [max(0, len(text["input_ids"]) - self.max_length) for text in whole]
        too_long = [position for position, count in enumerate(lost) if count]
        truncated = self._encode([texts[position] for position in too_long], truncation=True)
        for position, text in zip(too_long, truncated, strict=True):
            whole[position] = text
        return [text if text["input_ids"] else self._one_token(text) for text in whole], lost

    def refuse_no_room(self, texts: int) -> None:
        """Refuse a length of which special tokens and the prefix leave no room for a word of each text.

        Args:
            texts: how many a sample has: 1 or 2.
        """
        special, of_prefix = self.tokenizer.num_special_tokens_to_add(pair=texts == 2), texts * len(self._prefix_tokens)
        if self.max_length >= special + of_prefix + texts:
            return
        others = f" and {of_prefix} tokens of the prefix" if of_prefix else ""
        kind = "pair" if texts == 2 else "text"
        raise user_error(
            expected=f"--max_seq_length of at least {special + of_prefix + texts}, so that a word is left of each text",
            found=f"{self.max_length}, and {special} special tokens{others} for each {kind}",
            do="raise it, or leave it out" if self._is_set else "correct model_max_length in tokenizer_config.json",
        )

    def fault_of(self, texts: tuple[str | None, ...]) -> str:
        """Why a text, or a pair of them, can have no answer; empty: it can."""
        if fault := fault_of_texts(texts):
            return fault
        sample = tuple(map(str, texts))
        is_emptied = self.emptied([sample], self.encode([sample])[0])[0]
        return f"no word is left of it in {self.max_length} tokens" if is_emptied else ""

    def emptied(self, texts: Sequence[tuple[str, ...]], encoded: Sequence[Encoded]) -> list[bool]:
        """Whether no word is left of each sample, or of one of the texts of a pair; those of the prefix do not count.

        Args:
            texts: before truncation.
            encoded: their tokens after it.
        """
        parts = self._parts_with_words([tokens["input_ids"] for tokens in encoded])
        return [count < len(sample) and self._loses_a_text(sample) for sample, count in zip(texts, parts, strict=True)]

    @property
    def padding(self) -> str:
        """What texts are padded with, where, and up to which length."""
        length = f" to {self.padded_length}" if self.padded_length else ""
        return f"{self.tokenizer.pad_token_id} on the {self.tokenizer.padding_side}{length}"

    def pad(self, texts: Sequence[Encoded]) -> Batch:
        """Model inputs [texts, tokens of the longest], or [texts, `padded_length`]."""
        batch = pad_without_fast_tokenizer_warning(
            self.tokenizer, list(texts), padding="max_length" if self.padded_length else "longest",
            max_length=self.padded_length, return_tensors="pt",
        )  # fmt: skip
        return dict(batch)

    def adapt_to(self, model: nn.Module) -> list[str]:
        """Pad so that the answer to a text does not depend on the other texts of its batch.

        Three short texts are predicted together and alone: padded on the side that the tokenizer prefers, then on the
        other one (GPT-2 counts positions from the left end of a batch, XLNet reads the last one). Where both change
        the answers, as in models with convolutions over the tokens (ConvBERT, MobileBERT, CANINE), all texts are
        padded to one length.
        """
        if self.padded_length is None:
            preferred = self.tokenizer.padding_side
            sides = (preferred, "left" if preferred == "right" else "right")
            suitable = next((side for side in sides if self._pads_without_effect(model, side)), None)
            self._pad_on(suitable or preferred)
            self.padded_length = None if suitable else self.max_length
        # For programs that load the model without this package.
        config: Any = model.config
        config.padded_length = self.padded_length
        if self.padded_length is None:
            return []
        length = f"All texts are padded to {self.padded_length} tokens, since padding changes the answers of this model"
        return [f"{length}. A pipeline needs padding='max_length' and truncation=True for this."]

    def _pads_without_effect(self, model: nn.Module, side: str) -> bool:
        """Whether short texts have the same outputs alone and beside a longer one, padded on this side."""
        self._pad_on(side)
        texts = self.encode(UNEQUAL)[0]
        together = _outputs(model, self.pad(texts))
        alone = torch.cat([_outputs(model, self.pad([text])) for text in texts])
        return bool((together - alone).abs().max() <= ROUNDING * alone.abs().max())

    def _pad_on(self, side: str) -> None:
        self._set_and_save("padding_side", side)

    def _set_and_save(self, attribute: str, value: object) -> None:
        """Set an attribute of the tokenizer, also in what is saved of it: the attribute alone is not."""
        setattr(self.tokenizer, attribute, value)
        self.tokenizer.init_kwargs[attribute] = value

    def inputs(self, samples: Sequence[tuple[str, ...]]) -> Batch:
        """Model inputs of texts that belong to no split: tuples of one text, or of two.

        Raises:
            UserError: the model was trained on pairs, and a sample is a single text, or the other way round.
        """
        found = f"{'a single text' if self.pair else 'a pair'}: "
        do = 'give each sample as ("text", "second text")' if self.pair else "give each sample as one text"
        for sample in samples:
            self.refuse_other(len(sample), found=f"{found}{sample!r:.200}", do=do)
        return self.pad(self.encode(samples)[0])

    def refuse_other(self, texts: int, *, found: str, do: str) -> None:
        """Refuse samples of another number of texts than the model was trained on, if that is known."""
        if self.pair is not None and texts != 1 + self.pair:
            kind = "pairs of texts" if self.pair else "single texts"
            raise user_error(expected=f"{kind}, as the model was trained on", found=found, do=do)

    def example(self) -> Batch:
        """Model inputs of two short texts of different length, to trace a model with."""
        return self.pad(self.encode([("one two three",), ("one",)])[0])

    def drawn(self, rows: int, words: int, seed: int) -> Batch:
        """See `Preprocessing.drawn`: words of the vocabulary, the first text being the longest."""
        return self.pad(self.encode(self._drawn_texts(rows, words, seed))[0])

    def portable(self, folder: Path) -> dict[str, Any]:
        """See `Preprocessing.portable`: tokenizer.json, which truncates and pads as this object does.

        Raises:
            UserError: the tokenizer is a program in Python, or changes texts before its own file sees them.
        """
        backend = getattr(self.tokenizer, "backend_tokenizer", None)
        if backend is not None:
            alone = Tokenizer.from_str(backend.to_str())
            alone.enable_truncation(self.max_length, direction=self.tokenizer.truncation_side)
            alone.no_padding()
            if self.padded_length:
                alone.enable_padding(
                    direction=self.tokenizer.padding_side, length=self.padded_length,
                    pad_id=self.tokenizer.pad_token_id, pad_type_id=self.tokenizer.pad_token_type_id,
                    pad_token=str(self.tokenizer.pad_token),
                )  # fmt: skip
            texts = self._drawn_texts(DRAWN_TEXTS, self.max_length, seed=0)
            if all(_same_tokens(alone, one, self.pad(self.encode([one])[0])) for one in texts):
                alone.save(str(folder / TOKENIZER_FILE))
                return {"tokens": {"pair": bool(self.pair), "pad_token_id": self.tokenizer.pad_token_id}}
        raise user_error(
            expected=f"a tokenizer that is complete in its {TOKENIZER_FILE}",
            found=f"{type(self.tokenizer).__name__}, which also runs code of transformers",
            do="predict with hf-transfer predict",
        )

    def fingerprint(self) -> str:
        """A hash of the files of the tokenizer and of its kind: it changes with whatever happens to a text."""
        # Else the files would have the truncation that was used last.
        self._encode([("one",)], truncation=False)
        digest = hashlib.sha256(f"{type(self.tokenizer).__name__} {self.max_length}".encode())
        with tempfile.TemporaryDirectory() as folder:
            self.save(Path(folder))
            for file in sorted(Path(folder).rglob("*")):
                digest.update(file.name.encode() + (file.read_bytes() if file.is_file() else b""))
        return digest.hexdigest()

    def save(self, folder: Path) -> None:
        """Write the tokenizer; programs that truncate by its own limit then truncate where this run did."""
        self.tokenizer.model_max_length = self.max_length
        try:
            self.tokenizer.save_pretrained(folder)
        finally:
            self.tokenizer.model_max_length = self._limit

    def description(self) -> dict[str, Any]:
        """To how many tokens texts are truncated, the limit that the tokenizer had, and its prefix, if it has one."""
        prefix = {TEXT_PREFIX: self.text_prefix} if self.text_prefix else {}
        return {"max_length": self.max_length, "tokenizer_limit": self._limit, **prefix}

    @property
    def pair(self) -> bool | None:
        """Of a finished model: whether it was trained on pairs of texts; None: unknown."""
        return "text_pair_column_name" in self.columns if self.columns else None

    def _drawn_texts(self, rows: int, words: int, seed: int) -> list[tuple[str, ...]]:
        """Random texts, or pairs of them, of up to so many words; the first has as many."""
        generator = np.random.default_rng(seed)
        special = set(self.tokenizer.all_special_tokens)
        vocabulary = sorted(
            word for word in self.tokenizer.get_vocab() if word not in special and any(map(str.isalnum, word))
        )
        counts = [words, *generator.integers(1, words + 1, rows - 1).tolist()]
        parts = 2 if self.pair else 1
        return [tuple(" ".join(generator.choice(vocabulary, count)) for _ in range(parts)) for count in counts]

    def _parts_with_words(self, texts: Sequence[Sequence[int]]) -> list[int]:
        """How many stretches between special tokens have a word, of each text; a pair without them is one stretch."""
        lengths = [len(text) for text in texts]
        ids = np.fromiter(chain.from_iterable(texts), np.int64, sum(lengths))
        of_text = np.repeat(np.arange(len(texts)), lengths)
        different = np.flatnonzero(np.bincount(ids)).tolist()
        are_special, are_words = np.zeros((2, 1 + max(different, default=0)), dtype=bool)
        are_special[different] = [token in self._special for token in different]
        are_words[different] = [self._is_word(token) for token in different]
        is_special, is_word = are_special[ids], (are_words & ~are_special)[ids]
        # A stretch begins behind a special token, and with a text.
        begins = ~is_special
        begins[1:] &= is_special[:-1] | (of_text[1:] != of_text[:-1])
        starts, lasts = np.flatnonzero(begins), len(ids) - 1
        is_prefix = np.ones(len(starts), dtype=bool)
        for place, token in enumerate(self._prefix_tokens):
            is_prefix &= (starts + place <= lasts) & (ids[np.minimum(starts + place, lasts)] == token)
            is_word[starts[is_prefix] + place] = False
        have_words = np.bincount(np.cumsum(begins)[is_word] - 1, minlength=np.count_nonzero(begins)) > 0
        counts: list[int] = np.bincount(of_text[begins][have_words], minlength=len(texts)).tolist()
        return counts

    def _loses_a_text(self, sample: tuple[str, ...]) -> bool:
        """Whether a text of the sample has words, of which none is left after truncation."""
        encoded = self.tokenizer(*sample, truncation=True, max_length=self.max_length, verbose=False)
        if not encoded.is_fast:
            # Tokenizers in Python do not say which token is of which text.
            return self._parts_with_words([encoded["input_ids"]]) == [0]
        parts: dict[int, list[int]] = {number: [] for number in range(len(sample))}
        for token, part in zip(encoded["input_ids"], encoded.sequence_ids(0), strict=True):
            if part is not None:
                parts[part].append(token)
        return any(text.strip() and not self._has_word(parts[number]) for number, text in enumerate(sample))

    def _has_word(self, tokens: Sequence[int]) -> bool:
        """Whether a word is left behind the prefix, or behind the part of it that is left."""
        of_prefix = takewhile(lambda both: both[0] == both[1], zip(tokens, self._prefix_tokens, strict=False))
        return any(map(self._is_word, tokens[len(list(of_prefix)) :]))

    def _is_word(self, token: int) -> bool:
        if token not in self._words:
            self._words[token] = bool(str(self.tokenizer.decode([token])).strip())
        return self._words[token]

    def _one_token(self, empty: Encoded) -> Encoded:
        """One padding token for a text without tokens: some tokenizers have no special tokens, and drop characters."""
        values = {"input_ids": self.tokenizer.pad_token_id, MASK: 1}
        return {key: [values.get(key, 0)] for key in empty}

    def _encode(self, texts: Sequence[tuple[str, ...]], *, truncation: bool) -> list[Encoded]:
        if not texts:
            return []
        columns = [list(column) for column in zip(*texts, strict=True)]
        encoded = self.tokenizer(*columns, truncation=truncation, max_length=self.max_length, verbose=False)
        return [dict(zip(encoded, values, strict=True)) for values in zip(*encoded.values(), strict=True)]


def _same_tokens(tokenizer: Tokenizer, texts: tuple[str, ...], inputs: Batch) -> bool:
    """Whether a tokenizer alone makes these inputs of a text, or of two."""
    tokens = tokenizer.encode(texts[0], texts[1] if texts[1:] else None)
    return tokens.ids == inputs["input_ids"][0].tolist()


@torch.no_grad()
def _outputs(model: nn.Module, inputs: Batch) -> Tensor:
    """The outputs of a classifier in evaluation mode [texts, outputs]."""
    was_training = model.training
    model.train(False)
    try:
        device = next(model.parameters()).device
        outputs: Tensor = model(**{name: value.to(device) for name, value in inputs.items()}).logits
        return outputs.float()
    finally:
        model.train(was_training)
