"""Checks of a checkpoint's files, which are untrusted: reading them must not run code or read other local files."""

import os
from collections.abc import Iterator, Mapping
from typing import Any

from hf_transfer.errors import user_error


def refuse_other_files(checkpoint: str, settings: Mapping[str, Any]) -> None:
    """Refuse a tokenizer whose settings name a file on this machine as its vocabulary.

    The lines of that file would become words, which are saved with the finished model: a `.env` would be published
    (https://github.com/huggingface/transformers/pull/46279). transformers takes settings that end in `_file` from the
    checkpoint itself, but not `vocab` and `init_inputs`.

    Raises:
        UserError: the settings name such a file.
    """
    for key, value in _texts(settings):
        if not key.endswith("_file") and os.path.isfile(value):  # noqa: PTH113 (Path refuses long texts)
            raise user_error(
                expected=f"a tokenizer in {checkpoint} that reads only the checkpoint's files",
                found=f"{key!r} in its settings is {value!r}, a file on this machine",
                do="do not use this checkpoint: it would copy that file into the finished model",
            )


def refuse_imports(folder: str, settings: Mapping[str, Any]) -> None:
    """Refuse an adapter whose settings name a module that peft would import.

    Raises:
        UserError: the settings name one.
    """
    if settings.get("megatron_config"):
        raise user_error(
            expected=f"an adapter in {folder} whose settings run no code",
            found=f"megatron_core in its settings, which would import {settings.get('megatron_core')!r}",
            do="do not use this adapter",
        )


def _texts(value: Any, key: str = "") -> Iterator[tuple[str, str]]:
    """All texts at any depth, each with its key."""
    if isinstance(value, str):
        yield key, value
    elif isinstance(value, Mapping):
        for name, inner in value.items():
            yield from _texts(inner, str(name))
    elif isinstance(value, list):
        for inner in value:
            yield from _texts(inner, key)
