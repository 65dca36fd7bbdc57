"""Whether the import name is ours alone: another distribution of the same name may lie in its place."""

import importlib.metadata
import sys

from hf_transfer.config import mistake

RETIRED_DISTRIBUTION = "hf-transfer"


def check_installation() -> None:
    """Refuse to run beside the retired download accelerator, whose import name is also `hf_transfer`.

    Whichever of the two was installed last has overwritten files of the other, and removing it
    removes them for both: hence the reinstallation.
    """
    try:
        found = f"the retired download accelerator hf_transfer {importlib.metadata.version(RETIRED_DISTRIBUTION)}"
    except importlib.metadata.PackageNotFoundError:
        if hasattr(sys.modules[__name__.partition(".")[0]], "_HOMES"):
            return
        found = "a hf_transfer/__init__.py that is not ours"
    raise mistake(
        expected="the import name hf_transfer for the distribution hf-transfer-learning alone",
        found=found,
        do="pip uninstall -y hf_transfer && pip install --force-reinstall --no-deps hf-transfer-learning",
    )
