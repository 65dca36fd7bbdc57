"""The report of a finished run: report.md, and the table on the screen."""

from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

from hf_transfer.evaluation import inputs
from hf_transfer.evaluation.results import RESULTS_FILE, Results
from hf_transfer.evaluation.templates import render
from hf_transfer.settings.output import PREDICTIONS_FILE
from hf_transfer.settings.run import RunConfig
from hf_transfer.targets.reporting import Picture

REPORT_FILE = "report.md"
CURVES_FILE = "curves.png"


def write_report(folder: Path, results: Results, pictures: Sequence[Picture]) -> None:
    """Write `report.md`, its pictures, and `results.json`: the results last, as they mark a finished run.

    Args:
        folder: of the run.
        results: of the run.
        pictures: of the target.
    """
    from hf_transfer.evaluation.pictures import draw, draw_curves, kept_epochs

    draw(folder, pictures)
    if results.history:
        draw_curves(folder / CURVES_FILE, results.history, results.soup, results.target.metrics)
    kept = kept_epochs(results.soup)
    text = render("evaluation/report.md.jinja", results=results, pictures=pictures, kept=kept, curves=CURVES_FILE)
    (folder / REPORT_FILE).write_text(text, encoding="utf-8")
    results.write(folder)


def results_table(results: Results, output_dir: str) -> str:
    """The end of a run on the screen: metrics, size, time, and where everything is."""
    report, model = Path(output_dir, REPORT_FILE), Path(output_dir, "model")
    predictions = Path(output_dir, PREDICTIONS_FILE)
    return render(
        "evaluation/screen.txt.jinja", results=results, report=report, model=model if model.is_dir() else None,
        predictions=predictions if predictions.is_file() else None,
    )  # fmt: skip


def shown_again(results: Results, config: RunConfig) -> list[str]:
    """Sentences for a run that was finished before: when, how to train again, and which of its inputs have changed.

    Args:
        results: of the run.
        config: its settings.
    """
    written = (Path(config.output.output_dir) / RESULTS_FILE).stat().st_mtime
    finished = datetime.fromisoformat(results.finished) if results.finished else datetime.fromtimestamp(written, UTC)
    return [
        f"From the run of {finished:%Y-%m-%d %H:%M} UTC; nothing was trained now. --overwrite_output_dir trains again.",
        *inputs.changes(config, results.inputs),
    ]
