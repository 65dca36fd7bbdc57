"""Compiled blocks: torch.compile for the parts of a model that learn.

Each module is compiled in its place, not the model as a whole. Blocks of one kind share their code, so that a deep
model compiles as fast as a shallow one; the names of the weights stay as they are; and what stands around the blocks,
such as stored activations or wrappers of DDP, is not traced.

Reference: Ansel et al., "PyTorch 2: Faster Machine Learning Through Dynamic Python Bytecode Transformation and Graph
Compilation", ASPLOS 2024, https://doi.org/10.1145/3620665.3640366.
"""

import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager

import torch
from torch import nn

from hf_transfer.errors import UserError, user_error
from hf_transfer.models.groups import Group
from hf_transfer.settings.training import TrainingSettings

BACKEND = "inductor"
# Different kinds of blocks, sizes of batches, training and evaluation: torch counts them together, and would stop
# compiling at eight.
MOST_VARIANTS = 256


@contextmanager
def compiled(
    model: nn.Module, groups: Sequence[Group], training: TrainingSettings, *, lengths_vary: bool
) -> Iterator[None]:
    """While a stage is trained, its learning groups run compiled, if the settings ask for it; in evaluation, too.

    A run that resumes compiles the same code, whatever batches it begins with: each size of a batch has code of its
    own, or, if texts have many lengths, all sizes share one. On a GPU inductor does not choose kernels by measuring.

    Args:
        model: not wrapped; it is known which of its parameters learn in the stage.
        groups: its groups in depth order.
        training: settings.
        lengths_vary: whether batches have samples of many lengths.
    """
    if not training.torch_compile:
        yield
        return
    import torch._dynamo
    import torch._inductor.config

    learning = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    modules = [
        model.get_submodule(name)
        for group in groups
        if not learning.isdisjoint(group.parameters)
        for name in group.modules
    ]
    backend = training.torch_compile_backend or BACKEND
    with ExitStack() as settings:
        settings.enter_context(torch._dynamo.config.patch(recompile_limit=MOST_VARIANTS))
        settings.enter_context(torch._inductor.config.patch(deterministic=True))
        try:
            for module in modules:
                module.compile(backend=backend, dynamic=lengths_vary)
            yield
        finally:
            for module in modules:
                # torch keeps the compiled code here, and has no public way back.
                module._compiled_call_impl = None


def check_compiler(training: TrainingSettings, device: torch.device) -> None:
    """Refuse --torch_compile where it cannot work, before anything slow.

    Args:
        training: settings.
        device: on which the model is trained.

    Raises:
        UserError: the backend does not exist, or what it compiles with is not installed.
    """
    if not training.torch_compile:
        return
    import torch._dynamo

    backend, known = training.torch_compile_backend or BACKEND, torch._dynamo.list_backends(exclude_tags=())
    if backend not in known:
        raise user_error(
            expected=f"a --torch_compile_backend that torch knows: {', '.join(known)}",
            found=backend,
            do="choose one of these, or leave it out for inductor",
        )
    if backend == BACKEND and (lacking := _lacking(device)):
        raise user_error(
            expected=f"what torch.compile needs on this device: {lacking[0]}",
            found=lacking[1],
            do="install it, leave out --torch_compile, or add --torch_compile_backend aot_eager (which is not faster)",
        )


def _lacking(device: torch.device) -> tuple[str, str] | None:
    """What inductor needs for a device, and what there is instead; None: nothing is lacking."""
    from torch._inductor.cpp_builder import get_cpp_compiler
    from torch.utils._triton import has_triton

    if device.type == "cuda" and not has_triton():
        return "Triton, and a GPU that it supports", "none"
    try:
        get_cpp_compiler()
    except RuntimeError as error:
        return "a C++ compiler, such as g++", str(error).splitlines()[0]
    return None


def compile_failure(error: BaseException) -> UserError | None:
    """The message for an error of torch.compile; None for any other error."""
    exceptions = sys.modules.get("torch._dynamo.exc")
    if exceptions is None or not isinstance(error, exceptions.TorchDynamoException):
        return None
    return user_error(
        expected="a model whose blocks torch.compile can compile",
        found=" ".join(str(error).split("\n\n")[0].split()) or type(error).__name__,
        do="leave out --torch_compile; TORCHDYNAMO_VERBOSE=1 shows more",
    )
