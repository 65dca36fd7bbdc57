"""What the files of a checkpoint may not ask for: they are somebody else's, and are read as data alone."""

import os
from collections.abc import Iterator, Mapping
from typing import Any

from hf_transfer.config import mistake


def refuse_other_files(checkpoint: str, settings: Mapping[str, Any]) -> None:
    """Refuse a tokenizer whose settings name a file on this machine as its vocabulary.

    Its lines would become words, which are saved with the finished model: so a `.env` would be published
    (https://github.com/huggingface/transformers/pull/46279). What settings call a file, transformers takes from the
    checkpoint itself by now; what they call `vocab` or pass as `init_inputs`, it does not.

    Raises:
        UserError: there is such a file.
    """
    for key, value in _texts(settings):
        if not key.endswith("_file") and os.path.isfile(value):  # noqa: PTH113 (it takes texts of any length)
            raise mistake(
                expected=f"a tokenizer in {checkpoint} that is made of the checkpoint's own files",
                found=f"{key!r} in its settings with {value!r}, a file on this machine",
                do="do not use this checkpoint: it would copy that file into the finished model",
            )


def refuse_imports(folder: str, settings: Mapping[str, Any]) -> None:
    """Refuse an adapter whose settings name a module for peft to import.

    Raises:
        UserError: they do.
    """
    if settings.get("megatron_config"):
        raise mistake(
            expected=f"an adapter in {folder} that is data alone",
            found=f"megatron_core in its settings, by which {settings.get('megatron_core')!r} would be run",
            do="do not use this adapter",
        )


def _texts(value: Any, key: str = "") -> Iterator[tuple[str, str]]:
    """All texts at any depth, each with the key that it is found under."""
    if isinstance(value, str):
        yield key, value
    elif isinstance(value, Mapping):
        for name, inner in value.items():
            yield from _texts(inner, str(name))
    elif isinstance(value, list):
        for inner in value:
            yield from _texts(inner, key)
