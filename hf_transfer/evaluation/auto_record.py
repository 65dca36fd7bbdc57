"""What `--strategy auto` has tried and decided, in the folder of a run."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, Self

from hf_transfer.data.complete_files import put
from hf_transfer.evaluation.results import RESULTS_FILE
from hf_transfer.settings.run import RunConfig
from hf_transfer.settings.strategy import AUTO
from hf_transfer.targets.shown_scores import shown_score
from hf_transfer.targets.target import Interval

FOLDER, RECORD_FILE, ARMS_FOLDER = AUTO, "decision.json", "arms"
State = Literal["planned", "trained", "failed", "left out"]


@dataclass(frozen=True, kw_only=True)
class TriedArm:
    """A way to train, and what came of it.

    Attributes:
        name: for people; no other arm has it.
        settings: by name, those that differ from what the user gave.
        reason: why it is tried.
        estimated_seconds: how long it takes by an estimate.
        state: whether it has been trained, could not be trained, or was left out.
        seconds: how long it took.
        score: the mean of its scores for validation rows.
        standard_error: of this mean.
        learning_rate: the peak rate of its training; None: its head was solved.
        note: why it failed or was left out.
    """

    name: str
    settings: dict[str, Any]
    reason: str
    estimated_seconds: float
    state: State = "planned"
    seconds: float = 0.0
    score: float | None = None
    standard_error: float | None = None
    learning_rate: float | None = None
    note: str = ""

    @property
    def strategy(self) -> str:
        """The strategy that it trains by."""
        return str(self.settings["strategy"])


@dataclass(frozen=True, kw_only=True)
class AutoRecord:
    """How far a decision has come; written after each step, so that an interrupted one goes on.

    Attributes:
        began: when, which tells this decision from others.
        settings: as they were given, those that affect the result.
        replaces: whether the run that follows replaces an earlier one in the folder.
        evidence: what was known before anything was trained.
        score_title: what the scores are called.
        scores_are_errors: whether they are errors with a minus; they are shown without it.
        arms: what is tried, in this order; the first is the solved head.
        rejected: by strategy, why it is not tried.
        enough: why nothing has to be trained beside the solved head; empty if training may gain something.
        seconds: spent so far.
        chosen: the name of the arm that was chosen; empty until then.
        sentence: why.
        estimate: the score of the chosen arm for other samples, without the optimism of the choice.
        interval: 95 %, of this estimate.
        samples: how many validation rows the arms were compared on.
    """

    began: str
    settings: dict[str, Any]
    replaces: bool = False
    evidence: dict[str, Any] = field(default_factory=dict)
    score_title: str = ""
    scores_are_errors: bool = False
    arms: tuple[TriedArm, ...] = ()
    rejected: dict[str, str] = field(default_factory=dict)
    enough: str = ""
    seconds: float = 0.0
    chosen: str = ""
    sentence: str = ""
    estimate: float | None = None
    interval: Interval | None = None
    samples: int = 0

    @property
    def chosen_arm(self) -> TriedArm:
        """The arm that was chosen."""
        return next(arm for arm in self.arms if arm.name == self.chosen)

    def shown(self, score: float) -> float:
        """A score as people read it."""
        return shown_score(score, are_errors=self.scores_are_errors)

    def with_arm(self, arm: TriedArm) -> Self:
        """The record with another state of one arm."""
        return replace(self, arms=tuple(arm if one.name == arm.name else one for one in self.arms))

    def differences(self, config: RunConfig) -> list[str]:
        """What makes these settings another run, as `name: there -> here`."""
        here = settings_as_given(config)
        return [
            f"{name}: {self.settings.get(name)} -> {value}"
            for name, value in here.items()
            if self.settings.get(name) != value
        ]

    def as_json(self) -> dict[str, Any]:
        """Everything, as JSON."""
        return asdict(self)

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Self:
        """What `as_json` returned."""
        arms = tuple(TriedArm(**arm) for arm in content["arms"])
        interval = content["interval"]
        return cls(**{**content, "arms": arms, "interval": interval and (interval[0], interval[1])})

    def write(self, out: Path) -> None:
        """Write `OUT/auto/decision.json`, whole or not at all."""
        (out / FOLDER).mkdir(parents=True, exist_ok=True)
        put(out / FOLDER / RECORD_FILE, (json.dumps(self.as_json(), indent=2, ensure_ascii=False) + "\n").encode())

    @classmethod
    def read(cls, out: Path) -> Self | None:
        """The record in the folder of a run, or in its results; None, if there is none, or it is damaged."""
        for path, place in ((out / FOLDER / RECORD_FILE, None), (out / RESULTS_FILE, AUTO)):
            try:
                content = json.loads(path.read_text(encoding="utf-8"))
                content = content if place is None else content.get(place)
                if content:
                    return cls.from_json(content)
            except (OSError, ValueError, KeyError, TypeError, AttributeError):
                continue
        return None

    def is_finished(self, out: Path) -> bool:
        """Whether the folder has the results of the arm that was chosen."""
        try:
            content = json.loads((out / RESULTS_FILE).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return False
        return bool(self.chosen) and (content.get(AUTO) or {}).get("began") == self.began


def settings_as_given(config: RunConfig) -> dict[str, Any]:
    """The settings that affect the result, as they come back from a file."""
    return dict(json.loads(json.dumps({"recipe": config.recipe, **config.affecting("result")})))


def arm_folder(out: Path, name: str) -> Path:
    """The folder of the run of an arm."""
    return out / FOLDER / ARMS_FOLDER / name.replace(" ", "-")


def remove_arms(out: Path, *, but: str = "") -> None:
    """Remove the runs of all arms, or of all but one: their figures stay in the record."""
    folder = out / FOLDER / ARMS_FOLDER
    kept = arm_folder(out, but) if but else None
    for path in folder.glob("*"):
        if path != kept:
            shutil.rmtree(path, ignore_errors=True)
    if kept is None:
        shutil.rmtree(folder, ignore_errors=True)


def decision_of(out: Path) -> dict[str, Any]:
    """What was decided for the run in a folder, for its results; empty, if its strategy was given."""
    path = out / FOLDER / RECORD_FILE
    record = AutoRecord.read(out) if path.is_file() else None
    return {} if record is None or not record.chosen else record.as_json()
