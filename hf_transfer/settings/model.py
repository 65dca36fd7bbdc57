"""Which pretrained model a run starts from."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hf_transfer.settings.fields import REQUIRED, Need, Topic, setting
from hf_transfer.settings.ranges import NAME

SAMPLE_PREFIX = "sample:"
# What the settings of a run on data in memory call the data, with a digest of their content.
MEMORY_PREFIX = "memory:"


def exists(name: str) -> bool:
    """Whether a name is a path on this machine."""
    try:
        return Path(name).expanduser().exists()
    except OSError:
        # It is too long for a path.
        return False


def is_here(name: str | None) -> bool:
    """Whether a name is a sample, data in memory or a path on this machine, and so has no revision on the Hub."""
    return name is None or name.startswith((SAMPLE_PREFIX, MEMORY_PREFIX)) or exists(name)


def on_the_hub(topic: str, name: str) -> Need:
    """The need of a revision: the name that it belongs to is on the Hub."""
    return Need(
        f"a --{name} on the Hub",
        lambda config: not is_here(getattr(getattr(config, topic), name)),
        lambda config: f"--{name} {getattr(getattr(config, topic), name) or 'not given'}",
    )


def _revision(what: str, name: str) -> Any:
    return setting(f"Branch, tag or commit of {what} on the Hub.", "main", on_the_hub("model", name))


def _tower(samples: str) -> Any:
    return setting(f"Pretrained model for the {samples}: a Hub id, a local folder, or sample:NAME.", None, NAME)


@dataclass(frozen=True)
class ModelSettings(Topic):
    """One pretrained model."""

    model_name_or_path: str = setting("Pretrained model: a Hub id, a local folder, or sample:NAME.", REQUIRED, NAME)
    model_revision: str = _revision("a model", "model_name_or_path")


@dataclass(frozen=True)
class PairModelSettings(ModelSettings):
    """A pretrained model for the images and one for the texts, or a dual encoder."""

    # Two towers have no name in common, so it may be left out here.
    model_name_or_path: str | None = setting(  # type: ignore[assignment]
        "A dual encoder (CLIP, SigLIP) instead of two models; with --evaluate_only: a finished model.", None, NAME
    )
    image_model_name_or_path: str | None = _tower("images")
    text_model_name_or_path: str | None = _tower("texts")
    image_model_revision: str = _revision("the image model", "image_model_name_or_path")
    text_model_revision: str = _revision("the text model", "text_model_name_or_path")
