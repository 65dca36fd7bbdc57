"""A model cut behind its first groups: what crosses the cut is recorded, and later stands in for these groups."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.utils._pytree import TreeSpec, tree_flatten, tree_unflatten

from hf_transfer.models.groups import Group, Inputs, check_boundary, evaluating, only_open

# A size of a tensor that depends on the batch at hand: how many samples, and tokens of the longest.
Size = int | Literal["samples", "tokens"]
# What a stored batch may differ by from a live one: the order of sums in float32.
LARGEST_DIFFERENCE = 1e-4


class CannotCutError(Exception):
    """Why a model cannot be cut at a place, as part of a sentence."""


@dataclass(frozen=True)
class Crossing:
    """A tensor that crosses the cut.

    Attributes:
        shape: its sizes, those of the batch by name; the samples come first.
        dtype: as the model computes it.
    """

    shape: tuple[Size, ...]
    dtype: torch.dtype

    @property
    def by_token(self) -> bool:
        """Whether it has a vector for each token, [samples, tokens, ...]."""
        return len(self.shape) > 1 and self.shape[1] == "tokens"


@dataclass(frozen=True)
class _Output:
    """The form of what a module gives: its structure, and in the place of each tensor its sizes."""

    structure: TreeSpec
    leaves: tuple[Any, ...]


class Cut:
    """A legal place to cut a model, tried out: from there on, stored activations give the logits of a live run.

    Args:
        model: a classifier.
        groups: its groups in depth order.
        count: how many of them lie in front of the cut.
        inputs: a small batch to try it with; it is run a few times.
        own: names of the inputs that nobody behind the cut looks at, if they are few; None: all that are no tokens.

    Attributes:
        module: name of the module whose output crosses the cut.
        crossing: the tensors of that output that the groups behind it need.

    Raises:
        CannotCutError: later groups need more of the earlier ones than can be stored.
    """

    def __init__(
        self, model: nn.Module, groups: Sequence[Group], count: int, inputs: Inputs, own: Sequence[str] | None = None
    ) -> None:
        self._own = own
        boundary = check_boundary(model, groups, count, inputs)
        if not boundary.legal:
            raise CannotCutError(boundary.reason)
        self.module = boundary.module
        # Later layers may read a table of positions in passing, which then stays where it is.
        self._live = boundary.live
        names = [name for group in groups[:count] for name in group.modules if name not in boundary.live]
        # Two batches of different sizes tell which sizes are the batch's.
        larger = _enlarged(inputs)
        first, second = (_outputs(model, names, batch) for batch in (inputs, larger))
        self._outputs = {
            name: _form(name, found, second[name], _sizes(inputs), _sizes(larger)) for name, found in first.items()
        }
        needed = self._needed(model, inputs)
        leaves = self._outputs[self.module].leaves
        self._places = [place for place, leaf in enumerate(leaves) if isinstance(leaf, Crossing) and place in needed]
        self.crossing: tuple[Crossing, ...] = tuple(leaves[place] for place in self._places)
        if any(leaf.shape[:1] != ("samples",) for leaf in self.crossing):
            raise CannotCutError(f"{self.module} gives something that does not belong to single samples")
        if any("tokens" in leaf.shape[2:] or leaf.shape.count("tokens") > leaf.by_token for leaf in self.crossing):
            raise CannotCutError(f"{self.module} does not give one vector for each token")
        if any(leaf.by_token for leaf in self.crossing) and "attention_mask" not in inputs:
            raise CannotCutError("texts come without a mask, so words cannot be told from padding")
        self._try_out(model, larger)

    def record(self, model: nn.Module, inputs: Inputs) -> list[Tensor]:
        """What crosses the cut for a batch; the groups behind it are not run.

        Returns:
            A tensor for each of `crossing`.
        """
        found: list[Tensor] = []

        def reached(_module: nn.Module, _args: Any, output: Any) -> None:
            leaves, _ = tree_flatten(output)
            found.extend(leaves[place].detach().clone() for place in self._places)
            raise _ReachedError

        handle = model.get_submodule(self.module).register_forward_hook(reached)
        try:
            with evaluating(model), torch.no_grad():
                model(**inputs)
        except _ReachedError:
            return found
        finally:
            handle.remove()
        raise AssertionError(f"{self.module} was not called")

    @contextmanager
    def skipped(self, model: nn.Module, device: torch.device | None = None) -> Iterator["Stand"]:
        """The groups in front of the cut are out of the model, and what was recorded stands in for them.

        They are not moved, saved or trained meanwhile; afterwards the model is whole again, also after an error.

        Args:
            model: the model that was cut.
            device: where it is trained; the skipped groups leave it for as long.
        """
        originals = {name: model.get_submodule(name) for name in self._outputs}
        stand = Stand(originals)
        try:
            for name, original in originals.items():
                places = self._places if name == self.module else []
                model.set_submodule(name, _Stub(original, self._outputs[name], places, stand))
                if device is not None and not self._live:
                    original.to("cpu")
            yield stand
        finally:
            for name, original in originals.items():
                model.set_submodule(name, original if device is None else original.to(device))

    def blank(self, inputs: Inputs) -> dict[str, Tensor]:
        """The same inputs without what only the skipped groups look at: pixels take no room."""
        return {
            name: value.new_zeros(()).expand(value.shape) if self._is_own(name, value) else value
            for name, value in inputs.items()
        }

    def _is_own(self, name: str, value: Tensor) -> bool:
        return value.is_floating_point() and (self._own is None or name in self._own)

    def _needed(self, model: nn.Module, inputs: Inputs) -> set[int]:
        """Places of the tensors in the boundary's output that the logits depend on."""
        kept: dict[int, Tensor] = {}
        whole: set[int] = set()

        def open_leaves(_module: nn.Module, _args: Any, output: Any) -> Any:
            leaves, structure = tree_flatten(output)
            for place, leaf in enumerate(leaves):
                if isinstance(leaf, Tensor) and leaf.is_floating_point():
                    kept[place] = leaf.detach().requires_grad_()
                    # A later layer may work in place, which a leaf does not allow.
                    leaves[place] = kept[place].clone()
                elif isinstance(leaf, Tensor):
                    # Whole numbers carry no gradient: better one too many.
                    whole.add(place)
            return tree_unflatten(leaves, structure)

        handle = model.get_submodule(self.module).register_forward_hook(open_leaves)
        try:
            with evaluating(model), only_open(model, set()):
                logits = model(**inputs).logits
                gradients = torch.autograd.grad(logits.sum(), list(kept.values()), allow_unused=True)
        finally:
            handle.remove()
        return whole | {place for place, found in zip(kept, gradients, strict=True) if found is not None}

    def _try_out(self, model: nn.Module, inputs: Inputs) -> None:
        """Compare the logits of a live run with those from the recorded activations."""
        recorded = self.record(model, inputs)
        for crossing, values in zip(self.crossing, recorded, strict=True):
            if crossing.by_token:
                # Padding is not stored.
                values[~inputs["attention_mask"].bool()] = 0
        with evaluating(model), torch.no_grad():
            live = model(**inputs).logits
            with self.skipped(model) as stand:
                stand.put(recorded, inputs)
                try:
                    stored = model(**self.blank(inputs)).logits
                except (RuntimeError, ValueError, TypeError, AttributeError, IndexError) as error:
                    raise CannotCutError(f"it does not run without them ({error})") from error
        if not torch.allclose(stored, live, rtol=LARGEST_DIFFERENCE, atol=LARGEST_DIFFERENCE * float(live.abs().max())):
            raise CannotCutError(f"what comes out of {self.module} is not all that later layers need")


class Stand:
    """What the stubs of a cut model give: the activations of the batch at hand.

    Args:
        originals: the modules that are skipped, by name.
    """

    def __init__(self, originals: Mapping[str, nn.Module]) -> None:
        self.originals = originals
        self.tensors: Sequence[Tensor] = ()
        self.sizes: dict[str, int] = {}

    def put(self, tensors: Sequence[Tensor], inputs: Inputs) -> None:
        """Have the activations of a batch ready for the model's next run on its inputs."""
        self.tensors, self.sizes = tensors, _sizes(inputs)


class _Stub(nn.Module):
    """Stands in for a skipped module, without parameters.

    A parent may read a skipped module's attributes, a dtype say: they are the original's, which is held in a tuple, so
    that it is no part of the model.
    """

    def __init__(self, original: nn.Module, output: _Output, places: Sequence[int], stand: Stand) -> None:
        super().__init__()
        self._original = (original,)
        self._output, self._recorded, self._stand = output, list(places), stand

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(self.__dict__["_original"][0], name)

    def __deepcopy__(self, _memo: dict[int, Any]) -> "_Stub":
        # A copy of the model that learns in its place is given the same activations.
        return self

    def forward(self, *_args: Any, **_kwargs: Any) -> Any:
        stand = self._stand
        leaves = list(self._output.leaves)
        recorded = dict(zip(self._recorded, stand.tensors, strict=True)) if self._recorded else {}
        for place, leaf in enumerate(leaves):
            if place in recorded:
                leaves[place] = recorded[place]
            elif isinstance(leaf, Crossing):
                # Nobody reads its values, but a parent may read its shape.
                sizes = [stand.sizes[size] if isinstance(size, str) else size for size in leaf.shape]
                leaves[place] = stand.tensors[0].new_zeros((), dtype=leaf.dtype).expand(sizes)
        return tree_unflatten(leaves, self._output.structure)


class _ReachedError(Exception):
    """The cut was reached: what lies behind it need not run."""


def _outputs(model: nn.Module, names: Sequence[str], inputs: Inputs) -> dict[str, Any]:
    """What each of the modules gives; without those that are not called."""
    found: dict[str, Any] = {}
    calls: dict[str, int] = {}
    with ExitStack() as stack:
        for name in names:

            def keep(_module: nn.Module, _args: Any, output: Any, name: str = name) -> None:
                found[name] = output
                calls[name] = calls.get(name, 0) + 1

            stack.callback(model.get_submodule(name).register_forward_hook(keep).remove)
        with evaluating(model), torch.no_grad():
            model(**inputs)
    if repeated := [name for name, count in calls.items() if count > 1]:
        raise CannotCutError(f"{repeated[0]} runs more than once")
    return found


def _form(name: str, output: Any, larger: Any, sizes: Mapping[str, int], larger_sizes: Mapping[str, int]) -> _Output:
    """The form of a module's output, from two batches of different sizes."""
    (leaves, structure), (others, other_structure) = tree_flatten(output), tree_flatten(larger)
    if structure != other_structure:
        raise CannotCutError(f"the form of what {name} gives depends on the batch")
    forms: list[Any] = []
    for leaf, other in zip(leaves, others, strict=True):
        if isinstance(leaf, Tensor):
            shape = [_size(name, *pair, sizes, larger_sizes) for pair in zip(leaf.shape, other.shape, strict=True)]
            forms.append(Crossing(tuple(shape), leaf.dtype))
        elif isinstance(leaf, int | float | str | bool | None) and leaf == other:
            forms.append(leaf)
        else:
            raise CannotCutError(f"{name} gives a {type(leaf).__name__}, which cannot be stored")
    return _Output(structure, tuple(forms))


def _size(name: str, size: int, larger: int, sizes: Mapping[str, int], larger_sizes: Mapping[str, int]) -> Size:
    if size == larger:
        return size
    for kind in ("samples", "tokens"):
        if kind in sizes and (size, larger) == (sizes[kind], larger_sizes[kind]):
            return kind
    raise CannotCutError(f"{name} gives tensors whose sizes are neither those of the batch nor fixed")


def _sizes(inputs: Inputs) -> dict[str, int]:
    """How many samples a batch has, and how many tokens the longest of them."""
    sizes = {"samples": len(next(iter(inputs.values())))}
    if "input_ids" in inputs:
        sizes["tokens"] = inputs["input_ids"].shape[1]
    return sizes


def _enlarged(inputs: Inputs) -> dict[str, Tensor]:
    """A batch with a sample more and, where there are tokens, with two tokens more or, of many, less."""

    def other_length(value: Tensor) -> Tensor:
        # Less where that is possible: there may be no positions for more.
        return value[:, :-2] if value.shape[1] > 3 else torch.cat([value, value[:, -1:], value[:, -1:]], 1)

    by_token = "input_ids" in inputs
    other = {name: other_length(value) if by_token and value.ndim == 2 else value for name, value in inputs.items()}
    return {name: torch.cat([value, value[:1]]) for name, value in other.items()}
