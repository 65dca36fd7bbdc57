"""Folders of adapters that try to run code, or are damaged: nothing is run, and errors are explained."""

import json
import os
import pickle  # noqa: TID251 (to show that it is never read)
import shutil
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hf_transfer.errors import UserError
from hf_transfer.evaluation.saved_model import load_finished
from hf_transfer.models.pretrained import Checkpoint
from hf_transfer.strategies.adapter_files import adapter_settings, load_adapter, save_adapter
from hf_transfer.strategies.adapters import LowRankAdaptation
from hf_transfer.targets.classes import Classes
from tests.conftest import DRAWN_ONLY
from tests.strategies.test_adapters import adapt
from tests.tiny_models import tiny_model


class Payload:
    """When it is unpickled, it makes a folder."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (str(self.path),)


@pytest.fixture(scope="module")
def valid_adapter(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of an adapter."""
    folder = tmp_path_factory.mktemp("valid") / "adapter"
    save_adapter(adapt("vit", LowRankAdaptation()).model, folder, base_model_name="someone/vit")
    return folder


@pytest.fixture
def folder(valid_adapter: Path, tmp_path: Path) -> Path:
    """A copy that a test can change."""
    return Path(shutil.copytree(valid_adapter, tmp_path / "adapter"))


def change(folder: Path, **changes: Any) -> None:
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def refused(load: Callable[[], object]) -> list[str]:
    with pytest.raises(UserError) as caught:
        load()
    return str(caught.value).splitlines()


@pytest.fixture
def evil(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A module that could be imported."""
    (tmp_path / "evil_module.py").write_text("")
    monkeypatch.syspath_prepend(str(tmp_path))
    return "evil_module"


def test_a_module_that_an_adapter_names_is_not_imported(folder: Path, evil: str) -> None:
    """peft would import it when it searches layers that it can adapt."""
    change(folder, megatron_config={"tensor_model_parallel_size": 1}, megatron_core=evil)
    assert refused(lambda: load_adapter(folder, tiny_model("vit"))) == [
        f"Expected: an adapter in {folder} whose settings run no code",
        "Found:    megatron_core in its settings, which would import 'evil_module'",
        "Do this:  do not use this adapter",
    ]
    assert evil not in sys.modules


def test_the_module_of_a_class_that_an_adapter_names_is_not_imported(folder: Path, evil: str) -> None:
    change(folder, auto_mapping={"base_model_class": "Evil", "parent_library": evil})
    load_adapter(folder, tiny_model("vit"))
    assert evil not in sys.modules


@pytest.mark.parametrize("beside", [False, True])
def test_a_pickle_instead_of_an_adapter_or_beside_it_is_not_read(beside: bool, folder: Path, tmp_path: Path) -> None:
    (folder / "adapter_model.bin").write_bytes(pickle.dumps(Payload(tmp_path / "ran")))
    if beside:
        load_adapter(folder, tiny_model("vit"))
    else:
        (folder / "adapter_model.safetensors").unlink()
        assert refused(lambda: load_adapter(folder, tiny_model("vit")))[1] == "Found:    a folder without these files"
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("content", "found"),
    [
        (b"{", "JSONDecodeError: Expecting property name"),
        (b"[1]", "TypeError: "),
        (b"{}", "KeyError: 'base_model_name_or_path'"),
        (b'{"base_model_name_or_path": null}', "AttributeError: "),
        (b"\xff", "UnicodeDecodeError: "),
    ],
)
def test_settings_that_cannot_be_read_are_refused(content: bytes, found: str, folder: Path) -> None:
    (folder / "adapter_config.json").write_bytes(content)
    for load in (
        lambda: adapter_settings(folder),
        lambda: load_finished(Checkpoint(str(folder), task="image-classification"), Classes(("a", "b"))),
    ):
        expected, problem, do = refused(load)
        assert expected.startswith(f"Expected: the settings of an adapter in {folder / 'adapter_config.json'}")
        assert problem.startswith(f"Found:    {found}")
        assert do == "Do this:  name the folder OUT/model of a run with adapters"


VALUES = st.sampled_from([None, -1, 0, 10**6, 1.5, "x", "", [], {}, [1], {"a": 1}, True, "LORA", "LOHA", "(a+)+$"])


@given(st.data())
@settings(max_examples=25, phases=DRAWN_ONLY)
def test_a_damaged_adapter_is_read_or_refused_with_a_clear_error(
    valid_adapter: Path, tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    folder = Path(shutil.copytree(valid_adapter, tmp_path_factory.mktemp("damaged") / "adapter"))
    if data.draw(st.booleans()):
        names = sorted(json.loads((folder / "adapter_config.json").read_text()))
        change(folder, **{data.draw(st.sampled_from(names)): data.draw(VALUES)})
    else:
        path = folder / "adapter_model.safetensors"
        content = path.read_bytes()
        place = data.draw(st.integers(0, 200))
        path.write_bytes(content[:place] + data.draw(st.binary(max_size=2)) + content[place + 2 :])
    with suppress(UserError):
        load_adapter(folder, tiny_model("vit"))
