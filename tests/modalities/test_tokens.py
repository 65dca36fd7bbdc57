"""From texts to tokens: the tokenizer's own, truncated and counted, padded to the longest; singles and pairs."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from hf_transfer.data.sample_models import backbone_folder
from hf_transfer.modalities.tokens import TokenPreprocessing
from hf_transfer.models.pretrained import Checkpoint
from hf_transfer.targets.classes import Classes
from tests.data.conftest import user_error_with
from tests.tiny_text_models import END, PAD, START, tiny_text_model, tiny_tokenizer

TEXTS = [("word7 word8 word9",), ("word5",), ("Word6, and SOMETHING else",), ("word7 " * 30,)]
PAIRS = [("word7 word8", "word9"), ("word5", "word6 " * 30), ("word7 " * 20, "word8 " * 20), ("word9 " * 40, "word5")]


def preprocessing(length: int | None = None, **settings: Any) -> TokenPreprocessing:
    """The preprocessing of a model with 40 positions and the tiny tokenizer."""
    return TokenPreprocessing(tiny_tokenizer(**settings), model_limit=40, max_seq_length=length)


@pytest.fixture(scope="module")
def minilm() -> Any:
    """The tokenizer of the packaged sample, a real one of word pieces."""
    return AutoTokenizer.from_pretrained(backbone_folder("sample:minilm"))


@pytest.mark.parametrize("texts", [TEXTS, PAIRS], ids=["texts", "pairs"])
@pytest.mark.parametrize("length", [None, 3, 8, 16])
@pytest.mark.parametrize("kind", ["tiny", "minilm"])
def test_tokens_are_those_of_the_tokenizer_itself(
    kind: str, length: int | None, texts: list[tuple[str, ...]], minilm: Any
) -> None:
    """Ids, types of the texts in a pair, masks; truncated as the tokenizer does, of a pair the longer text first."""
    tokenizer = tiny_tokenizer() if kind == "tiny" else minilm
    encoded, lost = TokenPreprocessing(tokenizer, model_limit=None, max_seq_length=length).encode(texts)
    limit = length or tokenizer.model_max_length
    for ours, missing, text in zip(encoded, lost, texts, strict=True):
        theirs = tokenizer(*text, truncation="longest_first", max_length=limit)
        assert ours == dict(theirs)
        assert missing == len(tokenizer(*text, verbose=False)["input_ids"]) - len(theirs["input_ids"])


def test_the_texts_of_a_pair_have_different_token_types() -> None:
    """By hand: the start token, two words and an end token are the first text, a word and an end token the second."""
    [encoded], _ = preprocessing().encode([("word7 word8", "word9")])
    assert encoded["token_type_ids"] == [0, 0, 0, 0, 1, 1]
    assert [encoded["input_ids"][place] for place in (0, 3, 5)] == [START, END, END]


def test_of_a_pair_the_longer_text_is_truncated_first() -> None:
    """By hand: 10 tokens, 3 of them special; the text of 2 words stays whole, the other keeps 5."""
    for pair, kept in ((("word5 word6", "word7 " * 9), (2, 5)), (("word7 " * 9, "word5 word6"), (5, 2))):
        [encoded], lost = preprocessing(10).encode([pair])
        types = encoded["token_type_ids"]
        assert (types.count(0) - 2, types.count(1) - 1) == kept
        assert lost == [4]


@pytest.mark.parametrize(
    ("tokenizer_limit", "model_limit", "asked", "length"),
    [
        (32, 40, None, 32),
        (50, 40, None, 40),
        (10**30, 40, None, 40),
        (10**30, None, None, 512),
        (10**30, -1, None, 512),
        (32, 40, 10, 10),
        (32, 40, 32, 32),
        (10**30, None, 2000, 2000),
    ],
)
def test_texts_are_truncated_as_set_or_to_what_tokenizer_and_model_take(
    tokenizer_limit: int, model_limit: int | None, asked: int | None, length: int
) -> None:
    """No limit is -1 for XLNet, and a huge number for tokenizers."""
    made = TokenPreprocessing(
        tiny_tokenizer(model_max_length=tokenizer_limit), model_limit=model_limit, max_seq_length=asked
    )
    assert made.max_length == length
    [text], _ = made.encode([("word7 " * 3000,)])
    assert len(text["input_ids"]) == length


def test_more_tokens_than_the_model_takes_are_refused() -> None:
    with user_error_with(
        expected="--max_seq_length of at most 32, which is the model's limit", found="33", do="lower it"
    ):
        preprocessing(33)


def test_a_batch_is_padded_to_its_longest_text_and_not_further() -> None:
    made = preprocessing()
    texts, _ = made.encode(TEXTS[:3])
    batch = made.pad(texts)
    lengths = [len(text["input_ids"]) for text in texts]
    assert {name: tuple(value.shape) for name, value in batch.items()} == dict.fromkeys(
        ("input_ids", "token_type_ids", "attention_mask"), (3, max(lengths))
    )
    for row, (text, length) in enumerate(zip(texts, lengths, strict=True)):
        assert batch["input_ids"][row].tolist() == text["input_ids"] + [PAD] * (max(lengths) - length)
        assert batch["attention_mask"][row].tolist() == [1] * length + [0] * (max(lengths) - length)
    assert all(value.dtype == torch.int64 for value in batch.values())


def test_the_example_has_two_texts_of_different_length() -> None:
    """A model is traced with it: its masks must matter."""
    mask = preprocessing().example()["attention_mask"]
    assert mask.shape[0] == 2
    assert mask[0].sum() > mask[1].sum()


def test_a_text_of_no_tokens_has_one() -> None:
    """A batch of them would have no shape."""
    tokenizer = tiny_tokenizer()
    tokenizer.backend_tokenizer.post_processor = None
    made = TokenPreprocessing(tokenizer, model_limit=None)
    batch = made.inputs([("",), (" ",)])
    assert batch["input_ids"].tolist() == [[PAD], [PAD]]
    assert batch["attention_mask"].tolist() == [[1], [1]]
    assert batch["input_ids"].dtype == torch.int64


@pytest.mark.parametrize("pad", [True, False])
def test_a_tokenizer_without_a_pad_token_pads_with_its_end_of_text_and_says_so(pad: bool) -> None:
    made = preprocessing(pad=pad)
    assert made.notes == ([] if pad else ["The tokenizer has no pad token: texts are padded with [SEP]."])
    assert made.inputs([("word7 word8",), ("word7",)])["input_ids"][1, -1] == (PAD if pad else END)


def test_the_logits_of_a_text_alone_are_those_in_a_padded_batch_of_a_model_without_a_pad_token(tmp_path: Path) -> None:
    """GPT-2 classifies by the last token that is not padding, so its config must name the padding token."""
    tiny_text_model("gpt2", pad_token_id=None, num_labels=2).save_pretrained(tmp_path)
    tiny_tokenizer(pad=False).save_pretrained(tmp_path)
    checkpoint = Checkpoint(str(tmp_path), task="text-classification")
    made = TokenPreprocessing(checkpoint.tokenizer(), model_limit=checkpoint.longest_input)
    model: Any = checkpoint.classifier(Classes(("a", "b")), seed=0, fresh_weights=False).eval()
    texts = [("word7 word8 word9",), ("word5",), ("word6 word7 word8 word9 word10",)]
    with torch.no_grad():
        together = model(**made.inputs(texts)).logits
        alone = torch.cat([model(**made.inputs([text])).logits for text in texts])
    torch.testing.assert_close(together, alone, rtol=1e-5, atol=1e-5)
    assert (together[0] - together[1]).abs().max() > 1e-3
    model.save_pretrained(tmp_path / "saved")
    assert AutoModelForSequenceClassification.from_pretrained(tmp_path / "saved").config.pad_token_id == END


@pytest.mark.parametrize(
    ("columns", "sample", "words"),
    [
        ({"text_column_name": "a", "text_pair_column_name": "b"}, ("word7",), "pairs of texts"),
        ({"text_column_name": "a"}, ("word7", "word8"), "single texts"),
    ],
)
def test_a_model_of_pairs_refuses_single_texts_and_the_other_way_round(
    columns: dict[str, str], sample: tuple[str, ...], words: str
) -> None:
    """Its answers would be wrong, without a message."""
    asked = TokenPreprocessing(tiny_tokenizer(), model_limit=None, columns=columns)
    with user_error_with(expected=f"{words}, as the model was trained on", found="word7", do="give each sample as"):
        asked.inputs([sample])
    assert asked.inputs([("word7", "word8")[: len(columns)]])["input_ids"].shape[0] == 1
    assert asked.example()["input_ids"].shape[0] == 2


def test_without_columns_of_a_training_singles_and_pairs_are_both_accepted() -> None:
    assert preprocessing().pair is None
    for sample in (("word7",), ("word7", "word8")):
        assert preprocessing().inputs([sample])["input_ids"].shape[0] == 1


def test_the_length_is_saved_as_the_tokenizers_limit_and_the_tokenizer_stays_as_it_is(tmp_path: Path) -> None:
    made = preprocessing(12)
    made.save(tmp_path)
    assert AutoTokenizer.from_pretrained(tmp_path).model_max_length == 12
    assert made.tokenizer.model_max_length == 32
    assert made.description() == {"max_length": 12, "tokenizer_limit": 32}


@pytest.mark.parametrize("side", ["left", "right"])
def test_how_texts_are_padded_is_described(side: str) -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.padding_side = side
    assert TokenPreprocessing(tokenizer, model_limit=None).padding == f"{PAD} on the {side}"
