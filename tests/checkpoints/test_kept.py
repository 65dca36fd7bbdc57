"""`hf-transfer cache`: everything that runs keep is listed and can be deleted, and nothing else."""

import os
import re
import shutil
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest

from hf_transfer import command_line
from hf_transfer.checkpoints.kept import delete, kept_in, table_of
from hf_transfer.data.complete_files import partial_of
from tests.conftest import Finished, Recipe, exit_code
from tests.forks import forked

Console = Callable[..., Finished]
HEX = "0123456789abcdef" * 4
STORES = {
    f"archives/{HEX[:32]}/a/b.txt": "unpacked archives",
    f"backbones/{HEX}/model.safetensors": "converted sample backbones",
    f"cuts/{HEX}/splits.int8": "which rows were split off",
    f"frozen/{HEX}/000000.safetensors": "outputs of frozen layers",
    f"pixels/1-{HEX[:32]}/{HEX[:32]}.pixels": "resized pictures",
    f"tokens/{HEX}/input_ids.npy": "tokens of texts",
    f"verified/{HEX}.json": "results of checks of pictures",
}
DAY = 86_400


@pytest.fixture
def console(capsys: pytest.CaptureFixture[str]) -> Console:
    def run(*words: object) -> Finished:
        code = exit_code(lambda: command_line.main([str(word) for word in words]))
        captured = capsys.readouterr()
        return Finished(code, captured.out, captured.err)

    return run


def make(folder: Path, name: str, days_ago: float = 0.0, size: int = 5000) -> Path:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(os.urandom(size))
    os.utime(path, (time.time() - days_ago * DAY,) * 2)
    return path


def names(listed: str) -> list[str]:
    return re.findall(r"[a-z]+/[-0-9a-f]+|verified", listed)


def test_each_store_is_listed_with_size_last_use_and_content(console: Console, tmp_path: Path) -> None:
    for name in STORES:
        make(tmp_path, name, size=81_920)
    *lines, total = console("cache", "--cache_dir", tmp_path).out.splitlines()
    today = time.strftime("%Y-%m-%d")
    for line, (name, what) in zip(lines, STORES.items(), strict=True):
        assert re.fullmatch(rf"\s*81.9 kB  {today} \d\d:\d\d  {name[:8]}\S*\s+{what}", line), line
    assert total == f"573 kB in {tmp_path}"


def test_an_empty_folder_and_a_missing_one_have_nothing_to_list(console: Console, tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "missing"):
        finished = console("cache", "--cache_dir", folder)
        assert (finished.code, finished.out) == (0, f"0 B in {folder}\n")
    assert console("cache", "--cache_dir", tmp_path, "--clear").out == f"0 B deleted from {tmp_path}\n"


def test_everything_that_a_run_keeps_is_listed_and_deleted(
    console: Console, vision: Recipe, picture_folder: Callable[..., Path], tmp_path: Path
) -> None:
    """The run then starts from nothing, and ends with the same."""
    archive = shutil.make_archive(str(tmp_path / "archive"), "zip", picture_folder(cat=12, dog=12))
    settings: dict[str, object] = {"dataset_name": archive, "max_train_samples_per_class": None}
    settings |= {"strategy": "linear_probe", "num_train_epochs": None}
    assert vision(**settings).code == 0
    cache, weights = tmp_path / "cache", tmp_path / "out/model/model.safetensors"
    first = weights.read_bytes()
    listed = console("cache", "--cache_dir", cache).out
    assert {name.partition("/")[0] for name in names(listed)} == {"archives", "frozen", "pixels", "verified"}
    assert console("cache", "--cache_dir", cache, "--clear").code == 0
    # A lock is an empty file.
    assert [path for path in cache.rglob("*") if path.is_file() and path.stat().st_size] == []
    assert vision("--overwrite_output_dir", **settings).code == 0
    assert weights.read_bytes() == first


@pytest.mark.parametrize(
    ("given", "deleted"),
    [
        ([], set(STORES)),
        (["pixels"], {name for name in STORES if name.startswith("pixels")}),
        (["frozen/0123", "verified"], {name for name in STORES if name[0] in "fv"}),
        ([f"archives/{HEX[:32]}"], {name for name in STORES if name.startswith("archives")}),
    ],
    ids=["all", "kind", "beginning", "name"],
)
def test_what_is_named_is_deleted(given: list[str], deleted: set[str], console: Console, tmp_path: Path) -> None:
    for name in STORES:
        make(tmp_path, name)
    assert console("cache", "--cache_dir", tmp_path, "--clear", *given).code == 0
    assert {name for name in STORES if not (tmp_path / name).exists()} == deleted


def test_a_kind_of_which_nothing_is_kept_may_be_named(console: Console, tmp_path: Path) -> None:
    """A program that clears a cache need not look into it."""
    make(tmp_path, f"pixels/1-{HEX[:32]}/{HEX[:32]}.pixels", size=81_920)
    finished = console("cache", "--cache_dir", tmp_path, "--clear", "pixels", "verified")
    assert finished.code == 0
    assert finished.out.splitlines()[-1] == f"81.9 kB deleted from {tmp_path}"


def test_only_what_was_not_used_for_some_days_is_listed_or_deleted(console: Console, tmp_path: Path) -> None:
    old, new = (f"frozen/{sign * 64}/000000.safetensors" for sign in "ab")
    make(tmp_path, old, days_ago=8)
    make(tmp_path, new, days_ago=6)
    assert names(console("cache", "--cache_dir", tmp_path, "--older_than", 7).out) == [f"frozen/{'a' * 14}"]
    console("cache", "--cache_dir", tmp_path, "--older_than", 7, "--clear", "frozen")
    assert ((tmp_path / old).exists(), (tmp_path / new).exists()) == (False, True)


def test_what_was_used_last_is_listed_first(console: Console, tmp_path: Path) -> None:
    for days, sign in ((2, "a"), (1, "b"), (3, "c")):
        make(tmp_path, f"frozen/{sign * 64}/000000.safetensors", days_ago=days)
    listed = names(console("cache", "--cache_dir", tmp_path).out)
    assert [name[-1] for name in listed] == ["b", "a", "c"]


@pytest.mark.parametrize("kind", ["cuts", "tokens"])
def test_what_a_killed_run_has_left_is_listed_and_deleted(kind: str, console: Console, tmp_path: Path) -> None:
    rest = make(tmp_path, f"{kind}/.{HEX}-{HEX[:32]}/input_ids")
    assert f"{kind}/.{HEX[:13]}" in console("cache", "--cache_dir", tmp_path).out
    console("cache", "--cache_dir", tmp_path, "--clear")
    assert not rest.parent.exists()


def test_files_that_are_not_ours_stay(console: Console, tmp_path: Path) -> None:
    """A person may name any folder in --cache_dir, and have a folder `pixels` of his own in it."""
    others = [
        make(tmp_path, name)
        for name in ("pixels/holiday/1.jpg", "frozen/peas.txt", "verified/notes.json", "datasets/a.csv", "b.txt")
    ]
    target = make(tmp_path / "elsewhere", "kept.txt")
    (tmp_path / "archives").mkdir()
    (tmp_path / "archives" / HEX[:32]).symlink_to(target.parent, target_is_directory=True)
    assert console("cache", "--cache_dir", tmp_path, "--clear").out == f"0 B deleted from {tmp_path}\n"
    assert all(path.is_file() for path in [*others, target])


@pytest.mark.parametrize("kind", ["cuts", "tokens", "frozen", "verified"])
def test_what_a_killed_run_has_left_unfinished_is_listed_and_deleted(
    kind: str, console: Console, tmp_path: Path
) -> None:
    partial = partial_of(tmp_path / kind / (HEX + (".json" if kind == "verified" else "")))
    if kind == "verified":
        make(tmp_path, f"{kind}/{partial.name}", size=81_920)
    else:
        make(tmp_path, f"{kind}/{partial.name}/flat", size=81_920)
    assert console("cache", "--cache_dir", tmp_path).out.splitlines()[-1] == f"81.9 kB in {tmp_path}"
    console("cache", "--cache_dir", tmp_path, "--clear")
    assert list((tmp_path / kind).iterdir()) == []


def write_again_and_again(cache: Path, seconds: float) -> None:
    end = time.time() + seconds
    while time.time() < end:
        for number in range(20):
            with suppress(OSError):
                make(cache, f"pixels/1-{number % 2:032x}/{number:032x}.pixels", size=10)
                make(cache, f"verified/{number:064x}.json", size=10)
        time.sleep(0.005)


def delete_again_and_again(cache: Path, seconds: float) -> None:
    end = time.time() + seconds
    while time.time() < end:
        delete(kept_in(cache))
        table_of(kept_in(cache))


def test_runs_may_write_and_other_commands_delete_while_a_command_lists_and_deletes(tmp_path: Path) -> None:
    processes = [
        forked(work, tmp_path, 0.7) for work in (write_again_and_again, delete_again_and_again, delete_again_and_again)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0, 0, 0]


def test_a_link_in_a_store_is_deleted_and_what_it_leads_to_stays(console: Console, tmp_path: Path) -> None:
    target = make(tmp_path / "elsewhere", "kept.txt")
    make(tmp_path, f"archives/{HEX[:32]}/a.txt")
    (tmp_path / "archives" / HEX[:32] / "link").symlink_to(target.parent, target_is_directory=True)
    console("cache", "--cache_dir", tmp_path, "--clear", "archives")
    assert not (tmp_path / "archives" / HEX[:32]).exists()
    assert target.is_file()


@pytest.mark.parametrize(
    ("words", "found"),
    [
        (["--clear", "pixel"], "pixel, with frozen in"),
        (["--clear", "frozen/ff"], "frozen/ff, with frozen in"),
        (["--older_than", "-1"], "-1"),
        (["--older_than", "nan"], "nan"),
    ],
)
def test_a_wrong_name_or_age_deletes_nothing(words: list[str], found: str, console: Console, tmp_path: Path) -> None:
    path = make(tmp_path, f"frozen/{HEX}/000000.safetensors")
    finished = console("cache", "--cache_dir", tmp_path, *words)
    assert finished.code == 2
    assert f"Found:    {found}" in finished.err
    assert path.is_file()
