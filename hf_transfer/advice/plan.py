"""What `--strategy auto` tries, in which order, and when it is enough."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import datasets

from hf_transfer.advice.arms import Arm, Rejection
from hf_transfer.advice.decision_folder import check_named, settings_of_arm
from hf_transfer.advice.evidence import Evidence, gather_evidence
from hf_transfer.advice.shortlist import resolved_pooling, shortlist_of
from hf_transfer.errors import user_error
from hf_transfer.evaluation.auto_record import AutoRecord, TriedArm
from hf_transfer.look_ahead import publication, sentences_on_data
from hf_transfer.settings.run import RunConfig
from hf_transfer.settings.strategy import ADAPTERS

# Without a limit of time, so many strategies are trained beside the solved head.
TRAINED_BY_DEFAULT = 1
# If there is time, the best strategy is trained again with these multiples of its rate.
FACTORS_OF_RATE = (3.0, 1 / 3)

HEAD_READS = {"own": "the model's own pooling", "cls": "the first token", "mean": "the mean of all tokens"}


@dataclass(frozen=True)
class Plan:
    """What is known before anything is trained, and what follows from it.

    Attributes:
        evidence: of the model and the data, in short, as JSON.
        score_title: what scores are called.
        arms: first the solved head, then the others in the order in which they are tried.
        rejected: the other strategies.
        enough: see `Shortlist`.
        misses: see `Shortlist`.
        scores_are_errors: whether scores are errors with a minus.
    """

    evidence: dict[str, Any]
    score_title: str
    arms: list[Arm]
    rejected: list[Rejection]
    enough: str = ""
    misses: str = ""
    scores_are_errors: bool = False


def plan_of(config: RunConfig, data: datasets.DatasetDict | None = None) -> Plan:
    """What is tried with a model and some data.

    Args:
        config: the settings, with the strategy `auto`.
        data: a data set in memory; None: what the settings name.

    Raises:
        UserError: whatever a run would stop at before training, or `--auto_arms` has what this model cannot have.
    """
    return plan_from(gather_evidence(config, data), config)


def plan_from(evidence: Evidence, config: RunConfig) -> Plan:
    """What follows from evidence.

    Args:
        evidence: of the model and the data.
        config: the settings, with the strategy `auto`.

    Raises:
        UserError: `--auto_arms` has what this model cannot have.
    """
    shortlist = shortlist_of(evidence, config)
    solved, *others = [_as_settings(arm) for arm in shortlist.arms]
    if not config.strategy.auto_arms:
        return Plan(
            _in_short(evidence), evidence.score_title, [solved, *others], shortlist.rejected, shortlist.enough,
            shortlist.misses, evidence.scores_are_errors,
        )  # fmt: skip
    arms = [solved, *_named_arms(config, evidence, [solved, *others])]
    tried = {arm.settings["strategy"] for arm in arms}
    rejected = [one for one in shortlist.rejected if one.strategy not in tried]
    not_named = [arm.settings["strategy"] for arm in others if arm.settings["strategy"] not in tried]
    rejected += [Rejection(name, "It is not among --auto_arms.") for name in not_named]
    return Plan(_in_short(evidence), evidence.score_title, arms, rejected, scores_are_errors=evidence.scores_are_errors)


def arm_with_pooling(config: RunConfig, data: datasets.DatasetDict | None = None) -> tuple[TriedArm, str]:
    """The strategy that was given, with the pooling that suits the training rows best, and a sentence on it.

    Args:
        config: the settings, with `--pooling auto`.
        data: a data set in memory; None: what the settings name.

    Raises:
        UserError: whatever a run would stop at before training.
    """
    evidence, strategy = gather_evidence(config, data), config.strategy.strategy
    pooling = resolved_pooling(evidence, config)
    settings = {"strategy": strategy, "pooling": pooling}
    arm = TriedArm(
        name=strategy, settings=settings, reason="You named it.", estimated_seconds=evidence.seconds[strategy]
    )
    why = f"by probes on {evidence.rows:,} training rows" if evidence.probes else f"since {evidence.why_no_probes}"
    return arm, f"--pooling auto: the head reads {HEAD_READS[pooling]}, {why}."


def describe_plan(config: RunConfig) -> Iterator[str]:
    """What `auto` would try with these settings, in sentences; nothing is trained.

    Raises:
        UserError: see `plan_of`; or the result could not be published.
    """
    check_named(config)
    yield from publication(config)
    yield from sentences_on_data(config)
    plan = plan_of(config)
    first, *others = plan.arms
    yield f"First {first.name}, about {first.seconds:.0f} s: {first.reason}"
    tries_all = _tries_all(config)
    if plan.enough and not tries_all:
        yield f"Nothing is trained beside it: {plan.enough}."
    if plan.misses:
        yield plan.misses
    for number, arm in enumerate(others, start=1):
        by_default = number <= _trained_by_default(plan.enough)
        when = "Then" if by_default or tries_all else "With --auto_seconds"
        yield f"{when} {arm.name}, about {arm.seconds:.0f} s: {arm.reason}"
    for one in plan.rejected:
        yield f"Not {one.strategy}: {one.reason}"


def planned_count(record: AutoRecord, config: RunConfig) -> int:
    """How many arms will be tried, if none fails and there is time."""
    if _tries_all(config):
        return len(record.arms)
    failed = sum(arm.state == "failed" for arm in record.arms)
    return min(len(record.arms), 1 + _wanted(record) + failed)


def is_enough(record: AutoRecord, config: RunConfig) -> bool:
    """Whether nothing is trained beside the solved head."""
    return not _tries_all(config) and _wanted(record) == 0


def _tries_all(config: RunConfig) -> bool:
    return config.strategy.auto_seconds is not None or bool(config.strategy.auto_arms)


def _trained_by_default(enough: str) -> int:
    return 0 if enough else TRAINED_BY_DEFAULT


def _wanted(record: AutoRecord) -> int:
    """How many strategies are trained beside the solved head, without a limit of time or a list of them."""
    return TRAINED_BY_DEFAULT if record.arms[0].state == "failed" else _trained_by_default(record.enough)


def next_arm(record: AutoRecord, config: RunConfig) -> tuple[AutoRecord, str]:
    """The arm that is tried next, by its name, and the record, in which others may have been left out; "": none.

    The first arm is always tried. Others are, while their estimated time is left.
    """
    limit = config.strategy.auto_seconds
    first, *others = record.arms
    if first.state == "planned":
        return record, first.name
    for arm in (arm for arm in others if arm.state == "planned"):
        trained = sum(one.state == "trained" for one in others)
        if not _tries_all(config) and trained >= _wanted(record):
            why = "one strategy is trained by default" if trained else record.enough
            record = record.with_arm(_left_out(arm, f"{why}; --auto_seconds tries more"))
        elif limit is not None and (left := limit - record.seconds) < arm.estimated_seconds:
            shown = f"about {arm.estimated_seconds:.0f} s needed, {max(left, 0):.0f} s of --auto_seconds left"
            record = record.with_arm(_left_out(arm, shown))
        else:
            return record, arm.name
    return record, ""


def with_other_rates(record: AutoRecord, leader: TriedArm, config: RunConfig) -> AutoRecord:
    """The record with the leading arm at other rates, if there is a limit of time, and the rate was not given."""
    given = config.training.learning_rate is not None or config.strategy.auto_seconds is None
    if given or leader.learning_rate is None or any("learning_rate" in arm.settings for arm in record.arms):
        return record
    arms = []
    for factor in FACTORS_OF_RATE:
        rate = float(f"{factor * leader.learning_rate:.2g}")
        arms.append(TriedArm(
            name=f"{leader.name} at {rate:g}",
            settings={**leader.settings, "learning_rate": rate},
            reason=f"{leader.name} was the best with a rate of {leader.learning_rate:g}.",
            # What it took is known.
            estimated_seconds=leader.seconds,
        ))  # fmt: skip
    return replace(record, arms=(*record.arms, *arms))


def _left_out(arm: TriedArm, note: str) -> TriedArm:
    return replace(arm, state="left out", note=note)


def _as_settings(arm: Arm) -> Arm:
    """The arm with its settings in the types of the settings."""
    settings = {name: list(value) if isinstance(value, tuple) else value for name, value in arm.settings.items()}
    return replace(arm, settings=settings)


def _named_arms(config: RunConfig, evidence: Evidence, planned: Sequence[Arm]) -> list[Arm]:
    """The arms of `--auto_arms`; the first planned one is tried in any case."""
    by_name = {arm.settings["strategy"]: arm for arm in planned}
    names = [name for name in config.strategy.auto_arms if name != planned[0].settings["strategy"]]
    if lacking := [name for name in names if name in evidence.unsuitable]:
        raise user_error(
            expected="in --auto_arms strategies that this model can have",
            found=f"{lacking[0]}: {evidence.unsuitable[lacking[0]]}",
            do="leave it out",
        )
    return [by_name[name] if name in by_name else _named_arm(name, config, evidence) for name in names]


def _named_arm(name: str, config: RunConfig, evidence: Evidence) -> Arm:
    settings: dict[str, Any] = {"strategy": name}
    if "pooling" in config.settings():
        settings["pooling"] = resolved_pooling(evidence, settings_of_arm(config, settings))
    if name in ADAPTERS and evidence.has_our_head:
        settings["merge_adapter"] = True
    return Arm(name, settings, "You named it in --auto_arms.", evidence.seconds[name])


def _in_short(evidence: Evidence) -> dict[str, Any]:
    probes = [
        {"features": one.features, "score": one.score, "standard_error": one.standard_error} for one in evidence.probes
    ]
    return {
        "model": evidence.model, "predicts": evidence.predicts, "rows": evidence.rows, "kind": evidence.kind,
        "kinds": evidence.kinds, "best": evidence.best, "probes": probes,
        "constant": None if evidence.constant is None else evidence.constant.score, "neighbours": evidence.neighbours,
        "why_no_probes": evidence.why_no_probes,
    }  # fmt: skip
