"""Data that want more than to be read: archives that explode, paths that leave their folder, scripts, addresses."""

import bz2
import functools
import gzip
import io
import json
import lzma
import subprocess
import sys
import tarfile
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

import datasets.config
import pytest

from hf_transfer.data.pictures import decode
from tests.conftest import REPOSITORY
from tests.data.conftest import png_by_hand, raw_bytes, text_rows, user_error_with, write_table
from tests.data.small_folders import read_pictures, read_texts
from tests.hub.clients import environment
from tests.hub.contents import Repository
from tests.hub.stand_in import StandIn, served

# So much, of so little: enough to tell that nothing was unpacked, and no burden on the machine that runs the test.
FILLING = b"a,b\n" * 1_000_000
PRIVATE = "what only the person who runs this may read"


def zipped() -> bytes:
    """Also a file that would lie two folders higher."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("train.csv", FILLING)
        archive.writestr("../../escaped.csv", "text,label\n")
    return buffer.getvalue()


def tarred(mode: str = "w:gz") -> bytes:
    """Also a file that would lie two folders higher, and a link to one of the machine's own."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=mode) as archive:  # type: ignore[call-overload]
        for name, content in (
            ("train.csv", FILLING if mode == "w:gz" else b"text,label\n"),
            ("../../escaped.csv", b""),
        ):
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
        link = tarfile.TarInfo("test.csv")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(link)
    return buffer.getvalue()


BOMBS: dict[str, Callable[[], bytes]] = {
    "zip": zipped,
    "gzip": lambda: gzip.compress(FILLING),
    "bz2": lambda: bz2.compress(FILLING),
    "xz": lambda: lzma.compress(FILLING),
    "tar": tarred,
    "plain tar": lambda: tarred("w"),
}


@functools.cache
def bomb(kind: str) -> bytes:
    return BOMBS[kind]()


def written(folder: Path) -> int:
    """Bytes in all files below a folder."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def test_the_bombs_of_these_tests_are_small_and_would_go_off(tmp_path: Path) -> None:
    """`datasets` unpacks any file that begins like an archive."""
    assert all(len(bomb(kind)) < 200_000 for kind in BOMBS)
    (tmp_path / "a.csv").write_bytes(bomb("gzip"))
    assert datasets.load_dataset("csv", data_files=str(tmp_path / "a.csv"))["train"].num_rows == 999_999


@pytest.mark.parametrize("kind", list(BOMBS))
@pytest.mark.parametrize("name", ["a.csv", "a.jsonl", "a.parquet"])
def test_a_compressed_table_is_refused_and_not_unpacked(kind: str, name: str, tmp_path: Path) -> None:
    """Whatever its name is."""
    path = tmp_path / "data" / "inner" / name
    path.parent.mkdir(parents=True)
    path.write_bytes(bomb(kind))
    for source in (path, path.parent):
        with user_error_with(
            expected="data that are not compressed",
            found=f"{path}, which is compressed with {kind.split()[-1]}",
            do="unpack it, check what comes out",
        ):
            read_texts(source)
    assert not list(tmp_path.rglob("escaped*"))
    assert written(Path(datasets.config.HF_DATASETS_CACHE)) < 1_000_000


def test_an_archive_among_pictures_is_refused_and_not_unpacked(
    picture_folder: Callable[..., Path], tmp_path: Path
) -> None:
    """`datasets` would add what is in it to the pictures."""
    folder = picture_folder(cat=6, dog=6)
    (folder / "cat" / "more.zip").write_bytes(zipped())
    with user_error_with(
        expected="data that are not compressed", found="cat/more.zip, which is compressed with zip", do="move"
    ):
        read_pictures(folder)
    assert not list(tmp_path.rglob("escaped*"))


@pytest.mark.parametrize("kind", ["csv", "jsonl"])
@pytest.mark.parametrize("name", ["../secret.png", "{outside}", "file://{outside}", "cat/../../secret.png"])
def test_a_path_in_a_metadata_file_that_leaves_the_folder_is_refused(
    kind: str, name: str, picture_folder: Callable[..., Path], tmp_path: Path
) -> None:
    """Such a path would reach files that do not belong to the data."""
    folder = picture_folder(cat=6, dog=6)
    outside = tmp_path / "secret.png"
    outside.write_bytes((folder / "cat/000.png").read_bytes())
    named = [f"{label}/00{n}.png" for label in ("cat", "dog") for n in range(6)] + [name.format(outside=outside)]
    rows = [{"file_name": path, "label": path[:1] if path in named[:-1] else "c"} for path in named]
    lines = ["file_name,label", *(f"{row['file_name']},{row['label']}" for row in rows)]
    text = "\n".join(lines if kind == "csv" else map(json.dumps, rows)) + "\n"
    (folder / f"metadata.{kind}").write_text(text)
    with user_error_with(
        expected=f"paths of images that stay in {folder}, relative to their table",
        found=f"1 that leave it: {named[-1]} in metadata.{kind}, line {14 if kind == 'csv' else 13}",
        do="copy these images into the folder",
    ):
        read_pictures(folder)


def test_a_link_to_another_file_is_refused_as_a_picture_and_its_content_is_not_shown(
    picture_folder: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Links are followed, since folders of links are a way to arrange pictures."""
    folder = picture_folder(cat=6, dog=6)
    (tmp_path / "secrets.txt").write_text(PRIVATE)
    (folder / "cat" / "000.png").unlink()
    (folder / "cat" / "000.png").symlink_to(tmp_path / "secrets.txt")
    with user_error_with(
        expected="images that can be read", found=f"{len(PRIVATE)} bytes that are not a JPEG", do="fix"
    ):
        read_pictures(folder)
    assert PRIVATE not in "".join(capsys.readouterr())


def test_an_address_in_a_table_of_pictures_gets_no_request(tmp_path: Path) -> None:
    """It might be one that only this machine can reach."""
    with served(StandIn()) as hub:
        rows = [{"image": f"{hub.endpoint}/{n}.png", "label": "ab"[n % 2]} for n in range(12)]
        path = write_table(tmp_path / "a.csv", rows)
        with user_error_with(
            expected="files for all images that column 'image' names", found="12 that do not exist: http", do="correct"
        ):
            read_pictures(path)
    assert hub.asked == []


def test_a_picture_whose_text_would_unpack_to_gigabytes_is_refused() -> None:
    """Pillow reads a comment of one megabyte at most."""

    def chunk(name: bytes, body: bytes) -> bytes:
        return len(body).to_bytes(4, "big") + name + body + zlib.crc32(name + body).to_bytes(4, "big")

    whole = png_by_hand(2, 2, rows=[bytes(6)] * 2)
    bomb = whole[:33] + chunk(b"zTXt", b"Comment\0\0" + zlib.compress(FILLING)) + whole[33:]
    assert decode(raw_bytes(whole)).size == (2, 2)
    with pytest.raises(ValueError, match=r"^damaged: Decompressed data too large"):
        decode(raw_bytes(bomb))


SCRIPT = """
from pathlib import Path
Path({ran!r}).touch()
"""


@pytest.mark.slow
def test_a_script_in_a_data_set_on_the_hub_is_not_run(tmp_path: Path) -> None:
    """With the real client in a new process, since it reads its environment when it is imported."""
    folder, ran = tmp_path / "folder", tmp_path / "ran"
    folder.mkdir()
    (folder / "messages.py").write_text(SCRIPT.format(ran=str(ran)))
    write_table(folder / "train.csv", text_rows(20))
    command = (
        "from hf_transfer.data.checked import load_splits\n"
        "from hf_transfer.modalities.text import TextModality\n"
        "from hf_transfer.settings.run import TextConfig\n"
        "config = TextConfig.of(model_name_or_path='m', dataset_name='org/messages', output_dir='o')\n"
        "load_splits(config, TextModality())\n"
    )
    with served(StandIn(repositories={("datasets", "org/messages"): Repository(folder)})) as hub:
        surroundings = environment(hub.endpoint, tmp_path / "home") | {"PYTHONPATH": str(REPOSITORY)}
        done = subprocess.run(
            [sys.executable, "-c", command], env=surroundings, capture_output=True, text=True, timeout=240, check=False
        )
    assert not ran.exists()
    assert "UserError: Expected: a data set that can be read at org/messages" in done.stderr
    assert "Found:    Dataset scripts are no longer supported, but found messages.py" in done.stderr
