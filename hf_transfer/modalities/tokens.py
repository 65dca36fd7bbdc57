"""From texts to model inputs: a checkpoint's own tokenizer, with the length at which texts are truncated."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase
from transformers.data.data_collator import pad_without_fast_tokenizer_warning

from hf_transfer.data.batches import Batch
from hf_transfer.errors import user_error
from hf_transfer.modalities.modality import Preprocessing

# Tokenizers without a limit state a number above this.
LONGEST_LIMIT = 1_000_000
WITHOUT_LIMIT = 512
Encoded = dict[str, list[int]]


class TokenPreprocessing(Preprocessing):
    """A checkpoint's tokenizer, with the length at which texts are truncated.

    Args:
        tokenizer: of the checkpoint.
        model_limit: how many tokens the model has positions for; None: unknown.
        max_seq_length: truncate to this many tokens; None: to what tokenizer and model take.
        columns: see `Preprocessing.columns`.

    Attributes:
        tokenizer: it pads; one without a pad token pads with its end-of-text token.
        max_length: tokens that a text may have, with its special tokens.
        notes: what was decided about the tokenizer, in sentences.

    Raises:
        UserError: the model takes fewer tokens than `max_seq_length`, or the tokenizer has no words or no token to pad
            with.
    """

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, *, model_limit: int | None, max_seq_length: int | None = None,
        columns: Mapping[str, str] | None = None,
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

    def encode(self, texts: Sequence[tuple[str, ...]]) -> tuple[list[Encoded], list[int]]:
        """Token ids of texts or pairs, truncated to `max_length`, and how many tokens each of them lost."""
        whole = self._encode(texts, truncation=False)
        lost = [max(0, len(text["input_ids"]) - self.max_length) for text in whole]
        too_long = [position for position, count in enumerate(lost) if count]
        truncated = self._encode([texts[position] for position in too_long], truncation=True)
        for position, text in zip(too_long, truncated, strict=True):
            whole[position] = text
        return [text if text["input_ids"] else self._one_token(text) for text in whole], lost

    @property
    def padding(self) -> str:
        """What a batch of texts of different length is padded with, and where."""
        return f"{self.tokenizer.pad_token_id} on the {self.tokenizer.padding_side}"

    def pad(self, texts: Sequence[Encoded]) -> Batch:
        """Model inputs [texts, tokens of the longest]."""
        batch = pad_without_fast_tokenizer_warning(self.tokenizer, list(texts), padding="longest", return_tensors="pt")
        return dict(batch)

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

    def save(self, folder: Path) -> None:
        """Write the tokenizer; programs that truncate by its own limit then truncate where this run did."""
        self.tokenizer.model_max_length = self.max_length
        try:
            self.tokenizer.save_pretrained(folder)
        finally:
            self.tokenizer.model_max_length = self._limit

    def description(self) -> dict[str, Any]:
        """The number of tokens to which texts are truncated, and the limit that the tokenizer itself had."""
        return {"max_length": self.max_length, "tokenizer_limit": self._limit}

    @property
    def pair(self) -> bool | None:
        """Of a finished model: whether it was trained on pairs of texts; None: unknown."""
        return "text_pair_column_name" in self.columns if self.columns else None

    def _one_token(self, empty: Encoded) -> Encoded:
        """One padding token for a text without tokens: some tokenizers have no special tokens, and drop characters."""
        values = {"input_ids": self.tokenizer.pad_token_id, "attention_mask": 1}
        return {key: [values.get(key, 0)] for key in empty}

    def _encode(self, texts: Sequence[tuple[str, ...]], *, truncation: bool) -> list[Encoded]:
        if not texts:
            return []
        columns = [list(column) for column in zip(*texts, strict=True)]
        encoded = self.tokenizer(*columns, truncation=truncation, max_length=self.max_length, verbose=False)
        return [dict(zip(encoded, values, strict=True)) for values in zip(*encoded.values(), strict=True)]
