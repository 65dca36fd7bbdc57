"""Everything that predictions depend on is saved beside the weights, read again, and used."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from transformers import AutoImageProcessor, AutoTokenizer
from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

from hf_transfer.data.pictures import DECODING
from hf_transfer.modalities.image import ImageModality
from hf_transfer.modalities.modality import (
    PREPROCESSING_FILE,
    Modality,
    Preprocessing,
    save_preprocessing,
    saved_description,
)
from hf_transfer.modalities.pair import PairModality
from hf_transfer.modalities.pair_batches import PairPreprocessing
from hf_transfer.modalities.pixels import PixelPreprocessing
from hf_transfer.modalities.text import TextModality
from hf_transfer.modalities.tokens import TokenPreprocessing
from hf_transfer.models.pretrained import Checkpoint
from hf_transfer.targets.classes import Classes
from hf_transfer.versions import versions
from tests.data.conftest import PairSettings, Settings, TextSettings, noise, user_error_with
from tests.tiny_models import save_checkpoint
from tests.tiny_pairs import side, tiny_pair
from tests.tiny_text_models import save_text_checkpoint, tiny_tokenizer

PICTURE = Image.fromarray(noise(40, 30, 3))
LONG_TEXT = " ".join(f"word{number % 50}" for number in range(60))


def save(preprocessing: Preprocessing, modality: Modality[Any], columns: Mapping[str, str], folder: Path) -> Path:
    """As a run saves it, beside a model that is there already."""
    save_preprocessing(preprocessing, modality.name, columns, Classes.problem_type, folder)
    return folder


def pixels(**settings: Any) -> PixelPreprocessing:
    processor: Any = ViTImageProcessorPil(**({"size": {"height": 16, "width": 16}} | settings))
    return PixelPreprocessing(processor)


def tokens(length: int | None = None, **tokenizer: Any) -> TokenPreprocessing:
    return TokenPreprocessing(tiny_tokenizer(**tokenizer), model_limit=40, max_seq_length=length)


def text_model(folder: Path, length: int | None, columns: Mapping[str, str], **tokenizer: Any) -> Checkpoint:
    """A finished model of texts, trained with this length and on these columns."""
    save(tokens(length, **tokenizer), TextModality(), columns, save_text_checkpoint(folder))
    return Checkpoint(str(folder), task="text-classification")


def same_inputs(first: Mapping[str, torch.Tensor], second: Mapping[str, torch.Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def test_the_file_names_modality_target_columns_and_versions(tmp_path: Path) -> None:
    folder = save(tokens(5), TextModality(), {"text_column_name": "body"}, save_text_checkpoint(tmp_path / "model"))
    assert json.loads((folder / "preprocessing.json").read_text()) == {
        "schema": 1,
        "modality": "text",
        "problem_type": "single_label_classification",
        "columns": {"text_column_name": "body"},
        "max_length": 5,
        "tokenizer_limit": 32,
        "versions": versions(),
    }


def test_an_image_preprocessing_makes_the_same_inputs_once_it_is_read_again(tmp_path: Path) -> None:
    folder, trained = save_checkpoint(tmp_path / "model"), pixels(image_mean=[0.1, 0.2, 0.3], resample=3)
    save(trained, ImageModality(), {"image_column_name": "photo"}, folder)
    read = ImageModality().saved_preprocessing(Checkpoint(str(folder)))
    assert same_inputs(read.inputs([PICTURE]), trained.inputs([PICTURE]))
    assert read.columns == {"image_column_name": "photo"}
    assert read.fingerprint() == trained.fingerprint()
    saved = json.loads((folder / PREPROCESSING_FILE).read_text())
    assert saved["decoding"] == DECODING
    assert saved["size"] == [16, 16]


@pytest.mark.parametrize("length", [5, None])
def test_a_text_preprocessing_truncates_as_in_training_once_it_is_read_again(
    length: int | None, tmp_path: Path
) -> None:
    checkpoint = text_model(tmp_path / "model", length, {"text_column_name": "body"})
    read = TextModality().saved_preprocessing(checkpoint)
    assert read.max_length == (length or 32)
    assert same_inputs(read.inputs([(LONG_TEXT,)]), tokens(length).inputs([(LONG_TEXT,)]))
    assert (read.columns, read.pair) == ({"text_column_name": "body"}, False)


def test_a_length_that_an_evaluation_sets_wins_over_the_saved_one(
    tmp_path: Path, text_settings: TextSettings, pair_settings: PairSettings
) -> None:
    checkpoint = text_model(tmp_path / "model", 5, {})
    for asked, length in ((9, 9), (None, 5)):
        config = text_settings(max_seq_length=asked)
        assert TextModality().preprocessing(checkpoint, config, saved_description(checkpoint)).max_length == length
    tiny_pair().save_pretrained(tmp_path / "pair")
    save(PairPreprocessing(pixels(), tokens(7)), PairModality(), {}, tmp_path / "pair")
    checkpoint = Checkpoint(str(tmp_path / "pair"), task="image-text-classification")
    for asked, length in ((9, 9), (None, 7)):
        pair_config = pair_settings(max_seq_length=asked)
        of_pairs = PairModality().preprocessing(checkpoint, pair_config, saved_description(checkpoint))
        assert of_pairs.tokens.max_length == length


def test_a_program_without_this_package_truncates_at_the_same_length(tmp_path: Path) -> None:
    """transformers reads the length from the tokenizer itself."""
    text_model(tmp_path / "model", 5, {"text_column_name": "body"})
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "model")
    assert tokenizer.model_max_length == 5
    assert (
        tokenizer(LONG_TEXT, truncation=True)["input_ids"] == tokens(5).inputs([(LONG_TEXT,)])["input_ids"][0].tolist()
    )


def test_a_text_pair_preprocessing_knows_that_it_takes_pairs(tmp_path: Path) -> None:
    columns = {"text_column_name": "question", "text_pair_column_name": "answer", "label_column_name": "label"}
    read = TextModality().saved_preprocessing(text_model(tmp_path / "model", 9, columns))
    assert (read.columns, read.pair, read.max_length) == (columns, True, 9)
    pair = [("word7 word8", LONG_TEXT)]
    assert same_inputs(read.inputs(pair), tokens(9).inputs(pair))
    with user_error_with(expected="pairs of texts, as the model was trained on", found="single text", do="give each"):
        read.inputs([("word7",)])


def test_a_pair_preprocessing_makes_the_same_inputs_once_it_is_read_again(tmp_path: Path) -> None:
    tiny_pair().save_pretrained(tmp_path / "model")
    trained = PairPreprocessing(pixels(size={"height": side("vit"), "width": side("vit")}), tokens(7))
    columns = {"image_column_name": "photo", "text_column_name": "caption"}
    save(trained, PairModality(), columns, tmp_path / "model")
    read = PairModality().saved_preprocessing(Checkpoint(str(tmp_path / "model"), task="image-text-classification"))
    samples = [(PICTURE, LONG_TEXT), (None, "word7"), (PICTURE, None)]
    assert same_inputs(read.inputs(samples), trained.inputs(samples))
    assert read.columns == columns
    saved = json.loads((tmp_path / "model" / PREPROCESSING_FILE).read_text())
    assert (saved["modality"], saved["max_length"], saved["size"]) == ("pair", 7, [side("vit")] * 2)
    assert AutoImageProcessor.from_pretrained(tmp_path / "model", backend="pil").size["height"] == side("vit")


@pytest.mark.parametrize(("limit", "longest"), [(32, 32), (36, 36), (10**30, 40)])
def test_a_run_that_starts_from_a_finished_model_can_use_longer_texts_again(
    limit: int, longest: int, tmp_path: Path, text_settings: TextSettings
) -> None:
    """The saved length is that of one training; the tokenizer's own limit is saved beside it."""
    checkpoint = text_model(tmp_path / "model", 5, {"text_column_name": "body"}, model_max_length=limit)
    for asked, length in ((None, longest), (20, 20)):
        config = text_settings(model_name_or_path=str(tmp_path / "model"), max_seq_length=asked)
        preprocessing = TextModality().preprocessing(checkpoint, config, {})
        assert preprocessing.max_length == length
        assert preprocessing.inputs([(LONG_TEXT,)])["input_ids"].shape[1] == length
        assert preprocessing.columns == {}
    with user_error_with(expected=f"of at most {longest}, which", found=str(longest + 1), do="lower it"):
        config = text_settings(model_name_or_path=str(tmp_path / "model"), max_seq_length=longest + 1)
        TextModality().preprocessing(checkpoint, config, {})


def test_a_model_without_a_stated_number_of_positions_gets_its_tokenizers_limit_again(
    tmp_path: Path, text_settings: TextSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint = text_model(tmp_path / "model", 5, {})
    monkeypatch.setattr(Checkpoint, "longest_input", None)
    assert TextModality().preprocessing(checkpoint, text_settings(), {}).max_length == 32
    assert TextModality().saved_preprocessing(checkpoint).max_length == 5


def test_a_second_run_saves_the_tokenizers_limit_and_not_the_first_runs_length(tmp_path: Path) -> None:
    checkpoint = text_model(tmp_path / "first", 5, {})
    second = TextModality().saved_preprocessing(checkpoint)
    assert second.description() == {"max_length": 5, "tokenizer_limit": 32}


def test_a_model_without_the_file_has_the_preprocessing_of_its_own_processors(tmp_path: Path) -> None:
    """As any model of transformers, and those of earlier versions."""
    folder = save_text_checkpoint(tmp_path / "model")
    read = TextModality().saved_preprocessing(Checkpoint(str(folder), task="text-classification"))
    assert (read.max_length, read.columns, read.pair) == (32, {}, None)


@pytest.mark.parametrize(
    "content", ["", "[]", "{}", '{"schema": 1}', '{"schema": 1, "columns": []}',
                '{"schema": 1, "columns": {}, "max_length": "short"}'],
)  # fmt: skip
def test_a_file_that_was_changed_by_hand_is_refused(content: str, tmp_path: Path) -> None:
    folder = save_text_checkpoint(tmp_path / "model")
    (folder / PREPROCESSING_FILE).write_text(content)
    with user_error_with(
        expected=f"a preprocessing.json in {folder} as hf_transfer writes it",
        found="Error",
        do="name the folder OUT/model of a run, or restore that file",
    ):
        TextModality().saved_preprocessing(Checkpoint(str(folder), task="text-classification"))


def test_a_file_of_a_later_version_is_refused(tmp_path: Path) -> None:
    folder = save_text_checkpoint(tmp_path / "model")
    (folder / PREPROCESSING_FILE).write_text('{"schema": 2, "columns": {}}')
    with user_error_with(expected="(schema 1)", found=f"schema 2 in {folder}", do="update hf-transfer-learning"):
        TextModality().saved_preprocessing(Checkpoint(str(folder), task="text-classification"))


def test_columns_that_the_settings_leave_open_are_those_of_the_training(
    settings: Settings, text_settings: TextSettings, pair_settings: PairSettings
) -> None:
    """Those that they name stay as they are; columns that the recipe has no setting for are left alone."""
    columns = {"image_column_name": "photo", "text_column_name": "body", "label_column_name": "kind"}
    image = ImageModality().as_trained(
        settings(label_column_name="species"), PixelPreprocessing(pixels().processor, columns)
    )
    assert (image.image.image_column_name, image.data.label_column_name) == ("photo", "species")
    of_texts = TokenPreprocessing(tiny_tokenizer(), model_limit=None, columns=columns)
    text = TextModality().as_trained(text_settings(text_column_name="message"), of_texts)
    assert text.text.text_column_name == "message"
    assert text.text.text_pair_column_name is None
    assert text.data.label_column_name == "kind"
    pair = PairModality().as_trained(
        pair_settings(image_column_name="picture"), PairPreprocessing(pixels(), tokens(), columns)
    )
    assert (pair.image.image_column_name, pair.text.text_column_name) == ("picture", "body")


def test_a_model_of_pairs_is_evaluated_on_pairs_and_one_of_single_texts_refuses_them(
    text_settings: TextSettings,
) -> None:
    both = {"text_column_name": "question", "text_pair_column_name": "answer"}
    of_pairs = TokenPreprocessing(tiny_tokenizer(), model_limit=None, columns=both)
    assert TextModality().as_trained(text_settings(), of_pairs).text.text_pair_column_name == "answer"
    of_texts = TokenPreprocessing(tiny_tokenizer(), model_limit=None, columns={"text_column_name": "question"})
    config = text_settings(text_pair_column_name="answer")
    with user_error_with(
        expected="single texts, as sample:minilm was trained on",
        found="pairs, by --text_pair_column_name answer",
        do="leave --text_pair_column_name out",
    ):
        TextModality().as_trained(config, of_texts)
    unknown = TokenPreprocessing(tiny_tokenizer(), model_limit=None)
    assert TextModality().as_trained(config, unknown) == config
