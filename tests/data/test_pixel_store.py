"""Resized pixels on disk: found by identity or content, private, limited, and right in spite of kills and damage."""

import copy
import os
import shutil
import stat
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.reduction import ForkingPickler
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from hf_transfer.data.pixel_store import NO_PLACE, PixelStore
from hf_transfer.data.shelves import PIXELS, RECORDS, Shelf, files_in, shelves_in

SHAPE = (3, 4, 5)
PLENTY = 10**9
WAY, OTHER_WAY = "a" * 64, "b" * 64
PICTURES = np.asarray([5, 9, 7], dtype=np.uint64)
# What a picture takes on disk, with its record.
BYTES = 3 * 4 * 5 + 32


def store(folder: Path, way: str = WAY, limit: int = PLENTY) -> PixelStore:
    return PixelStore(folder / "pixels", way, SHAPE, np.uint8, limit)


def pixels_of(picture: int) -> npt.NDArray[np.uint8]:
    return np.random.default_rng(int(picture)).integers(0, 256, SHAPE).astype(np.uint8)


def filled(folder: Path, pictures: npt.NDArray[np.uint64] = PICTURES, **options: object) -> PixelStore:
    """A store in which these pictures are, with ten times their identity as the key of their content."""
    one = store(folder, **options)  # type: ignore[arg-type]
    one.reserve(pictures)
    for picture, place in zip(pictures.tolist(), one.places(pictures).tolist(), strict=True):
        one.write(place, 10 * picture, 0.0, pixels_of(picture))
    return one


def holds(one: PixelStore, pictures: npt.NDArray[np.uint64] = PICTURES) -> list[bool]:
    """Whether the pixels of each picture are there, as they were written."""
    read = [one.read(place) for place in one.places(pictures).tolist()]
    return [
        pixels is not None and np.array_equal(pixels, pixels_of(int(picture)))
        for pixels, picture in zip(read, pictures, strict=True)
    ]


def file_of(folder: Path, suffix: str) -> Path:
    [path] = (folder / "pixels").glob(f"*/*{suffix}")
    return path


def test_pixels_are_read_again_by_the_identity_of_their_picture(tmp_path: Path) -> None:
    assert holds(filled(tmp_path)) == [True] * 3
    assert holds(store(tmp_path), PICTURES[::-1]) == [True] * 3


def test_pixels_are_found_by_the_content_of_their_picture(tmp_path: Path) -> None:
    """A file that was touched or copied has another identity, and the same content."""
    filled(tmp_path)
    found = store(tmp_path).of_content(90)
    assert found is not None
    assert np.array_equal(found, pixels_of(9))
    assert store(tmp_path).of_content(91) is None


def test_a_content_is_found_in_the_run_that_has_written_it(tmp_path: Path) -> None:
    one = store(tmp_path)
    one.reserve(PICTURES)
    assert one.of_content(50) is None
    one.write(int(one.places(PICTURES)[0]), 50, 0.0, pixels_of(5))
    assert one.of_content(50) is not None


def test_what_was_not_written_is_not_there(tmp_path: Path) -> None:
    one = store(tmp_path)
    one.reserve(PICTURES)
    assert (one.places(PICTURES) != NO_PLACE).all()
    assert holds(one) == [False] * 3
    assert one.contents(one.places(PICTURES)).tolist() == [0, 0, 0]
    assert store(tmp_path).places(np.asarray([6], dtype=np.uint64)).tolist() == [NO_PLACE]
    assert store(tmp_path / "new").places(PICTURES).tolist() == [NO_PLACE] * 3


def test_no_picture_has_no_place(tmp_path: Path) -> None:
    one = store(tmp_path)
    pictures = np.asarray([0, 5], dtype=np.uint64)
    one.reserve(pictures)
    assert one.places(pictures).tolist() == [NO_PLACE, 0]
    assert one.read(NO_PLACE) is None
    one.write(NO_PLACE, 1, 0.0, pixels_of(0))


def test_another_way_of_decoding_or_resizing_has_pixels_of_its_own(tmp_path: Path) -> None:
    filled(tmp_path)
    assert holds(store(tmp_path, OTHER_WAY)) == [False] * 3


def test_more_pictures_are_added_to_those_that_are_there(tmp_path: Path) -> None:
    filled(tmp_path)
    more = np.asarray([9, 11, 7, 5, 12], dtype=np.uint64)
    one = store(tmp_path)
    one.reserve(more)
    assert holds(one, more) == [True, False, True, True, False]
    for picture, place in zip(more.tolist(), one.places(more).tolist(), strict=True):
        one.write(place, picture, 0.0, pixels_of(picture))
    assert holds(store(tmp_path), more) == [True] * 5


def test_the_keys_of_contents_are_remembered(tmp_path: Path) -> None:
    filled(tmp_path)
    one = store(tmp_path)
    assert one.contents(one.places(PICTURES)).tolist() == [50, 90, 70]


def test_only_their_owner_can_read_the_pictures(tmp_path: Path) -> None:
    filled(tmp_path)
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / "pixels").rglob("*")}
    assert len(modes) == 4
    assert {mode for name, mode in modes.items() if "." in name} == {0o600}
    assert [mode for name, mode in modes.items() if "." not in name] == [0o700]


@pytest.mark.parametrize("at", [0, BYTES - 33])
def test_damaged_pixels_are_as_if_they_were_not_there_and_can_be_written_again(at: int, tmp_path: Path) -> None:
    filled(tmp_path)
    path = file_of(tmp_path, PIXELS)
    content = bytearray(path.read_bytes())
    content[at] ^= 1
    path.write_bytes(content)
    one = store(tmp_path)
    [damaged] = [number for number, there in enumerate(holds(one)) if not there]
    picture = PICTURES[damaged : damaged + 1]
    one.write(int(one.places(picture)[0]), 10 * int(picture[0]), 0.0, pixels_of(int(picture[0])))
    assert holds(one) == [True] * 3


def test_a_damaged_record_is_noticed(tmp_path: Path) -> None:
    """Each of its bytes: the identity then is another one, and the rest is covered by the checksum."""
    filled(tmp_path)
    path = file_of(tmp_path, RECORDS)
    content = path.read_bytes()
    for at in range(32):
        path.write_bytes(content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :])
        assert sorted(holds(store(tmp_path))) == [False, True, True]


@pytest.mark.parametrize("suffix", [PIXELS, RECORDS])
@pytest.mark.parametrize("left", [0, 7, 40])
def test_files_that_were_cut_off_are_replaced(suffix: str, left: int, tmp_path: Path) -> None:
    filled(tmp_path)
    os.truncate(file_of(tmp_path, suffix), left)
    assert holds(store(tmp_path)) == [False] * 3
    assert holds(filled(tmp_path)) == [True] * 3
    assert holds(store(tmp_path)) == [True] * 3


def test_a_run_that_was_killed_between_pixels_and_record_leaves_nothing_half(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The record that makes pixels count is written last."""
    one = store(tmp_path)
    one.reserve(PICTURES)
    original = Path.open

    def killed(self: Path, *arguments: object, **options: object) -> object:
        if self.suffix == RECORDS:
            raise KeyboardInterrupt
        return original(self, *arguments, **options)  # type: ignore[call-overload]

    with monkeypatch.context() as patch:
        patch.setattr(Path, "open", killed)
        with pytest.raises(KeyboardInterrupt):
            one.write(0, 50, 0.0, pixels_of(5))
    assert holds(store(tmp_path)) == [False] * 3
    assert holds(filled(tmp_path)) == [True] * 3


def test_several_processes_and_threads_fill_one_shelf(tmp_path: Path) -> None:
    pictures = np.arange(1, 65, dtype=np.uint64)
    stores = [store(tmp_path), store(tmp_path)]
    for one in stores:
        one.reserve(pictures)
    places = stores[0].places(pictures).tolist()
    with ThreadPoolExecutor(4) as pool:
        for number, (picture, place) in enumerate(zip(pictures.tolist(), places, strict=True)):
            pool.submit(stores[number % 2].write, place, picture, 0.0, pixels_of(picture))
    assert len(shelves_in(file_of(tmp_path, RECORDS).parent)) == 1
    # Each sees what the other has written.
    assert all(holds(one, pictures) == [True] * 64 for one in stores)


def test_a_store_can_be_sent_to_another_process_without_its_pixels(tmp_path: Path) -> None:
    one = filled(tmp_path, np.arange(1, 200, dtype=np.uint64))
    assert holds(one, PICTURES) == [True] * 3
    assert len(ForkingPickler.dumps(one)) < 3_000
    assert holds(copy.deepcopy(one)) == [True] * 3


def test_those_that_were_used_the_longest_ago_make_room(tmp_path: Path) -> None:
    """As many as necessary, also those of other ways; and never those that this run uses."""
    groups = [np.asarray([10 * number + 1, 10 * number + 2], dtype=np.uint64) for number in range(4)]
    limit = 6 * BYTES
    for number, group in enumerate(groups[:3]):
        filled(tmp_path, group, limit=limit, way=OTHER_WAY if number == 1 else WAY)
        for path in (tmp_path / "pixels").rglob("*.records"):
            if path.stat().st_mtime > 10**6:
                os.utime(path, (100 + number, 100 + number))
    used = store(tmp_path, limit=limit)
    used.reserve(groups[0])
    used.reserve(groups[3])
    assert [holds(store(tmp_path), group)[0] for group in (groups[0], groups[2])] == [True, True]
    assert holds(store(tmp_path, OTHER_WAY), groups[1]) == [False, False]
    assert (used.places(groups[3]) != NO_PLACE).all()


def test_of_more_pictures_than_there_is_room_for_some_get_a_place(tmp_path: Path) -> None:
    one = store(tmp_path, limit=2 * BYTES + 5)
    one.reserve(PICTURES)
    assert sorted((one.places(PICTURES) == NO_PLACE).tolist()) == [False, False, True]
    total = sum(files.bytes for files in files_in(file_of(tmp_path, RECORDS).parent))
    assert total <= 2 * BYTES + 5


def test_with_a_limit_of_zero_nothing_is_written_and_what_is_there_is_read(tmp_path: Path) -> None:
    filled(tmp_path / "old")
    assert holds(store(tmp_path / "old", limit=0)) == [True] * 3
    one = store(tmp_path, limit=0)
    one.reserve(PICTURES)
    assert one.places(PICTURES).tolist() == [NO_PLACE] * 3
    assert not (tmp_path / "pixels").exists()


def test_half_of_the_free_disk_is_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Usage:
        free = 4 * BYTES

    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage)
    one = store(tmp_path)
    one.reserve(PICTURES)
    assert sorted((one.places(PICTURES) == NO_PLACE).tolist()) == [False, False, True]


def test_on_a_full_disk_the_run_goes_on_without_writing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one = filled(tmp_path)
    more = np.asarray([20, 21], dtype=np.uint64)
    one.reserve(more)
    attempts = []

    def full(self: Shelf, *arguments: object) -> None:
        attempts.append(1)
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Shelf, "write", full)
    for place in one.places(more).tolist():
        one.write(place, 1, 0.0, pixels_of(20))
    assert len(attempts) == 1
    assert holds(one) == [True] * 3


def test_a_store_that_another_run_has_deleted_can_still_be_read(tmp_path: Path) -> None:
    """Until this run ends; it writes nothing more."""
    one = filled(tmp_path)
    assert holds(one) == [True] * 3
    files_in(file_of(tmp_path, RECORDS).parent)[0].remove()
    assert holds(one) == [True] * 3
    one.write(0, 50, 0.0, pixels_of(5))
    assert holds(store(tmp_path)) == [False] * 3


def test_a_picture_of_more_than_eight_bits_is_there_for_one_white_alone(tmp_path: Path) -> None:
    """With another white it has another place; where none is known, it is not read: it may be the wrong one."""
    one, picture = store(tmp_path), PICTURES[:1]
    one.reserve(picture)
    one.write(int(one.places(picture)[0]), 50, 4095.0, pixels_of(5))
    [place] = one.places(picture, 4095.0).tolist()
    assert one.read(place, 4095.0) is not None
    assert one.read(place, 255.0) is None
    assert one.read(place) is None
    assert one.of_content(50) is None
    assert one.contents(one.places(picture)).tolist() == [0]
    assert one.places(picture, 65535.0).tolist() == [NO_PLACE]
    one.reserve(picture, 65535.0)
    [other] = one.places(picture, 65535.0).tolist()
    assert other != place
    one.write(other, 50, 65535.0, pixels_of(6))
    for white, expected in ((4095.0, 5), (65535.0, 6)):
        read = one.read(int(one.places(picture, white)[0]), white)
        assert read is not None
        assert np.array_equal(read, pixels_of(expected))


def test_a_shelf_that_another_process_has_just_deleted_is_left_out(tmp_path: Path) -> None:
    """Its files are listed and then gone, like the target of this link."""
    for suffix in (RECORDS, PIXELS):
        (tmp_path / f"gone{suffix}").symlink_to(tmp_path / "nothing")
    (tmp_path / f"here{PIXELS}").write_bytes(b"12345")
    assert [(files.path.name, files.bytes) for files in files_in(tmp_path)] == [("here", 5)]
