"""A ranking for people and programs: tables on the screen, JSON, and a picture of score against cost."""

import json
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hf_transfer.advice.candidates import AND, folder_of_model, short_names
from hf_transfer.advice.model_race import Race
from hf_transfer.advice.ranking import ModelRanking
from hf_transfer.checkpoints.files import in_units
from hf_transfer.data.complete_files import put
from hf_transfer.evaluation.templates import render
from hf_transfer.models.taps import tower_of
from hf_transfer.targets.shown_scores import shown_score

Z = 1.959963984540054
PLACES = "mean_N: the mean behind block N; first_N: its first token."
FEATURES = f"Features: head: what enters the model's own head; {PLACES}"
FEATURES_OF_TOWERS = f"Features: image_head, text_head: the pooled vector of a tower; {PLACES}"


def ranking_table(ranking: ModelRanking) -> str:
    """The ranking as a table, what its numbers are, and why other models could not be ranked."""
    names = short_names([place.model.name for place in ranking.places] + list(ranking.failed))
    title = f"probe: {ranking.task.target.score_title}"
    return render(
        "advice/ranking.txt.jinja",
        ranking=ranking,
        names=names,
        **_widths(names, title),
        features=max(len("features"), *(len(place.model.column) for place in ranking.places)),
        cuts=any(place.model.truncated is not None for place in ranking.places),
        number=lambda value, form: "-" if value is None else form % value,
        in_units=in_units,
        sentences=_sentences(ranking),
    )


def race_table(race: Race) -> str:
    """The models that were fine-tuned as a table, and why others could not be."""
    names = short_names([place.model.name for place in race.places] + list(race.failed))
    title = f"validation: {race.score_title}"
    rows = f", judged on {len(race.places[0].model.scores):,} validation rows" if race.places else ""
    return render(
        "advice/race.txt.jinja",
        race=race,
        names=names,
        **_widths(names, title),
        sentence=f"Fine-tuned (--strategy {race.strategy}){rows}; =: these rows do not tell the model from the best.",
    )


def write_json(path: Path, ranking: ModelRanking, race: Race | None) -> None:
    """Write a ranking as JSON, with the figures of the race, if models were fine-tuned."""
    content = ranking.as_json() | ({} if race is None else {"race": race.as_json()})
    put(path, (json.dumps(content, indent=2, ensure_ascii=False) + "\n").encode())


def _widths(names: Mapping[str, str], title: str) -> dict[str, Any]:
    """The title of the scores, and how wide their column and that of the names are."""
    return {"title": title, "width": max(map(len, [*names.values(), "model"])), "column": max(len(title), 16)}


def _sentences(ranking: ModelRanking) -> list[str]:
    repeats, rows = ranking.task.folds.of_rows.shape
    count = int(ranking.task.folds.of_rows.max()) + 1
    how = "on a fifth that was held out" if count == 1 else f"out of {count} folds"
    again = f", {repeats} times" if repeats > 1 else ""
    of_towers = any(tower_of(place.model.column) for place in ranking.places)
    return [
        f"Heads solved on frozen features of {rows:,} training rows, {how}{again}; ± is the standard error.",
        "=: these rows do not tell the model from the first one (95 % interval of the difference).",
        FEATURES_OF_TOWERS if of_towers else FEATURES,
        "The order is that of new heads; fine-tuning all layers may change it.",
    ]


def commands_for(models: Mapping[str, Mapping[str, str]], recipe: str, flags: Sequence[str]) -> list[str]:
    """The commands that fine-tune some models.

    Args:
        models: the settings that name each, by its name.
        recipe: of the modality.
        flags: the other settings, as they were given.
    """
    commands = []
    for model, names in models.items():
        named = [word for setting, name in names.items() for word in (f"--{setting}", name)]
        out = ["--output_dir", f"runs/{folder_of_model(model)}"]
        commands.append(shlex.join(["python", f"recipes/{recipe}.py", *named, *flags, *out]))
    return commands


def draw_ranking(path: Path, ranking: ModelRanking) -> None:
    """Draw the score of each model with its 95 % interval against the time that it takes.

    Models that the rows do not tell from the first are drawn like it.
    """
    from matplotlib.figure import Figure
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    names = short_names([place.model.name for place in ranking.places])
    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.subplots()
    for place in ranking.places:
        model, colour = place.model, "C0" if place.behind is None or place.is_equal else "0.55"
        seconds = 1_000 / model.rows_per_second
        score = shown_score(model.probe.score, are_errors=ranking.task.target.scores_are_errors)
        axes.errorbar(seconds, score, Z * model.probe.standard_error, fmt="o", color=colour, capsize=3, elinewidth=1)
        # Two towers one below the other: their names are long.
        label = names[model.name].replace("$", r"\$").replace(AND, f"\n{AND.lstrip()}")
        axes.annotate(label, (seconds, score), (6, 4), textcoords="offset points", fontsize=9)
    axes.set_xscale("log")
    axes.xaxis.set(
        major_locator=LogLocator(subs=(1, 2, 5)), minor_locator=NullLocator(),
        major_formatter=FuncFormatter(lambda value, _: f"{value:g}"),
    )  # fmt: skip
    axes.set(xlabel="seconds for 1,000 rows", ylabel=f"probe: {ranking.task.target.score_title}")
    axes.set_title(
        f"{len(names)} models on {Path(ranking.dataset_name).name}; blue: equal to the best (95 %)", fontsize=11
    )
    # Room for the name of the slowest model.
    axes.margins(x=0.35)
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=120)
