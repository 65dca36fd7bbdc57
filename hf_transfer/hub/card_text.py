"""What a model card shows of a run; its words are in card.md.jinja, where names from outside are escaped."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from hf_transfer.data.sample_models import origin_of
from hf_transfer.data.samples import is_sample
from hf_transfer.evaluation.results import Results

# These settings say nothing about the model, and some of them something about the machine.
NOT_SHOWN = {
    "recipe",
    "output_dir",
    "cache_dir",
    "cache_pixels_gb",
    "debug",
    "report_to",
    "dataloader_num_workers",
    "hub_model_id",
}
PATHS = {"model_name_or_path", "image_model_name_or_path", "text_model_name_or_path", "dataset_name"}


@dataclass(frozen=True)
class Source:
    """A model or a data set that a run was made from.

    Attributes:
        shown: its Hub id, or the name of a sample; of a path only the last part: the rest is private.
        hub_id: None, if it is on this machine.
        commit: on the Hub, if it is known.
    """

    shown: str
    hub_id: str | None = None
    commit: str | None = None


def source_of(results: Results, setting: str) -> Source:
    """What a setting names."""
    if setting in results.commits:
        hub_id = str(results.names.get(setting) or results.dataset_name)
        return Source(hub_id, hub_id, results.commits[setting])
    # The names of two towers are joined.
    return Source(" + ".join(map(_shown_path, str(getattr(results, setting)).split(" + "))))


def bases_of(results: Results) -> Sequence[Source]:
    """The base models on the Hub; if none of them is there, the one on this machine."""
    settings = [name for name in results.commits if name != "dataset_name"] or ["model_name_or_path"]
    return [source_of(results, setting) for setting in settings]


def origins_of(results: Results) -> dict[str, str]:
    """Of the base models that are samples from elsewhere: whose weights they have, and their licence, by name."""
    names = results.model_name_or_path.split(" + ")
    return {name: origin for name in names if (origin := origin_of(name))}


def shown_settings(results: Results, settings: Mapping[str, Any]) -> str:
    """The settings that repeat a run, as YAML: with commits, and without the paths of this machine."""
    commits = results.commits
    shown = {
        name: _shown_path(str(value)) if name in PATHS and value and name not in commits else value
        for name, value in settings.items()
        if name not in NOT_SHOWN
    }
    for name, commit in commits.items():
        if commit:
            revision = "dataset_revision" if name == "dataset_name" else name.replace("name_or_path", "revision")
            shown[revision] = commit
    return yaml.safe_dump(shown, sort_keys=False, allow_unicode=True)


def code_files(model: Path) -> list[str]:
    """The files with the model's own code, that of its class first; none, if transformers has a class for the model."""
    config = json.loads((model / "config.json").read_text(encoding="utf-8"))
    if "auto_map" not in config:
        return []
    first = str(next(iter(config["auto_map"].values()), "modeling_*")).split(".")[0] + ".py"
    return [first, *(path.name for path in sorted(model.glob("*.py")) if path.name != first)]


def needs_timm(model: Path) -> bool:
    """Whether a saved model can only be loaded where timm is installed."""
    config = json.loads((model / "config.json").read_text(encoding="utf-8"))
    # As transformers tells them.
    return any("pretrained_cfg" in part for part in (config, config.get("backbone_config") or {}))


def _shown_path(name: str) -> str:
    return name if is_sample(name) else Path(name).name or "local files"
