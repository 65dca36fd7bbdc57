"""Versions of everything that numbers depend on: recorded with results, checkpoints, stores and models."""

import importlib.metadata
import platform
import sys

# What changes pixels, tokens, features or weights.
PACKAGES = (
    "torch", "transformers", "tokenizers", "datasets", "accelerate", "peft", "kornia", "pillow", "numpy", "scipy",
    "scikit-learn",
)  # fmt: skip


def versions() -> dict[str, str]:
    """Versions of this package, of Python and of the packages that numbers depend on."""
    # From the source that runs: what is installed beside a source tree may be another version.
    package_version = str(sys.modules[__name__.partition(".")[0]].__version__)
    return {
        "hf-transfer-learning": package_version,
        "python": platform.python_version(),
        **{name: importlib.metadata.version(name) for name in PACKAGES},
    }
