"""The model card of a finished run: its text, and the metadata that the Hub reads."""

import csv
import hashlib
import shutil
from collections.abc import Mapping
from io import StringIO
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import EvalResult, ModelCardData

from hf_transfer.data.complete_files import put
from hf_transfer.evaluation.results import Results
from hf_transfer.evaluation.run_folder import CARD_FILE, CONFIG_FILE, PICTURES
from hf_transfer.evaluation.templates import render
from hf_transfer.hub.card_text import (
    Source,
    bases_of,
    code_files,
    needs_timm,
    origins_of,
    shown_settings,
    source_of,
)
from hf_transfer.modalities.table import MODALITIES
from hf_transfer.settings.strategy import ADAPTERS
from hf_transfer.strategies.adapter_files import is_adapter_folder
from hf_transfer.targets.predictions import Ranking

# Stands in a card for the model's name on the Hub, until it has one.
NOWHERE = "OWNER/NAME"
# Holds the hash of the card as it was written: a card that was edited since is not overwritten.
HASH_FILE = ".card"
EMISSIONS = "emissions.csv"


def write_card(out: Path, repository: str = NOWHERE) -> Path:
    """Write `OUT/model/README.md` with its pictures; of a card that was edited only the model's name is filled in.

    Args:
        out: the folder of a finished run.
        repository: the model's name on the Hub, if it is known.

    Returns:
        The path of the card.
    """
    path, hash_file = out / "model" / CARD_FILE, out / HASH_FILE
    if path.is_file():
        text = path.read_text(encoding="utf-8")
        if not hash_file.is_file() or hash_file.read_text() != _hash(text):
            path.write_text(text.replace(NOWHERE, repository), encoding="utf-8")
            return path
    for name in PICTURES:
        if (out / name).is_file():
            shutil.copyfile(out / name, out / "model" / name)
    results = Results.read(out)
    settings = yaml.safe_load((out / CONFIG_FILE).read_text(encoding="utf-8"))
    text = model_card(results, settings, out / "model", repository=repository, emissions=read_emissions(out))
    hash_file.write_text(_hash(text))
    put(path, text.encode())
    return path


def model_card(
    results: Results, settings: Mapping[str, Any], model: Path,
    *, repository: str = NOWHERE, emissions: Mapping[str, Any] | None = None,
) -> str:  # fmt: skip
    """The text of a card: metadata, and Markdown in which every name from outside is escaped.

    Args:
        results: what results.json holds.
        settings: what config.yaml holds.
        model: the model's folder, with the pictures of the card.
        repository: its name on the Hub.
        emissions: see `read_emissions`.
    """
    data = metadata(results, settings, model, repository=repository, emissions=emissions)
    return render(
        "hub/card.md.jinja",
        metadata=data.to_yaml(),
        repository=repository,
        results=results,
        modality=MODALITIES[results.recipe],
        is_adapter=is_adapter_folder(model),
        bases=bases_of(results),
        origins=origins_of(results),
        dataset=source_of(results, "dataset_name"),
        pairs=bool(settings.get("text_pair_column_name")),
        code_files=code_files(model),
        needs_timm=needs_timm(model),
        ranking=Ranking.of(results.target, settings.get("metric_for_best_model")).metric,
        settings=shown_settings(results, settings),
        pictures=[name for name in PICTURES if (model / name).is_file()],
        emissions=emissions,
    )


def metadata(
    results: Results, settings: Mapping[str, Any], model: Path,
    *, repository: str, emissions: Mapping[str, Any] | None = None,
) -> ModelCardData:  # fmt: skip
    """What the Hub reads of a card. The license is left to whoever publishes the model."""
    adapter, strategies = is_adapter_folder(model), results.strategy.split(" + ")
    names = [base.hub_id for base in bases_of(results) if base.hub_id]
    base = None if strategies == ["scratch"] or not names else names[0] if len(names) == 1 else names
    dataset, modality = source_of(results, "dataset_name"), MODALITIES[results.recipe]
    return ModelCardData(
        library_name="peft" if adapter else "transformers",
        # The Hub would take a task that it does not know for another.
        pipeline_tag=modality.task if modality.has_pipeline else None,
        base_model=base,
        datasets=[dataset.hub_id] if dataset.hub_id else None,
        language=results.languages or None,
        metrics=list(dict.fromkeys(metric.hub[0] for metric in results.target.metrics if metric.hub)) or None,
        tags=[
            "hf_transfer",
            "transfer-learning",
            *results.target.tags,
            *(["timm"] if needs_timm(model) else []),
            *(name for name in strategies if name in ADAPTERS),
        ],
        model_name=repository.split("/")[-1],
        eval_results=_eval_results(results, settings, modality.task, dataset) or None,
        base_model_relation=("adapter" if adapter else "finetune") if base else None,
        co2_eq_emissions=emissions,
    )


def _eval_results(results: Results, settings: Mapping[str, Any], task: str, dataset: Source) -> list[EvalResult]:
    shared: dict[str, Any] = {
        "task_type": task,
        "task_name": task.replace("-", " ").title(),
        "dataset_type": dataset.hub_id or "other",
        "dataset_name": as_line(dataset.shown),
        "dataset_config": settings.get("dataset_config_name"),
        "dataset_split": "test",
        "dataset_revision": dataset.commit,
        # Nobody but the run itself has measured them.
        "verified": False,
    }
    return [
        EvalResult(
            metric_type=metric.hub[0], metric_name=metric.hub[1],
            metric_value=round(results.test.metrics[metric.name], 6), metric_args=dict(metric.hub[2]) or None, **shared,
        )
        for metric in results.target.metrics
        if metric.hub is not None
    ]  # fmt: skip


def as_line(text: str) -> str:
    """A name in one line, for metadata: YAML quotes what it must."""
    return " ".join(text.split())


def read_emissions(out: Path) -> dict[str, Any] | None:
    """What codecarbon has written into the run's folder, in the Hub's form (grams); None if there is nothing."""
    text = (out / EMISSIONS).read_text(encoding="utf-8") if (out / EMISSIONS).is_file() else ""
    rows = list(csv.DictReader(StringIO(text)))
    if not rows:
        return None
    grams = sum(float(row["emissions"]) for row in rows) * 1000
    emissions: dict[str, Any] = {"emissions": grams, "source": "CodeCarbon", "training_type": "fine-tuning"}
    for name, column in (("geographical_location", "country_name"), ("hardware_used", "gpu_model")):
        if value := rows[-1].get(column):
            emissions[name] = as_line(value)
    return emissions


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
