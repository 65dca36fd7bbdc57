"""Answers of a model, and how they are written: as lines of JSON, as CSV, or for people."""

import csv
import json
import os
import sys
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, TextIO

from hf_transfer.errors import LISTED, user_error
from hf_transfer.targets.target import Target

Scores = list[tuple[str, float]]
# A spreadsheet takes a cell that starts with one of these for a formula.
FORMULA_SIGNS = ("=", "+", "-", "@", "\t", "\r")


@dataclass(frozen=True)
class Answer:
    """What a model predicts for a sample.

    Attributes:
        path: the picture, the text, or the table that the sample is in; None: it is in no file.
        scores: names with their numbers, most important first.
        decisions: what follows from the scores, as JSON: the labels that are chosen, or intervals of numbers.
        answered_as: what the scores are, as a key of JSON.
        row: of a sample in a table: its row, counted from 1 below the header.
        fault: why there is no answer; empty: there is one.
        line: of a sample without an answer: its line in the file, where that is known.
        text: of a sample in no file: its text.
    """

    path: Path | None
    scores: Scores
    decisions: Mapping[str, Any]
    answered_as: str
    row: int | None = None
    fault: str = ""
    line: int | None = None
    text: str | None = None

    def as_json(self) -> dict[str, Any]:
        """The content of a line of JSON; `error` instead of an answer, if there is none."""
        place: dict[str, Any] = {} if self.path is None else {"path": str(self.path)}
        place |= {name: value for name, value in (("row", self.row), ("text", self.text)) if value is not None}
        if self.fault:
            return place | ({} if self.line is None else {"line": self.line}) | {"error": self.fault}
        return {**place, **self.decisions, self.answered_as: dict(self.scores)}

    def place(self) -> str:
        """Where the sample is, for people."""
        if self.path is None:
            return repr(self.text) if self.text is not None else "the sample"
        if self.line is not None:
            return f"{self.path}, line {self.line}"
        return str(self.path) if self.row is None else f"{self.path}, row {self.row}"


class Writer(ABC):
    """Writes answers one by one.

    Args:
        file: that is open for writing.
        target: what is predicted.
        with_paths: whether samples are in files.
    """

    # Whether all outputs are to be written, however many names are asked for.
    takes_all: ClassVar[bool] = False

    def __init__(self, file: TextIO, target: Target, *, with_paths: bool = True) -> None:
        self.file, self.target, self.with_paths = file, target, with_paths

    @abstractmethod
    def write(self, answer: Answer) -> None:
        """Write one answer, or why there is none."""


class JsonLines(Writer):
    """A line of JSON for each sample."""

    def write(self, answer: Answer) -> None:
        """See `Writer.write`."""
        self.file.write(json.dumps(answer.as_json(), ensure_ascii=False) + "\n")


class Table(Writer):
    """CSV: where the sample is, the answer in the columns of the target, and why there is none.

    Text that a spreadsheet would take for a formula gets an apostrophe; numbers keep their signs.
    """

    takes_all: ClassVar[bool] = True

    def __init__(self, file: TextIO, target: Target, *, with_paths: bool = True) -> None:
        super().__init__(file, target, with_paths=with_paths)
        self._rows = csv.writer(file, lineterminator="\n")
        place = ["path", "row"] if with_paths else ["path", "text"]
        self._rows.writerow([*place, *map(_without_formula, target.answer_columns), "error"])

    def write(self, answer: Answer) -> None:
        """See `Writer.write`."""
        columns = self.target.answer_columns
        cells = [""] * len(columns) if answer.fault else self.target.answer_cells(answer.scores, answer.decisions)
        path = "" if answer.path is None else str(answer.path)
        place = (path, answer.row if self.with_paths else answer.text)
        self._rows.writerow([_without_formula(cell) for cell in (*place, *cells, answer.fault)])


class Sentences(Writer):
    """A line of text for each sample."""

    def write(self, answer: Answer) -> None:
        """See `Writer.write`."""
        self.file.write(f"{answer.place()}: {self._answer(answer)}\n".replace("\r", " "))

    def _answer(self, answer: Answer) -> str:
        if answer.fault:
            return f"no answer ({answer.fault})"
        parts = [f"{name} {_decided(value)}" for name, value in answer.decisions.items()]
        return "; ".join([*parts, ", ".join(f"{name} {value:.4g}" for name, value in answer.scores)])


FORMATS: dict[str, type[Writer]] = {"jsonl": JsonLines, "csv": Table, "text": Sentences}


class Report(NamedTuple):
    """Where answers are written, and how.

    Attributes:
        file: its path; None: the screen.
        writer: of one of `FORMATS`.
    """

    file: Path | None
    writer: type[Writer]

    @classmethod
    def of(cls, file: Path | None, wanted: str | None) -> "Report":
        """The report in a file, in the format that is wanted, or else that of the file's name, or else JSON lines."""
        by_suffix = {".csv": "csv", ".txt": "text"}
        return cls(file, FORMATS[wanted or by_suffix.get(file.suffix.lower() if file else "", "jsonl")])


def write_answers(answers: Iterable[Answer], target: Target, report: Report, *, in_files: bool, usable: str) -> None:
    """Write answers as they come; a file appears when it is complete.

    Args:
        answers: of samples.
        target: what is predicted.
        report: where and how they are written.
        in_files: whether the samples are in files.
        usable: what samples are expected to be, for the message.

    Raises:
        UserError: some samples have no answer, which the others have; or the file cannot be written.
    """
    if report.file is None:
        failed = _write(answers, report.writer(sys.stdout, target, with_paths=in_files))
    else:
        partial = report.file.with_name(f".{report.file.name}.partial")
        try:
            with _explained_failures():
                opened = partial.open("w", encoding="utf-8", newline="")
            with opened:
                failed = _write(answers, report.writer(opened, target, with_paths=in_files))
            with _explained_failures():
                partial.replace(report.file)
        finally:
            partial.unlink(missing_ok=True)
    if failed.count:
        more = failed.count - len(failed.first)
        raise user_error(
            expected=usable,
            found=f"{failed.count} of {failed.all} without an answer: {'; '.join(failed.first)}"
            + (f"; and {more} more" if more else ""),
            do="correct or leave out these; all others are answered",
        )


@dataclass
class _Failed:
    """Samples without an answer: how many there are, how many samples in all, and the first of them."""

    count: int = 0
    all: int = 0
    first: list[str] = field(default_factory=list)


def _write(answers: Iterable[Answer], writer: Writer) -> _Failed:
    failed = _Failed()
    for answer in answers:
        with _explained_failures():
            writer.write(answer)
        failed.all += 1
        if answer.fault:
            failed.count += 1
            if len(failed.first) < LISTED:
                failed.first.append(f"{answer.place()} ({answer.fault})")
    with _explained_failures():
        writer.file.flush()
    return failed


@contextmanager
def _explained_failures() -> Iterator[None]:
    """Turn errors of the file, or of the screen, into a message; those of the answers themselves are not its business.

    Another program that reads no more, such as `head`, ends the command without one.
    """
    try:
        yield
    except BrokenPipeError:
        # Otherwise Python would write again, and report it, when it ends.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except OSError as error:
        raise user_error(
            expected="an --output that can be written", found=str(error), do="name another file"
        ) from error


def _decided(value: Any) -> str:
    """Names, or the ends of intervals by name."""
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {low:.4g} to {high:.4g}" for name, (low, high) in value.items())
    return ", ".join(map(str, value)) or "none"


def _without_formula(cell: Any) -> Any:
    if not isinstance(cell, str) or not cell.startswith(FORMULA_SIGNS) or cell == "-":
        return cell
    try:
        float(cell)
    except ValueError:
        return f"'{cell}"
    return cell
