"""Progress bars of other libraries, which belong to a terminal."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def without_bars_in_logs() -> Iterator[None]:
    """Where stderr is no terminal, transformers and huggingface_hub show no progress bars; afterwards as before.

    A bar overwrites its line; in a file each state of it would stay. Who sets HF_HUB_DISABLE_PROGRESS_BARS=0 keeps
    them.
    """
    from huggingface_hub import constants
    from huggingface_hub.utils.tqdm import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

    if sys.stderr.isatty() or constants.HF_HUB_DISABLE_PROGRESS_BARS is False:
        yield
        return
    of_hub = not are_progress_bars_disabled()
    # When transformers is imported, it takes over what holds for huggingface_hub.
    logging = sys.modules.get("transformers.utils.logging")
    of_transformers = of_hub if logging is None else logging.is_progress_bar_enabled()
    disable_progress_bars()
    if logging is not None:
        logging.disable_progress_bar()
    try:
        yield
    finally:
        logging = sys.modules.get("transformers.utils.logging")
        if of_transformers and logging is not None:
            logging.enable_progress_bar()
        if of_hub:
            enable_progress_bars()
        else:
            disable_progress_bars()
