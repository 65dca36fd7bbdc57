"""Advice for people: the text on the screen, and a picture of the evidence."""

from collections.abc import Sequence
from pathlib import Path
from textwrap import fill
from typing import Any

from hf_transfer.advice.advising import Advice, command_for
from hf_transfer.advice.arms import Arm
from hf_transfer.advice.evidence import Evidence
from hf_transfer.advice.sentences import sentences_on
from hf_transfer.advice.shown import Z
from hf_transfer.evaluation.templates import render
from hf_transfer.look_ahead import in_words
from hf_transfer.models.modeling_deep_probe import FIRST, HEAD, MEAN
from hf_transfer.models.taps import kind_and_block
from hf_transfer.settings.fields import choices_of

# Letters of a line below the smaller picture.
LABEL_WIDTH = 48
HEADINGS = {MEAN: "mean behind a block", FIRST: "first token behind a block", HEAD: "what its own head reads"}


def advice_text(advice: Advice, flags: Sequence[str]) -> str:
    """What is known, the time of each strategy, what to try and what not, each with its reason, and commands.

    Args:
        advice: on a model and data.
        flags: the settings as they were given, for the commands.
    """
    evidence, shortlist = advice.evidence, advice.shortlist
    commands = [command_for(shortlist.arms[0], advice.config, flags)]
    if "auto" in choices_of(advice.config.settings()["strategy"]):
        every = Arm("auto", {"strategy": "auto"}, "", 0.0)
        commands.append(command_for(every, advice.config, flags))
    return render(
        "advice/advice.txt.jinja",
        evidence=evidence,
        dataset=Path(advice.config.data.dataset_name).name,
        width=max([len(one.features) for one in evidence.probes], default=0),
        points=list(sentences_on(evidence)),
        arms=shortlist.arms,
        rejected=shortlist.rejected,
        enough=shortlist.enough,
        in_words=in_words,
        commands=commands,
    )


def draw_evidence(path: Path, evidence: Evidence) -> None:
    """Draw the score by depth, with 95 % intervals and the score without pretrained weights, and the learning curve."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 4.2), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True, width_ratios=(3, 2))
    if evidence.best_single is None:
        _draw_places(left, evidence)
    else:
        _draw_depths(left, evidence)
    _draw_curve(right, evidence)
    for axes in (left, right):
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
    model = " + ".join(Path(name).name for name in evidence.model.split(" + "))
    figure.suptitle(f"{model}: heads on frozen features", fontsize=11)
    figure.savefig(path, dpi=120)


def _draw_depths(axes: Any, evidence: Evidence) -> None:
    single = [(*kind_and_block(one.features), one) for one in evidence.probes if len(one.taps) == 1]
    # The head reads what is behind all blocks; a little apart, so that marks do not cover each other.
    apart = 0.02 * evidence.blocks
    for place, kind in enumerate((MEAN, FIRST, HEAD)):
        points = [(block or evidence.blocks, probe) for one, block, probe in single if one == kind]
        if points:
            axes.errorbar(
                [block + place * apart for block, _ in points], [evidence.shown(probe.score) for _, probe in points],
                [Z * probe.standard_error for _, probe in points], fmt="o-" if kind == MEAN else "o", capsize=3,
                elinewidth=1, label=HEADINGS[kind],
            )  # fmt: skip
    for probe in evidence.probes:
        if len(probe.taps) > 1:
            axes.errorbar(
                [evidence.blocks + 3 * apart], [evidence.shown(probe.score)], [Z * probe.standard_error], fmt="s",
                capsize=3, elinewidth=1, label="several together",
            )  # fmt: skip
    if (fresh := evidence.fresh_weights) is not None:
        axes.axhline(
            evidence.shown(fresh.score), color="0.45", linestyle="--", label="with random weights (best place)"
        )
    axes.set(xlabel=f"block, of {evidence.blocks}", ylabel=evidence.score_title, title="where the model is read")
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.legend(fontsize=8)


def _draw_places(axes: Any, evidence: Evidence) -> None:
    """The scores in the order of the table: each is of places in two towers, which have no common depth."""
    numbers = range(1, len(evidence.probes) + 1)
    axes.errorbar(
        numbers, [evidence.shown(probe.score) for probe in evidence.probes],
        [Z * probe.standard_error for probe in evidence.probes],
        fmt="s", capsize=3, elinewidth=1, label="places in both towers",
    )  # fmt: skip
    if (fresh := evidence.fresh_weights) is not None:
        axes.axhline(
            evidence.shown(fresh.score), color="0.45", linestyle="--", label="with random weights (best place)"
        )
    axes.set(xlabel="line of the table of heads", ylabel=evidence.score_title, title="where the towers are read")
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.legend(fontsize=8)


def _draw_curve(axes: Any, evidence: Evidence) -> None:
    from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

    curve = evidence.curve
    if curve is None:
        axes.text(0.5, 0.5, "too few rows for a learning curve", ha="center", transform=axes.transAxes)
        return
    axes.errorbar(
        curve.rows, [evidence.shown(score) for score in curve.scores],
        [Z * error for error in curve.standard_errors], fmt="o-", capsize=3, elinewidth=1, color="C4",
    )  # fmt: skip
    axes.set_xscale("log")
    axes.xaxis.set(
        major_locator=FixedLocator(list(curve.rows)), minor_locator=NullLocator(),
        major_formatter=FuncFormatter(lambda value, _: f"{value:.0f}"),
    )  # fmt: skip
    axes.set(xlabel=fill(f"rows that a head is solved on ({evidence.best})", LABEL_WIDTH), title="more data")
