"""Answers as CSV, for every target: what stands in a row is what the target predicts, and a spreadsheet can read it."""

import csv
import io
from pathlib import Path

import pytest
import torch
from torch import Tensor

from hf_transfer.evaluation.answers import Answer, Table
from hf_transfer.targets.classes import Classes
from hf_transfer.targets.labels import LabelSets
from hf_transfer.targets.numbers import Numbers
from hf_transfer.targets.target import Target

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
