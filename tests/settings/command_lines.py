"""Command lines of all recipes, in which every setting has an effect, and the parts of an error message."""

import dataclasses
import re
from typing import Any

import pytest

from hf_transfer.errors import UserError
from hf_transfer.settings.parsing import parse
from hf_transfer.settings.run import MultimodalConfig, RunConfig, TextConfig, VisionConfig

REQUIRED = ("--model_name_or_path=m", "--dataset_name=d", "--output_dir=o")
CONFIGS: list[type[RunConfig]] = [VisionConfig, TextConfig, MultimodalConfig]
SETTINGS: dict[str, "dataclasses.Field[Any]"] = {
    name: one for config in reversed(CONFIGS) for name, one in config.settings().items()
}
# Without these flags, a setting has no effect with the defaults, or cannot stand.
COMPANIONS: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(("image_strategy", "text_strategy"), ("--strategy=full",)),
    **dict.fromkeys(("encoding", "delimiter"), ("--dataset_name=d.csv",)),
    "hub_private_repo": ("--push_to_hub", "--hub_model_id=me/pets"),
    "hub_model_id": ("--push_to_hub",),
    "push_to_hub": ("--hub_model_id=me/pets",),
    "push_space": ("--push_to_hub", "--hub_model_id=me/pets"),
}


def parsed(*flags: str) -> RunConfig:
    """The settings of these flags, with the recipe that has them and what gives them an effect."""
    named = {flag.partition("=")[0].removeprefix("--") for flag in flags if flag.startswith("--")}
    config = next((one for one in CONFIGS if named & SETTINGS.keys() <= one.settings().keys()), VisionConfig)
    companions = [flag for name in sorted(named & COMPANIONS.keys()) for flag in COMPANIONS[name]]
    return parse(config, [*REQUIRED, *companions, *flags])


def parts_of(error: "pytest.ExceptionInfo[UserError]") -> tuple[str, str, str]:
    """The three parts of a message: expected, found, do this."""
    parts = re.fullmatch(r"Expected: (.+)\nFound:    (.+)\nDo this:  (.+)", str(error.value), re.DOTALL)
    assert parts is not None, str(error.value)
    return parts[1], parts[2], parts[3]
