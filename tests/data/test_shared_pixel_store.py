"""A store of pixels that several data sets, processes and threads fill, limit and delete at the same time."""

import errno
import os
import shutil
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from multiprocessing.reduction import ForkingPickler
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from hf_transfer.data.pixel_store import NO_PLACE, PixelStore, Places
from hf_transfer.data.shelves import PIXELS, RECORDS, files_in
from tests.data.test_pixel_store import BYTES, OTHER_WAY, PICTURES, WAY, file_of, filled, holds, pixels_of, store
from tests.forks import forked

Pictures = npt.NDArray[np.uint64]


def numbers(*pictures: int) -> Pictures:
    return np.asarray(pictures, dtype=np.uint64)


def write_all(one: PixelStore, pictures: Pictures, places: Places) -> None:
    for picture, place in zip(pictures.tolist(), places.tolist(), strict=True):
        one.write(place, 10 * picture, 0.0, pixels_of(picture))


def wrong(one: PixelStore, pictures: Pictures, places: Places) -> list[int]:
    """The pictures of whose places the pixels are those of others."""
    read = {picture: one.read(place) for picture, place in zip(pictures.tolist(), places.tolist(), strict=True)}
    return [
        picture
        for picture, pixels in read.items()
        if pixels is not None and not np.array_equal(pixels, pixels_of(picture))
    ]


def there(one: PixelStore, places: Places) -> int:
    return sum(one.read(place) is not None for place in places.tolist())


def size_on_disk(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def test_places_stay_right_when_other_pictures_get_some(tmp_path: Path) -> None:
    """As for the splits of a run, one after the other, whose places are used until it ends."""
    one, groups = store(tmp_path), [numbers(*range(10 * number + 1, 10 * number + 6)) for number in range(8)]
    given = []
    for group in groups:
        one.reserve(group)
        given.append(one.places(group))
        write_all(one, group, given[-1])
    for group, places in zip(groups, given, strict=True):
        assert wrong(one, group, places) == []
        assert there(one, places) == len(group)
        assert one.contents(places).tolist() == (10 * group).tolist()
    assert [one.of_content(10 * picture) is not None for group in groups for picture in group.tolist()] == [True] * 40


def test_places_stay_right_when_another_run_adds_and_deletes_pictures(tmp_path: Path) -> None:
    one, other = store(tmp_path), store(tmp_path)
    given: list[tuple[Pictures, Places]] = []
    for number in range(6):
        of_one, of_other = numbers(100 + number, 200 + number), numbers(300 + number, 400 + number, 500 + number)
        other.reserve(of_other)
        write_all(other, of_other, other.places(of_other))
        one.reserve(of_one)
        given.append((of_one, one.places(of_one)))
        write_all(one, *given[-1])
        if number == 3:
            for files in files_in(next((tmp_path / "pixels").glob("1-*")))[::2]:
                files.remove()
    assert [wrong(one, *each) for each in given] == [[]] * 6
    assert there(one, given[-1][1]) == 2


def test_places_stay_right_in_another_process(tmp_path: Path) -> None:
    """That of a loader gets a copy of the store, which opens the files itself; meanwhile others get places."""
    one, pictures = filled(tmp_path), PICTURES
    places, copied = one.places(pictures), ForkingPickler.dumps(one)
    for number in range(6):
        filled(tmp_path, numbers(20 + number, 40 + number))
    loader: PixelStore = ForkingPickler.loads(copied)
    assert wrong(loader, pictures, places) == []
    assert there(loader, places) == 3


@pytest.mark.parametrize("suffix", [RECORDS, PIXELS, ".*"])
@pytest.mark.parametrize("when", ["listed", "opened", "copied"])
def test_pictures_whose_files_vanish_are_decoded_again(suffix: str, when: str, tmp_path: Path) -> None:
    """Between any two uses of the store, in this process or in that of a loader."""
    one = filled(tmp_path)
    places = one.places(PICTURES)
    if when == "listed":
        one = store(tmp_path)
    copied = ForkingPickler.dumps(one)
    for path in (tmp_path / "pixels").glob(f"*/*{suffix}"):
        path.unlink()
    if when == "copied":
        one = ForkingPickler.loads(copied)
    assert wrong(one, PICTURES, places) == []
    write_all(one, PICTURES, places)
    assert one.of_content(50) is None or np.array_equal(one.of_content(50), pixels_of(5))  # type: ignore[arg-type]
    assert holds(filled(tmp_path)) == [True] * 3


def test_a_shelf_that_vanishes_while_it_is_opened_is_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    filled(tmp_path)
    filled(tmp_path, numbers(20, 21))
    original = np.memmap

    def vanished(path: Path, *arguments: object, **options: object) -> object:
        if Path(path).name.startswith(first):
            raise FileNotFoundError(errno.ENOENT, "No such file", str(path))
        return original(path, *arguments, **options)  # type: ignore[call-overload]

    first = min(path.stem for path in (tmp_path / "pixels").glob(f"*/*{RECORDS}"))
    with monkeypatch.context() as patch:
        patch.setattr(np, "memmap", vanished)
        one = store(tmp_path)
    assert sorted(holds(one) + holds(one, numbers(20, 21))) in ([False] * 2 + [True] * 3, [False] * 3 + [True] * 2)


@pytest.mark.parametrize("begins", [True, False])
def test_a_folder_that_vanishes_while_it_is_listed_has_no_shelves(
    begins: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As by a command that deletes what is kept, when a run begins, or between two of its splits."""
    one = filled(tmp_path)
    folder = file_of(tmp_path, RECORDS).parent

    def vanishing(look: Callable[[Path], Any]) -> Callable[[Path], Any]:
        def looked(path: Path) -> Any:
            if Path(path) == folder and not (tmp_path / "gone").exists():
                folder.rename(tmp_path / "gone")
            return look(path)

        return looked

    with monkeypatch.context() as patch:
        for name in ("listdir", "scandir"):
            patch.setattr(os, name, vanishing(getattr(os, name)))
        if begins:
            one = store(tmp_path)
        else:
            one.reserve(PICTURES)
    assert (tmp_path / "gone").exists()
    assert holds(one) == [False] * 3


def test_one_shelf_that_was_deleted_does_not_keep_the_others_from_being_filled(tmp_path: Path) -> None:
    one = filled(tmp_path)
    files_in(file_of(tmp_path, RECORDS).parent)[0].remove()
    more = numbers(20, 21)
    one.reserve(more)
    write_all(one, PICTURES, one.places(PICTURES))
    write_all(one, more, one.places(more))
    assert holds(store(tmp_path), more) == [True] * 2


def test_pictures_of_a_deleted_shelf_get_new_places(tmp_path: Path) -> None:
    one = filled(tmp_path)
    shutil.rmtree(tmp_path / "pixels")
    one.reserve(PICTURES)
    assert not any(one.is_filled(place) for place in one.places(PICTURES).tolist())
    write_all(one, PICTURES, one.places(PICTURES))
    assert all(one.is_filled(place) for place in one.places(PICTURES).tolist())
    assert holds(store(tmp_path)) == [True] * 3


@pytest.mark.parametrize("suffix", [RECORDS, PIXELS])
def test_what_a_killed_run_has_left_of_a_shelf_counts_and_goes(suffix: str, tmp_path: Path) -> None:
    limit = 4 * BYTES
    filled(tmp_path, limit=limit)
    left = file_of(tmp_path, PIXELS if suffix == RECORDS else RECORDS)
    file_of(tmp_path, suffix).unlink()
    os.utime(left, (100, 100))
    filled(tmp_path, numbers(20, 21, 22, 23), limit=limit, way=OTHER_WAY)
    assert not left.exists()
    assert size_on_disk(tmp_path) <= limit


def test_files_that_are_not_ours_do_not_count_and_stay(tmp_path: Path) -> None:
    foreign = tmp_path / "pixels" / "holiday" / "first.pixels"
    foreign.parent.mkdir(parents=True)
    foreign.write_bytes(bytes(100 * BYTES))
    os.utime(foreign, (100, 100))
    assert holds(filled(tmp_path, limit=4 * BYTES)) == [True] * 3
    assert foreign.exists()


def test_pictures_that_another_run_has_just_given_places_are_in_use_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They get no second place, and what this run makes next does not delete them."""
    one, other, limit = store(tmp_path, limit=5 * BYTES), store(tmp_path), 5 * BYTES
    alone = PixelStore._alone

    @contextmanager
    def just_after_another(self: PixelStore) -> Iterator[None]:
        if self is one:
            other.reserve(PICTURES)
        with alone(self):
            yield

    with monkeypatch.context() as patch:
        patch.setattr(PixelStore, "_alone", just_after_another)
        one.reserve(PICTURES)
    one.reserve(numbers(20, 21, 22))
    assert (one.places(PICTURES) != NO_PLACE).all()
    assert int((one.places(numbers(20, 21, 22)) != NO_PLACE).sum()) == 2
    assert size_on_disk(tmp_path) <= limit


def test_what_is_promised_to_others_on_the_disk_is_not_given_away_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Places that another run has got and not filled yet take no space so far."""

    class Usage:
        free = 2_000_000

    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage)
    each = np.arange(1, 20_001, dtype=np.uint64)
    first, second = store(tmp_path), store(tmp_path)
    first.reserve(each)
    second.reserve(each + np.uint64(10**6))
    counts = [
        int((one.places(each + np.uint64(shift)) != NO_PLACE).sum()) for one, shift in ((first, 0), (second, 10**6))
    ]
    assert counts[0] == 1_000_000 // BYTES
    # A disk counts blocks.
    assert counts[1] * BYTES <= (2_000_000 - counts[0] * (BYTES - 32)) / 2 + 10_000


def reserve_at_once(folder: Path, begin: int, start: float, limit: int) -> None:
    one = store(folder, limit=limit)
    time.sleep(max(0.0, start - time.time()))
    one.reserve(np.arange(begin, begin + 500, dtype=np.uint64))


def test_runs_that_start_at_the_same_time_stay_within_the_limit_together(tmp_path: Path) -> None:
    limit, start = 700 * BYTES, time.time() + 0.3
    processes = [forked(reserve_at_once, tmp_path, 1000 * number + 1, start, limit) for number in range(4)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
        assert process.exitcode == 0
    assert 0 < size_on_disk(tmp_path) <= limit


def fill_and_read(folder: Path, seed: int, seconds: float) -> None:
    """Reserve, fill and read pictures in threads, which others do, too; ends with an error at a wrong pixel."""
    random, end = np.random.default_rng(seed), time.time() + seconds
    with ThreadPoolExecutor(2) as pool:
        while time.time() < end:
            one = store(folder, way=(WAY, OTHER_WAY)[seed % 2], limit=150 * BYTES)
            given = []
            for _ in range(4):
                pictures = np.unique(random.integers(1, 120, 40).astype(np.uint64))
                one.reserve(pictures)
                given.append((pictures, one.places(pictures)))
                list(pool.map(partial(write_all, one), *zip(*given, strict=True)))
            for each in pool.map(partial(wrong, one), *zip(*given, strict=True)):
                assert each == []


def delete_again_and_again(folder: Path, seconds: float) -> None:
    end = time.time() + seconds
    while time.time() < end:
        time.sleep(0.05)
        shutil.rmtree(folder / "pixels", ignore_errors=True)


@pytest.mark.parametrize("deleting", [False, True])
def test_processes_and_threads_that_share_a_store_never_see_pixels_of_other_pictures(
    deleting: bool, tmp_path: Path
) -> None:
    processes = [forked(fill_and_read, tmp_path, seed, 0.8) for seed in range(4)]
    if deleting:
        processes.append(forked(delete_again_and_again, tmp_path, 0.8))
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0] * len(processes)
    assert size_on_disk(tmp_path) <= 150 * BYTES + 100
