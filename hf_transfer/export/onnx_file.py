"""A model as a file in ONNX format, with everything that its answers depend on in the metadata of the file."""

from __future__ import annotations

import json
import logging
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from copy import deepcopy
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from hf_transfer.errors import user_error

if TYPE_CHECKING:
    from hf_transfer.modalities.modality import Preprocessing

PACKAGES = ("onnx", "onnxscript", "onnxruntime")
OPSET = 18
AXES = ("batch", "length")
OUTPUT = "logits"
# The name of what the file says of the model.
METADATA = "hf_transfer"
# A file of protobuf holds two gigabytes; larger weights are in a second file beside it.
LARGEST_FILE = 2_000_000_000
# The longest reason of another library that a message quotes.
LONGEST_REASON = 300


def check_packages() -> None:
    """Refuse an export for which packages are missing.

    Raises:
        UserError: some are.
    """
    if missing := [name for name in PACKAGES if find_spec(name) is None]:
        raise user_error(
            expected=f"the packages {', '.join(PACKAGES)}",
            found=f"no {', no '.join(missing)}",
            do="pip install 'hf-transfer-learning[onnx]'",
        )


class _Logits(nn.Module):
    """A model as a function from tensors in a fixed order to its logits.

    Args:
        model: that takes its inputs by name.
        names: of the inputs.
    """

    def __init__(self, model: nn.Module, names: tuple[str, ...]) -> None:
        super().__init__()
        self.model, self.names = model, names

    def forward(self, *tensors: Tensor) -> Tensor:
        """Logits [batch, outputs]."""
        logits: Tensor = self.model(**dict(zip(self.names, tensors, strict=True))).logits
        return logits


def write_onnx(model: nn.Module, preprocessing: Preprocessing, metadata: Mapping[str, Any], path: Path) -> None:
    """Write a model in ONNX format, for batches of every size and texts of every length.

    Args:
        model: in float32 on the CPU, in evaluation mode; it is not changed.
        preprocessing: of the model, which makes the example that is traced.
        metadata: what is stored with the model, as JSON.
        path: of the file.

    Raises:
        UserError: torch cannot export a model of this architecture.
    """
    copy: Any = deepcopy(model)
    # Fused attention is exported for some shapes of heads only; written out as products and softmax, it always is.
    copy.set_attn_implementation("eager")
    # A batch of one, or a text of one token, would be taken for a constant. The other texts are as short as can be:
    # two batches of long ones might both be truncated to the same length.
    example, other = preprocessing.drawn(2, 7, seed=0), preprocessing.drawn(3, 1, seed=0)
    try:
        with quiet():
            program = torch.onnx.export(
                _Logits(copy, tuple(example)), tuple(example.values()), dynamo=True, verbose=False,
                opset_version=OPSET, input_names=list(example), output_names=[OUTPUT],
                dynamic_shapes=(tuple(_axes(example[name], other[name]) for name in example),),
            )  # fmt: skip
    except Exception as error:
        # Tracing runs the model's own code, which may raise anything.
        raise user_error(
            expected=f"a model that torch {torch.__version__} exports to ONNX",
            found=f"{type(model).__name__}: {reason_of(error)}",
            do="predict with hf-transfer predict, or train from a checkpoint of another family: see docs/export.md",
        ) from error
    assert program is not None
    for graph in program.model.graphs():
        for node in graph.all_nodes():
            # These name the files of this machine.
            node.metadata_props.clear()
    program.model.metadata_props[METADATA] = json.dumps(metadata, ensure_ascii=False)
    program.save(path, external_data=size_of(model) > LARGEST_FILE)


class OnnxModel(nn.Module):
    """A file in ONNX format that is called as the model it was made of; it runs on the CPU with torch's threads.

    Args:
        path: of the file.
    """

    def __init__(self, path: Path) -> None:
        import onnxruntime

        super().__init__()
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        self._session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        self._names = [one.name for one in self._session.get_inputs()]

    def forward(self, **inputs: Tensor) -> SimpleNamespace:
        """Logits [batch, outputs] as `logits`, on the device of the inputs."""
        arrays = {name: inputs[name].cpu().numpy() for name in self._names}
        (outputs,) = self._session.run([OUTPUT], arrays)
        return SimpleNamespace(logits=torch.from_numpy(outputs).to(next(iter(inputs.values())).device))


def size_of(model: nn.Module) -> int:
    """Bytes of all weights of a model."""
    return sum(value.nbytes for value in model.state_dict().values())


def _axes(example: Tensor, other: Tensor) -> dict[int, str]:
    """The axes of an input whose sizes differ from batch to batch, with their names."""
    sizes = zip(example.shape, other.shape, strict=True)
    return {axis: AXES[axis] for axis, (size, changed) in enumerate(sizes) if size != changed}


def reason_of(error: BaseException) -> str:
    """What went wrong at the root, in one line: the exporter's own messages are pages of advice."""
    while error.__cause__ is not None:
        error = error.__cause__
    return f"{type(error).__name__}: {' '.join(str(error).split())}"[:LONGEST_REASON]


@contextmanager
def quiet() -> Iterator[None]:
    """No warnings and no notes of torch.onnx and onnxruntime, which are about their own steps."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
