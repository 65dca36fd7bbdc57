"""Models of timm: what they need on this machine, their configuration, and their preprocessing without torchvision.

transformers runs them by `TimmWrapperForImageClassification`. Their configuration names an `architecture`, and in
`pretrained_cfg` how pictures were prepared for the pretrained weights.
"""

import math
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image
from transformers import PretrainedConfig

from hf_transfer.data.resizing import resizings_of
from hf_transfer.errors import some, user_error
from hf_transfer.installation import unsuitable_torchvision

MODEL_TYPE = "timm_wrapper"
PROCESSOR_TYPE = "image_processor_type"
# Arguments of an architecture with which timm would read other files or return something else than logits, or which
# transformers gives itself.
REFUSED_ARGUMENTS = ("cache_dir", "checkpoint_path", "features_only", "pretrained", "pretrained_cfg")
# What a configuration says of the classes of the checkpoint.
EARLIER_TASK = ("num_classes", "label_names", "label_descriptions")
# What timm takes where `pretrained_cfg` says nothing.
DEFAULTS: dict[str, Any] = {
    "input_size": (3, 224, 224),
    "interpolation": "bicubic",
    "crop_pct": 0.875,
    "crop_mode": "center",
    "mean": (0.485, 0.456, 0.406),
    "std": (0.229, 0.224, 0.225),
}
FILTERS = ("nearest", "bilinear", "bicubic", "box", "hamming", "lanczos")


def is_timm(config: PretrainedConfig) -> bool:
    """Whether a configuration is that of a model of timm."""
    return config.model_type == MODEL_TYPE


def timm_config(values: Mapping[str, Any], path: str, **settings: Any) -> PretrainedConfig:
    """The configuration of a timm model.

    Args:
        values: of its config.json.
        path: where it is: a folder or a Hub id.
        settings: values that replace those of the file.

    Raises:
        UserError: see `refuse_unsuitable`.
    """
    from transformers.models.timm_wrapper import TimmWrapperConfig

    refuse_unsuitable(values, path)
    values = dict(values)
    arguments = dict(values.get("model_args") or {})
    # As timm's own program saves it; transformers gives this argument itself, from the number of labels.
    arguments.pop("num_classes", None)
    values["model_args"] = arguments or None
    # In a configuration of our own around this one, transformers finds the processor by it.
    values[PROCESSOR_TYPE] = "TimmWrapperImageProcessor"
    if "id2label" in settings:
        # Otherwise the number of classes of the earlier task would count, and their names would be saved again.
        values = {name: value for name, value in values.items() if name not in EARLIER_TASK}
        settings["num_labels"] = len(settings["id2label"])
    config: PretrainedConfig = TimmWrapperConfig.from_dict(values, name_or_path=path, **settings)
    return config


def refuse_unsuitable(values: Mapping[str, Any], path: str) -> None:
    """Refuse a timm model that timm would not build of its configuration alone.

    Args:
        values: of its configuration, which may be a part of another one.
        path: where that is: a folder or a Hub id.

    Raises:
        UserError: timm cannot build it, or would read other files.
    """
    refuse_without_timm(path)
    _refuse_unknown(str(values.get("architecture")), path)
    if refused := sorted((values.get("model_args") or {}).keys() & set(REFUSED_ARGUMENTS)):
        raise user_error(
            expected=f"in model_args of {path} only what changes the layers of its architecture",
            found=", ".join(refused),
            do="take these out of its config.json, or use another checkpoint",
        )


def refuse_without_timm(path: str) -> None:
    """Refuse a timm model if timm cannot be imported here.

    Raises:
        UserError: timm or torchvision is not installed, or this torchvision was built for another torch.
    """
    if missing := [name for name in ("timm", "torchvision") if find_spec(name) is None]:
        raise user_error(
            expected=f"timm, to load {path}",
            found=f"{' and '.join(missing)} not installed",
            do='pip install "hf-transfer-learning[timm]"',
        )
    try:
        import timm  # noqa: F401
    except (ImportError, OSError, RuntimeError) as error:
        raise unsuitable_torchvision(error) from error


def refuse_equal_labels(name: str, config: PretrainedConfig) -> None:
    """Refuse a finished model two of whose classes have the same name: an answer could not tell them apart.

    timm stores labels as a list of names, in which that is possible.

    Raises:
        UserError: there are such names.
    """
    names = list((config.id2label or {}).values())
    if equal := sorted({one for one in names if names.count(one) > 1}):
        raise user_error(
            expected=f"in {name} a different name for each class",
            found=f"label_names with several classes called {some(equal)}",
            do="change label_names in its config.json",
        )


def _refuse_unknown(architecture: str, path: str) -> None:
    """Refuse an architecture that this timm does not have; names with a prefix would make timm load something else."""
    import timm

    # With a tag, as in resnet18.a1_in1k, it must be a tag of weights that are known.
    if timm.is_model(architecture) and ("." not in architecture or timm.models.is_model_pretrained(architecture)):
        return
    near = get_close_matches(architecture.split(".")[0], timm.list_models(), 3)
    raise user_error(
        expected=f"an architecture that timm {timm.__version__} has",
        found=f"{architecture!r} in {path}",
        do=f"use a checkpoint of another architecture ({some(near)}), or pip install --upgrade timm"
        if near
        else "use a checkpoint of another architecture (timm.list_models() names them), or pip install --upgrade timm",
    )


class TimmProcessor:
    """What timm does with a picture for evaluation, by Pillow and NumPy alone.

    The shorter side is resized to the size of the model divided by `crop_pct`, the centre is cropped, and each channel
    is normalised. The settings have the names that processors of transformers use.

    Args:
        name: of the checkpoint, for messages.
        pretrained_cfg: of its configuration.

    Raises:
        UserError: timm prepares pictures for this model in another way.
    """

    # The place of the crop is rounded to the nearest pixel, as torchvision does, where transformers rounds down.
    rounds_crop = True
    do_resize = do_center_crop = do_rescale = do_normalize = True
    rescale_factor = 1 / 255

    def __init__(self, name: str, pretrained_cfg: Mapping[str, Any]) -> None:
        given = {key: pretrained_cfg.get(key) or default for key, default in DEFAULTS.items()}
        channels, height, width = given["input_size"]
        for wanted, is_so, value in (
            ("crop_mode center", given["crop_mode"] == "center", f"crop_mode {given['crop_mode']}"),
            (
                "images of 3 channels and equal sides",
                (channels, height) == (3, width),
                f"input_size {given['input_size']}",
            ),
            (f"interpolation {', '.join(FILTERS)}", given["interpolation"] in FILTERS, str(given["interpolation"])),
            *(
                (f"a {key} of 3 numbers, or of one for all channels", _are_numbers(given[key]), f"{key} {given[key]}")
                for key in ("mean", "std")
            ),
        ):
            if not is_so:
                raise user_error(
                    expected=f"a timm model that takes {wanted}",
                    found=f"{name} with {value} in its pretrained_cfg",
                    do="use another checkpoint of this architecture",
                )
        self.size = {"shortest_edge": math.floor(height / given["crop_pct"])}
        self.crop_size = {"height": height, "width": width}
        self.resample = Image.Resampling[given["interpolation"].upper()]
        (self._resizing,) = resizings_of(self)
        self.image_mean, self.image_std = (_for_channels(given[key]) for key in ("mean", "std"))

    def __call__(
        self, images: Any, *, do_rescale: bool = True, do_normalize: bool = True, **_: Any
    ) -> dict[str, npt.NDArray[Any]]:
        """`pixel_values` of one or several RGB pictures [pictures, 3, height, width]."""
        sequence = images if isinstance(images, Sequence) else [images]
        pixels: npt.NDArray[Any] = np.stack([self._resizing(image) for image in sequence])
        if do_rescale:
            pixels = pixels.astype(np.float32) / np.float32(255)
        if do_normalize:
            pixels = (pixels.astype(np.float32) - self.image_mean) / self.image_std
        return {"pixel_values": pixels}

    def save_pretrained(self, save_directory: Path) -> None:
        """Write nothing: transformers reads these settings from the config.json of the model, which has them."""


def _are_numbers(values: Any) -> bool:
    return (
        isinstance(values, Sequence)
        and len(values) in (1, 3)
        and all(isinstance(value, int | float) for value in values)
    )


def _for_channels(values: Sequence[float]) -> npt.NDArray[np.float32]:
    """A value for each channel, or one for all of them [channels or 1, 1, 1]."""
    return np.array(values, np.float32)[:, None, None]
