"""A model's groups in depth order, found by tracing a forward pass, and where the model may be cut.

There is no table of architectures: the outermost repeated modules are the blocks, whatever their names are. Everything
that runs before the first is `embeddings`, what runs between two (a downsampling layer) belongs to the later one, what
runs after the last is `final`, and the layers that compute the logits are the `head`. Where nothing repeats, or much is
done before, the blocks are parts of about equal work: see `units.py`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from hf_transfer.errors import user_error
from hf_transfer.models.tracing import (
    Trace,
    called_children,
    evaluating,
    one_after_another,
    requiring_gradients,
    run_traced,
    tensors_in,
)
from hf_transfer.models.units import does_much_before, parts_of

Inputs = Mapping[str, Tensor]
# A list of blocks holds at least this share of the backbone's weights; a list of two heads, for example, does not.
SHARE_OF_BLOCKS = 0.5


@dataclass(frozen=True)
class Group:
    """A slice of the model's depth.

    Attributes:
        name: `embeddings`, a block's module name, `final` or `head`; of a block of several modules, that of the one
            that computes most.
        modules: names of the outermost modules that belong completely to this group.
        parameters: names of its parameters, without those that never receive a gradient.
        tower: image or text, in a model of both; empty for a model of one tower, and for the head of both.
    """

    name: str
    modules: tuple[str, ...]
    parameters: tuple[str, ...]
    tower: str = ""

    @property
    def is_block(self) -> bool:
        """Whether it is one of the repeated modules or of the parts, not what runs before or after them."""
        return self.name not in ("embeddings", "backbone", "final", "head")


@dataclass(frozen=True)
class Boundary:
    """The place after a number of groups, and whether the model can be cut there.

    Attributes:
        module: the module whose output crosses the boundary.
        legal: True if later groups need only this output and the inputs of the model.
        live: modules before the boundary that later groups use although no data flows through them (a shared
            table of position biases); they must still be computed.
        reason: why the boundary is illegal; empty if it is legal.
    """

    module: str
    legal: bool
    live: tuple[str, ...]
    reason: str


def trace_groups(model: nn.Module, inputs: Inputs) -> list[Group]:
    """The groups of a classifier, from the input to the head.

    Args:
        model: a classifier whose output has `logits` [batch, classes].
        inputs: a small batch; it is run forward and backward once, in evaluation mode.

    Raises:
        UserError: the model has no last layer that computes the logits.
    """
    trace, classes = run_traced(model, inputs)
    blocks = _blocks(model, trace, classes)
    # By name of a block, or of a module in one, the name of its group.
    members, early = {block: block for block in blocks}, "embeddings"
    if not blocks or does_much_before(blocks, model, trace, inputs):
        (head,) = _heads(model, trace, classes, after=-1)
        if parts := parts_of(model, inputs, trace, head):
            members = {unit: part.largest for part in parts for unit in part.units}
            blocks, early = [part.largest for part in parts], parts[0].largest
    *others, last = _heads(model, trace, classes, after=trace.end[list(members)[-1]] if members else -1)
    # If there are as many classes as the backbone is wide, a pooler has the shape of a head.
    heads = [*(name for name in others if not _feeds(model, inputs, name, last)), last]
    names = list(dict.fromkeys([early, *blocks, "final", "head"])) if blocks else ["backbone", "head"]
    home = {
        name: _home(name, members, early, heads, trace)
        for name, module in model.named_modules()
        # What only changes the shape of the logits belongs to no group: behind it nothing can be stored for the head.
        if trace.begin.get(name, -1) < trace.end[last] or any(True for _ in module.parameters())
    }
    learns = _reached_by_gradient(model, inputs, {name for name, _ in model.named_parameters()})
    groups = []
    for group in names:
        whole = [name for name, where in home.items() if where == group and not _shared(name, home)]
        outermost = tuple(name for name in whole if not any(name.startswith(f"{other}.") for other in whole))
        parameters = tuple(
            name for name, _ in model.named_parameters() if home[name.rpartition(".")[0]] == group and name in learns
        )
        if outermost or parameters:
            groups.append(Group(group, outermost, parameters))
    return groups


def check_boundary(model: nn.Module, groups: Sequence[Group], count: int, inputs: Inputs) -> Boundary:
    """Whether the model may be cut after its first `count` groups.

    The test: if the boundary's output is detached and only the groups before it require gradients, the loss may not
    depend on them. A module on which it still depends is live if no data flows into it, and otherwise makes the cut
    illegal. A module without weights whose output holds no data is live, too.
    """
    skipped = {name for group in groups[:count] for name in group.modules}
    trace, _ = run_traced(model, inputs)
    called = sorted(skipped & trace.end.keys())
    if not called:
        return Boundary("", False, (), "no module before this place is called")
    # A shared table of biases may be called last, but the boundary is where the data comes out.
    with_data = [name for name in called if name in trace.giving_data]
    module = max(with_data or called, key=lambda name: trace.end[name])
    names = {name for group in groups[:count] for name in group.parameters}
    with model.get_submodule(module).register_forward_hook(_detached):
        leaking = sorted({name.rpartition(".")[0] for name in _reached_by_gradient(model, inputs, names)})
    if passing := [name for name in leaking if name in trace.fed_by_data]:
        return Boundary(module, False, (), f"later layers depend on {', '.join(passing[:3])} not only through {module}")
    # Rotary positions, which a model makes once for all blocks: they have no weights that would show their use.
    without_data = {*called} - {module} - trace.giving_data
    positions = {name for name in without_data if next(model.get_submodule(name).parameters(), None) is None}
    return Boundary(module, True, tuple(sorted({*leaking, *positions})), "")


def describe_frozen(model: nn.Module, groups: Sequence[Group], count: int, inputs: Inputs) -> str:
    """A sentence on the first `count` groups, which are never trained, and on whether the model can be cut there."""
    if count == 0:
        return f"All {len(groups)} groups learn, from {groups[0].name} to {groups[-1].name}."
    boundary = check_boundary(model, groups, count, inputs)
    frozen = f"{count} of {len(groups)} groups are frozen, from {groups[0].name} to {groups[count - 1].name}"
    if not boundary.legal:
        return f"{frozen}; the model cannot be cut there: {boundary.reason}."
    live = f", and {', '.join(boundary.live)} is still computed" if boundary.live else ""
    return f"{frozen}; the model can be cut after {boundary.module}{live}."


def _blocks(model: nn.Module, trace: Trace, classes: int) -> list[str]:
    """Names of the outermost repeated modules, in the order of their calls; empty if nothing repeats."""
    # Head and vocabulary do not count: thousands of classes or words would outweigh the blocks of a small backbone.
    head = _heads(model, trace, classes, after=-1)[0]
    not_counted = [model.get_submodule(head), *(layer for layer in model.modules() if isinstance(layer, nn.Embedding))]
    excluded = {parameter for module in not_counted for parameter in module.parameters()}
    total = sum(parameter.numel() for parameter in model.parameters() if parameter not in excluded)
    candidates = []
    for name, module in model.named_modules():
        units = called_children(name, module, trace)
        kinds = {type(model.get_submodule(unit)) for unit in units}
        if len(units) < 2 or len(kinds) > 1 or not one_after_another(units, trace):
            continue
        if any(f"{head}.".startswith(f"{unit}.") for unit in units):
            continue
        size = sum(parameter.numel() for unit in units for parameter in model.get_submodule(unit).parameters())
        if size >= SHARE_OF_BLOCKS * total:
            candidates.append((name.count("."), units))
    return sorted(min(candidates)[1], key=trace.begin.__getitem__) if candidates else []


def _heads(model: nn.Module, trace: Trace, classes: int, after: int) -> list[str]:
    """Names of the linear layers with one output for each class that are called `after` a time; -1: the last one."""
    heads = [
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and module.out_features == classes and trace.begin.get(name, -1) > after
    ]
    if not heads:
        raise user_error(
            expected="a classifier that ends in a Linear layer with one output for each class",
            found=f"{type(model).__name__} without one",
            do="choose another --model_name_or_path",
        )
    heads.sort(key=trace.begin.__getitem__)
    return heads if after >= 0 else heads[-1:]


def _feeds(model: nn.Module, inputs: Inputs, layer: str, other: str) -> bool:
    """Whether the output of one layer flows into another."""
    depends: list[bool] = []

    def look(_: nn.Module, args: Any, kwargs: Any) -> None:
        depends.append(any(tensor.requires_grad for tensor in tensors_in((args, kwargs))))

    names = {f"{layer}.{name}" for name, _ in model.get_submodule(layer).named_parameters()}
    hook = model.get_submodule(other).register_forward_pre_hook(look, with_kwargs=True)
    with evaluating(model), requiring_gradients(model, names), hook:
        model(**inputs)
    return any(depends)


def _home(name: str, members: Mapping[str, str], early: str, heads: Sequence[str], trace: Trace) -> str:
    """The group of a module's own weights.

    Args:
        name: of the module.
        members: the groups of the blocks, or of the modules in them, in the order of their calls.
        early: the group of what runs before them.
        heads: see `_heads`.
        trace: of the model.
    """
    if any(name == head or name.startswith(f"{head}.") for head in heads):
        return "head"
    for member, group in members.items():
        if name == member or name.startswith(f"{member}."):
            return group
    if not members:
        return "backbone"
    begin = trace.begin.get(name, -1)
    if begin < trace.begin[next(iter(members))]:
        return early
    return next((group for member, group in members.items() if begin < trace.begin[member]), "final")


def _shared(name: str, home: Mapping[str, str]) -> bool:
    """Whether a module also holds parts of other groups."""
    prefix = f"{name}." if name else ""
    return any(where != home[name] for other, where in home.items() if other.startswith(prefix))


def _reached_by_gradient(model: nn.Module, inputs: Inputs, names: set[str]) -> set[str]:
    """Those of the parameters that the loss depends on; a mask token, for example, is used in pretraining only.

    DistributedDataParallel would wait for the gradients of the others.
    """
    parameters = {name: value for name, value in model.named_parameters() if name in names}
    with evaluating(model), requiring_gradients(model, names):
        logits = model(**inputs).logits
        if not logits.requires_grad:
            return set()
        gradients = torch.autograd.grad(logits.sum(), list(parameters.values()), allow_unused=True)
    return {name for name, gradient in zip(parameters, gradients, strict=True) if gradient is not None}


def _detached(_module: nn.Module, _args: Any, output: Any) -> Any:
    """Forward hook: what flows out of the module has no gradient."""
    return tree_map_only(Tensor, Tensor.detach, output)
