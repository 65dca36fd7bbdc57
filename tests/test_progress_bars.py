"""In a log there are no progress bars of other libraries; in a terminal they stay."""

import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest
from huggingface_hub.utils.tqdm import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars
from transformers.utils import logging as untyped

from hf_transfer.progress_bars import without_bars_in_logs

logging: Any = untyped


def shown() -> tuple[bool, bool]:
    """Whether huggingface_hub and transformers show bars."""
    return not are_progress_bars_disabled(), logging.is_progress_bar_enabled()


@pytest.fixture(autouse=True)
def _bars_as_before() -> Iterator[None]:
    before = shown()
    logging.enable_progress_bar()
    yield
    (logging.enable_progress_bar if before[1] else logging.disable_progress_bar)()
    (enable_progress_bars if before[0] else disable_progress_bars)()


@pytest.mark.parametrize("is_terminal", [True, False])
def test_bars_are_shown_in_a_terminal_alone(is_terminal: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: is_terminal)
    with without_bars_in_logs():
        assert shown() == (is_terminal, is_terminal)
    assert shown() == (True, True)


def test_after_an_error_bars_are_shown_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: False)
    with pytest.raises(ValueError, match="broken"), without_bars_in_logs():
        raise ValueError("broken")
    assert shown() == (True, True)


def test_bars_that_were_switched_off_stay_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: False)
    logging.disable_progress_bar()
    with without_bars_in_logs():
        assert shown() == (False, False)
    assert shown() == (False, False)


def test_a_run_inside_of_another_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: False)
    with without_bars_in_logs():
        with without_bars_in_logs():
            pass
        assert shown() == (False, False)
    assert shown() == (True, True)


def test_a_library_that_is_imported_later_shows_none_and_afterwards_does() -> None:
    code = (
        "from hf_transfer.progress_bars import without_bars_in_logs\n"
        "with without_bars_in_logs():\n"
        "    from transformers.utils import logging\n"
        "    print(logging.is_progress_bar_enabled())\n"
        "print(logging.is_progress_bar_enabled())\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "True"]
