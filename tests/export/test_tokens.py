"""The tokenizer beside an exported model: alone it makes the model inputs that training had."""

from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer

from hf_transfer.errors import UserError
from hf_transfer.modalities.tokens import TokenPreprocessing
from tests.tiny_text_models import tiny_tokenizer

PAIR = {"text_column_name": "question", "text_pair_column_name": "answer"}
SAMPLES = [("word3",), ("Word4, word5 unknown",), (" ".join(["word7"] * 40),)]
PAIRS = [("word3", "word9"), (" ".join(["word7"] * 40), "word1 word2"), ("word1", " ".join(["word2"] * 40))]


def preprocessing(columns: dict[str, str] | None = None, length: int | None = None, **settings: Any) -> Any:
    return TokenPreprocessing(
        tiny_tokenizer(**settings), model_limit=40, max_seq_length=12, columns=columns, padded_length=length
    )


@pytest.mark.parametrize("length", [None, 12])
@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("texts", [1, 2])
def test_it_truncates_and_pads_as_in_training(length: int | None, side: str, texts: int, tmp_path: Path) -> None:
    tokens = preprocessing(PAIR if texts == 2 else None, length, truncation_side=side, padding_side=side)
    assert tokens.portable(tmp_path) == {"tokens": {"pair": texts == 2, "pad_token_id": 0}}
    alone = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    for sample in PAIRS if texts == 2 else SAMPLES:
        expected, made = tokens.inputs([sample]), alone.encode(*sample)
        assert made.ids == expected["input_ids"][0].tolist()
        assert made.type_ids == expected["token_type_ids"][0].tolist()
        assert made.attention_mask == expected["attention_mask"][0].tolist()


def test_the_tokenizer_of_the_model_stays_as_it_is(tmp_path: Path) -> None:
    tokens = preprocessing()
    before = tokens.fingerprint()
    tokens.portable(tmp_path)
    assert tokens.fingerprint() == before


def test_a_tokenizer_that_needs_python_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It changes texts before its file sees them."""
    tokens = preprocessing()
    encode = tokens._encode
    monkeypatch.setattr(tokens, "_encode", lambda texts, **options: encode([("word1",) for _ in texts], **options))
    with pytest.raises(UserError, match="which also runs code of transformers"):
        tokens.portable(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_drawn_texts_differ_in_length_and_the_first_is_the_longest() -> None:
    batch = preprocessing().drawn(6, 5, seed=1)
    lengths = batch["attention_mask"].sum(1).tolist()
    assert lengths[0] == max(lengths) == batch["input_ids"].shape[1]
    assert len(set(lengths)) > 1
