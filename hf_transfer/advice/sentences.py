"""What evidence means, in sentences for people who have not trained a model before."""

from collections.abc import Iterator, Sequence

from hf_transfer.advice.evidence import Evidence
from hf_transfer.advice.missed import Missed, missed_in_words
from hf_transfer.advice.probes import ConstantAnswer, Difference, Probe
from hf_transfer.advice.shortlist import ERRORS_OF_A_GAIN, LITTLE_TO_GAIN, RULES, rows_in_words, rule_of
from hf_transfer.models.modeling_deep_probe import HEAD

# By the rule that holds.
SIZES = (
    "That is few: a solved head is hard to beat.",
    "That is neither few nor many: training all layers can pay.",
    "That is many: training all layers is worth its time.",
)


def sentences_on(evidence: Evidence) -> Iterator[tuple[str, str]]:
    """What is known, point by point: a word that says what it is on, and one or two sentences."""
    yield "Size", _size(evidence)
    if not evidence.probes:
        yield (
            "Probes",
            f"None: {evidence.why_no_probes}, so a head cannot be solved without training. The shortlist is by the "
            "number of rows alone.",
        )
        return
    if evidence.constant is not None:
        yield "Baseline", _baseline(evidence, evidence.constant)
    if (best := evidence.probe(evidence.best)) is not None and best.missed and _hides_classes(evidence, best):
        yield "Missed", _missed(evidence, best.missed)
    yield "Similarity", _similarity(evidence)
    if evidence.best_single is not None:
        yield "Depth", _depth(evidence, evidence.best_single)
        yield "Its own head", _own_head(evidence)
    else:
        yield "Depth", _depth_of_towers(evidence)
    yield "More data", _more_data(evidence)


def _size(evidence: Evidence) -> str:
    rows = f"{rows_in_words(evidence)} ({evidence.rows:,} in all)"
    if not evidence.is_uneven:
        return f"{rows}. {SIZES[RULES.index(rule_of(evidence))]}"
    return (
        f"{rows}, but only {evidence.rarest:,} of the rarest. The shortlist goes by the average; what is so rare may "
        "be missed whatever is trained."
    )


def _baseline(evidence: Evidence, constant: ConstantAnswer) -> str:
    """What a head must beat, and whether it does."""
    figures = (
        f"The same answer to all rows ({constant.name}) has {evidence.shown(constant.score):.3f}; the best head is "
        f"{constant.gain.mean:.3f} better ({_interval(constant.gain)})."
    )
    if constant.gain.exceeds(ERRORS_OF_A_GAIN):
        return figures
    figures += " So these rows do not show that a head has learnt anything."
    if evidence.is_uneven:
        return f"{figures} Try --class_weights balanced, and compare macro F1 in the reports of runs."
    return f"{figures} Try another model, and look at the labels."


def _hides_classes(evidence: Evidence, probe: Probe) -> bool:
    """Whether a score looks better than it is for some classes: it is high, or some classes are rare."""
    return evidence.is_uneven or 1 - probe.score <= LITTLE_TO_GAIN


def _missed(evidence: Evidence, missed: Sequence[Missed]) -> str:
    return (
        f"The best head misses too many rows of {missed_in_words(missed)}, which its {evidence.score_title} hides if "
        f"they are few. So a high {evidence.score_title} does not mean that it is enough."
    )


def _similarity(evidence: Evidence) -> str:
    fresh = evidence.fresh_weights
    if fresh is None:
        return "The pretrained weights were not compared with fresh ones."
    figures = (
        f"A head on the pretrained model has {evidence.shown(fresh.pretrained_score):.3f}, one on the same "
        f"architecture with random weights {evidence.shown(fresh.score):.3f}, on the same {fresh.rows:,} rows "
        f"(difference {fresh.gain.mean:.3f}, {_interval(fresh.gain)})."
    )
    if fresh.gain.exceeds(ERRORS_OF_A_GAIN):
        return f"{figures} What the model has learnt before helps here."
    return f"{figures} So there is no sign that what it has learnt before helps here: try other models, too."


def _depth(evidence: Evidence, best: Probe) -> str:
    where = "what its own head reads" if best.features == HEAD else _place(best, evidence.blocks)
    score = f"{evidence.shown(best.score):.3f} ± {best.standard_error:.3f}"
    sentence = f"The best single place to read the model is {where} ({score})."
    if best.depth(evidence.blocks) < 1:
        sentence += " Later layers are more special to what it was pretrained for."
    if " + " in evidence.best and (together := evidence.probe(evidence.best)):
        sentence += f" Several places together ({evidence.best}) have {evidence.shown(together.score):.3f}."
    return sentence


def _depth_of_towers(evidence: Evidence) -> str:
    best, deficit = evidence.probe(evidence.best), evidence.deficit_of_head
    assert best is not None
    if deficit is None:
        return f"The best places to read both towers are their pooled vectors ({evidence.shown(best.score):.3f})."
    sentence = (
        f"The best places to read both towers are {evidence.best} ({evidence.shown(best.score):.3f}). Their pooled "
        f"vectors are {deficit.mean:.3f} behind ({_interval(deficit)})."
    )
    return sentence if deficit.is_clear else f"{sentence} These rows do not show that other places are better."


def _place(probe: Probe, blocks: int) -> str:
    kind, _, block = probe.features.partition("_")
    what = "the first token" if kind == "first" else "the mean"
    return f"{what} behind block {block} of {blocks}"


def _own_head(evidence: Evidence) -> str:
    deficit = evidence.deficit_of_head
    if deficit is None:
        return "What the model's own head reads is the best place."
    figures = f"What the model's own head reads is {deficit.mean:.3f} behind the best place ({_interval(deficit)})."
    if deficit.is_clear:
        return f"{figures} So a new head there would miss something; the shortlist reads other places."
    return f"{figures} These rows do not show that another place is better."


def _more_data(evidence: Evidence) -> str:
    curve = evidence.curve
    if curve is None:
        return "There are too few rows to see what more of them would bring."
    last = curve.last_doubling
    figures = (
        f"Heads of {curve.rows[-1]:.0f} rows have {evidence.shown(curve.scores[-1]):.3f}, those of half as many "
        f"{evidence.shown(curve.scores[-2]):.3f}: the last doubling brought {evidence.shown(last.mean):+.3f} ± "
        f"{last.standard_error:.3f}."
    )
    if last.exceeds(ERRORS_OF_A_GAIN):
        return f"{figures} Twice as many rows would probably help."
    if last.exceeds():
        return f"{figures} More rows may help; these are too few to be sure."
    return f"{figures} These rows show no sign that more of them would help."


def _interval(difference: Difference) -> str:
    low, high = difference.interval
    return f"95 % interval {low:.3f} to {high:.3f}"
