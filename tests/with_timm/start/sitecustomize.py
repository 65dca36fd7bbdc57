"""Runs when Python starts with this folder on its path: lets torchvision be imported beside any build of torch.

torchvision on PyPI is built for torch with CUDA. Beside a torch for CPUs its own operators do not load, and then its
import fails, although timm uses none of them. Here two of them are declared, without an implementation, just before
torchvision is imported.
"""

import importlib.abc
import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from types import ModuleType
from typing import ClassVar

OPERATORS = (
    "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
)


class DeclaringOperators(importlib.abc.MetaPathFinder):
    """Finds nothing; the first search for torchvision declares its operators if they do not load.

    Attributes:
        libraries: kept as long as the process lives: a library that is deleted takes its operators with it.
    """

    libraries: ClassVar[list[object]] = []

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname == "torchvision":
            sys.meta_path.remove(self)
            spec = find_spec(fullname)
            if spec is not None and spec.submodule_search_locations:
                declare(spec.submodule_search_locations[0])
        return None


def declare(folder: str) -> None:
    """Declare the operators of the torchvision in a folder, unless its library loads."""
    import torch

    try:
        torch.ops.load_library(f"{folder}/_C.so")
    except OSError:
        library = torch.library.Library("torchvision", "DEF")
        for operator in OPERATORS:
            library.define(operator)
        DeclaringOperators.libraries.append(library)


sys.meta_path.insert(0, DeclaringOperators())
