"""Publish a folder: in one commit, even if it is killed or the Hub fails, and without secrets."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import huggingface_hub
import pytest
from huggingface_hub import HfApi

from hf_transfer.data import hub_access
from hf_transfer.hub.publish import Published
from tests.conftest import REPOSITORY
from tests.forks import forked
from tests.hub.clients import environment
from tests.hub.contents import Stored
from tests.hub.pushes import CARD, FILES, NAME, a_folder, ours, pushed, refused
from tests.hub.stand_in import READER, STRANGER, WRITER, StandIn, served, with_accounts


def test_a_folder_becomes_a_private_repository_in_one_commit(hub: StandIn, folder: Path) -> None:
    done = pushed(folder)
    made = hub.model(NAME)
    assert ours(made) == FILES
    assert [commit.message for commit in made.commits] == ["initial commit", "it is done"]
    assert made.private
    assert done == Published(f"{hub.endpoint}/{NAME}", made.commit)
    assert made.head.files["model.safetensors"].large


def test_the_same_again_makes_no_commit_and_a_change_makes_one(hub: StandIn, folder: Path) -> None:
    first = pushed(folder)
    assert pushed(folder) == first
    assert len(hub.model(NAME).commits) == 2
    second = pushed(a_folder(folder, config__json=b"{}"))
    assert second.revision != first.revision
    assert len(hub.model(NAME).commits) == 3
    assert ours(hub.model(NAME)) == FILES | {"config.json": b"{}"}


def test_files_of_an_earlier_push_are_removed_and_files_of_others_stay(hub: StandIn, folder: Path) -> None:
    """The settings of an adapter beside a whole model would make it an adapter."""
    pushed(a_folder(folder, adapter_config__json=b"{}"))
    made = hub.model(NAME)
    made.add(made.head.files | {"LICENSE": Stored(b"mine"), "notes/README.md": Stored(b"mine")}, "by hand")
    pushed(a_folder(folder, adapter_config__json=None))
    assert ours(made) == FILES | {"LICENSE": b"mine", "notes/README.md": b"mine"}
    assert len(made.commits) == 4


@pytest.mark.parametrize("made", [True, False])
def test_a_folder_without_a_model_is_named(hub: StandIn, tmp_path: Path, made: bool) -> None:
    if made:
        (tmp_path / "empty").mkdir()
    message = refused(tmp_path / "empty")
    assert f"Expected: files of a model in {tmp_path / 'empty'}\n" in message
    assert f"Found:    {'none' if made else 'no such folder'}\n" in message


def test_a_commit_of_others_in_between_is_not_overwritten(hub: StandIn, folder: Path) -> None:
    pushed(folder)
    made = hub.model(NAME)

    def between(number: int, answered: int) -> None:
        if "/preupload/" in hub.asked[number - 1] and not answered:
            made.add(made.head.files | {"config.json": Stored(b"theirs")}, "theirs")

    hub.at = between
    assert "another commit" in refused(a_folder(folder, README__md=CARD + b"more\n"))
    assert made.head.files["config.json"].content == b"theirs"


def _push_in_a_child(folder: Path) -> None:
    code = 0
    try:
        pushed(folder)
    except BaseException:
        code = 1
    os._exit(code)


def _killed_at(hub: StandIn, folder: Path, request: int, answered: int) -> int | None:
    """Push in a process that is killed when a request arrives, or when it has been handled; its exit code."""
    child = forked(_push_in_a_child, folder)
    first = len(hub.asked)
    in_work: set[int] = set()

    def kill(number: int, now: int) -> None:
        (in_work.discard if now else in_work.add)(number)
        if (number - first, now) == (request, answered):
            assert child.pid is not None
            os.kill(child.pid, signal.SIGKILL)

    hub.at = kill
    child.start()
    child.join(240)
    # The Hub goes on with a request whose sender has died: a commit must not come in between later.
    while in_work:
        time.sleep(0.001)
    hub.at = None
    return child.exitcode


@pytest.mark.slow
@pytest.mark.parametrize("again", [False, True], ids=["a new repository", "one with an earlier push"])
def test_killed_at_any_request_the_repository_is_as_before_or_as_after_and_the_same_call_completes_it(
    hub: StandIn, tmp_path: Path, again: bool
) -> None:
    """Every request in turn, before it is handled and after."""
    killed, answered, request = 0, 0, 1
    while True:
        hub.repositories, hub.blobs = {}, {}
        folder = a_folder(tmp_path / f"{request}-{answered}", vocab__txt=b"old" if again else None)
        before: dict[str, bytes] = {}
        if again:
            pushed(folder)
            before = ours(hub.model(NAME))
            a_folder(folder, vocab__txt=None, config__json=b"{}", model__safetensors=FILES["model.safetensors"] + b"5")
        after = {path.name: path.read_bytes() for path in folder.iterdir()}
        code = _killed_at(hub, folder, request, answered)
        repository = hub.repositories.get(("models", NAME))
        assert repository is None or ours(repository) in ({}, before, after), (request, answered)
        pushed(folder)
        assert ours(hub.model(NAME)) == after
        assert len(hub.model(NAME).commits) == (3 if again else 2)
        if code == 0:
            break
        assert code == -signal.SIGKILL
        killed += 1
        request, answered = request + answered, 1 - answered
    # Before and after each request: a push has at least ten.
    assert killed >= 2 * 10


def test_many_files_are_published_in_one_commit(hub: StandIn, tmp_path: Path) -> None:
    """`HfApi.upload_folder` makes several."""
    folder = a_folder(tmp_path / "model")
    for number in range(300):
        (folder / f"model-{number:05}-of-00300.safetensors").write_bytes(b"\2\0\0\0\0\0\0\0{}" + str(number).encode())
    pushed(folder)
    assert len(hub.model(NAME).commits) == 2
    assert len(ours(hub.model(NAME))) == 303


@pytest.mark.slow
def test_large_files_are_uploaded_by_xet_if_it_is_installed(folder: Path, tmp_path: Path) -> None:
    """Pushed twice, and downloaded elsewhere."""
    pytest.importorskip("hf_xet")
    script = """
import sys
import time
from pathlib import Path
from hf_transfer.hub.publish import publish_folder
done = [publish_folder(Path(sys.argv[1]), "alice/pets", kind="model", private=True, message="m") for _ in range(2)]
assert done[0] == done[1], done
from huggingface_hub import snapshot_download
print("FOLDER", snapshot_download("alice/pets", revision=done[0].revision))
"""
    content = b"\2\0\0\0\0\0\0\0{}" + os.urandom(200_000)
    a_folder(folder, model__safetensors=content)
    (tmp_path / "storage").mkdir()
    hub = with_accounts()
    hub.xet = tmp_path / "storage"
    with served(hub):
        variables = environment(hub.endpoint, tmp_path / "home", WRITER) | {"PYTHONPATH": str(REPOSITORY)}
        del variables["HF_HUB_DISABLE_XET"]
        done = subprocess.run(
            [sys.executable, "-c", script, str(folder)], env=variables, capture_output=True, text=True, check=False,
            timeout=300,
        )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    downloaded = Path(done.stdout.split("FOLDER ")[1].strip())
    assert (downloaded / "model.safetensors").read_bytes() == content
    assert len(hub.model(NAME).commits) == 2
    assert any("/xet-write-token/" in question for question in hub.asked)
    assert not any("/info/lfs/" in question for question in hub.asked)


def test_the_reading_client_gets_what_was_pushed(hub: StandIn, folder: Path) -> None:
    done = pushed(folder)
    assert HfApi(token=READER).model_info(NAME).sha == done.revision
    with pytest.raises(huggingface_hub.errors.RepositoryNotFoundError):
        HfApi(token=STRANGER).model_info(NAME)
    assert hub_access.ask_hub(NAME, kind="model", revision="main") == hub_access.RepositoryInfo(done.revision)
