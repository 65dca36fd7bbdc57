"""Tensors that were created under `torch.inference_mode` and that autograd therefore refuses.

transformers keeps some tensors between runs: in caches of functions, which all models of a process share (BEiT's index
of relative positions), in buffers and in attributes. If the first run was a prediction under `torch.inference_mode`, a
later training fails: "Inference tensors cannot be saved for backward".
"""

import gc
import sys
from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor, nn


def replace_inference_tensors(model: nn.Module) -> None:
    """Make the model trainable again after predictions under `torch.inference_mode`.

    Inference tensors among its buffers and attributes are replaced by copies. The caches of the functions that are
    defined beside its modules are cleared: what they held is computed again when it is needed.
    """
    for module in model.modules():
        for name, value in [*module.named_buffers(recurse=False), *vars(module).items()]:
            if isinstance(value, Tensor) and value.is_inference():
                setattr(module, name, value.clone())
    for function in _cached_functions(model):
        function.cache_clear()


def _cached_functions(model: nn.Module) -> Iterator[Any]:
    """Functions with an `lru_cache` that are defined in the files, and classes, of the model's modules."""
    classes = {base for kind in {type(module) for module in model.modules()} for base in kind.__mro__}
    files = {kind.__module__ for kind in classes if kind.__module__.partition(".")[0] not in ("builtins", "torch")}
    namespaces: list[Mapping[str, Any]] = [vars(kind) for kind in classes if kind.__module__ in files]
    namespaces += [vars(sys.modules[file]) for file in files if file in sys.modules]
    for value in [value for namespace in namespaces for value in namespace.values()]:
        function = getattr(value, "__func__", value)
        # transformers wraps the function with the cache into another one: it is in a closure.
        closure = getattr(function, "__closure__", None) or ()
        for candidate in (function, *gc.get_referents(*closure)):
            # Not what a file imports, such as `is_torch_available`.
            if getattr(candidate, "__module__", None) in files and hasattr(candidate, "cache_clear"):
                yield candidate
