"""Answers as CSV, for every target: what stands in a row is what the target predicts, and a spreadsheet can read it."""

import csv
import io
import os
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from hf_transfer.errors import UserError
from hf_transfer.evaluation.answers import Answer, JsonLines, Report, Table, write_answers
from hf_transfer.evaluation.prediction_table import write_predictions
from hf_transfer.targets.classes import Classes
from hf_transfer.targets.label_columns import LabelColumns
from hf_transfer.targets.labels import LabelSets
from hf_transfer.targets.numbers import Numbers
from hf_transfer.targets.target import Target
from tests.data.small_folders import fill, read_texts, write_text

TWO_NUMBERS = Numbers(("height", "width"), in_units=True, half_widths=(0.5, 2.0))
LABELS = LabelSets(("-old", "new; used", "red"), separator="|", thresholds=(0.5, 0.2, 0.99))


def rows_of(target: Target, outputs: Tensor, fault: str = "") -> list[dict[str, str]]:
    """The rows of a table of answers, read as Python reads CSV."""
    written = io.StringIO()
    table = Table(written, target)
    answers, decisions = target.answers(outputs, len(target.names)), target.decisions(outputs)
    for number, (scores, decided) in enumerate(zip(answers, decisions, strict=True), start=1):
        table.write(Answer(Path("t.csv"), scores, decided, "scores", row=number, fault=fault))
    return list(csv.DictReader(io.StringIO(written.getvalue())))


def test_labels_above_their_thresholds_stand_in_one_cell_each_with_its_probability() -> None:
    """In the order of the labels; a name that a spreadsheet would compute becomes a text; a row may have none."""
    outputs = torch.tensor([0.6, 0.9, 0.98, 0.4, 0.1, 0.999]).logit().reshape(2, 3)
    first, second = rows_of(LABELS, outputs)
    assert (first["labels"], first["probabilities"]) == ("'-old|new; used", "0.6000|0.9000")
    assert (second["labels"], second["probabilities"]) == ("red", "0.9990")
    assert [row["labels"] for row in rows_of(LABELS, torch.full((1, 3), -9.0))] == [""]


def test_numbers_stand_in_columns_of_their_own_with_the_ends_of_their_intervals() -> None:
    """A negative number stays a number."""
    [row] = rows_of(TWO_NUMBERS, torch.tensor([[-1.5, 10.0]]))
    shown = {name: float(row[name]) for name in row if name.startswith(("height", "width"))}
    assert shown == {
        "height": -1.5, "height low": -2.0, "height high": -1.0, "width": 10.0, "width low": 8.0, "width high": 12.0
    }  # fmt: skip
    [row] = rows_of(Numbers(("height",), in_units=True), torch.tensor([[2.0]]))
    assert list(row) == ["path", "row", "height", "error"]


@pytest.mark.parametrize("target", [Classes(("cat", "dog")), LABELS, TWO_NUMBERS])
def test_a_row_without_an_answer_has_its_reason_in_the_last_column(target: Target) -> None:
    [row] = rows_of(target, torch.zeros(1, len(target.names)), fault="it is damaged")
    assert row.pop("error") == "it is damaged"
    assert (row.pop("path"), row.pop("row")) == ("t.csv", "1")
    assert set(row.values()) == {""}


class Closed(io.StringIO):
    """A screen whose reader has gone."""

    def __init__(self, error: OSError, place: Path) -> None:
        super().__init__()
        self.error, self.place = error, os.open(place, os.O_RDWR | os.O_CREAT)

    def fileno(self) -> int:
        return self.place

    def write(self, text: str) -> int:
        raise self.error


def test_a_reader_that_has_enough_ends_the_command_without_an_error(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """As in `hf-transfer predict ... | head -1`; a full disk is an error."""
    answers = [Answer(Path("a.png"), [("cat", 1.0)], {}, "scores")] * 3
    for error, ended in ((BrokenPipeError(), SystemExit), (OSError("no space left"), UserError)):
        monkeypatch.setattr("sys.stdout", Closed(error, tmp_path / "screen"))
        with pytest.raises(ended):
            write_answers(answers, Classes(("cat", "dog")), Report(None, JsonLines), in_files=True, usable="pictures")


def test_an_error_of_the_answers_is_not_taken_for_one_of_the_output(tmp_path: Path) -> None:
    def failing() -> Iterator[Answer]:
        yield Answer(Path("a.png"), [("cat", 1.0)], {}, "scores")
        raise PermissionError("somebody else's picture")

    report = Report(tmp_path / "answers.csv", Table)
    with pytest.raises(PermissionError, match="somebody else's picture"):
        write_answers(failing(), Classes(("cat", "dog")), report, in_files=True, usable="pictures")
    assert list(tmp_path.iterdir()) == []


def test_predictions_of_a_split_without_labels_are_named_as_its_columns_are() -> None:
    """A column of one label has 1 and 0, and a column of classes may be called `probability`."""
    outputs = torch.tensor([[9.0, -9.0, -9.0]])
    flags = LabelColumns(("red",), outputs=LABELS.label_names)
    assert LABELS.labelled_answers(outputs, flags) == [{"-old": True, "new; used": False, "red": False}]
    assert LABELS.labelled_answers(outputs, LabelColumns(("tags",))) == [{"tags": "-old"}]
    [answer] = Classes(("cat", "dog")).labelled_answers(torch.tensor([[9.0, 0.0]]), LabelColumns(("probability",)))
    assert answer == {"probability": "cat"}


def test_predictions_of_files_of_text_name_the_files(tmp_path: Path) -> None:
    """Numbers of rows alone could not be matched with them."""
    fill(tmp_path / "data" / "train", "x", "y", write=write_text)
    fill(tmp_path / "data", "test", write=write_text, count=3)
    unlabelled = read_texts(tmp_path / "data").unlabelled
    assert unlabelled is not None
    outputs = torch.tensor([[9.0, 0.0], [0.0, 9.0], [9.0, 0.0]])
    predictions: Any = SimpleNamespace(target=Classes(("x", "y")), outputs=outputs, index=torch.arange(3))
    with write_predictions(tmp_path, predictions, unlabelled).open() as file:
        lines = list(csv.DictReader(file))
    assert [line["path"] for line in lines] == [str(tmp_path / "data" / "test" / f"{n}.txt") for n in range(3)]
    assert [line["label"] for line in lines] == ["x", "y", "x"]
