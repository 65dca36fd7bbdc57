"""Samples outside of a data set: what a program gives, and what files hold, read as the model was trained."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

from hf_transfer.modalities.image import ImageModality
from hf_transfer.modalities.modality import LocatedSample, Modality
from hf_transfer.modalities.pair import PairModality
from hf_transfer.modalities.pair_batches import PairPreprocessing
from hf_transfer.modalities.pixels import PixelPreprocessing
from hf_transfer.modalities.text import TextModality
from hf_transfer.modalities.tokens import TokenPreprocessing
from tests.data.conftest import noise, same, user_error_with, write_table
from tests.tiny_text_models import tiny_tokenizer

PIXELS = noise(9, 7, 3)
PICTURE = Image.fromarray(PIXELS)
SINGLE = {"text_column_name": "body"}
BOTH = {"text_column_name": "question", "text_pair_column_name": "answer"}


def tokens(columns: dict[str, str] | None = None) -> TokenPreprocessing:
    return TokenPreprocessing(tiny_tokenizer(), model_limit=None, columns=columns)


def pixels(columns: dict[str, str] | None = None) -> PixelPreprocessing:
    processor: Any = ViTImageProcessorPil(size={"height": 8, "width": 8})
    return PixelPreprocessing(processor, columns)


def of_the_model(sample: Any) -> bool:
    """Whether it is the picture in the size of the model: in full size, many would fill the memory."""
    return same(sample, pixels().resize(PICTURE))


def pairs(columns: dict[str, str] | None = None) -> PairPreprocessing:
    return PairPreprocessing(pixels(), tokens(), columns)


def picture_file(path: Path, orientation: int = 1) -> Path:
    exif = Image.Exif()
    exif[0x0112] = orientation
    PICTURE.save(path, exif=exif)
    return path


def texts_in(path: Path, columns: dict[str, str | None], saved: TokenPreprocessing) -> list[Any]:
    return [located.sample for located in TextModality().samples_in([path], columns, saved)]


@pytest.mark.parametrize("given", ["path", "text", "picture"])
def test_a_picture_is_given_by_its_path_or_opened_and_turned_as_its_exif_tag_says(given: str, tmp_path: Path) -> None:
    path = picture_file(tmp_path / "a.png", orientation=6)
    value = {"path": path, "text": str(path), "picture": Image.open(path)}[given]
    assert same(ImageModality().sample_of(value), np.rot90(PIXELS, -1))


@pytest.mark.parametrize("value", ["no-such-file.png", 3, None])
def test_what_is_no_readable_picture_is_refused(value: object) -> None:
    with user_error_with(expected="a readable picture, or its path", found=repr(value), do="leave out this sample"):
        ImageModality().sample_of(value)


@pytest.mark.parametrize(
    ("value", "sample"),
    [
        ("one", ("one",)), (("one", "two"), ("one", "two")), (["one", "two"], ("one", "two")),
        ({"text": "one"}, ("one",)), ({"text": "one", "text_pair": "two"}, ("one", "two")),
    ],
)  # fmt: skip
def test_a_text_is_given_alone_or_as_a_pair(value: object, sample: tuple[str, ...]) -> None:
    assert TextModality().sample_of(value) == sample


@pytest.mark.parametrize("value", [3, None, (), ("a", "b", "c"), ("a", None), {"other": "a"}])
def test_what_is_no_text_is_refused(value: object) -> None:
    with user_error_with(expected="a text, or two texts in a tuple", found="", do="correct this sample"):
        TextModality().sample_of(value)


@pytest.mark.parametrize(("modality", "value"), [(TextModality(), "a \ud800"), (PairModality(), (None, "\udc80"))])
def test_half_of_a_surrogate_pair_is_refused_before_a_tokenizer_fails(modality: Any, value: object) -> None:
    with user_error_with(expected="characters", found="half of a surrogate pair, U+D", do="decode it"):
        modality.sample_of(value)


def test_an_image_with_a_text_is_given_as_a_tuple_or_by_name_and_either_may_be_missing(tmp_path: Path) -> None:
    path = picture_file(tmp_path / "a.png")
    for value in ((path, "one"), [PICTURE, "one"], {"image": str(path), "text": "one"}):
        image, text = PairModality().sample_of(value)
        assert same(image, PIXELS)
        assert text == "one"
    assert PairModality().sample_of((None, "one")) == (None, "one")
    image, text = PairModality().sample_of({"image": path})
    assert (same(image, PIXELS), text) == (True, None)


@pytest.mark.parametrize("value", ["one", ("one",), (None, 3), None])
def test_what_is_no_image_with_a_text_is_refused(value: object) -> None:
    with user_error_with(expected="an image and a text in a tuple", found="", do="correct this sample"):
        PairModality().sample_of(value)


def test_each_file_is_a_picture_and_what_cannot_be_read_has_a_fault(tmp_path: Path) -> None:
    paths = [picture_file(tmp_path / name) for name in ("a.png", "b.png")]
    (tmp_path / "c.png").write_bytes(b"")
    located = list(ImageModality().samples_in([*paths, tmp_path / "c.png", tmp_path / "d.png"], {}, pixels()))
    assert [(one.path, one.row, of_the_model(one.sample)) for one in located[:2]] == [
        (path, None, True) for path in paths
    ]
    assert [(one.sample, one.fault) for one in located[2:]] == [
        (None, "the file is empty"), (None, "there is no such file")
    ]  # fmt: skip


@pytest.mark.parametrize("kind", ["csv", "tsv"])
def test_each_row_of_a_table_is_a_text_of_the_column_that_was_trained_on(kind: str, tmp_path: Path) -> None:
    """Whatever other columns of texts there are."""
    path = write_table(tmp_path / f"a.{kind}", [{"text": "no", "body": "one"}, {"text": "no", "body": "two"}])
    assert list(TextModality().samples_in([path], {}, tokens(SINGLE))) == [
        LocatedSample(path, 1, ("one",), line=2), LocatedSample(path, 2, ("two",), line=3)
    ]  # fmt: skip
    assert texts_in(path, {"text_column_name": "text"}, tokens(SINGLE)) == [("no",)] * 2


@pytest.mark.parametrize(
    ("columns", "saved", "sample"),
    [
        (["text", "other"], None, "text"), (["other", "sentence"], None, "sentence"), (["anything"], None, "anything"),
        (["text", "other"], SINGLE, "text"), (["anything"], SINGLE, "anything"),
    ],
)  # fmt: skip
def test_where_the_column_of_the_training_is_missing_the_usual_names_are_tried(
    columns: list[str], saved: dict[str, str] | None, sample: str, tmp_path: Path
) -> None:
    path = write_table(tmp_path / "a.csv", [{name: f"in {name}" for name in columns}])
    assert texts_in(path, {}, tokens(saved)) == [(f"in {sample}",)]


def test_each_row_is_a_pair_of_the_columns_that_were_trained_on(tmp_path: Path) -> None:
    """In the order of the training, not of the table."""
    rows = [{"answer": "a1", "question": "q1"}, {"answer": "", "question": "q2"}]
    path = write_table(tmp_path / "a.csv", rows)
    assert texts_in(path, {}, tokens(BOTH)) == [("q1", "a1"), ("q2", None)]
    swapped: dict[str, str | None] = {"text_column_name": "answer", "text_pair_column_name": "question"}
    assert texts_in(path, swapped, tokens(BOTH)) == [("a1", "q1"), (None, "q2")]


def test_a_model_of_pairs_refuses_a_table_of_one_column(tmp_path: Path) -> None:
    """Its answers would be wrong, without a message."""
    path = write_table(tmp_path / "a.csv", [{"question": "q", "other": "o"}])
    with user_error_with(
        expected="pairs of texts, as the model was trained on",
        found=f"one column of {path}",
        do="name the second one in --text_pair_column_name",
    ):
        texts_in(path, {}, tokens(BOTH))
    assert texts_in(path, {"text_pair_column_name": "other"}, tokens(BOTH)) == [("q", "o")]


def test_a_model_of_single_texts_refuses_two_columns(tmp_path: Path) -> None:
    path = write_table(tmp_path / "a.csv", [{"body": "q", "answer": "a"}])
    with user_error_with(
        expected="single texts, as the model was trained on",
        found=f"two columns of {path}",
        do="leave --text_pair_column_name out",
    ):
        texts_in(path, {"text_pair_column_name": "answer"}, tokens(SINGLE))
    both: dict[str, str | None] = {"text_column_name": "body", "text_pair_column_name": "answer"}
    assert texts_in(path, both, tokens()) == [("q", "a")]


@pytest.mark.parametrize(
    ("modality", "saved", "setting"),
    [(TextModality(), tokens, "text_column_name"), (TextModality(), tokens, "text_pair_column_name"),
     (PairModality(), pairs, "text_column_name"), (PairModality(), pairs, "image_column_name")],
)  # fmt: skip
def test_a_column_that_does_not_exist_is_answered_with_the_columns_there_are(
    modality: Modality[Any], saved: Callable[[], Any], setting: str, tmp_path: Path
) -> None:
    path = write_table(tmp_path / "a.csv", [{"text": "q", "answer": "a"}])
    with user_error_with(expected=f"in {path} a column nowhere", found="the columns text, answer", do="name "):
        modality.samples_in([path], {setting: "nowhere"}, saved())


def test_rows_are_images_with_texts_whose_paths_are_relative_to_the_table(tmp_path: Path) -> None:
    picture_file(tmp_path / "a.png")
    rows = [{"photo": "a.png", "caption": "one"}, {"photo": "", "caption": "two"}, {"photo": "a.png", "caption": ""}]
    path = write_table(tmp_path / "a.csv", rows)
    saved = pairs({"image_column_name": "photo", "text_column_name": "caption"})
    located = list(PairModality().samples_in([path], {}, saved))
    assert [(one.path, one.row, one.sample[1]) for one in located] == [
        (path, 1, "one"),
        (path, 2, "two"),
        (path, 3, None),
    ]
    assert located[1].sample[0] is None
    assert all(of_the_model(located[place].sample[0]) for place in (0, 2))


@pytest.mark.parametrize("name", ["pictures/{}.png", "{}.png", "{}", "{}.PNG"])
def test_pictures_are_named_in_any_column_as_in_training_and_found_as_there(name: str, tmp_path: Path) -> None:
    """See `test_a_column_of_paths_is_found` in tests/data/test_columns.py; of two with one name, neither is meant."""
    for folder in ("pictures", "others"):
        (tmp_path / folder).mkdir()
    picture_file(tmp_path / "pictures" / "1.png")
    for folder in ("pictures", "others"):
        picture_file(tmp_path / folder / "2.png")
    rows = [{"what": name.format(number), "text": "word5"} for number in (1, 2)]
    table = write_table(tmp_path / "t.csv", rows)
    images = list(ImageModality().samples_in([table], {}, pixels({"image_column_name": "what"})))
    both = list(
        PairModality().samples_in([table], {}, pairs({"image_column_name": "what", "text_column_name": "text"}))
    )
    assert of_the_model(images[0].sample)
    assert of_the_model(both[0].sample[0])
    assert (images[1].sample is None) is (both[1].sample[0] is None) is (not name.startswith("pictures"))


def test_images_with_texts_are_found_by_the_usual_names_of_columns(tmp_path: Path) -> None:
    picture_file(tmp_path / "a.png")
    path = write_table(tmp_path / "a.csv", [{"file_name": "a.png", "text": "one"}])
    [located] = PairModality().samples_in([path], {}, pairs())
    assert (of_the_model(located.sample[0]), located.sample[1]) == (True, "one")
    path = write_table(tmp_path / "b.csv", [{"p": "1", "q": "2"}])
    with user_error_with(expected="a column of texts, or one of paths of images", found="the columns p, q", do="name"):
        PairModality().samples_in([path], {}, pairs())


@pytest.mark.parametrize("content", [None, b"text\n\xff\xfe\n", b"", b"text,other\na\n"])
def test_a_table_that_cannot_be_read_is_named(content: bytes | None, tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    if content is not None:
        path.write_bytes(content)
    with user_error_with(expected=str(path), found="", do=""):
        texts_in(path, {}, tokens())


def test_a_column_of_pictures_that_is_named_and_missing_is_refused_although_that_of_the_training_is_there(
    tmp_path: Path,
) -> None:
    picture_file(tmp_path / "a.png")
    table = write_table(tmp_path / "a.csv", [{"image": "a.png", "after": "a.png"}])
    with user_error_with(expected="a column aftr", found="image, after", do="--image_column_name"):
        list(ImageModality().samples_in([table], {"image_column_name": "aftr"}, pixels({"image_column_name": "image"})))
