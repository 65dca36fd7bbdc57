"""A small folder to publish, and what is published of it."""

from pathlib import Path

import pytest

from hf_transfer.errors import UserError
from hf_transfer.hub.publish import Published, publish_folder
from tests.hub.contents import Repository

NAME = "alice/pets"
CARD = b"---\nlicense: mit\n---\n# Pets\n"
FILES = {"README.md": CARD, "config.json": b'{"a": 1}', "model.safetensors": b"\2\0\0\0\0\0\0\0{}1234"}


def a_folder(folder: Path, **changes: bytes | None) -> Path:
    """A folder of a model; in names `__` stands for a dot, and None removes a file."""
    folder.mkdir(parents=True, exist_ok=True)
    changed = {name.replace("__", "."): content for name, content in changes.items()}
    for name, content in (FILES | changed).items():
        if content is None:
            (folder / name).unlink(missing_ok=True)
        else:
            (folder / name).write_bytes(content)
    return folder


def pushed(folder: Path, **changes: object) -> Published:
    chosen: dict[str, object] = {"kind": "model", "private": True, "message": "it is done"}
    return publish_folder(folder, NAME, **(chosen | changes))  # type: ignore[arg-type]


def refused(folder: Path, **changes: object) -> str:
    with pytest.raises(UserError) as error:
        pushed(folder, **changes)
    return str(error.value)


def ours(repository: Repository) -> dict[str, bytes]:
    """The files of a repository without the one that the Hub adds."""
    return {path: content for path, content in repository.texts().items() if path != ".gitattributes"}
