"""Ways to train a model on some data: what `hf-transfer advise` lists, and `--strategy auto` tries."""

from dataclasses import dataclass
from typing import Any

from hf_transfer.settings.strategy import PROBES


@dataclass(frozen=True)
class Arm:
    """One way to train.

    Attributes:
        name: for people; no other arm has it.
        settings: by name, those that differ from what the user gave; `strategy` is one of them.
        reason: why it is tried, in a sentence.
        seconds: how long it takes by an estimate.
    """

    name: str
    settings: dict[str, Any]
    reason: str
    seconds: float

    @property
    def is_solved(self) -> bool:
        """Whether only a head is solved, which takes no epochs."""
        return self.settings["strategy"] in PROBES


@dataclass(frozen=True)
class Rejection:
    """A strategy that is not tried.

    Attributes:
        strategy: its name.
        reason: why not, in a sentence.
    """

    strategy: str
    reason: str


@dataclass(frozen=True)
class Shortlist:
    """What is tried and what is not.

    Attributes:
        arms: first the best solved head, then the others in the order in which they are tried.
        rejected: the other strategies.
        enough: why the first arm is enough without the others, in a part of a sentence; empty if it may not be.
        misses: a sentence on the classes or labels that the head misses, if only they keep it from being enough.
    """

    arms: list[Arm]
    rejected: list[Rejection]
    enough: str = ""
    misses: str = ""
