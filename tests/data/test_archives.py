"""Archives of a folder: read as the folder itself, and refused where they would do harm."""

import io
import shutil
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import datasets
import pytest

from hf_transfer.data.archives import unpacked
from tests.data.conftest import text_rows, user_error_with, write_table
from tests.data.small_folders import fill, read_pictures, read_texts, total, write_text

KINDS = {"zip": ".zip", "tar": ".tar", "gztar": ".tar.gz", "bztar": ".tar.bz2", "xztar": ".tar.xz"}


@pytest.mark.parametrize("kind", list(KINDS))
def test_an_archive_of_a_folder_is_read_as_the_folder(kind: str, tmp_path: Path) -> None:
    root = fill(tmp_path / "pets", "cat/day1", "cat/day2", "dog/day1")
    archive = shutil.make_archive(str(tmp_path / "data"), kind, tmp_path, "pets")
    shutil.rmtree(root)
    splits = read_pictures(Path(archive))
    assert total(splits) == {"cat": 10, "dog": 5}
    assert any(note.startswith(f"{archive} was unpacked into {tmp_path}/cache/archives/") for note in splits.notes)


def test_archives_of_texts_and_of_tables_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hf_transfer.data.sample_columns.cache_folder", lambda _: tmp_path / "cache")
    fill(tmp_path / "texts", "pos", "neg", write=write_text)
    write_table(tmp_path / "tables" / "train.csv", text_rows(30))
    assert total(read_texts(Path(shutil.make_archive(str(tmp_path / "a"), "zip", tmp_path / "texts")))) == {
        "pos": 5, "neg": 5,
    }  # fmt: skip
    assert total(read_texts(Path(shutil.make_archive(str(tmp_path / "b"), "gztar", tmp_path / "tables")))) == {
        "a": 15, "b": 15,
    }  # fmt: skip


def test_the_same_content_is_unpacked_once_and_other_content_again(tmp_path: Path) -> None:
    fill(tmp_path / "data", "x", "y")
    first = unpacked(Path(shutil.make_archive(str(tmp_path / "a"), "zip", tmp_path / "data")), tmp_path / "cache")
    shutil.copy(tmp_path / "a.zip", tmp_path / "b.zip")
    assert unpacked(tmp_path / "b.zip", tmp_path / "cache") == first
    fill(tmp_path / "data", "z")
    other = unpacked(Path(shutil.make_archive(str(tmp_path / "c"), "zip", tmp_path / "data")), tmp_path / "cache")
    assert sorted(path.name for path in other.iterdir()) == ["x", "y", "z"]
    assert len(list((tmp_path / "cache" / "archives").iterdir())) == 2


def test_what_another_process_has_just_unpacked_is_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(tmp_path / "data", "x", "y")
    archive = Path(shutil.make_archive(str(tmp_path / "a"), "zip", tmp_path / "data"))
    rename = Path.rename

    def second(partial: Path, folder: Path) -> Path:
        shutil.copytree(partial, folder)
        return rename(partial, folder)

    monkeypatch.setattr(Path, "rename", second)
    folder = unpacked(archive, tmp_path / "cache")
    assert sorted(path.name for path in folder.iterdir()) == ["x", "y"]
    assert list(folder.parent.iterdir()) == [folder]


def zip_of(path: Path, name: str, content: bytes = b"any", *, attributes: int = 0) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        info = zipfile.ZipInfo(name)
        info.external_attr, info.compress_type = attributes << 16, zipfile.ZIP_DEFLATED
        archive.writestr(info, content)
    return path


def tar_of(path: Path, member: tarfile.TarInfo, content: bytes = b"") -> Path:
    with tarfile.open(path, "w:gz") as archive:
        member.size = len(content)
        archive.addfile(member, io.BytesIO(content))
    return path


def link(kind: bytes) -> tarfile.TarInfo:
    member = tarfile.TarInfo("x/1.png")
    member.type, member.linkname = kind, "/etc/passwd"
    return member


LEAVING: dict[str, Callable[[Path], Path]] = {
    "dots in zip": lambda path: zip_of(path, "../../escaped.png"),
    "root in zip": lambda path: zip_of(path, "/outside/escaped.png"),
    "drive in zip": lambda path: zip_of(path, "C:\\escaped.png"),
    "backslashes in zip": lambda path: zip_of(path, "x\\..\\..\\escaped.png"),
    "link in zip": lambda path: zip_of(path, "x/1.png", b"/etc/passwd", attributes=0o120777),
    "dots in tar": lambda path: tar_of(path, tarfile.TarInfo("x/../../escaped.png")),
    "root in tar": lambda path: tar_of(path, tarfile.TarInfo("/outside/escaped.png")),
    "link in tar": lambda path: tar_of(path, link(tarfile.SYMTYPE)),
    "hard link in tar": lambda path: tar_of(path, link(tarfile.LNKTYPE)),
    "device in tar": lambda path: tar_of(path, link(tarfile.CHRTYPE)),
}


@pytest.mark.parametrize("kind", list(LEAVING))
def test_an_archive_with_links_or_paths_that_leave_its_folder_is_refused(kind: str, tmp_path: Path) -> None:
    archive = LEAVING[kind](tmp_path / ("a.zip" if "zip" in kind else "a.tar.gz"))
    with user_error_with(
        expected=f"in {archive} files that stay in their folder, and no links", found="", do="unpack it"
    ):
        unpacked(archive, tmp_path / "below" / "cache")
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == [archive]


@pytest.mark.parametrize("kind", ["zip", "tar"])
def test_an_archive_that_grows_a_hundredfold_is_refused(kind: str, tmp_path: Path) -> None:
    filling = bytes(20_000_000)
    path = tmp_path / "a.zip" if kind == "zip" else tmp_path / "a.tgz"
    archive = zip_of(path, "x/1.png", filling) if kind == "zip" else tar_of(path, tarfile.TarInfo("x/1.png"), filling)
    with user_error_with(
        expected="unpacks to at most 10,000,000 bytes, 100 times", found=f"more in {path}", do="unpack"
    ):
        unpacked(archive, tmp_path / "cache")
    assert [one for one in tmp_path.rglob("*") if one.is_file()] == [path]


def test_a_header_that_would_fill_the_memory_is_refused(tmp_path: Path) -> None:
    member = tarfile.TarInfo("x/1.png")
    member.pax_headers = {"comment": "a" * 5_000_000}
    with user_error_with(expected="that can be unpacked", found="", do="unpack it yourself, and name the folder"):
        unpacked(tar_of(tmp_path / "a.tar.gz", member), tmp_path / "cache")


@pytest.mark.parametrize("name", ["a.zip", "a.tar", "a.tar.xz"])
def test_a_damaged_archive_is_refused(name: str, tmp_path: Path) -> None:
    fill(tmp_path / "data", "x", "y")
    kind = {"a.zip": "zip", "a.tar": "tar", "a.tar.xz": "xztar"}[name]
    archive = Path(shutil.make_archive(str(tmp_path / "a"), kind, tmp_path / "data"))
    archive.write_bytes(archive.read_bytes()[:700])
    with user_error_with(expected=f"a zip or tar archive in {archive} that can be unpacked", found="", do="unpack it"):
        unpacked(archive, tmp_path / "cache")


@pytest.mark.parametrize("splits", [["train"], ["train", "test"], ["train", "validation", "test"]])
def test_what_datasets_has_saved_is_read(splits: list[str], tmp_path: Path) -> None:
    data = datasets.DatasetDict({
        split: datasets.Dataset.from_list(text_rows(30, seed=seed)) for seed, split in enumerate(splits)
    })  # fmt: skip
    (data if len(splits) > 1 else data["train"]).save_to_disk(tmp_path / "saved[1]")
    assert total(read_texts(tmp_path / "saved[1]")) == {"a": 15 * len(splits), "b": 15 * len(splits)}
