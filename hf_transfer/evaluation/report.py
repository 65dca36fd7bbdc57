"""The report of a finished run: report.md, and the table on the screen."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from hf_transfer.evaluation.pictures import draw, draw_curves, kept_epochs
from hf_transfer.evaluation.results import Results
from hf_transfer.targets.table import TARGETS
from hf_transfer.targets.target import Metric, Picture, Table

REPORT_FILE = "report.md"
CURVES_FILE = "curves.png"


def write_report(folder: Path, results: Results, pictures: Sequence[Picture]) -> None:
    """Write `report.md`, its pictures, and `results.json`: the results last, as they mark a finished run.

    Args:
        folder: of the run.
        results: what came out of the run.
        pictures: of the target.
    """
    draw(folder, pictures)
    if results.history:
        draw_curves(folder / CURVES_FILE, results.history, results.soup, metrics_of(results))
    (folder / REPORT_FILE).write_text(_markdown(results, pictures), encoding="utf-8")
    results.write(folder)


def metrics_of(results: Results) -> tuple[Metric, ...]:
    """The metrics that a report on these results shows, beside the loss."""
    return TARGETS[results.problem_type].metrics


def results_table(results: Results, output_dir: str) -> str:
    """The end of a run on the screen: metrics, size, time, and where everything is."""
    folder, metrics = Path(output_dir), metrics_of(results)
    lines = ["", f"{results.strategy} from {results.model_name_or_path} on {results.dataset_name}", ""]
    widths = [max(9, len(metric.title)) for metric in metrics]
    titles = " ".join(f"{metric.title:>{width}}" for metric, width in zip(metrics, widths, strict=True))
    lines.append(f"{'split':12} {titles} {'loss':>8}")
    for split, scores in results.scores.items():
        values = (scores.metrics[metric.name] for metric in metrics)
        cells = " ".join(f"{value:{width}.4f}" for value, width in zip(values, widths, strict=True))
        lines.append(f"{split:12} {cells} {scores.metrics['loss']:8.4f}")
    warnings = [note for note in results.notes if note.startswith("Warning")]
    lines += ["", *warnings] if warnings else []
    parameters, seconds = results.parameters, results.seconds
    lines += [
        "",
        f"trained      {parameters['trainable']:,} of {parameters['total']:,} parameters",
        f"time         {seconds['total']:.0f} s, {seconds['train']:.0f} s of them in training",
        f"report       {folder / REPORT_FILE}",
        f"model        {folder / 'model'}" if (folder / "model").is_dir() else "",
    ]
    return "\n".join(lines).rstrip() + "\n"


def plain(text: str) -> str:
    """A name from the user's data, escaped for a Markdown table: no markup, no line break, no column."""
    signs = "&\\`*_{}[]<>|#$~"
    return "".join(f"&#{ord(sign)};" if sign in signs else sign for sign in " ".join(text.split()))


def headline(results: Results, samples: str = "samples") -> str:
    """The first metric of the test split with its interval, and the number of samples, as Markdown.

    Args:
        results: what came out of a run.
        samples: what a sample is called, in the plural.
    """
    first, scores = metrics_of(results)[0], results.test
    value, (low, high) = scores.metrics[first.name], scores.intervals[first.name]
    return (
        f"Test {first.title} **{first.shown(value)}** (95 % interval {first.shown(low)} to {first.shown(high)}, "
        f"{scores.shown_samples} {samples})"
    )


def scores_table(results: Results, *, intervals: bool = False) -> Table:
    """The metrics of every split and, where samples have parts, of each part alone.

    Args:
        results: what came out of a run.
        intervals: add the 95 % interval of each metric.
    """
    titles = {"split": "split", "samples": "samples"}
    for metric in metrics_of(results):
        titles |= {metric.name: metric.title} | ({f"{metric.name} interval": "95 % interval"} if intervals else {})
    rows: list[dict[str, Any]] = []
    for split, scores in results.scores.items():
        bounds = {f"{name} interval": f"{low:.4f} to {high:.4f}" for name, (low, high) in scores.intervals.items()}
        rows.append({"split": split, "samples": scores.shown_samples, **scores.metrics, **bounds})
    titles["loss"] = "loss"
    return Table("scores", "Results", list(titles), list(titles.values()), rows)


def markdown_table(table: Table, escaped: Callable[[str], str] = plain) -> list[str]:
    """The lines of a table in Markdown; numbers are aligned to the right.

    Args:
        table: the table.
        escaped: makes a name from the user's data safe in Markdown.
    """
    lines = [f"| {' | '.join(table.titles)} |", f"|---|{'---:|' * (len(table.titles) - 1)}"]
    for row in table.rows:
        cells = [_cell(row[column], escaped) for column in table.columns]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def _cell(value: object, escaped: Callable[[str], str]) -> str:
    return escaped(value) if isinstance(value, str) else f"{value:.4f}" if isinstance(value, float) else str(value)


def _markdown(results: Results, pictures: Sequence[Picture]) -> str:
    parameters = results.parameters
    others = [f", {metric.title} {results.test.metrics[metric.name]:.4f}" for metric in metrics_of(results)[1:]]
    lines = [
        f"# {plain(results.strategy)} of {plain(results.model_name_or_path)} on {plain(results.dataset_name)}",
        "",
        f"{headline(results)}{''.join(others)}. {parameters['trainable']:,} of {parameters['total']:,} parameters were "
        "trained.",
        "",
        *markdown_table(scores_table(results)),
        "",
        "## Data and model",
        "",
        *(f"- {plain(note)}" for note in [*results.notes, *results.frozen_store]),
        "",
    ]
    if results.history:
        lines += ["## Training", "", f"Kept: {kept_epochs(results.soup)} of {len(results.history)}.", ""]
        lines += [f"![Loss and validation score by epoch]({CURVES_FILE})", ""]
    for table in results.tables:
        lines += [f"## {table.title}", "", *markdown_table(table), ""]
    lines += [line for picture in pictures for line in (f"![{picture.title}]({picture.file})", "")]
    lines += [
        "## Repeat this run",
        "",
        f"`recipes/{results.recipe}.py --config config.yaml --output_dir NEW`",
        "",
    ]
    return "\n".join(lines)
