"""The order of models that were judged on the same rows, and which of them the rows do not tell from the first."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

import numpy as np
import numpy.typing as npt

from hf_transfer.targets.intervals import paired_interval
from hf_transfer.targets.target import Interval


class Judgement(Protocol):
    """How good a model is on some rows; see `OutOfFold`."""

    @property
    def score(self) -> float:
        """The mean of the scores."""

    @property
    def scores(self) -> npt.NDArray[np.float64]:
        """How good the answer to each row is, higher is better [rows]."""

    @property
    def units(self) -> npt.NDArray[np.int64]:
        """Of each row: those of one unit belong together [rows]."""


class Named(Protocol):
    """A model with its name."""

    @property
    def name(self) -> str:
        """As it was given."""


Model = TypeVar("Model", bound=Named)


@dataclass(frozen=True)
class Place(Generic[Model]):
    """A model in an order.

    Attributes:
        model: what is known of it.
        behind: how much worse it is than the first model, 95 % interval of the mean difference of scores; None: it is
            the first.
    """

    model: Model
    behind: Interval | None

    @property
    def is_equal(self) -> bool:
        """Whether the rows do not tell it from the first model."""
        return self.behind is not None and self.behind[0] <= 0 <= self.behind[1]


def in_order(models: Sequence[Model], judgement: Callable[[Model], Judgement]) -> list[Place[Model]]:
    """Models from the best to the worst; of equal scores, the one that is named first comes first.

    Args:
        models: judged on the same rows.
        judgement: gives that of a model.
    """
    ordered = sorted(models, key=lambda model: -judgement(model).score)
    if not ordered:
        return []
    first = judgement(ordered[0])
    others = [
        Place(model, paired_interval(first.scores, judgement(model).scores, first.units)) for model in ordered[1:]
    ]
    return [Place(ordered[0], None), *others]


def places_as_json(places: Sequence[Place[Model]], figures: Callable[[Model], dict[str, Any]]) -> list[dict[str, Any]]:
    """An order as JSON.

    Args:
        places: from the best model to the worst.
        figures: gives what else is to be known of a model.
    """
    return [
        {
            "place": number,
            "model_name_or_path": place.model.name,
            "equal_to_first": place.is_equal or place.behind is None,
            "behind_first": place.behind,
            **figures(place.model),
        }
        for number, place in enumerate(places, start=1)
    ]
