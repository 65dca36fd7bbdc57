"""Checks of what is installed: the import name is ours alone, and torchvision suits torch."""

import importlib.metadata
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from hf_transfer.errors import UserError, user_error

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


@contextmanager
def explaining_torchvision() -> Iterator[None]:
    """Turn an import that fails since torchvision was built for another torch into a message.

    Where torchvision is installed, transformers imports it for pictures, also for models that do not need it.

    Raises:
        UserError: such an import failed.
    """
    try:
        yield
    except (ImportError, OSError, RuntimeError) as error:
        if (cause := of_torchvision(error)) is not None:
            raise unsuitable_torchvision(cause) from error
        raise


def of_torchvision(error: BaseException | None) -> BaseException | None:
    """The error, or the first of its causes, that says that operators of torchvision are missing; None: no such one."""
    while error is not None and "torchvision::" not in str(error):
        error = error.__cause__ or error.__context__
    return error


def unsuitable_torchvision(error: BaseException) -> UserError:
    """The error that says why torchvision cannot be imported, and how to get one that can."""
    torch = importlib.metadata.version("torch")
    build = torch.partition("+")[2]
    index = f" --index-url https://download.pytorch.org/whl/{build}" if build else ""
    return user_error(
        expected=f"a torchvision that was built for torch {torch}",
        found=f"torchvision {importlib.metadata.version('torchvision')}, which cannot be imported ({error})",
        do=f"install both from one index: pip install --force-reinstall torch torchvision{index}",
    )
