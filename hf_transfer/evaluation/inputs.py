"""The files on this machine that a run reads: which they are, and whether they have changed since."""

import hashlib
import json
import math
import os
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, overload

from hf_transfer.data.files import files_below, identity, is_hidden, is_read
from hf_transfer.data.pictures import SUFFIXES
from hf_transfer.errors import user_error
from hf_transfer.settings.model import exists, is_here
from hf_transfer.settings.parsing import config_path
from hf_transfer.settings.run import TOWERS, RunConfig

# The settings that name what a run reads.
INPUTS = ("dataset_name", "model_name_or_path", *TOWERS)
# A finished run is shown at once: files that take longer to look at are not compared.
SECONDS_TO_COMPARE = 2.0
Fingerprint = dict[str, Any]


def local_inputs(config: RunConfig) -> dict[str, Path]:
    """The files and folders on this machine that the settings name, by setting."""
    values = {name: value for name, value in config.flat().items() if name in INPUTS}
    return {
        name: Path(value).expanduser() for name, value in values.items() if value and is_here(value) and exists(value)
    }


def refuse_replaced_inputs(config: RunConfig, replaced: Sequence[Path]) -> None:
    """Refuse to replace files that the same command reads, under whatever path it names them.

    Args:
        config: the settings of the run.
        replaced: the files and folders that are to be replaced.

    Raises:
        UserError: the command reads one of them.
    """
    inputs: list[tuple[str, Path]] = [*local_inputs(config).items()]
    inputs += [("metrics", Path(name)) for name in config.output.metrics if exists(name)]
    if (settings := config_path(sys.argv[1:])) is not None:
        inputs.append(("config", settings))
    for name, path in inputs:
        for read in _read_with(path):
            if replaced_path := next((one for one in replaced if _is_within(read, one)), None):
                raise user_error(
                    expected=f"a --{name} that this run does not replace",
                    found=f"{path}, which reads {replaced_path}",
                    do="name another --output_dir: then the run can also be resumed and repeated",
                )
    data = dict(inputs).get("dataset_name")
    pictures = [file for one in replaced for file in (files_below(one) if one.is_dir() else [one])]
    pictures = [file for file in pictures if file.suffix.lower() in SUFFIXES]
    if data and pictures and _is_within(pictures[0], data):
        raise user_error(
            expected="a --dataset_name without files that this run replaces",
            found=f"{data}, which contains {pictures[0]}",
            do="name an --output_dir outside of the data",
        )


def fingerprints(config: RunConfig) -> dict[str, Fingerprint]:
    """What `changes` compares, of all local inputs by setting: see `fingerprint`."""
    out = Path(config.output.output_dir)
    return {name: fingerprint(path, out) for name, path in local_inputs(config).items()}


def changes(config: RunConfig, before: Mapping[str, Fingerprint]) -> list[str]:
    """Sentences on inputs that have changed since a run, without reading a file.

    Args:
        config: the settings of the run.
        before: what `fingerprints` returned then; empty for runs of earlier versions.
    """
    latest = time.monotonic() + SECONDS_TO_COMPARE
    sentences = []
    for name, path in local_inputs(config).items():
        if name not in before:
            continue
        now = fingerprint(path, Path(config.output.output_dir), latest)
        if now is None:
            sentences.append(f"--{name} {path} has too many files to look for changes quickly.")
        elif now["names_and_sizes"] != before[name]["names_and_sizes"]:
            counts = f"{before[name]['files']:,} files then, {now['files']:,} now"
            sizes = f"{before[name]['bytes']:,} bytes then, {now['bytes']:,} now"
            sentences.append(f"--{name} {path} has changed since ({counts}; {sizes}).")
        elif now["times"] != before[name]["times"]:
            sentences.append(
                f"--{name} {path} may have changed since: files of the same names and sizes were written again."
            )
    return sentences


@overload
def fingerprint(path: Path, without: Path) -> Fingerprint: ...
@overload
def fingerprint(path: Path, without: Path, latest: float) -> Fingerprint | None: ...
def fingerprint(path: Path, without: Path, latest: float = math.inf) -> Fingerprint | None:
    """What is known of a file, or of all files below a folder, without reading them.

    Hidden files do not count: file browsers write some.

    Args:
        path: the file or folder.
        without: the folder of the run, which may be in the data.
        latest: give up at this time of the monotonic clock.

    Returns:
        How many `files` there are, with how many `bytes`, a hash of their `names_and_sizes`, and one of the
        `times` of their last change; None if it took too long.
    """
    names_and_sizes, times, count, size = hashlib.sha256(), hashlib.sha256(), 0, 0
    for file in _visible_files(path, without):
        if time.monotonic() > latest:
            return None
        try:
            status = file.stat()
        except OSError:
            # A link that leads nowhere: reading the data reports it.
            continue
        count, size = count + 1, size + status.st_size
        names_and_sizes.update(f"{file.relative_to(path)}|{status.st_size}\n".encode(errors="surrogateescape"))
        times.update(f"{status.st_mtime_ns}|".encode())
    return {
        "files": count, "bytes": size, "names_and_sizes": names_and_sizes.hexdigest(),
        "times": times.hexdigest(),
    }  # fmt: skip


def _visible_files(path: Path, without: Path) -> Iterator[Path]:
    """The file itself, or the files below a folder that reading data looks at, one by one, in a fixed order.

    Links are followed, each folder once, as in `data.files.walk`, which cannot be stopped on its way.
    """
    if not path.is_dir():
        yield path
        return
    looked_at = {identity(folder) for folder in (without, path.resolve(), *path.resolve().parents) if folder.is_dir()}
    for root, folders, names in os.walk(path, followlinks=True):
        below = {name: identity(Path(root, name)) for name in sorted(folders) if not is_hidden(name)}
        folders[:] = [name for name, one in below.items() if one not in looked_at]
        looked_at.update(below.values())
        yield from (Path(root, name) for name in sorted(names) if is_read(name))


def _read_with(path: Path) -> Iterator[Path]:
    """A path that is read, and what links below it lead to; for an adapter also its base model."""
    yield path
    seen, folders = set(), [path]
    while folders:
        folder = folders.pop()
        if (real := folder.resolve()) in seen:
            continue
        seen.add(real)
        for root, below, names in os.walk(folder):
            links = [link for name in (*below, *names) if (link := Path(root, name)).is_symlink()]
            yield from links
            folders += [link for link in links if link.is_dir()]
    if base := _base_of(path / "adapter_config.json"):
        yield base


def _base_of(settings: Path) -> Path | None:
    """The folder of an adapter's base model, if it is one on this machine."""
    try:
        name = json.loads(settings.read_text(encoding="utf-8"))["base_model_name_or_path"]
        return Path(name) if exists(name) else None
    except (OSError, ValueError, KeyError, TypeError):
        # It is no adapter, or one that cannot be read, which loading it reports.
        return None


def _is_within(path: Path, folder: Path) -> bool:
    """Whether a path is a file or folder, or lies in it: by the files themselves, however they are named."""
    chain = [path.absolute(), *path.absolute().parents, path.resolve(), *path.resolve().parents]
    return any(_is_same(one, folder) for one in chain)


def _is_same(one: Path, other: Path) -> bool:
    try:
        return one.samefile(other)
    except OSError:
        return False
