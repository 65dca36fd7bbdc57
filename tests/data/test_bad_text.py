"""Bad texts through the recipe as a user runs it: refused with a message, before anything is loaded or written."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from hf_transfer.data import sample_models
from tests.conftest import Finished, Recipe
from tests.data.conftest import assert_refused, text_rows, write_table
from tests.tiny_text_models import save_text_checkpoint, tiny_text_model, tiny_tokenizer

Text = Callable[..., Finished]
Refused = Callable[..., Finished]


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny checkpoint with a tokenizer."""
    return save_text_checkpoint(tmp_path_factory.mktemp("bert"))


@pytest.fixture
def refused(text: Text, bert: Path, tmp_path: Path, no_weights: None) -> Refused:
    """Runs the recipe, which must end with code 2 and a message of three parts, before any model is loaded."""

    def run(*, expected: str, found: str, do: str, **settings: object) -> Finished:
        finished = text(**{"model_name_or_path": bert, "dataset_name": "sample:intents"} | settings)
        assert_refused(finished, expected, found, do)
        assert not (tmp_path / "out").exists()
        return finished

    return run


def split_files(folder: Path, train: list[dict[str, Any]]) -> Path:
    """A folder with the training rows given, and good ones for validation and test."""
    write_table(folder / "train.jsonl", train)
    write_table(folder / "validation.jsonl", text_rows(6, seed=5))
    write_table(folder / "test.jsonl", text_rows(6, seed=6))
    return folder


def test_the_fixture_of_these_tests_notices_that_a_model_is_loaded(refused: Refused, text: Text, bert: Path) -> None:
    """With good data the weights are loaded: the fixture replaces the right function."""
    with pytest.raises(AssertionError, match="model weights were loaded"):
        text(model_name_or_path=bert, dataset_name="sample:intents")


@pytest.mark.parametrize(
    ("bad", "reason"), [(None, "missing"), ("", "empty"), (" \t\n\u2003", "white space only")], ids=str
)
def test_a_row_without_a_text_is_named_by_its_number_and_its_reason(
    bad: str | None, reason: str, refused: Refused, tmp_path: Path
) -> None:
    rows = text_rows(20)
    rows[4]["text"] = rows[17]["text"] = bad
    refused(
        dataset_name=split_files(tmp_path / "data", rows),
        expected="a text in every row in split 'train'",
        found=f"train.jsonl, line 5 ({reason}); {tmp_path}/data/train.jsonl, line 18 ({reason})",
        do="fix or remove them",
    )


def test_an_empty_field_of_a_csv_file_is_a_missing_text(refused: Refused, tmp_path: Path) -> None:
    rows = text_rows(20)
    rows[4]["text"] = ""
    refused(
        dataset_name=write_table(tmp_path / "a.csv", rows),
        expected="a text in every row in split",
        found=f"1 without one: {tmp_path}/a.csv, line 6 (missing)",
        do="fix or remove them",
    )


def test_a_column_without_any_text_is_reported_by_its_rows(refused: Refused, tmp_path: Path) -> None:
    """Such a column has no type."""
    write_table(tmp_path / "a.jsonl", [row | {"text": None} for row in text_rows(20)])
    refused(
        dataset_name=tmp_path / "a.jsonl", expected="a text in every row", found="a.jsonl, line 1 (missing)", do="fix"
    )


def test_a_pair_needs_both_texts(refused: Refused, tmp_path: Path) -> None:
    rows = [row | {"other": f"word7 {n}" if n != 9 else " "} for n, row in enumerate(text_rows(20))]
    refused(
        dataset_name=write_table(tmp_path / "a.jsonl", rows),
        text_pair_column_name="other",
        expected="a text in every row",
        found=f"1 without one: {tmp_path}/a.jsonl, line 10 (white space only)",
        do="fix or remove them",
    )


def test_more_than_one_percent_of_bad_texts_are_too_many_to_skip(refused: Refused, tmp_path: Path) -> None:
    rows = text_rows(199)
    rows[4]["text"] = rows[17]["text"] = ""
    refused(
        dataset_name=split_files(tmp_path / "data", rows),
        on_bad_sample="skip",
        expected="at most 1% bad samples in split 'train' with --on_bad_sample skip",
        found=f"2 of 199: {tmp_path}/data/train.jsonl, line 5 (empty); {tmp_path}/data/train.jsonl, line 18 (empty)",
        do="fix or remove these samples",
    )


@pytest.mark.parametrize("name", ["bert", "gpt2"])
def test_up_to_one_percent_are_masked_and_counted_in_the_report(name: str, text: Text, tmp_path: Path) -> None:
    """The last batch of the test split is one masked text alone, of which GPT-2's tokenizer makes no token."""
    checkpoint = save_text_checkpoint(tmp_path / "checkpoint", name)
    if name == "gpt2":
        tokenizer = tiny_tokenizer()
        tokenizer.backend_tokenizer.post_processor = None
        tokenizer.save_pretrained(checkpoint)
    data = split_files(tmp_path / "data", text_rows(200))
    rows = text_rows(101, seed=3)
    rows[50]["text"] = "  "
    write_table(data / "test.jsonl", rows)
    finished = text(
        model_name_or_path=checkpoint, dataset_name=data, strategy="full", on_bad_sample="skip",
        per_device_eval_batch_size=50,
    )  # fmt: skip
    assert finished.code == 0, finished.err
    assert "Unreadable texts, masked: 1 in test." in finished.out
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert results["masked"] == {"train": 0, "validation": 0, "test": 1}
    assert results["samples"]["test"] == 100
    assert "Unreadable texts, masked: 1 in test." in (tmp_path / "out" / "report.md").read_text()


@pytest.mark.parametrize("kind", ["csv", "jsonl"])
def test_a_file_of_another_encoding_is_refused_with_line_and_byte_and_read_with_its_encoding(
    kind: str, refused: Refused, tmp_path: Path
) -> None:
    """Arrow accepts any bytes in a JSON file, and would fail later, where the texts are read."""
    rows = text_rows(20)
    rows[6]["text"] = "xy café"
    path = write_table(tmp_path / f"a.{kind}", rows, encoding="latin-1")
    line = path.read_bytes().splitlines()[6 + (kind == "csv")]
    refused(
        dataset_name=path,
        expected=f"text in utf-8 in {path}",
        found=f"line {8 if kind == 'csv' else 7}: byte 0xe9 at column {line.index(0xE9) + 1}",
        do="name the encoding in which it was saved: --encoding cp1252 for western European languages, or save it",
    )
    with pytest.raises(AssertionError, match="model weights were loaded"):
        refused(dataset_name=path, encoding="latin-1", expected="", found="", do="")


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-32"])
def test_another_error_in_a_file_is_not_taken_for_its_encoding(encoding: str, refused: Refused, tmp_path: Path) -> None:
    """In UTF-16 a line feed has two bytes, and a line that ends after the first of them is no text."""
    path = tmp_path / "a.csv"
    path.write_bytes("text,label\nfine,yes\nsurplus,fields,in,it\n".encode(encoding))
    refused(
        dataset_name=path,
        encoding=encoding,
        expected=f"as many fields in each row of {path} as in its first line: 2 (text, label)",
        found="line 3: 4",
        do="enclose fields that hold the separator ',' in quotes",
    )


def test_a_file_that_ends_within_a_character_is_refused(refused: Refused, tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_bytes("text,label\nfine,yes\ncaf\u00e9".encode()[:-1])
    refused(
        dataset_name=path,
        expected=f"text in utf-8 in {path}",
        found="line 3: byte 0xc3 at column 4",
        do="name the encoding in which it was saved: --encoding cp1252",
    )


def test_an_encoding_that_does_not_exist(refused: Refused) -> None:
    refused(encoding="utf-9", expected="--encoding: the name of an encoding", found="utf-9", do="change --encoding")


@pytest.mark.parametrize("kind", ["csv", "jsonl"])
def test_a_row_without_a_label(kind: str, refused: Refused, tmp_path: Path) -> None:
    rows = text_rows(20)
    rows[4]["label"] = "" if kind == "csv" else None
    refused(
        dataset_name=write_table(tmp_path / f"a.{kind}", rows),
        expected="a label in every row of column 'label'",
        found=f"a.{kind}, line {6 if kind == 'csv' else 5}",
        do="fill in or remove these rows, or drop them with --on_missing_label drop",
    )


@pytest.mark.parametrize(
    ("problem_type", "label", "expected", "found"),
    [
        ("single_label_classification", ["a", "b"], "one class for each row in column 'label'", "a list in each row"),
        ("regression", ["a", "b"], "a number in every row of column 'label'", "lists"),
        ("regression", "tall", "finite numbers in column 'label'", "'tall' in "),
        ("multi_label_classification", "a", "at least 2 labels", "only a"),
        (None, [], "a labelled split 'train'", "no label in column 'label'"),
        (None, ["a;b", "c"], "label names without the separator ';'", "'a;b' in column 'label'"),
    ],
)
def test_labels_of_another_task(
    problem_type: str | None, label: Any, expected: str, found: str, refused: Refused, tmp_path: Path
) -> None:
    rows = [row | {"label": label} for row in text_rows(20)]
    path = write_table(tmp_path / "a.jsonl", rows)
    named = {} if problem_type is None else {"problem_type": problem_type}
    refused(dataset_name=path, expected=expected, found=found, do="", **named)


@pytest.mark.parametrize(
    ("value", "found"),
    [(["a", "b"], "lists"), (3, "values of type int64"), (0.5, "values of type float64"), ({"en": "a"}, "dict")],
    ids=["lists", "numbers", "fractions", "dicts"],
)
@pytest.mark.parametrize("setting", ["text_column_name", "text_pair_column_name"])
def test_a_column_of_anything_but_text(
    value: object, found: str, setting: str, refused: Refused, tmp_path: Path
) -> None:
    rows = [row | {"other": value} for row in text_rows(20)]
    refused(
        dataset_name=write_table(tmp_path / "a.jsonl", rows),
        expected="text in column 'other'",
        found=found,
        do="name the column with the texts in --text_column_name, or join the parts of each text beforehand",
        **{setting: "other"},
    )


def test_texts_and_numbers_in_one_column(refused: Refused, tmp_path: Path) -> None:
    rows = [row | {"text": n if n % 3 else row["text"]} for n, row in enumerate(text_rows(20))]
    path = write_table(tmp_path / "a.jsonl", rows)
    refused(dataset_name=path, expected="text in column 'text'", found="", do="name the column with the texts")


def test_one_class_only(refused: Refused, tmp_path: Path) -> None:
    path = write_table(tmp_path / "a.csv", [row | {"label": "a"} for row in text_rows(20)])
    refused(dataset_name=path, expected="at least 2 classes", found="only 1 class, 'a', in 20 rows", do="another class")


def test_a_table_with_one_column_has_no_labels(refused: Refused, tmp_path: Path) -> None:
    path = write_table(tmp_path / "a.csv", [{"text": row["text"]} for row in text_rows(20)])
    refused(dataset_name=path, text_column_name="text", expected="a label", found="a table of one column", do="label")


def test_files_of_two_kinds(refused: Refused, tmp_path: Path) -> None:
    for name in ("train.csv", "test.jsonl"):
        write_table(tmp_path / "data" / name, text_rows(20))
    refused(
        dataset_name=tmp_path / "data", expected="files of one kind", found=".csv, .jsonl in", do="name one of them"
    )


def test_a_csv_file_with_a_broken_line(refused: Refused, tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("text,label\nword1,a\nword2,b,c,d\n")
    refused(dataset_name=tmp_path / "a.csv", expected="as many fields in each row", found="line 3: 4", do="enclose")


def test_a_tokenizer_with_neither_a_pad_token_nor_an_end_of_text_token(refused: Refused, tmp_path: Path) -> None:
    tiny_text_model("gpt2", pad_token_id=None).save_pretrained(tmp_path / "gpt2")
    tiny_tokenizer(pad=False, end=False).save_pretrained(tmp_path / "gpt2")
    refused(
        model_name_or_path=tmp_path / "gpt2",
        expected="a tokenizer with a token to pad with",
        found="without a pad token and without an end-of-text token",
        do="add a pad_token to its tokenizer_config.json, or choose another --model_name_or_path",
    )


@pytest.mark.parametrize(("tokenizer_limit", "limit"), [(32, 32), (50, 40), (10**30, 40)])
def test_more_tokens_than_the_model_can_take(
    tokenizer_limit: int, limit: int, refused: Refused, bert: Path, tmp_path: Path
) -> None:
    """The limit is the lower of those of tokenizer and model; a tokenizer without a limit states a huge number."""
    save_text_checkpoint(tmp_path / "bert")
    tiny_tokenizer(model_max_length=tokenizer_limit).save_pretrained(tmp_path / "bert")
    refused(
        model_name_or_path=tmp_path / "bert",
        max_seq_length=limit + 1,
        expected=f"--max_seq_length of at most {limit}, which is the model's limit",
        found=str(limit + 1),
        do="lower it, or leave it out",
    )


def test_fewer_tokens_than_any_text_needs(refused: Refused) -> None:
    refused(
        max_seq_length=2,
        expected="--max_seq_length: a whole number of at least 3",
        found="2",
        do="change --max_seq_length",
    )


def test_more_blocks_than_the_model_has(refused: Refused) -> None:
    refused(
        strategy="partial",
        trainable_layers=4,
        expected="--trainable_layers from 1 to 3, the blocks of this model",
        found="4",
        do="lower it, or use --strategy full",
    )


def test_an_adapter_that_cannot_attach(refused: Refused) -> None:
    refused(
        strategy="adapter",
        peft_type="PROMPT_TUNING",
        expected="a method of peft that adapts single layers and needs nothing else",
        found="PROMPT_TUNING",
        do="use --strategy adapter with --peft_type LORA, ",
    )


def test_more_blocks_for_adapters_than_the_model_has(refused: Refused) -> None:
    refused(strategy="lora", adapter_layers=4, expected="--adapter_layers from 1 to 3", found="4", do="leave it out")


def test_an_image_model_is_no_text_classifier(refused: Refused) -> None:
    refused(
        model_name_or_path="sample:vit-glyphs",
        expected="a model that transformers can load as a classifier or an encoder of texts (BERT, RoBERTa",
        found="sample:vit-glyphs, a vit model",
        do="choose a text model in --model_name_or_path",
    )


def test_a_text_model_is_no_image_classifier(vision: Recipe, bert: Path, tmp_path: Path) -> None:
    finished = vision(model_name_or_path=bert)
    expected = "a model that transformers can load as a classifier or an encoder of images (ViT"
    assert_refused(finished, expected, f"{bert}, a bert model", "choose an image model in --model_name_or_path")
    assert not (tmp_path / "out").exists()


def test_pictures_are_no_texts(refused: Refused, picture_folder: Callable[..., Path]) -> None:
    refused(dataset_name=picture_folder(a=8, b=8), expected="--text_column_name", found="image, label", do="vision.py")


def test_a_packaged_sample_model_whose_package_is_missing(refused: Refused, monkeypatch: pytest.MonkeyPatch) -> None:
    missing = sample_models.PACKAGED_MODELS["minilm"]._replace(
        module="a_package_that_nobody_has", requirement="a-package-that-nobody-has"
    )
    monkeypatch.setattr(sample_models, "PACKAGED_MODELS", {"minilm": missing})
    refused(
        model_name_or_path="sample:minilm",
        expected="the package with the model sample:minilm",
        found="it is not installed",
        do="pip install a-package-that-nobody-has",
    )
