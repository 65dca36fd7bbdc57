"""Many samples at once: from uploaded files to the rows of a table, and the table as a CSV file."""

import csv
import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from classifier import Classifier, Sample
from pictures import BadInputError
from target import Cell, Target

MAX_ROWS = 1_000
MAX_TEXT = 100_000
ROWS_AT_ONCE = 16
TABLES = (".csv", ".tsv")
PICTURE_COLUMN = "image"
# A spreadsheet takes a cell that starts with one of these for a formula.
FORMULA_SIGNS = ("=", "+", "-", "@", "\t", "\r")


@dataclass(frozen=True)
class Row:
    """A sample of a batch, not decoded yet.

    Attributes:
        texts: its texts.
        name: of its picture; None for a model that takes no pictures.
        picture: the uploaded file of that name, if there is one.
    """

    texts: tuple[str, ...] = ()
    name: str | None = None
    picture: Path | None = None

    def cells(self) -> list[str]:
        """The sample itself, for the table."""
        return [*([] if self.name is None else [self.name]), *self.texts]

    def sample(self, classifier: Classifier) -> Sample:
        """The sample as the model takes it.

        Raises:
            BadInputError: an empty text, no such picture, or a file that is no picture.
        """
        if self.name and self.picture is None:
            raise BadInputError("No picture with this name was uploaded.")
        check_sample(classifier, self.texts, has_picture=self.picture is not None)
        return Sample(classifier.decode(self.picture) if self.picture else None, self.texts)


def header(classifier: Classifier, text_names: Sequence[str]) -> list[str]:
    """Names of the table's columns: the sample, its prediction, and a note."""
    return [*sample_columns(classifier, text_names), *classifier.target.columns, "note"]


def sample_columns(classifier: Classifier, text_names: Sequence[str]) -> list[str]:
    """Names of the columns that an uploaded table needs."""
    picture = [PICTURE_COLUMN] if classifier.takes_picture else []
    return [*picture, *(text_names if classifier.takes_text else [])]


def read_rows(paths: Sequence[str], classifier: Classifier, text_names: Sequence[str]) -> list[Row]:
    """The samples in uploaded files.

    Args:
        paths: pictures; or a table with a column for each text; or pictures and a table that names them.
        classifier: the model.
        text_names: names of the columns of texts.

    Raises:
        BadInputError: the files do not suit the model, or there are too many samples.
    """
    files = [Path(path) for path in paths]
    tables = [path for path in files if path.suffix.lower() in TABLES]
    pictures = {path.name: path for path in files if path not in tables}
    if classifier.takes_text and len(tables) != 1 and not (classifier.either and pictures and not tables):
        columns = sample_columns(classifier, text_names)
        raise BadInputError(f"Upload one CSV file with the column {' and '.join(columns)}.")
    if not classifier.takes_text and tables:
        raise BadInputError("This model takes pictures: upload picture files, not a table.")
    if pictures and not classifier.takes_picture:
        raise BadInputError("This model takes texts: upload one CSV file, and nothing else.")
    rows = (
        _table_rows(tables[0], pictures, classifier, text_names)
        if tables
        else [Row(("",) * classifier.texts, name, path) for name, path in pictures.items()]
    )
    if not rows:
        raise BadInputError("There is no sample in it.")
    if len(rows) > MAX_ROWS:
        raise BadInputError(f"That is more than {MAX_ROWS:,} at once: upload them in parts.")
    return rows


def _table_rows(table: Path, pictures: dict[str, Path], classifier: Classifier, text_names: Sequence[str]) -> list[Row]:
    try:
        content = table.read_text(encoding="utf-8-sig")
        separator = "\t" if table.suffix.lower() == ".tsv" else ","
        lines = [line for line in csv.reader(io.StringIO(content, newline=""), delimiter=separator) if any(line)]
    except UnicodeDecodeError as error:
        raise BadInputError(f"{table.name} is no UTF-8 text (byte {error.start + 1}): save it as UTF-8.") from error
    except csv.Error as error:
        raise BadInputError(f"{table.name} is no table: {error}.") from error
    names = [name.strip().lower() for name in lines[0]] if lines else []
    needed = sample_columns(classifier, text_names)
    places = [names.index(name.lower()) if name.lower() in names else None for name in needed]
    if len(names) == len(needed) == 1:
        places = [0]
    # A model of both takes a table without one of the columns.
    if places == [None] * len(needed) or (None in places and not classifier.either):
        raise BadInputError(f"Expected the column {' and '.join(needed)}, found {', '.join(names)[:200] or 'none'}.")
    rows = []
    for line in lines[1 : MAX_ROWS + 2]:
        cells = [line[place] if place is not None and place < len(line) else "" for place in places]
        # Only the name: a path in the table could name any file of this machine.
        picture = pictures.get(Path(cells[0]).name) if classifier.takes_picture else None
        name = cells.pop(0) if classifier.takes_picture else None
        rows.append(Row(tuple(cells), name, picture))
    return rows


def check_sample(classifier: Classifier, texts: Sequence[str], *, has_picture: bool) -> None:
    """Refuse a sample that the model cannot take.

    Args:
        classifier: the model.
        texts: of the sample.
        has_picture: whether it has a picture.

    Raises:
        BadInputError: no picture, or an empty or too long text.
    """
    if classifier.either and (has_picture or any(text.strip() for text in texts)):
        texts = [text for text in texts if text.strip()]
    elif classifier.either:
        raise BadInputError("Choose a picture, write its text, or both.")
    elif classifier.takes_picture and not has_picture:
        raise BadInputError("Choose a picture first.")
    if not all(text.strip() for text in texts):
        raise BadInputError("The text is empty." if len(texts) == 1 else "One of the texts is empty.")
    if any(len(text) > MAX_TEXT for text in texts):
        raise BadInputError(f"The text has more than {MAX_TEXT:,} characters.")


def predict_rows(rows: Sequence[Row], classifier: Classifier) -> Iterator[list[Cell]]:
    """A line of the table for each row; a row that cannot be predicted has the reason in its note."""
    target = classifier.target
    for start in range(0, len(rows), ROWS_AT_ONCE):
        samples: list[Sample] = []
        problems: list[str] = []
        for row in rows[start : start + ROWS_AT_ONCE]:
            try:
                samples.append(row.sample(classifier))
                problems.append("")
            except BadInputError as error:
                problems.append(str(error))
        predictions = iter(classifier.scores(samples) if samples else ())
        for row, problem in zip(rows[start:], problems, strict=False):
            predicted = ["" for _ in target.columns] if problem else target.cells(next(predictions))
            yield [*row.cells(), *predicted, problem]


def write_table(path: Path, names: Sequence[str], rows: Sequence[Sequence[Cell]], target: Target) -> None:
    """Write the table as CSV, with no text that a spreadsheet takes for a formula."""
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        for line in (names, *rows):
            writer.writerow([_without_formula(target.written(cell)) for cell in line])


def _without_formula(cell: str | float) -> str | float:
    if not isinstance(cell, str) or not cell.startswith(FORMULA_SIGNS):
        return cell
    try:
        # A class may be called -1.
        float(cell)
    except ValueError:
        return f"'{cell}"
    return cell
