"""The text of a model card, section by section; names from outside are escaped."""

import re
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml

from hf_transfer.data.samples import is_sample
from hf_transfer.evaluation.report import headline, markdown_table, metrics_of, plain, scores_table
from hf_transfer.evaluation.results import Results
from hf_transfer.hub.usage import code_file, lines_of_python, needs_own_code
from hf_transfer.modalities.table import MODALITIES
from hf_transfer.strategies.adapter_files import is_adapter_folder
from hf_transfer.targets.predictions import Ranking
from hf_transfer.targets.table import TARGETS
from hf_transfer.targets.target import Table

STRATEGIES = {
    "linear_probe": "only the head, on the features of the frozen backbone: fast, with few parameters to overfit "
    "([Alain & Bengio 2017](https://arxiv.org/abs/1610.01644))",
    "partial": "the top blocks and the head; lower blocks keep their pretrained weights "
    "([Yosinski et al. 2014](https://arxiv.org/abs/1411.1792))",
    "gradual": "first the head, then one more block in each epoch, so that an untrained head does not destroy "
    "pretrained weights ([Howard & Ruder 2018](https://arxiv.org/abs/1801.06146))",
    "lp_ft": "first the head on frozen features, then all layers, so that good features are not distorted "
    "([Kumar et al. 2022](https://arxiv.org/abs/2202.10054))",
    "full": "all layers, from the pretrained weights",
    "scratch": "all layers, from fresh weights: nothing is transferred, this is a baseline",
    "bitfit": "the biases and the head ([Ben Zaken et al. 2022](https://arxiv.org/abs/2106.10199))",
    "lora": "low-rank adapters and the head ([Hu et al. 2022](https://arxiv.org/abs/2106.09685))",
    "dora": "low-rank adapters with magnitude and direction apart, and the head "
    "([Liu et al. 2024](https://arxiv.org/abs/2402.09353))",
    "ia3": "a learned scale for each feature, and the head ([Liu et al. 2022](https://arxiv.org/abs/2205.05638))",
    "lokr": "Kronecker-product adapters and the head ([Yeh et al. 2024](https://arxiv.org/abs/2309.14859))",
    "adapter": "adapters of peft, and the head",
}
# These settings say nothing about the model, and some of them something about the machine.
NOT_SHOWN = {"recipe", "output_dir", "cache_dir", "debug", "report_to", "dataloader_num_workers", "hub_model_id"}
PATHS = {"model_name_or_path", "image_model_name_or_path", "text_model_name_or_path", "dataset_name"}
MOST_CLASSES = 200
MOST_EPOCHS = 60


def as_text(name: str) -> str:
    """A name from outside, escaped for Markdown: no markup, no link, no mention, no invisible characters."""
    visible = "".join(sign for sign in name if unicodedata.category(sign) not in ("Cc", "Cf", "Cs") or sign.isspace())
    return plain(visible).replace("@", "&#64;").replace("://", "&#58;//").replace("www.", "www&#46;")


def hub_id(results: Results, setting: str) -> str | None:
    """The Hub id that a setting names; None if it names something on this machine."""
    return str(results.names.get(setting) or results.dataset_name) if setting in results.commits else None


def bases(results: Results) -> list[str]:
    """The settings that name base models on the Hub; if none does, the one that names the base model."""
    return [name for name in results.commits if name != "dataset_name"] or ["model_name_or_path"]


def revision_of(setting: str) -> str:
    """The setting with the commit of the model or the data set that another setting names."""
    return "dataset_revision" if setting == "dataset_name" else setting.replace("name_or_path", "revision")


def shown_name(results: Results, setting: str) -> str:
    """The Hub id or sample that a setting names; of a path only the last part: the rest is private."""
    if name := hub_id(results, setting):
        return name
    # The names of two towers are joined.
    names = str(getattr(results, setting)).split(" + ")
    return " + ".join(map(_shown_path, names))


def body(
    results: Results, settings: Mapping[str, Any], model: Path, *, repository: str, pictures: Sequence[str]
) -> str:
    """The card without its metadata.

    Args:
        results: what results.json holds.
        settings: what config.yaml holds.
        model: the folder of the model.
        repository: its name on the Hub.
        pictures: that are in its folder.
    """
    sections = [
        _description(results, model, repository),
        _usage(results, settings, model, repository),
        _data(results),
        _training(results),
        _results(results, pictures),
        _selection(results, settings, pictures),
        _limits(results),
        _reproduction(results, settings),
    ]
    return "\n\n".join("\n".join(section) for section in sections) + "\n"


def fenced(text: str, language: str) -> list[str]:
    """A block of code, whatever backticks the text contains."""
    longest = max((len(run) for run in re.findall("`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return [f"{fence}{language}", *text.rstrip("\n").splitlines(), fence]


def _linked(results: Results, setting: str) -> str:
    """The name of a model or a data set; with a link and its commit, if it is on the Hub."""
    shown, prefix = as_text(shown_name(results, setting)), "datasets/" if setting == "dataset_name" else ""
    if (name := hub_id(results, setting)) is None:
        return shown
    commit = results.commits[setting]
    return f"[{shown}](https://huggingface.co/{prefix}{name})" + (f" at commit `{commit}`" if commit else "")


def _description(results: Results, model: Path, repository: str) -> Iterator[str]:
    modality, base = MODALITIES[results.recipe], " and ".join(_linked(results, name) for name in bases(results))
    is_classifier = results.problem_type.endswith("classification")
    kind = f"{modality.kind} {'classifier with' if is_classifier else 'model for'} {results.predicts}"
    origin = (
        f"with the architecture of {base}, trained from scratch" if results.strategy == "scratch" else f"from {base}"
    )
    yield f"# {as_text(repository.split('/')[-1])}"
    yield ""
    yield (
        f"{kind}{', an adapter' if is_adapter_folder(model) else ''}, made {origin} on "
        f"{_linked(results, 'dataset_name')} with hf_transfer. {headline(results, modality.samples)}."
    )


def _usage(results: Results, settings: Mapping[str, Any], model: Path, repository: str) -> Iterator[str]:
    yield "## How to use it"
    yield ""
    program = lines_of_python(
        model, MODALITIES[results.recipe], pairs=bool(settings.get("text_pair_column_name")), name=repository
    )
    yield from fenced(program, "python")
    if is_adapter_folder(model):
        yield ""
        yield "This is an adapter: peft also loads its base model from the Hub, at the commit it was trained on."
    elif needs_own_code(model):
        yield ""
        yield (
            f"transformers has no class for this model, so its code is in `{code_file(model)}`: read it before you "
            "trust it, and name the commit that you have read."
        )


def _data(results: Results) -> Iterator[str]:
    yield "## Data"
    yield ""
    yield f"From {_linked(results, 'dataset_name')}:"
    yield ""
    titles = ("split", MODALITIES[results.recipe].samples)
    rows = [dict(zip(titles, row, strict=True)) for row in results.shown_samples.items()]
    yield from markdown_table(Table("data", "Data", titles, titles, rows))
    yield ""
    yield from (f"- {as_text(note)}" for note in results.notes)


def _training(results: Results) -> Iterator[str]:
    parameters, strategies = results.parameters, results.strategy.split(" + ")
    yield "## What was trained"
    yield ""
    # Each of two towers can have its own strategy.
    towers = ["The image tower, ", "The text tower, "] if len(strategies) > 1 else [""]
    for tower, strategy in zip(towers, strategies, strict=True):
        yield f"{tower}`{strategy}`: {STRATEGIES[strategy]}."
    yield ""
    yield f"{parameters['trainable']:,} of {parameters['total']:,} parameters were trained."


def _results(results: Results, pictures: Sequence[str]) -> Iterator[str]:
    yield "## Results"
    yield ""
    yield from markdown_table(scores_table(results, intervals=True))
    methods = [f"{metric.interval} for {metric.title}" for metric in metrics_of(results) if metric.interval]
    if methods:
        yield ""
        yield f"Intervals: {', '.join(methods)}."
    for table in results.tables:
        shown = _shortened(table)
        yield ""
        yield f"{shown.title}:"
        yield ""
        yield from markdown_table(shown, as_text)
    if "confusion.png" in pictures:
        yield ""
        yield "![Confusion matrix of the test split](confusion.png)"


def _shortened(table: Table) -> Table:
    """Of a table of many classes, those with the lowest F1."""
    if len(table.rows) <= MOST_CLASSES or "f1" not in table.columns:
        return table
    rows = sorted(table.rows, key=lambda row: float(row["f1"]))[:MOST_CLASSES]
    title = f"{table.title}: the {MOST_CLASSES} of {len(table.rows)} with the lowest F1"
    return replace(table, title=title, rows=rows)


def _selection(results: Results, settings: Mapping[str, Any], pictures: Sequence[str]) -> Iterator[str]:
    history, kept = results.history, sorted(results.soup) or [results.best_epoch]
    ranking = Ranking.of(TARGETS[results.problem_type], settings.get("metric_for_best_model")).metric
    yield "## Model selection"
    yield ""
    yield (
        f"States that were evaluated on the validation split by {ranking}: {len(history)}; kept: "
        f"{'number' if len(kept) == 1 else 'the average of'} {', '.join(map(str, kept))}. The test split was used "
        "once, at the end."
    )
    yield ""
    titles = {"number": "", **{one.name: f"validation {one.title}" for one in metrics_of(results)}, "loss": "loss"}
    rows = [{**row, "number": int(row["epoch"]) + 1} for row in history[:MOST_EPOCHS]]
    yield from markdown_table(Table("history", "History", list(titles), list(titles.values()), rows))
    if len(history) > MOST_EPOCHS:
        yield f"| ... {len(history) - MOST_EPOCHS} more |{' |' * (len(titles) - 1)}"
    for note in results.frozen_store:
        if not note.startswith("Frozen store"):
            yield ""
            yield as_text(note)
    if "curves.png" in pictures:
        yield ""
        yield "![Loss and validation score by epoch](curves.png)"


def _limits(results: Results) -> Iterator[str]:
    classes = next((table.rows for table in results.tables if table.key == "classes"), ())
    smallest = min(classes, key=lambda row: int(row["samples"]), default=None)
    copies = [f"{count} in {split}" for split, count in results.copies_of_training.items() if count]
    masked = [f"{count} in {split}" for split, count in results.masked.items() if count]
    samples = MODALITIES[results.recipe].samples
    yield "## Limits"
    yield ""
    yield from (f"- {limit}" for limit in TARGETS[results.problem_type].limits)
    class_size = f" The smallest class is {as_text(smallest['label'])} with {smallest['samples']}." if smallest else ""
    yield f"- The figures are of one run (seed {results.seed}) on one test split, of {samples} like these.{class_size}"
    if copies:
        yield f"- Exact copies of training {samples}: {', '.join(copies)}. The figures may be too high by as much."
    if masked:
        yield f"- Unreadable {samples} that were left out: {', '.join(masked)}."
    yield "- Whether the data or the base model are biased has not been examined."
    yield (
        "- No license is set: whoever publishes the model chooses one (`license:` above), within the licenses of the "
        "data and of the base model."
    )


def _shown_path(name: str) -> str:
    return name if is_sample(name) else Path(name).name or "local files"


def _reproduction(results: Results, settings: Mapping[str, Any]) -> Iterator[str]:
    commits = results.commits
    shown = {
        name: _shown_path(str(value)) if name in PATHS and value and name not in commits else value
        for name, value in settings.items()
        if name not in NOT_SHOWN
    }
    for name, commit in commits.items():
        if commit:
            shown[revision_of(name)] = commit
    seconds, threads, processes = results.seconds, results.threads, results.processes
    yield "## How to repeat the run"
    yield ""
    yield f"`recipes/{results.recipe}.py --config settings.yaml --output_dir NEW` of hf_transfer, with this file:"
    yield ""
    yield from fenced(yaml.safe_dump(shown, sort_keys=False, allow_unicode=True), "yaml")
    yield ""
    versions = ", ".join(f"{name} {version}" for name, version in results.versions.items())
    yield (
        f"Seed {results.seed}, processes: {processes}, threads of each: {threads}, {seconds['total']:.0f} s, "
        f"{seconds['train']:.0f} of them in training. Versions: {versions}."
    )
