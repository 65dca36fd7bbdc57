"""A length that leaves no word of a text is refused, and texts of which none is left are counted."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from hf_transfer.data.splits import Split
from hf_transfer.modalities.text_batches import TextRows, describe_truncation
from hf_transfer.modalities.tokens import TokenPreprocessing
from tests.conftest import Finished
from tests.data.conftest import assert_refused, user_error_with, write_table
from tests.recipes.test_multimodal import given, recipe  # noqa: F401 - fixtures
from tests.tiny_text_models import save_text_checkpoint, tiny_tokenizer

SPECIAL = [("[CLS]", 1), ("[SEP]", 2)]


def characters(single: str = "[CLS] $A [SEP]", pair: str = "[CLS] $A [SEP] [SEP] $B [SEP]") -> PreTrainedTokenizerFast:
    """A tokenizer of single characters, of which a space is one; its special tokens stand as in these templates."""
    signs = ["[PAD]", "[CLS]", "[SEP]", "[UNK]", " ", "\n", *"abcdefghijklmnopqrstuvwxyz"]
    tokenizer = Tokenizer(models.WordLevel({sign: number for number, sign in enumerate(signs)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    tokenizer.post_processor = processors.TemplateProcessing(single=single, pair=pair, special_tokens=SPECIAL)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]", pad_token="[PAD]",
        model_max_length=32,
    )  # fmt: skip


def tokens(length: int | None, tokenizer: PreTrainedTokenizerFast | None = None) -> TokenPreprocessing:
    return TokenPreprocessing(tokenizer or characters(), model_limit=40, max_seq_length=length)


@pytest.mark.parametrize(
    ("tokenizer", "texts", "least"),
    [
        (tiny_tokenizer(), 1, 3), (tiny_tokenizer(), 2, 5), (characters(), 1, 3), (characters(), 2, 6),
        (characters("$A [SEP]", "$A [SEP] $B [SEP]"), 1, 2), (characters("$A", "$A $B"), 2, 2),
        (characters("[CLS] [CLS] [CLS] $A [SEP]"), 1, 5),
    ],
)  # fmt: skip
def test_special_tokens_must_leave_room_for_a_word_of_each_text(
    tokenizer: PreTrainedTokenizerFast, texts: int, least: int
) -> None:
    tokens(least, tokenizer).refuse_no_room(texts)
    if least > 1:
        with user_error_with(
            expected=f"--max_seq_length of at least {least}, so that a word is left of each text",
            found=f"{least - 1}, and {least - texts} special tokens for each",
            do="raise it, or leave it out",
        ):
            tokens(least - 1, tokenizer).refuse_no_room(texts)


def test_a_tokenizer_whose_own_limit_leaves_no_room_is_refused_with_other_advice() -> None:
    tokenizer = characters()
    tokenizer.model_max_length = 2
    with user_error_with(expected="at least 3", found="2, and 2 special", do="correct model_max_length"):
        tokens(None, tokenizer).refuse_no_room(1)


@pytest.mark.parametrize(
    ("text", "is_emptied"),
    [
        ("abc", False), ("      abc", True), ("\n\n\n\n\n\nabc", True), (" a    bc", False), ("", False),
        ("    ", False), ("é", False), ("  é", False),
    ],
)  # fmt: skip
def test_a_text_cut_down_to_white_space_has_no_word(text: str, is_emptied: bool) -> None:
    """A text without a word from the start is another fault, and an unknown word is one."""
    made = tokens(6)
    encoded, _ = made.encode([(text,)])
    assert made.emptied([(text,)], encoded) == [is_emptied]


@pytest.mark.parametrize(
    ("pair", "is_emptied"),
    [
        (("abc", "abcdef"), False),
        (("abc", "       def"), True),
        (("     abc", "def"), True),
        (("abc", ""), False),
        (("     a", "     b"), True),
    ],
)
@pytest.mark.parametrize("template", ["[CLS] $A [SEP] [SEP] $B [SEP]", "$A $B"])
def test_of_a_pair_both_texts_keep_a_word(pair: tuple[str, str], is_emptied: bool, template: str) -> None:
    """With and without special tokens between them."""
    made = tokens(8 if "CLS" in template else 4, characters(pair=template))
    encoded, _ = made.encode([pair])
    assert made.emptied([pair], encoded) == [is_emptied]


def rows(texts: Sequence[str], made: TokenPreprocessing) -> TextRows:
    data = datasets.Dataset.from_dict({"text": list(texts)})
    return TextRows(Split(data, np.arange(len(texts)), np.zeros(len(texts), np.int64)), made)


def test_texts_without_a_word_are_counted_and_a_training_split_of_them_is_refused() -> None:
    splits = {
        "train": rows(["abc", "      a", "       b"], tokens(6)),
        "validation": rows(["a"], tokens(6)),
        "test": rows(["      a"], tokens(6)),
    }
    truncated, emptied = describe_truncation(splits, tokens(6))
    assert truncated.startswith("Truncated to 6 tokens: 2 of 3 in train, 1 of 1 in test;")
    assert emptied == "No word is left of a text in 6 tokens: 2 of 3 in train, 1 of 1 in test."
    with user_error_with(
        expected="training texts of which a word is left",
        found="none among 2: only special",
        do="raise --max_seq_length",
    ):
        describe_truncation(splits | {"train": rows(["      a", "      b"], tokens(6))}, tokens(6))


@pytest.mark.parametrize("length", [3, 4])
def test_the_recipe_refuses_pairs_before_anything_is_loaded(
    length: int, text: Callable[..., Finished], tmp_path: Path, no_weights: None
) -> None:
    write_table(tmp_path / "pairs.csv", [{"a": "word7", "b": "word8", "label": "xy"[place % 2]} for place in range(20)])
    finished = text(
        model_name_or_path=save_text_checkpoint(tmp_path / "bert"), dataset_name=tmp_path / "pairs.csv",
        text_column_name="a", text_pair_column_name="b", max_seq_length=length,
    )  # fmt: skip
    assert_refused(
        finished, "--max_seq_length of at least 5", f"{length}, and 3 special tokens for each pair", "raise it"
    )
    assert not (tmp_path / "out").exists()


def test_the_recipe_of_images_with_texts_refuses_it_too(recipe: Any, given: Path, tmp_path: Path) -> None:  # noqa: F811
    save_text_checkpoint(tmp_path / "bert")
    tokenizer = tiny_tokenizer()
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] [CLS] $A [SEP]", pair="$A $B", special_tokens=SPECIAL
    )
    tokenizer.save_pretrained(tmp_path / "bert")
    finished = recipe(text_model_name_or_path=tmp_path / "bert", max_seq_length=3)
    assert finished.code == 2
    assert "--max_seq_length of at least 4" in finished.err
    assert not (tmp_path / "out").exists()
