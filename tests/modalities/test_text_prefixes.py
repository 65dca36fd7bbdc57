"""A prefix before every text is a part of the tokenizer: whoever reads its files makes the same tokens."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import AutoTokenizer, BertConfig, BertTokenizer, ByT5Tokenizer, PreTrainedTokenizerFast

from hf_transfer.data.sample_models import backbone_folder
from hf_transfer.modalities.modality import save_preprocessing, saved_description
from hf_transfer.modalities.pair import PairModality
from hf_transfer.modalities.text import TextModality
from hf_transfer.modalities.text_batches import describe_truncation
from hf_transfer.modalities.text_prefixes import tokens_of_prefix, with_prefix
from hf_transfer.modalities.tokens import TokenPreprocessing
from hf_transfer.models.pretrained import Checkpoint
from hf_transfer.targets.classes import Classes
from tests.data.conftest import PairSettings, TextSettings, user_error_with
from tests.modalities.test_room_for_words import characters, rows
from tests.models.test_sentence_encoders import save_sentence_encoder
from tests.tiny_text_models import save_text_checkpoint, tiny_tokenizer

PROMPT = "query: "
TEXTS = ["hello there", "Hello", "  spaces  and\ttabs ", "(1) one", "élan", "文章 text", "query: twice", "9.5%"]


def word_pieces() -> Any:
    """BERT's own class: it makes its normalizer anew wherever it is read."""
    tokenizer = AutoTokenizer.from_pretrained(backbone_folder("sample:minilm"))
    assert type(tokenizer) is BertTokenizer
    return tokenizer


def bytes_of_gpt2() -> PreTrainedTokenizerFast:
    """Bytes, with a space as the first sign of a word; without a normalizer."""
    signs = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {sign: number for number, sign in enumerate(["<end>", *signs, "he", "Ġhe"])}
    tokenizer = Tokenizer(models.BPE(vocabulary, [("h", "e"), ("Ġ", "he")]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<end>", pad_token="<end>")


def pieces_of_e5() -> PreTrainedTokenizerFast:
    """Pieces of SentencePiece, as those of XLM-R: the sign of a space is put before each word, also the first."""
    signs = "▁abcdefghijklmnopqrstuvwxyz:.()0123456789"
    pieces = [("<unk>", 0.0), ("</s>", 0.0), *((sign, -5.0) for sign in signs), ("▁query", -1.0), ("▁hello", -1.0)]
    tokenizer = Tokenizer(models.Unigram(pieces, unk_id=0))
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()])
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.post_processor = processors.TemplateProcessing("$A </s>", "$A </s> $B </s>", [("</s>", 1)])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>", eos_token="</s>", pad_token="</s>")


KINDS: dict[str, Callable[[], Any]] = {
    "words": tiny_tokenizer, "BERT": word_pieces, "GPT-2": bytes_of_gpt2, "E5": pieces_of_e5, "signs": characters,
}  # fmt: skip


def read(folder: str) -> Any:
    return AutoTokenizer.from_pretrained(folder, config=BertConfig())


def inputs(tokenizer: Any, texts: Sequence[str], prefix: str = "") -> list[dict[str, Any]]:
    """What the tokenizer makes of the prefix and each text in one, single and in pairs."""
    whole = [prefix + text for text in texts]
    return [dict(tokenizer(whole)), dict(tokenizer(whole, whole[::-1]))]


@pytest.mark.parametrize("prefix", [PROMPT, "re", "Title: none | Text: "])
@pytest.mark.parametrize("kind", KINDS)
def test_the_tokens_are_those_of_prefix_and_text_in_one(kind: str, prefix: str, tmp_path: Path) -> None:
    """Also for a program that reads the files of the tokenizer without this package, and for texts in pairs."""
    expected = inputs(KINDS[kind](), TEXTS, prefix)
    changed = with_prefix(KINDS[kind](), prefix, read)
    assert inputs(changed, TEXTS) == expected
    changed.save_pretrained(tmp_path)
    assert inputs(AutoTokenizer.from_pretrained(tmp_path, config=BertConfig()), TEXTS) == expected
    alone = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    alone.no_padding()
    assert [alone.encode(text).ids for text in TEXTS] == expected[0]["input_ids"]


@pytest.mark.parametrize("kind", KINDS)
def test_an_empty_text_stays_empty(kind: str) -> None:
    """It stands for a missing text of a pair with an image."""
    plain = KINDS[kind]()("")["input_ids"]
    assert with_prefix(KINDS[kind](), PROMPT, read)("")["input_ids"] == plain


@pytest.mark.parametrize("kind", KINDS)
def test_a_prefix_can_be_replaced_and_removed(kind: str) -> None:
    first = with_prefix(KINDS[kind](), PROMPT, read)
    second = with_prefix(first, "passage: ", read, has=PROMPT)
    assert inputs(second, TEXTS) == inputs(KINDS[kind](), TEXTS, "passage: ")
    assert with_prefix(second, "passage: ", read, has="passage: ") is second
    assert inputs(with_prefix(second, "", read, has="passage: "), TEXTS) == inputs(KINDS[kind](), TEXTS)


def test_the_tokens_of_the_prefix_are_known() -> None:
    tokenizer = with_prefix(word_pieces(), PROMPT, read)
    assert tokens_of_prefix(tokenizer, PROMPT) == word_pieces()(PROMPT, add_special_tokens=False)["input_ids"]
    assert tokens_of_prefix(tokenizer, "") == []
    assert inputs(tokenizer, TEXTS) == inputs(word_pieces(), TEXTS, PROMPT)


def test_a_tokenizer_that_would_lose_the_prefix_is_refused() -> None:
    """As transformers reads some types of models by a class of their own, whatever the files say."""
    with user_error_with(
        expected="for --text_prefix 'query: ' a tokenizer that can put it before each text",
        found="BertTokenizer, which makes other tokens",
        do="--text_prefix ''",
    ):
        with_prefix(word_pieces(), PROMPT, lambda _: word_pieces())


def test_a_tokenizer_in_python_is_refused() -> None:
    with user_error_with(expected="for --text_prefix 'query: '", found="ByT5Tokenizer, a program in Python", do="use"):
        with_prefix(ByT5Tokenizer(), PROMPT, read)
    plain = ByT5Tokenizer()
    assert with_prefix(plain, "", read) is plain


def test_a_finished_model_whose_tokenizer_has_lost_its_prefix_is_refused(tmp_path: Path) -> None:
    checkpoint = finished(tmp_path, PROMPT)
    tiny_tokenizer().save_pretrained(tmp_path)
    with user_error_with(
        expected="a tokenizer that puts 'query: ' before each text, as the model was trained",
        found="TokenizersBackend without it",
        do="restore tokenizer.json and tokenizer_config.json",
    ):
        TextModality().saved_preprocessing(checkpoint)


@pytest.mark.parametrize("value", ["3", '["query: "]', "null"])
def test_a_damaged_record_of_the_prefix_is_refused(value: str, tmp_path: Path) -> None:
    checkpoint = finished(tmp_path, PROMPT)
    file = tmp_path / "preprocessing.json"
    file.write_text(file.read_text().replace('"query: "', value))
    with user_error_with(expected="a preprocessing.json", found="text_prefix is", do="restore that file"):
        TextModality().saved_preprocessing(checkpoint)


def preprocessing(prefix: str, length: int | None = None, tokenizer: Any = None) -> TokenPreprocessing:
    changed = with_prefix(tokenizer or tiny_tokenizer(), prefix, read)
    return TokenPreprocessing(changed, model_limit=40, max_seq_length=length, text_prefix=prefix)


def finished(folder: Path, prefix: str) -> Checkpoint:
    """A finished model of texts that was trained with this prefix."""
    save_text_checkpoint(folder)
    columns = {"text_column_name": "text"}
    save_preprocessing(preprocessing(prefix), TextModality().name, columns, Classes.problem_type, folder)
    return Checkpoint(str(folder), task="text-classification")


def test_a_key_of_stored_activations_differs_by_the_prefix() -> None:
    keys = [preprocessing(prefix).fingerprint() for prefix in ("", "word3 ", "word4 ", "word3 ")]
    assert len(set(keys)) == 3
    assert keys[1] == keys[3]


def test_an_exported_tokenizer_puts_the_prefix_too(tmp_path: Path) -> None:
    """Also before a text that is truncated."""
    made = preprocessing("word3 word4 ", 8)
    made.portable(tmp_path)
    alone = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    for text, words in (("word9", "word9"), ("word9 " * 20, "word9 word9 word9 word9")):
        expected = tiny_tokenizer()("word3 word4 " + words)["input_ids"]
        assert alone.encode(text).ids == made.inputs([(text,)])["input_ids"][0].tolist() == expected


@pytest.mark.parametrize("texts", [1, 2])
def test_a_prefix_needs_room_of_its_own(texts: int) -> None:
    """By hand: the prefix has 2 tokens, each text at least one, and there are 2 or 3 special tokens."""
    least = 1 + texts + 3 * texts
    preprocessing("word3 word4 ", least).refuse_no_room(texts)
    kind = "text" if texts == 1 else "pair"
    with user_error_with(
        expected=f"--max_seq_length of at least {least}",
        found=f"{least - 1}, and {1 + texts} special tokens and {2 * texts} tokens of the prefix for each {kind}",
        do="raise it",
    ):
        preprocessing("word3 word4 ", least - 1).refuse_no_room(texts)


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize(
    ("sample", "is_emptied"),
    [
        (("abc",), False), (("   abc",), True), (("q",), False), (("   ",), False), (("q   abc",), False),
        (("abc", "b"), False), (("a", "       abc"), True), (("       abc", "a"), True), (("q q q", "b"), False),
    ],
)  # fmt: skip
def test_the_prefix_is_no_word_of_a_text(sample: tuple[str, ...], is_emptied: bool, side: str) -> None:
    """By hand: each sign is a token, and 8 or 15 of them are kept, special tokens and prefixes among them."""
    made = preprocessing("qq ", 8 if len(sample) == 1 else 15, characters())
    if side == "left":
        # Then the words at the end are kept.
        made.tokenizer.truncation_side, is_emptied = "left", False
    encoded, _ = made.encode([sample])
    assert made.emptied([sample], encoded) == [is_emptied]


@pytest.mark.parametrize(
    ("prefix", "side", "is_lost"), [("word3 ", "left", True), ("word3 ", "right", False), ("", "left", False)]
)
def test_a_prefix_that_truncation_on_the_left_takes_away_is_said_to_be_lost(
    prefix: str, side: str, is_lost: bool
) -> None:
    """Of texts that fit nothing is said; of others the words at the end are left, without the prefix."""
    made = preprocessing(prefix, 6)
    made.tokenizer.truncation_side = side
    words = [f"word{number}" for number in range(4, 12)]
    short, long = (rows([" ".join(words[:count])], made) for count in (2, 8))
    assert describe_truncation({"test": short}, made) == []
    truncated, *others = describe_truncation({"test": long}, made)
    assert truncated.startswith("Truncated to 6 tokens: 1 of 1 in test;")
    assert others == (
        [
            "These texts have lost 'word3 ', too, since the tokenizer truncates on the left: raise --max_seq_length, "
            "or set truncation_side to right in its tokenizer_config.json."
        ]
        if is_lost
        else []
    )
    expected = words[-4:] if side == "left" else ["word3", *words[:3]]
    assert (
        made.inputs([(" ".join(words),)])["input_ids"].tolist() == tiny_tokenizer()([" ".join(expected)])["input_ids"]
    )


def sentence_encoder(folder: Path, **settings: Any) -> Checkpoint:
    """A tiny sentence encoder with these settings of sentence-transformers."""
    save_sentence_encoder(folder)
    (folder / "config_sentence_transformers.json").write_text(json.dumps(settings), encoding="utf-8")
    return Checkpoint(str(folder), task="text-classification", pooling="own")


PROMPTS = {"prompts": {"query": "word3 ", "document": "word4 "}, "default_prompt_name": "query"}


def test_the_default_prompt_of_a_checkpoint_is_put_before_each_text(
    tmp_path: Path, text_settings: TextSettings
) -> None:
    checkpoint = sentence_encoder(tmp_path / "model", **PROMPTS)
    made = TextModality().preprocessing(checkpoint, text_settings(), {})
    assert made.inputs([("word9",)])["input_ids"].tolist() == tiny_tokenizer()(["word3 word9"])["input_ids"]
    assert made.notes == [
        "'word3 ' is put before each text, as config_sentence_transformers.json of the model says (--text_prefix '' "
        "turns this off)."
    ]


@pytest.mark.parametrize(("asked", "expected"), [("", "word9"), ("word7 ", "word7 word9")])
def test_another_prefix_or_none_can_be_asked_for(
    asked: str, expected: str, tmp_path: Path, text_settings: TextSettings
) -> None:
    checkpoint = sentence_encoder(tmp_path / "model", **PROMPTS)
    made = TextModality().preprocessing(checkpoint, text_settings(text_prefix=asked), {})
    assert made.inputs([("word9",)])["input_ids"].tolist() == tiny_tokenizer()([expected])["input_ids"]
    assert made.notes == ([f"{asked!r} is put before each text, as --text_prefix says."] if asked else [])


def test_the_texts_of_a_pair_each_have_the_prefix(tmp_path: Path, text_settings: TextSettings) -> None:
    checkpoint = sentence_encoder(tmp_path / "model", **PROMPTS)
    made = TextModality().preprocessing(checkpoint, text_settings(text_pair_column_name="other"), {})
    expected = tiny_tokenizer()(["word3 word9"], ["word3 word8"])
    assert made.encode([("word9", "word8")])[0][0]["input_ids"] == expected["input_ids"][0]


def test_the_text_of_an_image_has_the_prefix_of_its_tower(tmp_path: Path, pair_settings: PairSettings) -> None:
    """A missing text has none."""
    sentence_encoder(tmp_path / "model", **PROMPTS)
    config = pair_settings(text_model_name_or_path=str(tmp_path / "model"))
    made = PairModality().preprocessing(PairModality().checkpoint(config), config, {}).tokens
    assert [text["input_ids"] for text in made.encode([("word9",), ("",)])[0]] == tiny_tokenizer()(["word3 word9", ""])[
        "input_ids"
    ]


def test_prompts_without_a_default_are_named_and_not_used(tmp_path: Path, text_settings: TextSettings) -> None:
    prompts = {name: f"{name}: " for name in ("query", "document", "sts", "title", "code")} | {"none": ""}
    checkpoint = sentence_encoder(tmp_path / "model", prompts=prompts, default_prompt_name=None)
    made = TextModality().preprocessing(checkpoint, text_settings(), {})
    assert made.text_prefix == ""
    assert made.notes == [
        "config_sentence_transformers.json of the model names prompts, none as the default: query 'query: ', document "
        "'document: ', sts 'sts: ', title 'title: ', .... Nothing is put before the texts; --text_prefix can put one "
        "of them there."
    ]


@pytest.mark.parametrize("settings", [{}, {"prompts": None}, {"prompts": {}}, {"prompts": {"document": ""}}])
def test_most_sentence_encoders_name_no_prompt(
    settings: dict[str, Any], tmp_path: Path, text_settings: TextSettings
) -> None:
    made = TextModality().preprocessing(sentence_encoder(tmp_path / "model", **settings), text_settings(), {})
    assert (made.text_prefix, made.notes) == ("", [])


def test_prompts_without_modules_do_not_count(tmp_path: Path, text_settings: TextSettings) -> None:
    """sentence-transformers reads them only beside modules.json."""
    checkpoint = sentence_encoder(tmp_path / "model", **PROMPTS)
    (tmp_path / "model" / "modules.json").unlink()
    assert TextModality().preprocessing(checkpoint, text_settings(), {}).text_prefix == ""


@pytest.mark.parametrize(
    ("settings", "shown"),
    [
        ({"prompts": {"query": "word3 "}, "default_prompt_name": "q"}, "default_prompt_name 'q', and prompts 'query'"),
        ({"default_prompt_name": "q"}, "default_prompt_name 'q', and prompts none"),
        ({"prompts": {"query": 3}}, "{'query': 3}"),
        ({"prompts": ["query: "]}, "['query: ']"),
        ({"prompts": {"query": "word3 "}, "default_prompt_name": ["query"]}, "default_prompt_name ['query']"),
    ],
)
def test_prompts_that_sentence_transformers_would_not_take_are_refused(
    settings: dict[str, Any], shown: str, tmp_path: Path, text_settings: TextSettings
) -> None:
    checkpoint = sentence_encoder(tmp_path / "model", **settings)
    with user_error_with(
        expected=f"in config_sentence_transformers.json of {checkpoint.name} prompts that are texts, and "
        "default_prompt_name one of their names",
        found=shown,
        do="correct that file",
    ):
        TextModality().preprocessing(checkpoint, text_settings(), {})


@pytest.mark.parametrize("content", ["[]", "{", "3"])
def test_damaged_prompts_are_refused(content: str, tmp_path: Path, text_settings: TextSettings) -> None:
    checkpoint = sentence_encoder(tmp_path / "model")
    (tmp_path / "model" / "config_sentence_transformers.json").write_text(content)
    with user_error_with(expected=f"a complete transformers checkpoint in {checkpoint.name}", found="", do="check"):
        TextModality().preprocessing(checkpoint, text_settings(), {})


def test_a_new_run_starts_with_the_prefix_of_the_finished_model(tmp_path: Path, text_settings: TextSettings) -> None:
    """It is not put twice, and can be turned off."""
    checkpoint = finished(tmp_path / "model", "word3 ")
    modality = TextModality()
    for asked, expected in ((None, "word3 word9"), ("word3 ", "word3 word9"), ("", "word9"), ("word7 ", "word7 word9")):
        made = modality.preprocessing(checkpoint, text_settings(text_prefix=asked), {})
        assert made.inputs([("word9",)])["input_ids"].tolist() == tiny_tokenizer()([expected])["input_ids"]
    of_model = modality.preprocessing(checkpoint, None, saved_description(checkpoint))
    assert of_model.inputs([("word9",)])["input_ids"].tolist() == tiny_tokenizer()(["word3 word9"])["input_ids"]
    assert of_model.text_prefix == "word3 "
