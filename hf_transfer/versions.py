"""Versions of whatever numbers depend on."""

import importlib.metadata
import platform

PACKAGES = ("torch", "transformers", "datasets", "accelerate", "peft", "kornia", "pillow", "numpy", "scikit-learn")


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that numbers depend on."""
    return {"python": platform.python_version(), **{name: importlib.metadata.version(name) for name in PACKAGES}}
