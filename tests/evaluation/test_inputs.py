"""Files that a run reads: in the folder that it would replace, under any path, and changed since."""

import json
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from hf_transfer.errors import UserError
from hf_transfer.evaluation import inputs
from hf_transfer.settings.run import MultimodalConfig, TextConfig, VisionConfig

Paths = Callable[[Path], str]
OUT_MODEL: dict[str, Paths] = {
    "its path": lambda root: f"{root}/out/model",
    "a relative path": lambda root: os.path.relpath(root / "out/model"),
    "a path with ..": lambda root: f"{root}/data/../out/model",
    "a path with a slash at its end": lambda root: f"{root}/out/model/",
    "a folder in it": lambda root: f"{root}/out/model/inner",
    "a link to it": lambda root: linked(root / "link", root / "out/model"),
    "a link to the folder of the run": lambda root: linked(root / "link", root / "out") + "/model",
    "a path with .. through a link": lambda root: linked(root / "link", root / "out/model/inner") + "/../../model",
    "a folder of links to its files": lambda root: linked(root / "copy/weights", root / "out/model/weights", up=1),
    "a folder with a link to such a folder": lambda root: twice_linked(root),
}


def linked(link: Path, target: Path, up: int = 0) -> str:
    link.parent.mkdir(exist_ok=True)
    link.symlink_to(target)
    return str([link, *link.parents][up])


def twice_linked(root: Path) -> str:
    return linked(root / "outer/model", Path(linked(root / "copy/weights", root / "out/model/weights", up=1)), up=1)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A folder with a run in `out`, and data in `data`."""
    for name in ("out/model/inner", "data/a"):
        (tmp_path / name).mkdir(parents=True)
    for name in ("out/model/weights", "out/model/inner/file", "out/curves.png", "data/a/1.png", "data/train.csv"):
        (tmp_path / name).write_text(name)
    return tmp_path


def config_of(kind: Any, root: Path, **settings: Any) -> Any:
    return kind.of(**{"dataset_name": str(root / "data"), "output_dir": str(root / "out")} | settings)


def refuse(root: Path, kind: Any = VisionConfig, **settings: Any) -> None:
    config = config_of(kind, root, **settings)
    inputs.refuse_replaced_inputs(config, [root / "out/model", root / "out/curves.png"])


@pytest.mark.parametrize("kind", [VisionConfig, TextConfig])
@pytest.mark.parametrize("name", OUT_MODEL)
def test_a_model_in_the_folder_that_is_replaced_is_refused(kind: Any, name: str, root: Path) -> None:
    path = OUT_MODEL[name](root)
    with pytest.raises(UserError, match="a --model_name_or_path that this run does not replace") as caught:
        refuse(root, kind, model_name_or_path=path)
    assert f", which reads {root}/out/model\n" in str(caught.value)
    # As the message says: in another folder it is no problem.
    inputs.refuse_replaced_inputs(config_of(kind, root, model_name_or_path=path, output_dir=str(root / "new")), [])


@pytest.mark.parametrize("name", ["its path", "a link to it", "a folder of links to its files"])
def test_data_in_the_folder_that_is_replaced_are_refused(name: str, root: Path) -> None:
    with pytest.raises(UserError, match="a --dataset_name that this run does not replace"):
        refuse(root, model_name_or_path="sample:vit-glyphs", dataset_name=OUT_MODEL[name](root))


@pytest.mark.parametrize("tower", ["image_model_name_or_path", "text_model_name_or_path"])
def test_a_tower_in_the_folder_that_is_replaced_is_refused(tower: str, root: Path) -> None:
    towers = {"image_model_name_or_path": "sample:vit-glyphs", "text_model_name_or_path": "sample:minilm"}
    with pytest.raises(UserError, match=f"a --{tower} that this run does not replace"):
        refuse(root, MultimodalConfig, **{**towers, tower: str(root / "out/model")})


def test_an_adapter_whose_base_is_replaced_is_refused(root: Path) -> None:
    (root / "adapter").mkdir()
    settings = {"base_model_name_or_path": str(root / "out/model")}
    (root / "adapter/adapter_config.json").write_text(json.dumps(settings))
    with pytest.raises(UserError, match="a --model_name_or_path that this run does not replace"):
        refuse(root, model_name_or_path=str(root / "adapter"))


def test_a_metric_in_the_folder_that_is_replaced_is_refused(root: Path) -> None:
    with pytest.raises(UserError, match="a --metrics that this run does not replace"):
        refuse(root, model_name_or_path="sample:vit-glyphs", metrics=[str(root / "out/model/weights")])


def test_a_file_of_settings_in_a_folder_that_is_replaced_is_refused(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.argv", ["vision.py", "--config", str(root / "out/model/weights")])
    with pytest.raises(UserError, match="a --config that this run does not replace"):
        refuse(root, model_name_or_path="sample:vit-glyphs")
    monkeypatch.setattr("sys.argv", ["vision.py", f"--config={root}/out/config.yaml"])
    refuse(root, model_name_or_path="sample:vit-glyphs")


@pytest.mark.parametrize("data", [".", "out"])
def test_data_that_contain_the_pictures_of_the_run_are_refused(data: str, root: Path) -> None:
    with pytest.raises(UserError, match=f"Found:    .*, which contains {root}/out/curves.png\n"):
        refuse(root, model_name_or_path="sample:vit-glyphs", dataset_name=str(root / data))


@pytest.mark.parametrize("model", ["sample:vit-glyphs", "owner/model", "data", "out/other"])
def test_any_other_model_is_accepted(model: str, root: Path) -> None:
    """Also one in the folder of the run that no run writes."""
    (root / "out/other").mkdir()
    refuse(root, model_name_or_path=str(root / model) if (root / model).exists() else model)


def test_a_name_in_other_letters_is_the_same_where_the_disk_says_so(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on macOS and Windows, whose disks find a file under both."""
    (root / "OUT/MODEL").mkdir(parents=True)
    refuse(root, model_name_or_path=str(root / "OUT/MODEL"))
    monkeypatch.setattr(Path, "samefile", lambda one, other: str(one).lower() == str(other).lower())
    with pytest.raises(UserError, match="that this run does not replace"):
        refuse(root, model_name_or_path=str(root / "OUT/MODEL"))


# Changes since


def change(root: Path, how: str) -> None:
    table, picture = root / "data/train.csv", root / "data/a/1.png"
    if how == "a file more":
        (root / "data/b").mkdir()
        (root / "data/b/2.png").write_text("new")
    elif how == "a file less":
        picture.unlink()
    elif how == "another name":
        picture.rename(root / "data/a/2.png")
    elif how == "another class":
        picture.rename(root / "data/1.png")
    elif how == "a row more":
        table.write_text(table.read_text() + "one more\n")
    elif how == "other text of the same length":
        table.write_text(table.read_text()[::-1])
        os.utime(table, (1, 1))


CHANGED = {
    "a file more": "has changed since (2 files then, 3 now; 26 bytes then, 29 now)",
    "a file less": "has changed since (2 files then, 1 now; 26 bytes then, 14 now)",
    "another name": "has changed since (2 files then, 2 now; 26 bytes then, 26 now)",
    "another class": "has changed since (2 files then, 2 now; 26 bytes then, 26 now)",
    "a row more": "has changed since (2 files then, 2 now; 26 bytes then, 35 now)",
    "other text of the same length": "may have changed since: files of the same names and sizes were written again",
}


@pytest.mark.parametrize("kind", [VisionConfig, TextConfig])
@pytest.mark.parametrize("how", CHANGED)
def test_changed_data_are_named(how: str, kind: Any, root: Path) -> None:
    config = config_of(kind, root, model_name_or_path="sample:vit-glyphs")
    before = inputs.fingerprints(config)
    assert inputs.changes(config, before) == []
    change(root, how)
    assert inputs.changes(config, before) == [f"--dataset_name {root}/data {CHANGED[how]}."]


def test_changed_models_are_named(root: Path) -> None:
    """Towers, too."""
    towers = {"image_model_name_or_path": str(root / "out/model"), "text_model_name_or_path": "sample:minilm"}
    config = config_of(MultimodalConfig, root, **towers)
    before = inputs.fingerprints(config)
    (root / "out/model/weights").write_text("other weights")
    (sentence,) = inputs.changes(config, before)
    assert sentence.startswith(f"--image_model_name_or_path {root}/out/model has changed since (2 files then, 2 now;")


def test_what_is_not_data_does_not_count(root: Path) -> None:
    """Hidden files, and the folder of the run where it is in the data."""
    config = config_of(VisionConfig, root, model_name_or_path="sample:vit-glyphs", output_dir=str(root / "data/out"))
    before = inputs.fingerprints(config)
    (root / "data/.cache").mkdir()
    (root / "data/out").mkdir()
    for name in (".DS_Store", ".cache/x", "out/results.json"):
        (root / "data" / name).write_text("x")
    assert inputs.changes(config, before) == []


def test_other_data_than_local_files_are_not_compared(root: Path) -> None:
    config = config_of(VisionConfig, root, model_name_or_path="sample:vit-glyphs", dataset_name="sample:digits")
    assert inputs.fingerprints(config) == {}
    assert inputs.changes(config_of(VisionConfig, root, model_name_or_path="m"), {}) == []


def test_looking_for_changes_takes_no_longer_than_its_limit(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = config_of(VisionConfig, root, model_name_or_path="sample:vit-glyphs")
    before = inputs.fingerprints(config)
    visible, looked_at = inputs._visible_files, []

    def noted(*arguments: Path) -> Iterator[Path]:
        for file in visible(*arguments):
            looked_at.append(file)
            yield file

    monkeypatch.setattr(inputs, "SECONDS_TO_COMPARE", -1.0)
    monkeypatch.setattr(inputs, "_visible_files", noted)
    assert inputs.changes(config, before) == [
        f"--dataset_name {root}/data has too many files to look for changes quickly."
    ]
    assert len(looked_at) == 1, "it gives up at the first file"


def test_each_folder_is_looked_at_once_and_only_files_that_are_read_count(root: Path) -> None:
    """Two links that lead upwards would otherwise be followed for ever."""
    before = inputs.fingerprint(root / "data", root / "out")
    for name in ("a", "b"):
        (root / "data" / name).mkdir(exist_ok=True)
        linked(root / "data" / name / "up", root / "data")
    for name in ("Thumbs.db", ".hidden", "__MACOSX/1.png"):
        (root / "data" / name).parent.mkdir(exist_ok=True)
        (root / "data" / name).write_text("any")
    assert inputs.fingerprint(root / "data", root / "out", time.monotonic() + 20) == before
    linked(root / "data" / "linked", root / "out/model")
    assert inputs.fingerprint(root / "data", root / "out")["files"] == before["files"] + 2
