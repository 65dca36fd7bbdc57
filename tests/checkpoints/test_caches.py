"""Caches in a home directory that cannot be written to."""

import errno
import os
from collections.abc import Callable
from pathlib import Path

import datasets.config
import pytest
from huggingface_hub import constants

from hf_transfer.checkpoints.caches import usable_caches
from hf_transfer.data import hub_access
from hf_transfer.data.hub_access import cache_folder
from hf_transfer.errors import UserError
from hf_transfer.models.loading import loading_errors
from tests.conftest import Recipe


@pytest.fixture
def no_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home that cannot be written to, even by root: it is below a file."""
    (tmp_path / "file").write_text("x")
    home = tmp_path / "file/huggingface"
    monkeypatch.setattr(constants, "HF_HOME", str(home))
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(home / "hub"))
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", home / "datasets")
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr("tempfile.gettempdir", lambda: str(tmp_path / "temporary"))
    return home


def test_a_home_that_can_be_written_to_is_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HOME", str(tmp_path / "home"))
    with usable_caches(None) as sentence:
        assert sentence == ""
        assert cache_folder(None) == tmp_path / "home/hf_transfer"


def test_prepared_data_go_to_the_cache_folder_that_is_named(no_home: Path, tmp_path: Path) -> None:
    with usable_caches(str(tmp_path / "mine")) as sentence:
        assert tmp_path / "mine/datasets" == datasets.config.HF_DATASETS_CACHE
        assert sentence.startswith(
            f"{no_home / 'datasets'} cannot be written to: prepared data are in {tmp_path}/mine."
        )
        assert sentence.endswith("set HF_HOME to a folder that you can write to.")
    assert no_home / "datasets" == datasets.config.HF_DATASETS_CACHE


def test_without_one_they_go_to_a_folder_of_this_user_that_stays(no_home: Path, tmp_path: Path) -> None:
    """An interrupted run finds the same data again."""
    folder = tmp_path / "temporary" / f"hf_transfer-{os.getuid()}"
    for _ in range(2):
        with usable_caches(None) as sentence:
            assert cache_folder(None) == folder / "hf_transfer"
            assert f"prepared data are in {folder}." in sentence
    assert folder.stat().st_mode & 0o777 == 0o700
    assert str(no_home) == constants.HF_HOME


@pytest.mark.parametrize("trap", ["a link", "a file", "open to all"])
@pytest.mark.usefixtures("no_home")
def test_a_folder_that_others_can_write_to_is_not_used(trap: str, tmp_path: Path) -> None:
    folder = tmp_path / "temporary" / f"hf_transfer-{os.getuid()}"
    if trap == "a link":
        (tmp_path / "elsewhere").mkdir()
        folder.symlink_to(tmp_path / "elsewhere")
    elif trap == "a file":
        folder.write_text("x")
    else:
        folder.mkdir()
        folder.chmod(0o777)
    with pytest.raises(UserError, match="Do this:  set HF_HOME to a folder"), usable_caches(None):
        raise AssertionError("it is used")


@pytest.mark.usefixtures("no_home")
def test_a_named_folder_that_cannot_be_written_to_is_refused(tmp_path: Path) -> None:
    with (
        pytest.raises(UserError, match="a --cache_dir that can be written to"),
        usable_caches(str(tmp_path / "file/c")),
    ):
        raise AssertionError("it is used")


@pytest.mark.usefixtures("no_home")
def test_a_recipe_trains_without_a_home(vision: Recipe, picture_folder: Callable[..., Path]) -> None:
    ended = vision("--strategy", "linear_probe", cache_dir=None, dataset_name=picture_folder(cat=9, dog=9))
    assert ended.code == 0, ended.err
    assert "cannot be written to: prepared data are in" in ended.out


def denied(path: Path, number: int = errno.EACCES) -> OSError:
    return OSError(number, os.strerror(number), str(path))


@pytest.mark.parametrize("number", [errno.EACCES, errno.EPERM, errno.EROFS])
@pytest.mark.parametrize("below", ["hub/models--a--b/refs", "datasets", "."])
def test_a_download_that_cannot_be_written_names_the_home(number: int, below: str, no_home: Path) -> None:
    """Whatever a library makes of the error."""
    wrapped = OSError("PermissionError, check cache directory permissions")
    wrapped.__cause__ = denied(no_home / below, number)
    with pytest.raises(UserError) as caught, loading_errors("owner/model"):
        raise wrapped
    assert str(no_home / below) in str(caught.value)
    assert str(caught.value).endswith("Do this:  set HF_HOME to a folder that you can write to")


@pytest.mark.usefixtures("no_home")
def test_any_other_error_is_left_alone(tmp_path: Path) -> None:
    for error in (denied(tmp_path / "data/1.png"), OSError(errno.ENOSPC, "full", str(tmp_path)), ValueError("x"), None):
        hub_access.refuse_cache_without_rights(error)
