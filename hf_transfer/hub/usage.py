"""How a finished model is used: a few lines of Python for its card."""

import json
from pathlib import Path
from typing import Any

from hf_transfer.evaluation.templates import render
from hf_transfer.modalities.modality import Modality
from hf_transfer.strategies.adapter_files import is_adapter_folder

# Stands in a card for the model's name on the Hub, until it has one.
NOWHERE = "OWNER/NAME"


def lines_of_python(model: Path, modality: Modality[Any], *, pairs: bool, name: str = NOWHERE) -> str:
    """A program that classifies one example with a model from the Hub.

    Args:
        model: its folder.
        modality: what a sample is.
        pairs: whether a sample is a pair of texts.
        name: of the model on the Hub.
    """
    return render(
        "hub/usage.py.jinja", modality=modality, name=name, pairs=pairs, is_adapter=is_adapter_folder(model),
        has_own_code=code_file(model) is not None,
    )  # fmt: skip


def code_file(model: Path) -> str | None:
    """The file with the model's own code; None, if transformers has a class for the model."""
    config = json.loads((model / "config.json").read_text(encoding="utf-8"))
    if "auto_map" not in config:
        return None
    return str(next(iter(config["auto_map"].values()), "modeling_*")).split(".")[0] + ".py"
