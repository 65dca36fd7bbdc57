"""The text of a model card, section by section; whatever comes from outside is escaped."""

import re
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from hf_transfer.data.samples import is_sample
from hf_transfer.evaluation.modalities import headline, scores_by_name
from hf_transfer.evaluation.report import plain
from hf_transfer.hub.usage import code_file, lines_of_python, needs_own_code
from hf_transfer.strategies.adapter_files import is_adapter_folder

STRATEGIES = {
    "linear_probe": "only the head, solved as logistic regression on the frozen features: quick, exact, with little "
    "to learn wrongly from few samples "
    "([Alain & Bengio 2017](https://arxiv.org/abs/1610.01644))",
    "partial": "the top blocks and the head, on lower blocks as they were pretrained "
    "([Yosinski et al. 2014](https://arxiv.org/abs/1411.1792))",
    "gradual": "first the head, then one more block in each epoch, so that what lies below is not torn by a head that "
    "knows nothing yet ([Howard & Ruder 2018](https://arxiv.org/abs/1801.06146))",
    "lp_ft": "the head, solved on frozen features, and from there all of it, so that good features are not distorted "
    "([Kumar et al. 2022](https://arxiv.org/abs/2202.10054))",
    "full": "all of it, from the pretrained weights: the most freedom to suit the task",
    "scratch": "all of it, from fresh weights: nothing was transferred, this is a baseline",
    "bitfit": "biases and the head, so that little is to be learned ([Ben Zaken et al. 2022](https://arxiv.org/abs/2106.10199))",
    "lora": "low-rank adapters and the head, so that little is to be learned and kept ([Hu et al. 2022](https://arxiv.org/abs/2106.09685))",
    "dora": "low-rank adapters, direction and magnitude apart, and the head, so that little is to be learned and kept "
    "([Liu et al. 2024](https://arxiv.org/abs/2402.09353))",
    "ia3": "a scale for each feature, and the head, so that very little is to be kept ([Liu et al. 2022](https://arxiv.org/abs/2205.05638))",
    "lokr": "Kronecker-product adapters and the head, so that little is to be learned and kept "
    "([Yeh et al. 2024](https://arxiv.org/abs/2309.14859))",
    "adapter": "adapters of peft, and the head, so that little is to be learned and kept",
}
# The head of both towers has more layers than one, so it is trained, where that of a single one is solved.
OF_PAIRS = {
    "linear_probe": "only the head, on what both towers give, which stay as they were pretrained: quick, with little "
    "to learn wrongly from few samples "
    "([Alain & Bengio 2017](https://arxiv.org/abs/1610.01644))",
    "lp_ft": "the head on frozen towers, and from there all of it, so that good features are not distorted "
    "([Kumar et al. 2022](https://arxiv.org/abs/2202.10054))",
}
SAMPLES = {
    "image-classification": "images", "text-classification": "texts", "image-text-classification": "pairs",
}  # fmt: skip
KINDS = {
    "image-classification": "An image", "text-classification": "A text",
    "image-text-classification": "An image and text",
}  # fmt: skip
# Where a run was made says nothing of the model, and a path something of the machine.
NOT_SHOWN = {"recipe", "output_dir", "cache_dir", "debug", "report_to", "dataloader_num_workers", "hub_model_id"}
PATHS = {"model_name_or_path", "image_model_name_or_path", "text_model_name_or_path", "dataset_name"}
MOST_CLASSES = 200
MOST_EPOCHS = 60


def as_text(name: str) -> str:
    """A name from outside as it may stand anywhere in Markdown: no markup, no link, no mention, nothing unseen."""
    seen = "".join(sign for sign in name if unicodedata.category(sign) not in ("Cc", "Cf", "Cs") or sign.isspace())
    return plain(seen).replace("@", "&#64;").replace("://", "&#58;//").replace("www.", "www&#46;")


def hub_id(results: Mapping[str, Any], setting: str) -> str | None:
    """What a setting names on the Hub; None if that is here."""
    return str(results.get(setting) or results["names"][setting]) if setting in results["commits"] else None


def bases(results: Mapping[str, Any]) -> list[str]:
    """The settings that name on the Hub what a model was made from; if none does, the one that names it at all."""
    return [name for name in results["commits"] if name != "dataset_name"] or ["model_name_or_path"]


def revision_of(setting: str) -> str:
    """The setting with the commit of what another one names."""
    return "dataset_revision" if setting == "dataset_name" else setting.replace("name_or_path", "revision")


def shown_name(results: Mapping[str, Any], setting: str) -> str:
    """A Hub id or a sample as it is; of a path, which tells of the machine, only its end."""
    if found := hub_id(results, setting):
        return found
    # Of two towers, both.
    names = str(results[setting]).split(" + ")
    return " + ".join(map(_shown_path, names))


def body(
    results: Mapping[str, Any], settings: Mapping[str, Any], model: Path,
    *, task: str, repository: str, pictures: Sequence[str],
) -> str:  # fmt: skip
    """Everything behind the metadata."""
    sections = [
        _what_it_is(results, model, task, repository),
        _how_to_use_it(settings, model, task, repository),
        _data(results, task),
        _what_learned(results),
        _results(results, pictures),
        _what_was_tried(results, settings, pictures),
        _limits(results, task),
        _again(results, settings),
    ]
    return "\n\n".join("\n".join(section) for section in sections) + "\n"


def fenced(text: str, language: str) -> list[str]:
    """A block of code, whatever backticks are in it."""
    longest = max((len(run) for run in re.findall("`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return [f"{fence}{language}", *text.rstrip("\n").splitlines(), fence]


def _linked(results: Mapping[str, Any], setting: str) -> str:
    """The name of what a setting names, as a link if it is on the Hub, with its commit."""
    shown, prefix = as_text(shown_name(results, setting)), "datasets/" if setting == "dataset_name" else ""
    if (name := hub_id(results, setting)) is None:
        return shown
    commit = results["commits"][setting]
    return f"[{shown}](https://huggingface.co/{prefix}{name})" + (f" at commit `{commit}`" if commit else "")


def _what_it_is(results: Mapping[str, Any], model: Path, task: str, repository: str) -> Iterator[str]:
    test, (low, high) = headline(results["metrics"]["test"]), results["intervals"]["test"]["accuracy"]
    base = " and ".join(_linked(results, name) for name in bases(results))
    made = (
        f"in the architecture of {base}, trained from scratch" if results["strategy"] == "scratch" else f"from {base}"
    )
    yield f"# {as_text(repository.split('/')[-1])}"
    yield ""
    kind = f"{KINDS[task]} classifier with {len(results['labels'])} classes"
    yield (
        f"{kind}{', an adapter' if is_adapter_folder(model) else ''}, "
        f"made {made} on {_linked(results, 'dataset_name')} with hf_transfer. "
        f"Test accuracy **{test['accuracy']:.2%}** (95 % interval {low:.2%} to {high:.2%}, "
        f"{_judged(results, 'test'):,} {SAMPLES[task]})."
    )


def _how_to_use_it(settings: Mapping[str, Any], model: Path, task: str, repository: str) -> Iterator[str]:
    yield "## How to use it"
    yield ""
    yield from fenced(lines_of_python(model, task, settings, repository), "python")
    if is_adapter_folder(model):
        yield ""
        yield "This is an adapter: peft also loads the model that it was trained on, from the Hub, in the same commit."
    elif needs_own_code(model):
        yield ""
        yield (
            f"transformers has no class for this model, so it brings its own in a `{code_file(model)}`, which is "
            "short: read it before you trust it, and name the commit that you have read."
        )


def _data(results: Mapping[str, Any], task: str) -> Iterator[str]:
    yield "## Data"
    yield ""
    yield f"From {_linked(results, 'dataset_name')}:"
    yield ""
    yield f"| split | {SAMPLES[task]} |"
    yield "|---|---:|"
    for split, count in results["samples"].items():
        yield f"| {split} | {count:,} |"
    yield ""
    yield from (f"- {as_text(note)}" for note in results["notes"])


def _what_learned(results: Mapping[str, Any]) -> Iterator[str]:
    parameters = results["parameters"]
    yield "## What learned, and why"
    yield ""
    pairs, strategies = results["recipe"] == "multimodal", results["strategy"].split(" + ")
    known = STRATEGIES | OF_PAIRS if pairs else STRATEGIES
    # Two, if each of two towers has its own.
    places = ["Of the tower for images ", "Of the tower for texts "] if len(strategies) > 1 else [""]
    for place, strategy in zip(places, strategies, strict=True):
        yield f"{place}`{strategy}`: {known[strategy]}."
    yield ""
    yield f"{parameters['trainable']:,} of {parameters['total']:,} parameters learned."


def _judged(results: Mapping[str, Any], split: str) -> int:
    return int(results["samples"][split]) - int(results["masked"].get(split, 0))


def _results(results: Mapping[str, Any], pictures: Sequence[str]) -> Iterator[str]:
    yield "## Results"
    yield ""
    yield "| split | samples | accuracy | 95 % interval | macro F1 | 95 % interval | loss |"
    yield "|---|---:|---:|---:|---:|---:|---:|"
    for split, scores in scores_by_name(results["metrics"]).items():
        intervals = results["intervals"][split]
        cells = []
        for name in ("accuracy", "f1_macro"):
            low, high = intervals[name]
            cells += [f"{scores[name]:.4f}", f"{low:.4f} to {high:.4f}"]
        samples = int(scores.get("samples", 0)) or _judged(results, split)
        yield f"| {split} | {samples:,} | {' | '.join(cells)} | {scores['loss']:.4f} |"
    yield ""
    yield "Intervals: Wilson's for accuracy, bootstrap percentiles for macro F1. By class, on the test split:"
    yield ""
    rows = results["classes"]
    if len(rows) > MOST_CLASSES:
        rows = sorted(rows, key=lambda row: row["f1"])[:MOST_CLASSES]
        yield f"The {MOST_CLASSES} of {len(results['classes'])} classes with the lowest F1:"
        yield ""
    yield "| class | precision | recall | F1 | samples |"
    yield "|---|---:|---:|---:|---:|"
    for row in rows:
        figures = " | ".join(f"{row[name]:.4f}" for name in ("precision", "recall", "f1"))
        yield f"| {as_text(row['label'])} | {figures} | {row['samples']} |"
    if results["confusions"]:
        yield ""
        yield "Most often taken for another:"
        yield ""
        for row in results["confusions"]:
            yield f"- {as_text(row['true'])} for {as_text(row['predicted'])}: {row['samples']}"
    if "confusion.png" in pictures:
        yield ""
        yield "![Confusion matrix of the test split](confusion.png)"


def _what_was_tried(results: Mapping[str, Any], settings: Mapping[str, Any], pictures: Sequence[str]) -> Iterator[str]:
    history, kept = results["history"], sorted(results["soup"]) or [results["best_epoch"]]
    yield "## What was tried"
    yield ""
    yield (
        f"{len(history)} states were judged on the validation split by {settings['metric_for_best_model']}; kept: "
        f"{'number' if len(kept) == 1 else 'the average of'} {', '.join(map(str, kept))}. The test split was looked at "
        "once, in the end."
    )
    yield ""
    yield "| | validation accuracy | macro F1 | loss |"
    yield "|---:|---:|---:|---:|"
    for row in history[:MOST_EPOCHS]:
        yield f"| {int(row['epoch']) + 1} | {row['accuracy']:.4f} | {row['f1_macro']:.4f} | {row['loss']:.4f} |"
    if len(history) > MOST_EPOCHS:
        yield f"| ... {len(history) - MOST_EPOCHS} more | | | |"
    for note in results["frozen_store"]:
        if not note.startswith("Frozen store"):
            yield ""
            yield as_text(note)
    if "curves.png" in pictures:
        yield ""
        yield "![Loss and validation score by epoch](curves.png)"


def _limits(results: Mapping[str, Any], task: str) -> Iterator[str]:
    fewest = min(results["classes"], key=lambda row: row["samples"])
    copies = {split: count for split, count in results["duplicates_of_training"].items() if count}
    masked = {split: count for split, count in results["masked"].items() if count}
    yield "## Limits"
    yield ""
    yield f"- It names one of its {len(results['labels'])} classes whatever it is shown: it has no word for others."
    yield (
        f"- Its figures are those of one run (seed {results['seed']}) on one test split, and hold for {SAMPLES[task]} "
        f"like these. The class with the fewest of them is {as_text(fewest['label'])} with {fewest['samples']}."
    )
    if copies:
        found = ", ".join(f"{count} in {split}" for split, count in copies.items())
        yield f"- Exact copies of training samples were found: {found}. Figures flatter by as much."
    if masked:
        yield f"- Could not be read, and left out: {', '.join(f'{n} in {split}' for split, n in masked.items())}."
    yield "- What is unfair in the data or in what it began from has not been looked into."
    yield (
        "- No license is set: whoever publishes the model chooses one (`license:` above), within those of the data and "
        "of what it began from."
    )


def _shown_path(name: str) -> str:
    return name if is_sample(name) else Path(name).name or "local files"


def _again(results: Mapping[str, Any], settings: Mapping[str, Any]) -> Iterator[str]:
    commits = results["commits"]
    shown = {
        name: _shown_path(str(value)) if name in PATHS and value and name not in commits else value
        for name, value in settings.items()
        if name not in NOT_SHOWN
    }
    for name, commit in commits.items():
        if commit:
            shown[revision_of(name)] = commit
    seconds, threads, processes = results["seconds"], results["threads"], results["processes"]
    yield "## How to repeat it"
    yield ""
    yield f"`recipes/{results['recipe']}.py --config settings.yaml --output_dir NEW` of hf_transfer, with this file:"
    yield ""
    yield from fenced(yaml.safe_dump(shown, sort_keys=False, allow_unicode=True), "yaml")
    yield ""
    versions = ", ".join(f"{name} {version}" for name, version in results["versions"].items())
    yield (
        f"Seed {results['seed']}, processes: {processes}, threads of each: {threads}, {seconds['total']:.0f} s, "
        f"{seconds['train']:.0f} of them in training. Versions: {versions}."
    )
