"""A forward pass that is traced: which modules are called, when, and with data."""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from hf_transfer.models.inference_tensors import replace_inference_tensors


@dataclass(frozen=True)
class Trace:
    """The modules that were called.

    Attributes:
        begin: by name, when the first call began.
        end: by name, when it ended.
        fed_by_data: names of the modules whose inputs depend on the data.
        giving_data: names of the modules whose outputs depend on the data.
    """

    begin: dict[str, int]
    end: dict[str, int]
    fed_by_data: frozenset[str]
    giving_data: frozenset[str]


def run_traced(model: nn.Module, inputs: Mapping[str, Tensor]) -> tuple[Trace, int]:
    """Run the model once; returns the trace and the number of logits."""
    begin: dict[str, int] = {}
    end: dict[str, int] = {}
    fed_by_data: set[str] = set()
    giving_data: set[str] = set()
    clock = iter(range(10**9))
    # No parameter requires a gradient, so a tensor that does depends on the data.
    with evaluating(model), requiring_gradients(model, set()), ExitStack() as stack:
        storages = {_storage(value) for value in inputs.values()}

        def mark(_: nn.Module, args: Any, output: Tensor) -> Tensor:
            """Hook for an embedding: its output requires a gradient if it looks up inputs, such as token ids.

            Integers have no gradient that would show it. An embedding of positions looks up no input.
            """
            looked_up = any(_storage(tensor) in storages for tensor in tensors_in(args))
            return output.detach().requires_grad_() if looked_up else output

        for name, module in model.named_modules():
            if isinstance(module, nn.Embedding):
                stack.enter_context(module.register_forward_hook(mark))

            def before(_: nn.Module, args: Any, kwargs: Any, name: str = name) -> None:
                begin.setdefault(name, next(clock))
                # Token ids are data, too, but integers have no gradient.
                if any(tensor.requires_grad or _storage(tensor) in storages for tensor in tensors_in((args, kwargs))):
                    fed_by_data.add(name)

            def after(_: nn.Module, __: Any, output: Any, name: str = name) -> None:
                end.setdefault(name, next(clock))
                if any(tensor.requires_grad for tensor in tensors_in(output)):
                    giving_data.add(name)

            stack.enter_context(module.register_forward_pre_hook(before, with_kwargs=True))
            stack.enter_context(module.register_forward_hook(after))
        data = {
            key: value.detach().clone().requires_grad_() if value.is_floating_point() else value
            for key, value in inputs.items()
        }
        logits = model(**data).logits
    return Trace(begin, end, frozenset(fed_by_data), frozenset(giving_data)), int(logits.shape[-1])


def _storage(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


def called_children(name: str, module: nn.Module, trace: Trace) -> list[str]:
    """Children that are called; a child that is only a container (a list in a list) is replaced by its children."""
    units = []
    for child_name, child in module.named_children():
        full = f"{name}.{child_name}" if name else child_name
        units += [full] if full in trace.begin else called_children(full, child, trace)
    return units


def one_after_another(units: Sequence[str], trace: Trace) -> bool:
    """Whether each of some modules ends before the next one begins."""
    ordered = sorted(units, key=trace.begin.__getitem__)
    return all(trace.end[a] < trace.begin[b] for a, b in itertools.pairwise(ordered))


def tensors_in(value: Any) -> list[Tensor]:
    """All tensors in a structure."""
    return [leaf for leaf in tree_leaves(value) if isinstance(leaf, Tensor)]


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode: no dropout, no change of running statistics. Afterwards each module has its mode again."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode


@contextmanager
def requiring_gradients(model: nn.Module, names: set[str]) -> Iterator[None]:
    """Let exactly the parameters `names` require a gradient, and restore what they required before."""
    replace_inference_tensors(model)
    before = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in names)
    try:
        yield
    finally:
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(before[name])
