"""Versions that are recorded with results, checkpoints, stores and models."""

import importlib.metadata
import platform

import pytest

import hf_transfer
from hf_transfer.versions import PACKAGES, versions


def test_versions_are_those_of_this_package_of_python_and_of_what_numbers_depend_on() -> None:
    """Pixels and tokens, too: another tokenizer may split a text otherwise."""
    recorded = versions()
    assert list(recorded)[:2] == ["hf-transfer-learning", "python"]
    assert recorded["python"] == platform.python_version()
    assert {"torch", "transformers", "tokenizers", "pillow", "kornia", "numpy", "scipy"} <= recorded.keys()
    assert {name: recorded[name] for name in PACKAGES} == {name: importlib.metadata.version(name) for name in PACKAGES}


def test_the_version_of_this_package_is_that_of_its_source(monkeypatch: pytest.MonkeyPatch) -> None:
    """A source tree may run beside an installation of another version, or without any."""
    installed = importlib.metadata.version

    def without_ours(name: str) -> str:
        if "hf" in name:
            raise importlib.metadata.PackageNotFoundError(name)
        return installed(name)

    monkeypatch.setattr(importlib.metadata, "version", without_ours)
    assert versions()["hf-transfer-learning"] == hf_transfer.__version__
    monkeypatch.setattr(hf_transfer, "__version__", "9.9")
    assert versions()["hf-transfer-learning"] == "9.9"
