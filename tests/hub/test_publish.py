"""A folder becomes a repository: in one commit, whatever happens on the way, and without secrets."""

import multiprocessing
import os
import signal
from pathlib import Path

import huggingface_hub
import pytest
from huggingface_hub import HfApi

from hf_transfer.config import UserError
from hf_transfer.data import hub_access, hub_account
from hf_transfer.hub import publish
from hf_transfer.hub.publish import Published, publish_folder
from tests.hub import answers
from tests.hub.contents import Account, Repository, Stored
from tests.hub.stand_in import FREE, READER, STRANGER, WRITER, Fault, StandIn

NAME = "alice/pets"
CARD = b"---\nlicense: mit\n---\n# Pets\n"
FILES = {"README.md": CARD, "config.json": b'{"a": 1}', "model.safetensors": b"\2\0\0\0\0\0\0\0{}1234"}
forks = multiprocessing.get_context("fork")


def a_folder(folder: Path, **changes: bytes | None) -> Path:
    """A folder of a model; names have `__` for a dot, and None takes a file away."""
    folder.mkdir(parents=True, exist_ok=True)
    named = {name.replace("__", "."): content for name, content in changes.items()}
    for name, content in (FILES | named).items():
        if content is None:
            (folder / name).unlink(missing_ok=True)
        else:
            (folder / name).write_bytes(content)
    return folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return a_folder(tmp_path / "model")


def pushed(folder: Path, **changes: object) -> Published:
    chosen: dict[str, object] = {"kind": "model", "private": True, "message": "it is done"}
    return publish_folder(folder, NAME, **(chosen | changes))  # type: ignore[arg-type]


def refused(folder: Path, **changes: object) -> str:
    with pytest.raises(UserError) as error:
        pushed(folder, **changes)
    return str(error.value)


def ours(repository: Repository) -> dict[str, bytes]:
    """What it holds, without the Hub's own first file."""
    return {path: content for path, content in repository.texts().items() if path != ".gitattributes"}


def test_a_folder_becomes_a_private_repository_in_one_commit(hub: StandIn, folder: Path) -> None:
    """Mutation: hf_transfer/hub/publish.py: "private=private," -> "private=False," """
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


def test_what_an_earlier_push_left_goes_and_what_others_added_stays(hub: StandIn, folder: Path) -> None:
    """An adapter's settings beside a whole model would be taken for it.

    Mutation: hf_transfer/hub/publish.py: "if path not in files and _allowed(path, kind)" -> "if False"
    """
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


TOKENS = [
    (None, "no token"),
    ("hf_nobodys", "a token that the Hub does not know (401: Invalid credentials in Authorization header)"),
    (READER, "a token that may only read"),
    (STRANGER, "a token of bob, who may not write for alice"),
]


@pytest.mark.parametrize(("token", "found"), TOKENS, ids=["none", "unknown", "reader", "stranger"])
def test_a_token_that_will_not_do_is_told_before_anything_is_changed(
    hub: StandIn, folder: Path, monkeypatch: pytest.MonkeyPatch, token: str | None, found: str
) -> None:
    """And is not shown.

    Mutation: hf_transfer/data/hub_account.py: "if token.get("role") == "read":" -> "if False:"
    """
    monkeypatch.setenv("HF_TOKEN", token or "")
    message = refused(folder)
    assert f"\nFound:    {found}\n" in message
    assert "`hf auth login`" in message
    assert token is None or token not in message
    assert not any(question.startswith(("POST", "PUT")) for question in hub.asked)
    assert hub.repositories == {}


def test_for_an_organization_ones_role_in_it_counts(hub: StandIn, folder: Path) -> None:
    """Mutation: hf_transfer/data/hub_account.py: "teams.get(owner) not in MAY_WRITE" -> "owner not in teams" """
    assert publish_folder(folder, "press/pets", kind="model", private=True, message="m").revision
    with pytest.raises(UserError, match="a token of alice, who may not write for club"):
        publish_folder(folder, "club/pets", kind="model", private=True, message="m")


def test_what_a_fine_grained_token_may_do_is_the_hubs_own_word(
    hub: StandIn, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Mutation: hf_transfer/data/hub_account.py: "token.get("role") == "write" and owner" -> "owner" """
    token = "hf_" + "Grains" * 5 + "1234"
    monkeypatch.setenv("HF_TOKEN", token)
    hub.accounts[token] = Account("bob", role="fineGrained", scopes=("alice",))
    assert pushed(folder).revision == hub.model(NAME).commit
    hub.accounts[token] = Account("alice", role="fineGrained", scopes=("bob",))
    assert "403: You don't have the rights to write to alice/pets" in refused(folder)


def test_a_public_repository_is_not_published_to_unless_one_says_so(hub: StandIn, folder: Path) -> None:
    """What is meant for few would be shown to all.

    Mutation: hf_transfer/data/hub_account.py: "if private and not about.private:" -> "if False:"
    """
    hub.repositories["models", NAME] = Repository()
    message = refused(folder)
    assert "Found:    one that everybody sees\n" in message
    assert "--hub_private_repo false" in message
    pushed(folder, private=False)
    assert ours(hub.model(NAME)) == FILES


@pytest.mark.parametrize("name", ["pets", "alice/pets/model", "alice/..", "", "alice/pe ts", "../alice"])
def test_a_name_that_the_hub_does_not_allow_is_refused_unasked(hub: StandIn, folder: Path, name: str) -> None:
    """Mutation: hf_transfer/data/hub_account.py: "repository.count("/") != 1 or" -> "" """
    with pytest.raises(UserError, match="Expected: a repository to publish to: OWNER/NAME"):
        publish_folder(folder, name, kind="model", private=True, message="m")
    assert hub.asked == []


def test_with_the_hub_switched_off_it_says_so(hub: StandIn, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Mutation: hf_transfer/data/hub_account.py: "    if is_offline_mode():" -> "    if False:" """
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    assert "HF_HUB_OFFLINE, which switches it off" in refused(folder)


REFUSALS = [
    (Fault("POST /api/repos/create", 402, words="PRO needed"), "402: PRO needed", "subscribe"),
    (Fault("POST /api/repos/create", 403, words="You may not"), "403: You may not", "`hf auth login`"),
    (Fault("/preupload/", 403, words="Private repository storage limit reached"), "storage limit", "make room"),
    (Fault("/info/lfs/", 413, words="Too large"), "413: Too large", "make room"),
    (Fault("PUT /storage", 403, words="quota exceeded"), "403: quota exceeded", "make room"),
    (Fault("/commit/", 412), "a commit of somebody else", "repeat the command"),
    (Fault("/commit/", 400, words="Bad name"), "400: Bad name", "mend"),
    (Fault("whoami", 503, words="down"), "503: down", "wait until the Hub has recovered"),
    (Fault("POST /api/repos/create", 503, words="down"), "503: down", "wait"),
    (Fault("/preupload/", 503, words="down"), "503: down", "wait"),
    (Fault("/objects/batch", 500, words="down"), "500: down", "wait"),
    (Fault("PUT /storage", 503, words="down"), "503: down", "wait"),
    (Fault("/commit/", 503, words="down"), "503: down", "wait"),
    (Fault("/commit/", 429, words="too many"), "429: too many", "wait"),
    (Fault("/commit/", "reset"), "no connection", "connect to the network"),
    (Fault("/preupload/", "reset"), "no connection", "connect"),
    (Fault("whoami", "hang"), "no answer from", "wait until the Hub answers"),
    (Fault("/commit/", "hang"), "no answer from", "wait until the Hub answers"),
]


@pytest.mark.parametrize(("fault", "found", "do"), REFUSALS, ids=lambda value: getattr(value, "where", None))
def test_whatever_the_hub_refuses_is_said_in_words_and_nothing_is_half_there(
    hub: StandIn, folder: Path, monkeypatch: pytest.MonkeyPatch, fault: Fault, found: str, do: str
) -> None:
    """And once the fault is over, the same call completes it.

    Mutation: hf_transfer/data/hub_account.py: "    if status in PASSING:" -> "    if False:"
    """
    monkeypatch.setattr(hub_account, "ANSWER_WITHIN_SECONDS", 0.2)
    monkeypatch.setattr(publish, "LONGEST_SILENCE", 0.2)
    monkeypatch.setattr(answers, "HANGS_SECONDS", 0.5)
    hub.faults = [fault]
    message = refused(folder)
    assert found in message.split("Found:    ")[1].split("\n")[0]
    assert do in message.split("Do this:  ")[1]
    assert WRITER not in message
    kept = hub.repositories.get(("models", NAME))
    assert kept is None or ours(kept) == {}
    hub.faults = []
    assert pushed(folder).revision == hub.model(NAME).commit
    assert ours(hub.model(NAME)) == FILES


PASSING = [
    Fault("POST /api/repos/create", 503, times=2),
    Fault("/preupload/", 503, times=3),
    Fault("/commit/", 503, times=2),
    Fault("/commit/", 429, times=1, headers={"Retry-After": "0"}),
    Fault("/commit/", "reset", times=1),
    Fault("/commit/", "lost", times=1),
    Fault("POST /api/repos/create", "lost", times=1),
    Fault("PUT /storage", "lost", times=1),
    Fault("/api/validate-yaml", 502, times=1),
]


@pytest.mark.parametrize("fault", PASSING, ids=lambda fault: f"{fault.where} {fault.what}")
def test_what_passes_is_waited_for_and_leaves_one_commit(hub: StandIn, folder: Path, fault: Fault) -> None:
    """Also where the commit was done and only its answer was lost.

    Mutation: hf_transfer/hub/publish.py: "ATTEMPTS = 3" -> "ATTEMPTS = 1"
    """
    hub.faults = [fault]
    done = pushed(folder)
    assert fault.times == 0
    assert ours(hub.model(NAME)) == FILES
    assert [commit.message for commit in hub.model(NAME).commits] == ["initial commit", "it is done"]
    assert done.revision == hub.model(NAME).commit


def test_a_space_that_has_to_be_paid_for_is_told(hub: StandIn, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Mutation: hf_transfer/data/hub_account.py: "if status == 402:" -> "if status == 999:" """
    monkeypatch.setenv("HF_TOKEN", FREE)
    with pytest.raises(UserError) as error:
        publish_folder(folder, "carol/demo", kind="space", private=True, message="m")
    assert "Found:    402: Spaces that run code need a PRO subscription\n" in str(error.value)


def test_a_commit_of_somebody_else_in_between_is_not_overwritten(hub: StandIn, folder: Path) -> None:
    """Mutation: hf_transfer/hub/publish.py: "parent_commit=head.sha" -> "parent_commit=None" """
    pushed(folder)
    made = hub.model(NAME)

    def between(number: int, answered: int) -> None:
        if "/preupload/" in hub.asked[number - 1] and not answered:
            made.add(made.head.files | {"config.json": Stored(b"theirs")}, "theirs")

    hub.at = between
    assert "a commit of somebody else" in refused(a_folder(folder, README__md=CARD + b"more\n"))
    assert made.head.files["config.json"].content == b"theirs"


def _push_in_a_child(folder: Path) -> None:
    code = 0
    try:
        pushed(folder)
    except BaseException:
        code = 1
    os._exit(code)


def _killed_at(hub: StandIn, folder: Path, request: int, answered: int) -> int | None:
    """Push in a process that is killed when a request comes in, or when it has been done; its exit code."""
    child = forks.Process(target=_push_in_a_child, args=(folder,))
    first = len(hub.asked)

    def kill(number: int, now: int) -> None:
        if (number - first, now) == (request, answered):
            assert child.pid is not None
            os.kill(child.pid, signal.SIGKILL)

    hub.at = kill
    child.start()
    child.join(30)
    hub.at = None
    return child.exitcode


@pytest.mark.parametrize("again", [False, True], ids=["a new repository", "one with an earlier push"])
def test_killed_at_any_request_the_repository_is_as_before_or_as_after_and_the_same_call_completes_it(
    hub: StandIn, tmp_path: Path, again: bool
) -> None:
    """Every request in turn, before it is done and after.

    Mutation: hf_transfer/hub/publish.py: "list(operations), repo_type" -> "list(operations)[:1], repo_type"
    """
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
        found = hub.repositories.get(("models", NAME))
        assert found is None or ours(found) in ({}, before, after), (request, answered)
        pushed(folder)
        assert ours(hub.model(NAME)) == after
        assert len(hub.model(NAME).commits) == (3 if again else 2)
        if code == 0:
            break
        assert code == -signal.SIGKILL
        killed += 1
        request, answered = request + answered, 1 - answered
    # Both sides of each request of a push, which are these at least.
    assert killed >= 2 * 10


def test_the_client_is_asked_for_one_commit_however_many_files_there_are(hub: StandIn, tmp_path: Path) -> None:
    """The client's own upload of folders makes several.

    Mutation: hf_transfer/hub/publish.py: "list(operations), repo_type" -> "list(operations)[:20], repo_type"
    """
    folder = a_folder(tmp_path / "model")
    for number in range(300):
        (folder / f"model-{number:05}-of-00300.safetensors").write_bytes(b"\2\0\0\0\0\0\0\0{}" + str(number).encode())
    pushed(folder)
    assert len(hub.model(NAME).commits) == 2
    assert len(ours(hub.model(NAME))) == 303


def test_the_reading_client_gets_what_was_pushed(hub: StandIn, folder: Path) -> None:
    done = pushed(folder)
    assert HfApi(token=READER).model_info(NAME).sha == done.revision
    with pytest.raises(huggingface_hub.errors.RepositoryNotFoundError):
        HfApi(token=STRANGER).model_info(NAME)
    assert hub_access.ask_hub(NAME, kind="model", revision="main") == hub_access.Found(done.revision)
