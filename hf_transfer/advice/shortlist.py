"""Which ways to train are worth trying with a model and some data, and why others are not."""

from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

from hf_transfer.advice.arms import Arm, Rejection, Shortlist
from hf_transfer.advice.costs import strategy_names, top_quarter
from hf_transfer.advice.evidence import Evidence
from hf_transfer.advice.missed import missed_in_words
from hf_transfer.advice.probes import Probe
from hf_transfer.models.modeling_deep_probe import FIRST, HEAD, MEAN
from hf_transfer.settings.run import RunConfig
from hf_transfer.settings.strategy import ADAPTERS, PROBES

Pooling = Literal["own", "cls", "mean"]
POOLINGS: dict[str, Pooling] = {MEAN: "mean", FIRST: "cls"}
# Fresh weights are tried if pretrained ones are not better by so many standard errors.
ERRORS_OF_A_GAIN = 2.0


class Rule(NamedTuple):
    """What is tried with few or many rows.

    Attributes:
        fewest: rows of a kind from which the rule holds.
        texts: the strategies that train, in the order in which they are tried, if samples are texts.
        others: the same for all other samples.
    """

    fewest: int
    texts: tuple[str, ...]
    others: tuple[str, ...]


# By the measurements in docs/auto.md.
RULES = (
    Rule(0, ("full", "gradual", "partial"), ("lp_ft", "gradual", "partial")),
    Rule(16, ("full", "lp_ft", "lora"), ("lp_ft", "full", "lora")),
    Rule(200, ("full", "lp_ft"), ("full", "lp_ft")),
)
# Training can gain too little to be worth its time if the solved head leaves no more errors than the first, or no more
# than the second and so few that they are within two standard errors of none.
NOTHING_TO_GAIN, LITTLE_TO_GAIN = 0.02, 0.05
ERRORS_OF_LITTLE = 2.0
# Nor does it say anything that few errors are left if an answer that is the same for all rows makes hardly more, or if
# a rare class has most of them: the head may never name it. With classes of equal size this changes hardly anything.
SHARE_OF_CONSTANT = 0.1
# Why a strategy is tried.
TRIED = {
    "gradual": "the layers learn one after the other, from the head, which is safer with few rows",
    "partial": "with few rows it can help to train only the last quarter of the blocks ({layers} of {blocks})",
    "full": "all layers learn, which changes the features most",
    "lp_ft": "all layers learn, but only after the head, so that a random one does not spoil the features",
    "lora": "small matrices beside the layers learn, which keeps what the model knows, and the saved file is small",
    "scratch": "the pretrained weights do not help with these rows ({fresh}), so fresh ones may be as good",
}
# What was measured of those that come first where rows are not many.
MEASURED = {
    "full": "on the sample texts it was better than lp_ft",
    "lp_ft": "on the sample pictures it was better than full",
}
# Why it is not, if nothing in the evidence speaks against it.
NOT_TRIED = {
    "gradual": "{rows} are enough to train all layers at once",
    "partial": "{rows} are enough to train all layers",
    "full": "lp_ft trains all layers, too, and begins with the head",
    "lp_ft": "the solved head already fits {rows}, so that the other layers would learn little",
    "bitfit": "only biases learn; lora costs about the same time and can change more",
    "dora": "it is a variant of lora and takes more time",
    "ia3": "it has so few numbers to learn that it needs many steps; lora can change more",
    "lokr": "it is a variant of lora",
    "adapter": "it stands for other methods of peft, which you choose with --peft_type",
}


def shortlist_of(evidence: Evidence, config: RunConfig) -> Shortlist:
    """What is worth trying: first the best solved head, which costs no training, then what suits the number of rows.

    Args:
        evidence: of the model and the data.
        config: the settings of a run with any strategy.
    """
    solved = _solved_arm(evidence, config)
    rule = rule_of(evidence)
    # Only texts have a pooling.
    strategies = rule.others if _pooling(config) is None else rule.texts
    names = [name for name in strategies if name in evidence.seconds]
    if _may_start_afresh(evidence):
        names.append("scratch")
    measured = {strategies[0]: f", and {MEASURED[strategies[0]]}"} if rule is not RULES[-1] else {}
    arms = [solved, *(_trained_arm(name, evidence, config, measured.get(name, "")) for name in names)]
    tried = {arm.settings["strategy"] for arm in arms}
    others = [name for name in strategy_names(config) if name not in tried]
    rejected = [Rejection(name, _why_not(name, evidence)) for name in others]
    probe = evidence.probe(" + ".join(solved.settings.get("taps", [evidence.head])))
    if probe is None or not _leaves_little(probe, evidence):
        return Shortlist(arms, rejected)
    points = f"{100 * (1 - probe.score):.1f} points of {evidence.score_title}"
    left = f"the solved head leaves training only about {points} to gain"
    if probe.missed:
        misses = f"{left}, but it misses too many rows of {missed_in_words(probe.missed)}, so it is not enough"
        return Shortlist(arms, rejected, misses=_sentence(misses))
    return Shortlist(arms, rejected, enough=left)


def _leaves_little(probe: Probe, evidence: Evidence) -> bool:
    """Whether training could gain too little beside a solved head to be worth its time, by the score alone."""
    # Scores of errors are negative, so that of numbers much is left.
    left = 1 - probe.score
    if left > NOTHING_TO_GAIN and left > min(LITTLE_TO_GAIN, ERRORS_OF_LITTLE * probe.standard_error):
        return False
    return evidence.constant is None or left <= SHARE_OF_CONSTANT * (1 - evidence.constant.score)


def resolved_pooling(evidence: Evidence, config: RunConfig) -> Pooling:
    """What the head of a text model should read: its own pooling, unless another is better by more than an error.

    An adapter that is saved alone has no place for another pooling, so it keeps the model's own.

    Args:
        evidence: of the model and the data.
        config: the settings of a run; a pooling that they name stays.
    """
    wanted = _pooling(config)
    for named in POOLINGS.values():
        if wanted == named:
            return named
    strategy = config.strategy
    if (strategy.strategy in ADAPTERS and not strategy.merge_adapter) or wanted is None:
        return "own"
    return _best_pooling(evidence, strategy.strategy)


def _best_pooling(evidence: Evidence, strategy: str) -> Pooling:
    candidates = [evidence.probe(f"{kind}_{evidence.blocks}") for kind in POOLINGS]
    better = [one for one in candidates if one is not None and one.over_head is not None and one.over_head.exceeds()]
    best = max(better, key=lambda one: one.score, default=None)
    pooling = "own" if best is None else POOLINGS[best.features.partition("_")[0]]
    # Where layers are trained, the model's own is just that: only a solved head reads its vectors otherwise.
    return "own" if pooling == evidence.scaled_if_solved and strategy not in PROBES else pooling


def _pooling(config: RunConfig) -> str | None:
    """What the settings say of pooling; None: samples are no texts."""
    return config.flat().get("pooling")


def rule_of(evidence: Evidence) -> Rule:
    """The rule for so many rows."""
    return [rule for rule in RULES if evidence.rows_per_kind >= rule.fewest][-1]


def _may_start_afresh(evidence: Evidence) -> bool:
    fresh = evidence.fresh_weights
    return fresh is not None and not fresh.gain.exceeds(ERRORS_OF_A_GAIN) and "scratch" in evidence.seconds


def _solved_arm(evidence: Evidence, config: RunConfig) -> Arm:
    """The head of the model's own input, unless another place is better by more than one standard error."""
    over = evidence.deficit_of_head
    settings: dict[str, Any] = {"strategy": "linear_probe"}
    if not evidence.probes:
        reason = (
            "only a new head learns, and all other layers stay as they are: the least that training can do. "
            f"{_capital(evidence.why_no_probes)}, so it cannot be solved and judged beforehand; what follows is by the "
            "number of rows alone"
        )
    elif over is None or not over.exceeds() or "deep_probe" not in evidence.seconds:
        reason = (
            f"a head on {_read(evidence)} costs no training, and no other place is clearly better "
            f"({_score(evidence, evidence.head)})"
        )
        if not config.has_simple_head:
            settings = {"strategy": "deep_probe", "taps": evidence.probes[0].taps}
    else:
        settings = {"strategy": "deep_probe", "taps": (evidence.probe(evidence.best) or evidence.probes[0]).taps}
        reason = (
            f"a head on {evidence.best} costs no training, and scores higher than one on {_read(evidence)} "
            f"({_score(evidence, evidence.best)} against {_score(evidence, evidence.head)})"
        )
    if _pooling(config) == "auto":
        settings["pooling"] = "own"
    return Arm(settings["strategy"], settings, _sentence(reason), evidence.seconds[settings["strategy"]])


def _trained_arm(name: str, evidence: Evidence, config: RunConfig, measured: str) -> Arm:
    settings: dict[str, Any] = {"strategy": name}
    if name == "partial":
        settings["trainable_layers"] = top_quarter(evidence.blocks)
    reason = TRIED[name].format(**_words(evidence)) + measured
    pooling, wanted = "own", _pooling(config)
    if wanted in ("own", "auto"):
        # Without pretrained weights, evidence on their features says nothing.
        pooling = "own" if name == "scratch" else _best_pooling(evidence, name)
        if pooling != wanted:
            settings["pooling"] = pooling
    if name in ADAPTERS and (pooling != "own" or evidence.has_our_head):
        settings["merge_adapter"] = True
    if pooling != "own":
        place = "the mean of all tokens" if pooling == "mean" else "the first token"
        reason += f"; its head reads {place}, which tells more than the model's own pooling"
    return Arm(name, settings, _sentence(reason), evidence.seconds[name])


def _why_not(name: str, evidence: Evidence) -> str:
    if name in evidence.unsuitable:
        return _sentence(f"this model cannot be trained so: {evidence.unsuitable[name]}")
    if name in PROBES:
        return _sentence(_why_no_probe(name, evidence))
    if name == "scratch":
        fresh = evidence.fresh_weights
        if fresh is None:
            return "It was not compared with fresh weights; pretrained ones are seldom worse."
        return _sentence(f"the pretrained weights help: {_words(evidence)['fresh']}")
    if name == "lora":
        few = rule_of(evidence) is RULES[0]
        reason = "{rows} are too few for adapters" if few else "{rows} are enough to train all layers"
        return _sentence(reason.format(**_words(evidence)))
    return _sentence(NOT_TRIED[name].format(**_words(evidence)))


def _why_no_probe(name: str, evidence: Evidence) -> str:
    best, head = _score(evidence, evidence.best), _score(evidence, evidence.head)
    if name == "linear_probe" and evidence.head != HEAD:
        return "its head of several layers is trained on the same frozen features for which deep_probe solves one"
    if name == "linear_probe":
        return f"what the model's own head reads tells less ({head} against {best})"
    if evidence.best == HEAD:
        return f"no other place in the model is better than what its own head reads ({best})"
    return f"to read {evidence.best} is not clearly better than what the model's own head reads ({best} against {head})"


def _read(evidence: Evidence) -> str:
    """What the first probe reads: part of a sentence."""
    return "what the model's own head reads" if evidence.head == HEAD else "the pooled vectors of both towers"


def _score(evidence: Evidence, features: str) -> str:
    probe = evidence.probe(features)
    return "not measured" if probe is None else f"{evidence.shown(probe.score):.3f} ± {probe.standard_error:.3f}"


def _words(evidence: Evidence) -> Mapping[str, str]:
    fresh, with_fresh = evidence.fresh_weights, ""
    if fresh is not None:
        pretrained = evidence.shown(fresh.pretrained_score)
        with_fresh = f"{pretrained:.3f} against {evidence.shown(fresh.score):.3f} with fresh weights"
    return {
        "rows": rows_in_words(evidence),
        "layers": str(top_quarter(evidence.blocks)),
        "blocks": str(evidence.blocks),
        "fresh": with_fresh,
    }


def rows_in_words(evidence: Evidence) -> str:
    """The rows per class, or what stands for that."""
    mean = " on average" if evidence.is_uneven else ""
    return f"{evidence.rows_per_kind:.0f} rows per {evidence.kind}{mean}"


def _sentence(text: str) -> str:
    return f"{_capital(text)}."


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]
