"""A model's groups in depth order, found by tracing a forward pass, and where the model may be cut.

There is no table of architectures: the outermost repeated modules are the blocks, whatever their names are. Everything
that runs before the first is `embeddings`, what runs between two (a downsampling layer) belongs to the later one, what
runs after the last is `final`, and the layers that compute the logits are the `head`.
"""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map_only

from hf_transfer.errors import user_error
from hf_transfer.models.inference_tensors import replace_inference_tensors

Inputs = Mapping[str, Tensor]
# A list of blocks holds at least this share of the backbone's weights; a list of two heads, for example, does not.
SHARE_OF_BLOCKS = 0.5


@dataclass(frozen=True)
class Group:
    """A slice of the model's depth.

    Attributes:
        name: `embeddings`, a block's module name, `final` or `head`.
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
        """Whether it is one of the repeated modules, not what runs before or after them."""
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


@dataclass(frozen=True)
class _Trace:
    """The modules that were called.

    Attributes:
        begin: by name, when the first call began.
        end: by name, when it ended.
        fed_by_data: names of the modules whose inputs depend on the data.
    """

    begin: dict[str, int]
    end: dict[str, int]
    fed_by_data: frozenset[str]


def trace_groups(model: nn.Module, inputs: Inputs) -> list[Group]:
    """The groups of a classifier, from the input to the head.

    Args:
        model: a classifier whose output has `logits` [batch, classes].
        inputs: a small batch; it is run forward and backward once, in evaluation mode.

    Raises:
        UserError: the model has no last layer that computes the logits.
    """
    trace, classes = _trace(model, inputs)
    blocks = _blocks(model, trace, classes)
    *others, last = _heads(model, trace, classes, after=trace.end[blocks[-1]] if blocks else -1)
    # If there are as many classes as the backbone is wide, a pooler has the shape of a head.
    heads = [*(name for name in others if not _feeds(model, inputs, name, last)), last]
    names = ["embeddings", *blocks, "final", "head"] if blocks else ["backbone", "head"]
    home = {name: _home(name, blocks, heads, trace) for name, _ in model.named_modules()}
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
    illegal.
    """
    skipped = {name for group in groups[:count] for name in group.modules}
    trace, _ = _trace(model, inputs)
    containers = (nn.ModuleList, nn.ModuleDict)
    called = [name for name in skipped & trace.end.keys() if not isinstance(model.get_submodule(name), containers)]
    if not called:
        return Boundary("", False, (), "no module before this place is called")
    # A shared table of biases may be called last, but the boundary is where the data comes out.
    with_data = [name for name in called if name in trace.fed_by_data]
    module = max(with_data or called, key=lambda name: trace.end[name])
    names = {name for group in groups[:count] for name in group.parameters}
    with model.get_submodule(module).register_forward_hook(_detached):
        leaking = sorted({name.rpartition(".")[0] for name in _reached_by_gradient(model, inputs, names)})
    if passing := [name for name in leaking if name in trace.fed_by_data]:
        return Boundary(module, False, (), f"later layers depend on {', '.join(passing[:3])} not only through {module}")
    return Boundary(module, True, tuple(leaking), "")


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


def _trace(model: nn.Module, inputs: Inputs) -> tuple[_Trace, int]:
    """Run the model once; returns the trace and the number of logits."""
    begin: dict[str, int] = {}
    end: dict[str, int] = {}
    fed_by_data: set[str] = set()
    clock = iter(range(10**9))
    # No parameter requires a gradient, so a tensor that does depends on the data.
    with evaluating(model), requiring_gradients(model, set()), ExitStack() as stack:
        storages = {_storage(value) for value in inputs.values()}

        def mark(_: nn.Module, args: Any, output: Tensor) -> Tensor:
            """Hook for an embedding: its output requires a gradient if it looks up inputs, such as token ids.

            Integers have no gradient that would show it. An embedding of positions looks up no input.
            """
            looked_up = any(_storage(tensor) in storages for tensor in _tensors(args))
            return output.detach().requires_grad_() if looked_up else output

        for name, module in model.named_modules():
            if isinstance(module, nn.Embedding):
                stack.enter_context(module.register_forward_hook(mark))

            def before(_: nn.Module, args: Any, kwargs: Any, name: str = name) -> None:
                begin.setdefault(name, next(clock))
                # Token ids are data, too, but integers have no gradient.
                if any(tensor.requires_grad or _storage(tensor) in storages for tensor in _tensors((args, kwargs))):
                    fed_by_data.add(name)

            def after(*_: Any, name: str = name) -> None:
                end.setdefault(name, next(clock))

            stack.enter_context(module.register_forward_pre_hook(before, with_kwargs=True))
            stack.enter_context(module.register_forward_hook(after))
        data = {
            key: value.detach().clone().requires_grad_() if value.is_floating_point() else value
            for key, value in inputs.items()
        }
        logits = model(**data).logits
    return _Trace(begin, end, frozenset(fed_by_data)), int(logits.shape[-1])


def _storage(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


def _blocks(model: nn.Module, trace: _Trace, classes: int) -> list[str]:
    """Names of the outermost repeated modules, in the order of their calls; empty if nothing repeats."""
    # Head and vocabulary do not count: thousands of classes or words would outweigh the blocks of a small backbone.
    head = _heads(model, trace, classes, after=-1)[0]
    not_counted = [model.get_submodule(head), *(layer for layer in model.modules() if isinstance(layer, nn.Embedding))]
    excluded = {parameter for module in not_counted for parameter in module.parameters()}
    total = sum(parameter.numel() for parameter in model.parameters() if parameter not in excluded)
    candidates = []
    for name, module in model.named_modules():
        units = _called_children(name, module, trace)
        kinds = {type(model.get_submodule(unit)) for unit in units}
        if len(units) < 2 or len(kinds) > 1 or not _one_after_another(units, trace):
            continue
        if any(f"{head}.".startswith(f"{unit}.") for unit in units):
            continue
        size = sum(parameter.numel() for unit in units for parameter in model.get_submodule(unit).parameters())
        if size >= SHARE_OF_BLOCKS * total:
            candidates.append((name.count("."), units))
    return sorted(min(candidates)[1], key=trace.begin.__getitem__) if candidates else []


def _called_children(name: str, module: nn.Module, trace: _Trace) -> list[str]:
    """Children that are called; a child that is only a container (a list in a list) is replaced by its children."""
    units = []
    for child_name, child in module.named_children():
        full = f"{name}.{child_name}" if name else child_name
        units += [full] if full in trace.begin else _called_children(full, child, trace)
    return units


def _one_after_another(units: Sequence[str], trace: _Trace) -> bool:
    ordered = sorted(units, key=trace.begin.__getitem__)
    return all(trace.end[a] < trace.begin[b] for a, b in itertools.pairwise(ordered))


def _heads(model: nn.Module, trace: _Trace, classes: int, after: int) -> list[str]:
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
        depends.append(any(tensor.requires_grad for tensor in _tensors((args, kwargs))))

    names = {f"{layer}.{name}" for name, _ in model.get_submodule(layer).named_parameters()}
    hook = model.get_submodule(other).register_forward_pre_hook(look, with_kwargs=True)
    with evaluating(model), requiring_gradients(model, names), hook:
        model(**inputs)
    return any(depends)


def _home(name: str, blocks: Sequence[str], heads: Sequence[str], trace: _Trace) -> str:
    """The group of a module's own weights."""
    if any(name == head or name.startswith(f"{head}.") for head in heads):
        return "head"
    for block in blocks:
        if name == block or name.startswith(f"{block}."):
            return block
    if not blocks:
        return "backbone"
    begin = trace.begin.get(name, -1)
    if begin < trace.begin[blocks[0]]:
        return "embeddings"
    if begin > trace.end[blocks[-1]]:
        return "final"
    return next(block for block in blocks if begin < trace.begin[block])


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


def _tensors(value: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(value) if isinstance(leaf, Tensor)]


def _detached(_module: nn.Module, _args: Any, output: Any) -> Any:
    """Forward hook: what flows out of the module has no gradient."""
    return tree_map_only(Tensor, Tensor.detach, output)


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
