"""What a report shows of a target: metrics, tables, pictures."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple


class Metric(NamedTuple):
    """A metric that reports show.

    Attributes:
        name: in `results.json`.
        title: in tables.
        lower_is_better: whether a smaller value is the better one.
        hub: type, name and arguments by which the Hub knows it; None: it is not in a model's card.
        is_share: whether it is shown in percent.
        interval: how its 95 % interval is computed, for the model's card.
    """

    name: str
    title: str
    lower_is_better: bool = False
    hub: tuple[str, str, Mapping[str, Any]] | None = None
    is_share: bool = False
    interval: str = ""

    def shown(self, value: float) -> str:
        """A value as a sentence has it."""
        return f"{value:.2%}" if self.is_share else f"{value:.4f}"


@dataclass(frozen=True)
class Table:
    """A table of a report, in Markdown and in `results.json`.

    Attributes:
        key: its name in `results.json`.
        title: its heading.
        columns: keys of the columns.
        titles: headings of the columns.
        rows: a mapping for each row.
    """

    key: str
    title: str
    columns: Sequence[str]
    titles: Sequence[str]
    rows: Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class Picture:
    """A picture of a report, drawn by `evaluation`.

    Attributes:
        kind: how it is drawn: `confusion` or `residuals`.
        file: its name in the folder of the run.
        title: what it shows.
        data: what is drawn.
    """

    kind: str
    file: str
    title: str
    data: Any
