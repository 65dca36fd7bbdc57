"""The model card: what a finished run says of itself, to whoever finds its model on the Hub."""

import csv
import hashlib
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import EvalResult, ModelCardData

from hf_transfer.config import ADAPTERS
from hf_transfer.evaluation.modalities import headline
from hf_transfer.evaluation.run_folder import CONFIG_FILE, RESULTS_FILE
from hf_transfer.hub.card_text import bases, body, hub_id, shown_name
from hf_transfer.hub.usage import NOWHERE
from hf_transfer.strategies.adapter_files import is_adapter_folder

CARD_FILE = "README.md"
# The hash of the card as it was written: one that has been edited since is its author's.
MARK = ".card"
PICTURES = ("curves.png", "confusion.png")
TASKS = {
    "vision": "image-classification", "text": "text-classification", "multimodal": "image-text-classification",
}  # fmt: skip
# The Hub knows no such task, and would take the model for one of another.
WITHOUT_TAG = "image-text-classification"
EMISSIONS = "emissions.csv"


def write_card(out: Path, repository: str = NOWHERE) -> Path:
    """Write `OUT/model/README.md` with its pictures from what a finished run has left; an edited one stays.

    Args:
        out: the folder of a finished run.
        repository: what the model is called on the Hub, if it is known.

    Returns:
        The card.
    """
    path, mark = out / "model" / CARD_FILE, out / MARK
    if path.is_file():
        text = path.read_text(encoding="utf-8")
        if not mark.is_file() or mark.read_text() != _hash(text):
            path.write_text(text.replace(NOWHERE, repository), encoding="utf-8")
            return path
    for name in PICTURES:
        if (out / name).is_file():
            shutil.copyfile(out / name, out / "model" / name)
    results = json.loads((out / RESULTS_FILE).read_text(encoding="utf-8"))
    settings = yaml.safe_load((out / CONFIG_FILE).read_text(encoding="utf-8"))
    text = model_card(results, settings, out / "model", repository=repository, emissions=read_emissions(out))
    partial = path.with_name(".card-partial")
    partial.write_text(text, encoding="utf-8")
    mark.write_text(_hash(text))
    partial.replace(path)
    return path


def model_card(
    results: Mapping[str, Any], settings: Mapping[str, Any], model: Path,
    *, repository: str = NOWHERE, emissions: Mapping[str, Any] | None = None,
) -> str:  # fmt: skip
    """The text of a card: metadata, and Markdown in which every name from outside is text.

    Args:
        results: what results.json holds.
        settings: what config.yaml holds.
        model: the model's folder, with the pictures that the card is to show.
        repository: what it is called on the Hub.
        emissions: what codecarbon has measured.
    """
    task = TASKS[results["recipe"]]
    data = metadata(results, settings, model, task=task, repository=repository, emissions=emissions)
    pictures = [name for name in PICTURES if (model / name).is_file()]
    text = body(results, settings, model, task=task, repository=repository, pictures=pictures)
    if emissions:
        text += f"\n## Carbon\n\nAbout {emissions['emissions']:.3g} g CO2 equivalent, as CodeCarbon measured.\n"
    return f"---\n{data.to_yaml()}\n---\n\n{text}"


def metadata(
    results: Mapping[str, Any], settings: Mapping[str, Any], model: Path,
    *, task: str, repository: str, emissions: Mapping[str, Any] | None = None,
) -> ModelCardData:  # fmt: skip
    """What the Hub itself reads of a card. The license is left to whoever publishes it."""
    adapter, strategies = is_adapter_folder(model), results["strategy"].split(" + ")
    found = [name for setting in bases(results) if (name := hub_id(results, setting))]
    base = None if strategies == ["scratch"] or not found else found[0] if len(found) == 1 else found
    dataset = hub_id(results, "dataset_name")
    more: dict[str, Any] = {"base_model_relation": "adapter" if adapter else "finetune"} if base else {}
    if emissions:
        more["co2_eq_emissions"] = dict(emissions)
    return ModelCardData(
        library_name="peft" if adapter else "transformers",
        pipeline_tag=None if task == WITHOUT_TAG else task,
        base_model=base,
        datasets=[dataset] if dataset else None,
        language=results["languages"] or None,
        metrics=["accuracy", "f1"],
        tags=["hf_transfer", "transfer-learning", *(name for name in strategies if name in ADAPTERS)],
        model_name=repository.split("/")[-1],
        eval_results=_eval_results(results, settings, task, dataset),
        **more,
    )


def _eval_results(
    results: Mapping[str, Any], settings: Mapping[str, Any], task: str, dataset: str | None
) -> list[EvalResult]:
    shared: dict[str, Any] = {
        "task_type": task,
        "task_name": task.replace("-", " ").title(),
        "dataset_type": dataset or "other",
        "dataset_name": as_line(shown_name(results, "dataset_name")),
        "dataset_config": settings.get("dataset_config_name"),
        "dataset_split": "test",
        "dataset_revision": results["commits"].get("dataset_name"),
        # Nobody but the run itself has measured them.
        "verified": False,
    }
    test = headline(results["metrics"]["test"])
    return [
        EvalResult(metric_type="accuracy", metric_name="Accuracy", metric_value=round(test["accuracy"], 6), **shared),
        EvalResult(
            metric_type="f1", metric_name="Macro F1", metric_value=round(test["f1_macro"], 6),
            metric_args={"average": "macro"}, **shared,
        ),
    ]  # fmt: skip


def as_line(text: str) -> str:
    """In one line, for metadata: YAML itself quotes what it must."""
    return " ".join(text.split())


def read_emissions(out: Path) -> dict[str, Any] | None:
    """What codecarbon has left in the run's folder, in the Hub's form (grams); None if it has left nothing."""
    if not (out / EMISSIONS).is_file():
        return None
    with (out / EMISSIONS).open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    if not rows:
        return None
    found: dict[str, Any] = {"emissions": sum(float(row["emissions"]) for row in rows) * 1000, "source": "CodeCarbon"}
    found["training_type"] = "fine-tuning"
    for ours, theirs in (("geographical_location", "country_name"), ("hardware_used", "gpu_model")):
        if value := rows[-1].get(theirs):
            found[ours] = as_line(value)
    return found


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
