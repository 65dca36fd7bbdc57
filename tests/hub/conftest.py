"""The stand-in as the Hub of this process."""

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import huggingface_hub.constants
import huggingface_hub.utils._http
import pytest

from hf_transfer.hub import publish
from tests.hub.finished import finished_run
from tests.hub.pushes import a_folder
from tests.hub.stand_in import WRITER, StandIn, served, with_accounts


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[StandIn]:
    """The Hub of this process's clients, with alice's token; retries do not wait."""
    with served(with_accounts()) as hub:
        monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", hub.endpoint)
        template = f"{hub.endpoint}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
        monkeypatch.setattr(huggingface_hub.constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub cache"))
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setattr(huggingface_hub.constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
        monkeypatch.setenv("HF_TOKEN", WRITER)
        at_once = SimpleNamespace(sleep=lambda seconds: None, time=time.time, monotonic=time.monotonic)
        monkeypatch.setattr(huggingface_hub.utils._http, "time", at_once)
        monkeypatch.setattr(publish, "SECONDS_BETWEEN", 0.0)
        yield hub


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A model to publish."""
    return a_folder(tmp_path / "model")


@pytest.fixture
def run(tmp_path: Path, picture_folder: Callable[..., Path]) -> Path:
    """The folder of a finished run."""
    return finished_run(tmp_path, picture_folder)


@pytest.fixture
def forbidden(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither data nor a model may be loaded."""

    def stop(*_: object, **__: object) -> None:
        raise AssertionError("this should have been refused before")

    monkeypatch.setattr("hf_transfer.data.checked.open_data", stop)
    monkeypatch.setattr("hf_transfer.models.pretrained.Checkpoint", stop)
