"""Folders for what may be computed or downloaded again, also where the home directory cannot be written to."""

import os
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from unittest.mock import patch

from huggingface_hub import constants

from hf_transfer.checkpoints.files import can_be_written
from hf_transfer.data import hub_access
from hf_transfer.data.hub_access import SET_HOME
from hf_transfer.errors import user_error


@contextmanager
def usable_caches(named: str | None) -> Iterator[str]:
    """Use other folders for prepared data while the usual ones cannot be written to.

    They are in `--cache_dir`, or in a folder of this user among the system's temporary files: it outlives the run, so
    that an interrupted run finds the same data again. Downloads from the Hub stay where they are: a cache that can only
    be read is used as it is.

    Args:
        named: `--cache_dir`.

    Yields:
        A sentence on where the folders are; empty if they are the usual ones.

    Raises:
        UserError: there is no other folder.
    """
    import datasets.config

    usual = [Path(datasets.config.HF_DATASETS_CACHE), *([] if named else [Path(constants.HF_HOME)])]
    if all(map(can_be_written, usual)):
        yield ""
        return
    folder = Path(named) if named else _temporary_folder()
    prepared = folder / "datasets"
    if not can_be_written(prepared):
        raise user_error(expected="a --cache_dir that can be written to", found=str(folder), do="name another folder")
    with (
        patch.object(datasets.config, "HF_DATASETS_CACHE", prepared),
        patch.object(datasets.config, "HF_MODULES_CACHE", folder / "modules"),
        patch.object(hub_access, "other_home", folder),
    ):
        yield f"{usual[0]} cannot be written to: prepared data are in {folder}. To have them elsewhere, {SET_HOME}."


def _temporary_folder() -> Path:
    """A folder that only this user can write to.

    Raises:
        UserError: somebody else has made one of that name, or none can be made.
    """
    user = os.getuid() if hasattr(os, "getuid") else 0
    folder = Path(tempfile.gettempdir()) / f"hf_transfer-{user}"
    try:
        folder.mkdir(mode=0o700, exist_ok=True)
        status = folder.lstat()
    except OSError as error:
        raise user_error(expected="a cache that can be written to", found=str(error), do=SET_HOME) from error
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != user or status.st_mode & 0o022:
        raise user_error(
            expected=f"a folder {folder} that only this user can write to", found="one of somebody else", do=SET_HOME
        )
    return folder
