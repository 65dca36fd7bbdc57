"""Many samples at once: files and tables in, a table out; a table cannot name files of this machine."""

import csv
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import batch
from batch import Row, check_sample, header, predict_rows, read_rows, write_table
from classifier import Classifier, Sample
from pictures import BadInputError
from target import Cell, Classes
from tests.tiny_models import save_checkpoint
from tests.tiny_text_models import save_text_checkpoint


@pytest.fixture(scope="module")
def of_pictures(tmp_path_factory: pytest.TempPathFactory) -> Classifier:
    return Classifier(save_checkpoint(tmp_path_factory.mktemp("models") / "pictures"))


@pytest.fixture(scope="module")
def of_texts(tmp_path_factory: pytest.TempPathFactory) -> Classifier:
    return Classifier(save_text_checkpoint(tmp_path_factory.mktemp("models") / "texts"))


@pytest.fixture
def of_both(of_texts: Classifier) -> Classifier:
    both = Classifier.__new__(Classifier)
    both.__dict__ |= of_texts.__dict__ | {"takes_picture": True}
    return both


def table(folder: Path, content: str, name: str = "t.csv", encoding: str = "utf-8") -> str:
    (folder / name).write_text(content, encoding=encoding)
    return str(folder / name)


def test_each_row_gets_its_prediction_or_the_reason_why_it_has_none(
    of_pictures: Classifier, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Across batches of the model."""
    monkeypatch.setattr(batch, "ROWS_AT_ONCE", 2)
    paths = []
    for number in range(5):
        pixels = np.random.default_rng(number).integers(0, 256, (20, 20, 3), dtype=np.uint8)
        paths.append(tmp_path / f"{number}.png")
        Image.fromarray(pixels).save(paths[-1])
    paths[2].write_bytes(b"broken")
    lines = list(predict_rows(read_rows([str(path) for path in paths], of_pictures, ()), of_pictures))
    assert [line[0] for line in lines] == [path.name for path in paths]
    assert lines[2][1:3] == ["", ""]
    assert "damaged" in str(lines[2][3])
    for path, line in zip(paths, lines, strict=True):
        if path is not paths[2]:
            with Image.open(path) as picture:
                (scores,) = of_pictures.scores([Sample(picture.convert("RGB"))])
            assert line[1:] == [of_pictures.labels[int(np.argmax(scores))], pytest.approx(max(scores), abs=1e-4), ""]


def test_texts_are_read_from_the_column_of_their_name_or_from_the_only_one(
    of_texts: Classifier, tmp_path: Path
) -> None:
    """With a byte-order mark, commas in quotes, line breaks in cells, and empty lines."""
    path = table(tmp_path, 'Text,x\n"word7, word8",1\n\n"word9\nword10",2\n', encoding="utf-8-sig")
    assert [row.texts for row in read_rows([path], of_texts, ["text"])] == [("word7, word8",), ("word9\nword10",)]
    only = table(tmp_path, "message\nword7\n")
    assert [row.texts for row in read_rows([only], of_texts, ["text"])] == [("word7",)]
    tabs = table(tmp_path, "a\ttext\n1\tword7\n", "t.tsv")
    assert [row.texts for row in read_rows([tabs], of_texts, ["text"])] == [("word7",)]


def test_an_empty_text_is_an_error_of_its_row_only(of_texts: Classifier, tmp_path: Path) -> None:
    """And a very long text is refused."""
    path = table(tmp_path, "text,x\nword7,1\n  ,2\nword8,3\n")
    lines = list(predict_rows(read_rows([path], of_texts, ["text"]), of_texts))
    assert [line[-1] for line in lines] == ["", "The text is empty.", ""]
    with pytest.raises(BadInputError, match="more than 100,000 characters"):
        check_sample(of_texts, ["a" * 100_001], has_picture=False)


def test_a_table_cannot_name_files_of_this_machine(of_both: Classifier, tmp_path: Path) -> None:
    """Only files that were uploaded with it."""
    Image.new("RGB", (9, 9)).save(tmp_path / "mine.png")
    Image.new("RGB", (9, 9)).save(tmp_path / "secret.png")
    path = table(tmp_path, f"image,text\nfolder/mine.png,word7\n{tmp_path}/secret.png,word8\n")
    rows = read_rows([str(tmp_path / "mine.png"), path], of_both, ["text"])
    assert [row.picture for row in rows] == [tmp_path / "mine.png", None]
    assert header(of_both, ["text"]) == ["image", "text", "label", "probability", "note"]
    with pytest.raises(BadInputError, match="No picture with this name was uploaded"):
        rows[1].sample(of_both)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("a,b\n1,2\n", "Expected the column text, found a, b."),
        ("", "Expected the column text, found none."),
        ("text,x\n", "There is no sample in it."),
        ("text\n" + "word7\n" * 1001, "That is more than 1,000 at once: upload them in parts."),
        ('text\n"' + "a" * 200_000 + '"\n', "t.csv is no table: field larger than field limit"),
    ],
)
def test_a_table_that_does_not_suit_the_model_is_refused_with_the_reason(
    of_texts: Classifier, tmp_path: Path, content: str, words: str
) -> None:
    """Before anything is computed."""
    with pytest.raises(BadInputError) as error:
        read_rows([table(tmp_path, content)], of_texts, ["text"])
    assert words in str(error.value)


def test_files_that_do_not_suit_the_model_are_refused_with_the_reason(
    of_texts: Classifier, of_pictures: Classifier, tmp_path: Path
) -> None:
    """The message says what the model takes."""
    path = table(tmp_path, "text\nword7\n")
    for files, model, words in (
        ([], of_texts, "Upload one CSV file with the column text."),
        ([path, path], of_texts, "Upload one CSV file with the column text."),
        ([path, str(tmp_path / "a.png")], of_texts, "This model takes texts"),
        ([path], of_pictures, "This model takes pictures"),
        ([], of_pictures, "There is no sample in it."),
    ):
        with pytest.raises(BadInputError, match=words):
            read_rows(files, model, ["text"])
    (tmp_path / "t.csv").write_bytes("text\nschön\n".encode("latin-1"))
    with pytest.raises(BadInputError, match=r"no UTF-8 text \(byte 9\): save it as UTF-8"):
        read_rows([path], of_texts, ["text"])


def test_a_spreadsheet_runs_no_formula_of_a_download(tmp_path: Path) -> None:
    """Formulas become text."""
    rows: list[list[Cell]] = [
        ['=HYPERLINK("http://x")', "a", 0.5, ""],
        ["@b", "-c", 0.25, ""],
        ["d,e", "f", 1, ""],
        ["g", "h", 0.967449, ""],
        ["i", "-1", 0.5, ""],
    ]
    write_table(tmp_path / "out.csv", ["text", "label", "probability", "note"], rows, Classes(("a", "b")))
    with (tmp_path / "out.csv").open(newline="") as file:
        lines = list(csv.reader(file))
    assert lines[0] == ["text", "label", "probability", "note"]
    assert [line[0] for line in lines[1:]] == ['\'=HYPERLINK("http://x")', "'@b", "d,e", "g", "i"]
    assert [line[2] for line in lines[1:]] == ["0.5", "0.25", "1", "0.9674", "0.5"]
    # The name of a class that is a number, as in the answers of `hf-transfer predict`.
    assert [line[1] for line in lines[1:]] == ["a", "'-c", "f", "h", "-1"]
    assert Row(("a",)).cells() == ["a"]
