"""How transformers reads a checkpoint: its weights, its errors and its output."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from transformers.utils import logging

from hf_transfer.data import hub_access, samples
from hf_transfer.errors import UserError, user_error
from hf_transfer.installation import of_torchvision, unsuitable_torchvision


def read_weights(load: Callable[..., Any], path: str, revision: str, **settings: Any) -> tuple[Any, frozenset[str]]:
    """A model in float32, and the names of its weights that the checkpoint does not have, or has in another shape.

    Args:
        load: a `from_pretrained` of transformers.
        path: a folder or a Hub id.
        revision: branch, tag or commit on the Hub.
        settings: values that replace those of the checkpoint's configuration.
    """
    model, info = load(
        path, revision=revision, dtype=torch.float32, ignore_mismatched_sizes=True, output_loading_info=True,
        # Pickles can run any code when they are read.
        use_safetensors=True, trust_remote_code=False, **settings,
    )  # fmt: skip
    return model, frozenset(info["missing_keys"]) | {name for name, *_ in info["mismatched_keys"]}


@contextmanager
def loading_errors(name: str) -> Iterator[None]:
    """Turn the errors of transformers about a checkpoint into messages to the user."""
    try:
        yield
    except (UserError, AssertionError, MemoryError):
        raise
    except Exception as error:
        hub_access.refuse_cache_without_rights(error)
        if (cause := of_torchvision(error)) is not None:
            raise unsuitable_torchvision(cause) from error
        # A damaged or hostile file can cause any error in transformers and tokenizers; all mean the same here.
        if "use_safetensors=True" in str(error) or _only_pickles(Path(name).expanduser()):
            raise user_error(
                expected=f"weights in safetensors in {name}",
                found="only pickles (pytorch_model.bin), which can run any code when they are read",
                do="if you trust them, convert them with transformers: load the model and call its save_pretrained",
            ) from error
        if samples.is_sample(name) or Path(name).expanduser().is_dir() or "outgoing traffic" not in _chain(error):
            raise user_error(
                expected=f"a complete transformers checkpoint in {name}",
                found=(str(error).strip() or type(error).__name__).splitlines()[0],
                do="check its config.json, model.safetensors, and preprocessor_config.json or tokenizer.json",
            ) from error
        raise hub_access.unreachable(name, kind="model", setting="model_name_or_path") from error


def _only_pickles(folder: Path) -> bool:
    return any(folder.glob("pytorch_model*.bin")) and not any(folder.glob("*.safetensors"))


def _chain(error: BaseException | None) -> str:
    """The messages of an error and of its causes."""
    messages = ""
    while error is not None:
        messages, error = f"{messages} {error}", error.__cause__ or error.__context__
    return messages


@contextmanager
def quiet_loading() -> Iterator[None]:
    """No progress bar, and no table of missing weights: `describe_missing` says in a line what matters."""
    before, bar = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(before)
        if bar:
            logging.enable_progress_bar()
