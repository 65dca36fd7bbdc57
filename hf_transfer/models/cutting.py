"""A model cut after its first groups: what they compute is recorded once and then passed to the model as an input.

While a model is cut, stubs replace the skipped modules: see `stubs.py`.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_leaves, tree_unflatten

from hf_transfer.models.groups import Group, Inputs, check_boundary
from hf_transfer.models.stubs import Crossing, Size, StoredActivations, Stub, part_of, sizes_of, with_stored
from hf_transfer.models.tracing import evaluating, requiring_gradients

# How far logits from stored activations may differ from those of a live run: sums in float32 in another order.
LARGEST_DIFFERENCE = 1e-4


class CannotCutError(Exception):
    """The model cannot be cut at this place; the message is the reason, as part of a sentence."""


class Cut:
    """A place where a model can be cut. This is tested: stored activations must give the logits of a live run.

    Args:
        model: a classifier.
        groups: its groups in depth order.
        count: how many of them lie before the cut.
        inputs: a small batch for the test; the model is run a few times.
        skipped_inputs: names of the inputs that only groups before the cut read; None: all floating-point inputs.
        longest: tokens of the longest text that the model will run with; not counted where `inputs` has a longer one.

    Attributes:
        module: name of the module whose output crosses the cut.
        crossing: the tensors of that output that the groups after the cut need, and that belong to samples.

    Raises:
        CannotCutError: later groups need more of the earlier ones than can be stored.
    """

    def __init__(
        self, model: nn.Module, groups: Sequence[Group], count: int, inputs: Inputs,
        skipped_inputs: Sequence[str] | None = None, *, longest: int = 0,
    ) -> None:  # fmt: skip
        self._skipped_inputs = skipped_inputs
        boundary = check_boundary(model, groups, count, inputs)
        if not boundary.legal:
            raise CannotCutError(boundary.reason)
        self.module = boundary.module
        # Later layers use these modules without any data flowing through them (a table of positions): they stay.
        self._live = boundary.live
        names = [name for group in groups[:count] for name in group.modules if name not in boundary.live]
        # Two batches of different sizes show which dimensions are those of the batch.
        larger = _enlarged(inputs)
        first, second = (_outputs(model, names, batch, self.module) for batch in (inputs, larger))
        sizes, larger_sizes = sizes_of(inputs), sizes_of(larger)
        kinds: dict[tuple[int, int], Size] = {(sizes[kind], larger_sizes[kind]): kind for kind in sizes}
        # The forms of the outputs of the skipped modules.
        self._outputs = {name: _form(name, output, second[name], kinds) for name, output in first.items()}
        needed = self._needed(model, inputs)
        leaves = tree_leaves(self._outputs[self.module])
        places = [place for place, leaf in enumerate(leaves) if isinstance(leaf, Crossing) and place in needed]
        self._places = [place for place in places if "samples" in leaves[place].shape]
        self.crossing: tuple[Crossing, ...] = tuple(leaves[place] for place in self._places)
        if not self.crossing or any(leaf.shape[0] != "samples" for leaf in self.crossing):
            raise CannotCutError(f"the output of {self.module} does not belong to single samples")
        common = [place for place in places if place not in self._places]
        # Biases by distance, which T5 makes in its first block for all: they are not stored for each sample.
        self._common = self._for_all_samples(model, common, larger, (first, second), longest) if common else {}
        if any("tokens" in leaf.shape[2:] or leaf.shape.count("tokens") > leaf.by_token for leaf in self.crossing):
            raise CannotCutError(f"the output of {self.module} is not one vector for each token")
        if any(leaf.by_token for leaf in self.crossing) and "attention_mask" not in inputs:
            raise CannotCutError("texts have no attention mask, so tokens and padding cannot be distinguished")
        self._test(model, larger)

    def record(self, model: nn.Module, inputs: Inputs) -> list[Tensor]:
        """Compute what crosses the cut for a batch; the groups after the cut are not run.

        Returns:
            A tensor for each of `crossing`.
        """
        recorded: list[Tensor] = []

        def reached(_module: nn.Module, _args: Any, output: Any) -> None:
            leaves, _ = tree_flatten(output)
            # A later layer may work in place.
            recorded.extend(leaves[place].detach().clone() for place in self._places)
            raise _ReachedError

        hook = model.get_submodule(self.module).register_forward_hook(reached)
        with suppress(_ReachedError), evaluating(model), torch.no_grad(), hook:
            model(**inputs)
            raise AssertionError(f"{self.module} was not called")
        return recorded

    @contextmanager
    def skipped(
        self, model: nn.Module, device: torch.device | None = None, *, first: int = 0
    ) -> Iterator[dict[str, nn.Module]]:
        """Run the model without the groups before the cut; its inputs must be those of `with_stored`.

        The skipped groups are not moved, saved or trained meanwhile. Afterwards the model is complete again, also after
        an error.

        Args:
            model: the model that was cut.
            device: where the model is trained; the skipped groups are on the CPU meanwhile. None: they stay.
            first: number of this cut's first stored activation among the model's inputs.

        Yields:
            The skipped modules, by name.
        """
        originals = {name: model.get_submodule(name) for name in self._outputs}
        stored = StoredActivations(range(first, first + len(self.crossing)))
        with ExitStack() as hooks:
            hooks.enter_context(model.register_forward_pre_hook(stored.take, with_kwargs=True))
            hooks.enter_context(model.register_forward_hook(stored.release, always_call=True))
            try:
                for name, original in originals.items():
                    places, common = (self._places, self._common) if name == self.module else ([], {})
                    model.set_submodule(name, Stub(original, self._outputs[name], places, stored, common))
                    if device is not None and not self._live:
                        original.to("cpu")
                yield originals
            finally:
                for name, original in originals.items():
                    model.set_submodule(name, original if device is None else original.to(device))

    def blank(self, inputs: Inputs) -> dict[str, Tensor]:
        """The same inputs, with zeros that take no memory for what only the skipped groups read: pixels."""
        skipped = inputs if self._skipped_inputs is None else self._skipped_inputs
        return {
            name: value.new_zeros(()).expand(value.shape) if value.is_floating_point() and name in skipped else value
            for name, value in inputs.items()
        }

    def _needed(self, model: nn.Module, inputs: Inputs) -> set[int]:
        """Positions of the tensors in the boundary's output that the logits depend on."""
        floats: dict[int, Tensor] = {}
        integers: set[int] = set()

        def require_gradients(_module: nn.Module, _args: Any, output: Any) -> Any:
            leaves, structure = tree_flatten(output)
            for place, leaf in enumerate(leaves):
                if isinstance(leaf, Tensor) and leaf.is_floating_point():
                    floats[place] = leaf.detach().requires_grad_()
                    # A later layer may work in place, which autograd does not allow on a leaf.
                    leaves[place] = floats[place].clone()
                elif isinstance(leaf, Tensor):
                    # Integers have no gradient that would show whether they are needed: store them all.
                    integers.add(place)
            return tree_unflatten(leaves, structure)

        hook = model.get_submodule(self.module).register_forward_hook(require_gradients)
        with evaluating(model), requiring_gradients(model, set()), hook:
            logits = model(**inputs).logits
            gradients = torch.autograd.grad(logits.sum(), list(floats.values()), allow_unused=True)
        return integers | {place for place, gradient in zip(floats, gradients, strict=True) if gradient is not None}

    def _for_all_samples(
        self, model: nn.Module, places: Sequence[int], inputs: Inputs, outputs: Sequence[dict[str, Any]], longest: int
    ) -> dict[int, Tensor]:
        """Tensors of the boundary's output that no sample changes, by position, as they are for the longest text.

        Args:
            model: see `Cut`.
            places: their positions.
            inputs: a batch, of which one sample is run.
            outputs: those of the skipped modules for two batches; their tensors must be parts of the longest ones.
            longest: see `Cut`.

        Raises:
            CannotCutError: they depend on the samples, or are no parts of the longest.
        """
        known = [tree_leaves(output[self.module]) for output in outputs]
        length = max(longest, *(leaves[place].shape[-1] for leaves in known for place in places))
        (output,) = _outputs(model, [self.module], _one_sample(inputs, length), self.module).values()
        tensors = {place: tree_leaves(output)[place].detach() for place in places}
        for leaves in known:
            for place, tensor in tensors.items():
                if not torch.allclose(part_of(tensor, leaves[place].shape), leaves[place]):
                    raise CannotCutError(f"the output of {self.module} does not belong to single samples")
        return tensors

    def _test(self, model: nn.Module, inputs: Inputs) -> None:
        """Compare the logits of a live run with those from the recorded activations."""
        recorded = self.record(model, inputs)
        for crossing, values in zip(self.crossing, recorded, strict=True):
            if crossing.by_token:
                # The store keeps no padding.
                values[~inputs["attention_mask"].bool()] = 0
        with evaluating(model), torch.no_grad():
            live = model(**inputs).logits
            with self.skipped(model):
                try:
                    stored = model(**with_stored(self.blank(inputs), recorded)).logits
                except (RuntimeError, ValueError, TypeError, AttributeError, IndexError) as error:
                    raise CannotCutError(f"the model does not run with stored activations ({error})") from error
        if not torch.allclose(stored, live, rtol=LARGEST_DIFFERENCE, atol=LARGEST_DIFFERENCE * float(live.abs().max())):
            raise CannotCutError(f"later layers need more than the output of {self.module}")


class _ReachedError(Exception):
    """The cut was reached; the groups after it need not run."""


def _outputs(model: nn.Module, names: Sequence[str], inputs: Inputs, last: str) -> dict[str, Any]:
    """Outputs of the modules, by name, without those that are not called.

    A module without weights that runs more than once, such as rotary positions for each kind of attention, is left
    out: it is computed again, which takes little time.

    Args:
        model: the model.
        names: of the modules.
        inputs: a batch.
        last: the one whose output crosses the cut.

    Raises:
        CannotCutError: a module that has weights, or the last one, is called more than once.
    """
    outputs: dict[str, Any] = {}
    repeated: set[str] = set()
    with ExitStack() as stack:
        for name in names:

            def keep(module: nn.Module, _args: Any, output: Any, name: str = name) -> None:
                if name in outputs:
                    if name == last or next(module.parameters(), None) is not None:
                        raise CannotCutError(f"{name} runs more than once")
                    repeated.add(name)
                outputs[name] = output

            stack.enter_context(model.get_submodule(name).register_forward_hook(keep))
        with evaluating(model), torch.no_grad():
            model(**inputs)
    return {name: output for name, output in outputs.items() if name not in repeated}


def _form(name: str, output: Any, larger: Any, kinds: Mapping[tuple[int, int], Size]) -> Any:
    """The form of a module's output: with a `Crossing` in the place of each tensor.

    It is found from the outputs for two batches; `kinds` names the pairs of sizes in which these differ.
    """
    (leaves, structure), (others, other_structure) = tree_flatten(output), tree_flatten(larger)
    if structure != other_structure:
        raise CannotCutError(f"the structure of the output of {name} depends on the batch")
    forms: list[Any] = []
    for leaf, other in zip(leaves, others, strict=True):
        if isinstance(leaf, Tensor):
            pairs = list(zip(leaf.shape, other.shape, strict=True))
            if any(one != two and (one, two) not in kinds for one, two in pairs):
                raise CannotCutError(
                    f"the output of {name} has tensors whose sizes are neither fixed nor those of the batch"
                )
            forms.append(Crossing(tuple(kinds.get(pair, pair[0]) for pair in pairs), leaf.dtype))
        elif isinstance(leaf, int | float | str | bool | None) and leaf == other:
            forms.append(leaf)
        else:
            raise CannotCutError(f"the output of {name} contains {type(leaf).__name__}, which cannot be stored")
    return tree_unflatten(forms, structure)


def _one_sample(inputs: Inputs, length: int) -> dict[str, Tensor]:
    """The last sample of a batch; of texts with its tokens repeated up to a length."""
    last = {name: value[-1:] for name, value in inputs.items()}
    if "input_ids" not in inputs:
        return last
    places = torch.arange(length, device=last["input_ids"].device) % last["input_ids"].shape[1]
    return {name: value[:, places] if value.ndim == 2 else value for name, value in last.items()}


def _enlarged(inputs: Inputs) -> dict[str, Tensor]:
    """A batch with a sample more and, where there are tokens, with two tokens more or, of many, less."""

    def other_length(value: Tensor) -> Tensor:
        # Less where that is possible: there may be no positions for more.
        return value[:, :-2] if value.shape[1] > 3 else torch.cat([value, value[:, -1:], value[:, -1:]], 1)

    by_token = "input_ids" in inputs
    other = {name: other_length(value) if by_token and value.ndim == 2 else value for name, value in inputs.items()}
    return {name: torch.cat([value, value[:1]]) for name, value in other.items()}
