"""What replaces the skipped modules of a cut model: stubs, which return the stored activations of a batch.

Each run of the model takes them as further keyword arguments: a forward pre-hook removes them from the arguments and
hands them to the stubs.
"""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_unflatten

from hf_transfer.models.groups import Inputs

# A dimension of the batch: how many samples, or tokens of the longest text.
Kind = Literal["samples", "tokens"]
# A dimension of a tensor: fixed, or that of the batch.
Size = int | Kind
# Keyword argument of a cut model: one stored activation, counted from 0.
STORED = "stored_activation_{}"


@dataclass(frozen=True)
class Crossing:
    """A tensor that crosses the cut.

    Attributes:
        shape: its dimensions; those of the batch by name, the samples first.
        dtype: the type in which the model computes it.
    """

    shape: tuple[Size, ...]
    dtype: torch.dtype

    @property
    def by_token(self) -> bool:
        """Whether it has the shape [samples, tokens, ...]."""
        return len(self.shape) > 1 and self.shape[1] == "tokens"


def with_stored(inputs: Inputs, tensors: Sequence[Tensor]) -> dict[str, Tensor]:
    """Inputs of a cut model: those of a batch, and its stored activations."""
    return {**inputs, **{STORED.format(number): tensor for number, tensor in enumerate(tensors)}}


class StoredActivations:
    """Hands the stored activations among the arguments of a run of the model to the stubs, for this run only.

    Args:
        numbers: of the stored activations; see `with_stored`.

    Attributes:
        arguments: of this run of the model, with the stored activations among them.
    """

    def __init__(self, numbers: range) -> None:
        self._numbers, self._names = numbers, [STORED.format(number) for number in numbers]
        self.arguments: dict[str, Tensor] = {}

    def __deepcopy__(self, _memo: dict[int, Any]) -> "StoredActivations":
        # The hooks are methods: a copy of the model (FSDP trains one) gets its own object, for its own batches.
        return StoredActivations(self._numbers)

    @property
    def tensors(self) -> list[Tensor]:
        """One for each tensor that crosses the cut.

        Raises:
            ValueError: the model was run without them.
        """
        if missing := [name for name in self._names if name not in self.arguments]:
            raise ValueError(
                f"The first layers of this model are replaced by stored activations, and {', '.join(missing)} was not "
                "among its inputs. Pass the stored activations of the batch, see with_stored(inputs, tensors)."
            )
        return [self.arguments[name] for name in self._names]

    def take(self, _module: nn.Module, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        """Forward pre-hook: keep the arguments for the stubs, and remove the stored activations from the model's."""
        self.arguments = kwargs
        return args, {name: value for name, value in kwargs.items() if name not in self._names}

    def release(self, _module: nn.Module, _args: Any, _output: Any) -> None:
        """Forward hook, also called after an error: the run is over."""
        self.arguments = {}


class Stub(nn.Module):
    """Returns stored activations in the place of a skipped module; it has no parameters.

    A parent may read attributes of the skipped module, such as a dtype: they are forwarded. The skipped module is held
    in a tuple, so that it is not registered as a part of the model.

    Args:
        original: the skipped module.
        output: the form of its output, with a `Crossing` in the place of each tensor.
        places: positions of the stored activations in the output; none, if its values are not read.
        stored: of the batch.
        common: by position, tensors that no sample changes; those of a batch are their beginnings.
    """

    def __init__(
        self, original: nn.Module, output: Any, places: Sequence[int], stored: StoredActivations,
        common: Mapping[int, Tensor],
    ) -> None:  # fmt: skip
        super().__init__()
        self._original = (original,)
        self._output, self._places, self._stored, self._common = output, places, stored, common

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(self.__dict__["_original"][0], name)

    def __deepcopy__(self, memo: dict[int, Any]) -> "Stub":
        # Without a copy of the skipped module, which nobody would use.
        return Stub(self._original[0], self._output, self._places, copy.deepcopy(self._stored, memo), self._common)

    def forward(self, *_args: Any, **_kwargs: Any) -> Any:
        """The output of the skipped module for the batch."""
        tensors = self._stored.tensors
        leaves, structure = tree_flatten(self._output)
        recorded = dict(zip(self._places, tensors, strict=True)) if self._places else {}
        for place, leaf in enumerate(leaves):
            if place in recorded:
                leaves[place] = recorded[place]
            elif isinstance(leaf, Crossing):
                sizes = sizes_of(self._stored.arguments)
                shape = [sizes[size] if isinstance(size, str) else size for size in leaf.shape]
                if place in self._common:
                    leaves[place] = part_of(self._common[place].to(tensors[0].device), shape)
                else:
                    # Its values are not read, but a parent may read its shape.
                    leaves[place] = tensors[0].new_zeros((), dtype=leaf.dtype).expand(shape)
        return tree_unflatten(leaves, structure)


def sizes_of(inputs: Inputs) -> dict[Kind, int]:
    """How many samples a batch has, and how many tokens the longest of them."""
    sizes: dict[Kind, int] = {"samples": len(next(iter(inputs.values())))}
    if "input_ids" in inputs:
        sizes["tokens"] = inputs["input_ids"].shape[1]
    return sizes


def part_of(tensor: Tensor, shape: Sequence[int]) -> Tensor:
    """The beginning of a tensor in each dimension.

    Raises:
        ValueError: the tensor is smaller.
    """
    part = tensor[tuple(slice(size) for size in shape)]
    if part.shape != (*shape,):
        raise ValueError(f"Expected for the cut of the model batches up to {[*tensor.shape]}, found {[*shape]}.")
    return part
