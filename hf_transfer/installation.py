"""Checks that the import name is ours alone: another distribution has the same one."""

import importlib.metadata
import sys

from hf_transfer.errors import user_error

RETIRED_DISTRIBUTION = "hf-transfer"


def check_installation() -> None:
    """Refuse to run beside the retired download accelerator, whose import name is also `hf_transfer`.

    The one that was installed last has overwritten files of the other, and removing either removes them for both.
    So ours has to be installed again.

    Raises:
        UserError: the accelerator is installed, or was and has left its files.
    """
    try:
        problem = f"the retired download accelerator hf_transfer {importlib.metadata.version(RETIRED_DISTRIBUTION)}"
    except importlib.metadata.PackageNotFoundError:
        if hasattr(sys.modules[__name__.partition(".")[0]], "_MODULES"):
            return
        problem = "a hf_transfer/__init__.py that is not ours"
    raise user_error(
        expected="the import name hf_transfer for the distribution hf-transfer-learning alone",
        found=problem,
        do="pip uninstall -y hf_transfer && pip install --force-reinstall --no-deps hf-transfer-learning",
    )
