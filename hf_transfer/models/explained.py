"""What transformers says while it reads a checkpoint: its errors in words, its tables not at all."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from transformers.utils import logging

from hf_transfer.config import UserError, mistake
from hf_transfer.data import hub_access, samples


@contextmanager
def explained(name: str) -> Iterator[None]:
    """Turn what transformers raises about a checkpoint into a message to the user."""
    try:
        yield
    except (UserError, AssertionError, MemoryError):
        raise
    except Exception as error:
        # A damaged or hostile file can lead transformers and tokenizers to any error: all mean the same here.
        if "use_safetensors=True" in str(error) or _only_pickles(Path(name).expanduser()):
            raise mistake(
                expected=f"weights in safetensors in {name}",
                found="only pickles (pytorch_model.bin), which can run any code when they are read",
                do="where you trust them, convert them with transformers: load the model and save_pretrained it",
            ) from error
        if samples.is_sample(name) or Path(name).expanduser().is_dir() or "outgoing traffic" not in _chain(error):
            raise mistake(
                expected=f"a complete transformers checkpoint in {name}",
                found=(str(error) or type(error).__name__).splitlines()[0],
                do="check its config.json, model.safetensors, and preprocessor_config.json or tokenizer.json",
            ) from error
        raise hub_access.unreachable(name, kind="model", setting="model_name_or_path") from error


def _only_pickles(folder: Path) -> bool:
    return any(folder.glob("pytorch_model*.bin")) and not any(folder.glob("*.safetensors"))


def _chain(error: BaseException | None) -> str:
    words = ""
    while error is not None:
        words, error = f"{words} {error}", error.__cause__ or error.__context__
    return words


@contextmanager
def quietly() -> Iterator[None]:
    """Without transformers' table of what a new head lacks: `describe_fresh` says what matters, in a line."""
    before, bar = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(before)
        if bar:
            logging.enable_progress_bar()
