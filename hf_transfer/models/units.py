"""The depth of a model without repeated modules, in groups of about equal work that the model can be cut between.

The model is divided from its outermost module inwards into children that run one after another, until none does more
than a quarter of the work. It can be cut behind a child if all that later layers need of earlier ones flows through the
output of that child: not within a residual connection, nor between parallel branches. Such parts are then joined to a
dozen groups, so that little has to be stored behind each of them.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from hf_transfer.models.tracing import (
    Trace,
    called_children,
    evaluating,
    one_after_another,
    requiring_gradients,
    tensors_in,
)

# A child that does more than this share of the work is divided into its own children.
LARGEST_UNIT = 1 / 4
MOST_GROUPS = 12
# A part with less of the work is joined to another, however much that one does.
LEAST_SHARE = 1 / (4 * MOST_GROUPS)


@dataclass(frozen=True)
class Work:
    """What the modules of a model compute.

    Attributes:
        flops: operations of each module with its children, by name.
        calls: how often each is called, by name.
    """

    flops: Mapping[str, int]
    calls: Mapping[str, int]


@dataclass(frozen=True)
class Part:
    """Modules that run one after another.

    Attributes:
        units: their names.
        share: of the work of all parts.
        largest: the name of the one that does most of it.
        size: numbers that are stored for each sample if the model is cut behind them.
    """

    units: tuple[str, ...]
    share: float
    largest: str
    size: int


def work_of(model: nn.Module, inputs: Mapping[str, Tensor]) -> Work:
    """Count what a model computes for a batch, by running it once."""
    calls: Counter[str] = Counter()
    # Not without gradients: the counter asks each tensor of learning weights how it was computed.
    with evaluating(model), torch.enable_grad(), ExitStack() as stack:
        for name, module in model.named_modules():
            stack.enter_context(module.register_forward_pre_hook(lambda *_, name=name: calls.update([name])))
        counter = stack.enter_context(FlopCounterMode(display=False))
        model(**inputs)
    # The names of modules begin with the class of the model.
    flops = {name.partition(".")[2]: sum(by_kind.values()) for name, by_kind in counter.get_flop_counts().items()}
    return Work(Counter(flops), calls)


def does_much_before(blocks: Sequence[str], model: nn.Module, trace: Trace, inputs: Mapping[str, Tensor]) -> bool:
    """Whether a model does more than a quarter of its work before the first of its blocks."""
    layers = [name for name, module in model.named_modules() if name in trace.end and not any(module.children())]
    early = [name for name in layers if trace.end[name] < trace.begin[blocks[0]]]
    # A single layer embeds patches of a picture, or is a stem, in models whose blocks do the work.
    if sum(isinstance(model.get_submodule(name), nn.Linear | nn.Conv2d) for name in early) < 2:
        return False
    flops = work_of(model, inputs).flops
    return sum(flops[name] for name in early) > LARGEST_UNIT * sum(flops[name] for name in layers)


def parts_of(model: nn.Module, inputs: Mapping[str, Tensor], trace: Trace, head: str) -> list[Part]:
    """The layers of a model below its head, in depth order, in at most a dozen parts; empty if there is one part.

    Args:
        model: a classifier whose output has `logits` [batch, classes].
        inputs: a small batch; the model is run forward twice.
        trace: of the model.
        head: name of its last layer.
    """
    work = work_of(model, inputs)
    units = _divided("", model, trace, work, head) or []
    total = sum(work.flops[unit] for unit in units)
    if not total:
        return []
    legal, sizes = _boundaries(model, inputs, trace, units)
    parts: list[Part] = []
    first = 0
    for place in (*(place for place in legal if place < len(units) - 1), len(units) - 1):
        within = tuple(units[first : place + 1])
        share = sum(work.flops[unit] for unit in within) / total
        parts.append(Part(within, share, max(within, key=work.flops.__getitem__), sizes[place]))
        first = place + 1
    parts = _joined(parts)
    return parts if len(parts) > 1 else []


def _divided(name: str, model: nn.Module, trace: Trace, work: Work, head: str) -> list[str] | None:
    """The modules up to the head that a module is divided into; None: it has the head and cannot be divided."""
    has_head = name == "" or f"{head}.".startswith(f"{name}.")
    below_head = work.flops[""] - work.flops[head]
    if not has_head and work.flops[name] <= LARGEST_UNIT * below_head:
        return [name]
    children = called_children(name, model.get_submodule(name), trace)
    if not children or any(work.calls[child] != 1 for child in children) or not one_after_another(children, trace):
        return None if has_head else [name]
    units: list[str] = []
    for child in sorted(children, key=trace.begin.__getitem__):
        if trace.begin[child] >= trace.begin[head]:
            break
        inner = _divided(child, model, trace, work, head)
        if inner is None:
            return None
        units += inner
    return units


def _boundaries(
    model: nn.Module, inputs: Mapping[str, Tensor], trace: Trace, units: Sequence[str]
) -> tuple[list[int], list[int]]:
    """Positions of the units behind which the model can be cut, and the size of each output for one sample.

    Removed from the graph that autograd records, the output of such a unit separates the logits from the pixels and
    from all parameters of the units up to it.
    """
    nodes: dict[str, set[Any]] = {}
    sizes: dict[str, int] = {}
    names = {name for name, _ in model.named_parameters()}
    with evaluating(model), requiring_gradients(model, names), torch.enable_grad(), ExitStack() as stack:
        for unit in units:

            def keep(_: nn.Module, __: Any, output: Any, unit: str = unit) -> None:
                # Now, since a later layer may work in place.
                nodes[unit] = {tensor.grad_fn for tensor in tensors_in(output)}
                sizes[unit] = sum(tensor.numel() // len(tensor) for tensor in tensors_in(output))

            stack.enter_context(model.get_submodule(unit).register_forward_hook(keep))
        data = {name: value.detach().clone() for name, value in inputs.items()}
        pixels = [value.requires_grad_() for value in data.values() if value.is_floating_point()]
        logits = model(**data).logits
    owners = {id(parameter): _place(name, units, trace) for name, parameter in model.named_parameters()}
    # Pixels that a later layer reads are not stored.
    owners |= dict.fromkeys(map(id, pixels), -1)
    legal = [place for place, unit in enumerate(units) if _earliest(logits.grad_fn, nodes[unit], owners) > place]
    return legal, [sizes[unit] for unit in units]


def _place(parameter: str, units: Sequence[str], trace: Trace) -> int:
    """The position of the unit that a parameter belongs to, or of the next one that runs."""
    for place, unit in enumerate(units):
        if parameter.startswith(f"{unit}."):
            return place
    begin = trace.begin.get(parameter.rpartition(".")[0], -1)
    return next((place for place, unit in enumerate(units) if begin < trace.begin[unit]), len(units))


def _earliest(logits: Any, removed: set[Any], owners: Mapping[int, int]) -> float:
    """The earliest unit whose parameters the logits depend on without the removed nodes of the graph."""
    earliest, waiting, seen = float("inf"), [logits], set(removed)
    while waiting:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if hasattr(node, "variable"):
            earliest = min(earliest, owners.get(id(node.variable), float("inf")))
        waiting += [following for following, _ in node.next_functions]
    return earliest


def _joined(parts: list[Part]) -> list[Part]:
    """Parts of like work, at most a dozen: joined where the most would be stored between two of them."""
    while len(parts) > 1:
        limit = (2 if len(parts) > MOST_GROUPS else 1) / MOST_GROUPS
        pairs = [(parts[place].share, parts[place + 1].share) for place in range(len(parts) - 1)]
        small = [place for place, pair in enumerate(pairs) if min(pair) < LEAST_SHARE or sum(pair) <= limit]
        if small:
            place = max(small, key=lambda one: (parts[one].size, -sum(pairs[one])))
        elif len(parts) > MOST_GROUPS:
            place = min(range(len(pairs)), key=lambda one: sum(pairs[one]))
        else:
            break
        one, two = parts[place : place + 2]
        larger = one if one.share >= two.share else two
        parts = [
            *parts[:place],
            Part((*one.units, *two.units), one.share + two.share, larger.largest, two.size),
            *parts[place + 2 :],
        ]
    return parts
