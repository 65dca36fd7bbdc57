"""Errors of the Hub become messages to the user, and leave nothing incomplete."""

import json
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
from huggingface_hub import HfApi

from hf_transfer.data import hub_access, hub_account
from hf_transfer.errors import UserError
from hf_transfer.hub import publish
from hf_transfer.hub.publish import publish_folder
from tests.hub import answers
from tests.hub.contents import Account, Repository, Stored
from tests.hub.pushes import FILES, NAME, a_folder, ours, pushed, refused
from tests.hub.stand_in import FREE, READER, STRANGER, WRITER, Fault, StandIn

TOKENS = [
    (None, "no token"),
    ("hf_nobodys", "a token that the Hub does not know (401: Invalid credentials in Authorization header)"),
    (READER, "a token that may only read"),
    (STRANGER, "a token of bob, who may not write for alice"),
]


@pytest.mark.parametrize(("token", "found"), TOKENS, ids=["none", "unknown", "reader", "stranger"])
def test_a_token_without_the_right_is_reported_before_anything_is_changed(
    hub: StandIn, folder: Path, monkeypatch: pytest.MonkeyPatch, token: str | None, found: str
) -> None:
    """But not shown."""
    monkeypatch.setenv("HF_TOKEN", token or "")
    message = refused(folder)
    assert f"\nFound:    {found}\n" in message
    assert "`hf auth login`" in message
    assert token is None or token not in message
    assert not any(question.startswith(("POST", "PUT")) for question in hub.asked)
    assert hub.repositories == {}


def test_in_an_organization_the_role_of_the_account_counts(hub: StandIn, folder: Path) -> None:
    assert publish_folder(folder, "press/pets", kind="model", private=True, message="m").revision
    with pytest.raises(UserError, match="a token of alice, who may not write for club"):
        publish_folder(folder, "club/pets", kind="model", private=True, message="m")


def test_the_hub_decides_what_a_fine_grained_token_may_do(
    hub: StandIn, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    token = "hf_" + "Grains" * 5 + "1234"
    monkeypatch.setenv("HF_TOKEN", token)
    hub.accounts[token] = Account("bob", role="fineGrained", scopes=("alice",))
    assert pushed(folder).revision == hub.model(NAME).commit
    hub.accounts[token] = Account("alice", role="fineGrained", scopes=("bob",))
    assert "403: You don't have the rights to write to alice/pets" in refused(folder)


def test_a_public_repository_is_refused_unless_the_user_asks_for_one(hub: StandIn, folder: Path) -> None:
    """A model that is meant to be private would be public."""
    hub.repositories["models", NAME] = Repository()
    message = refused(folder)
    assert "Found:    a public one\n" in message
    assert "--hub_private_repo false" in message
    pushed(folder, private=False)
    assert ours(hub.model(NAME)) == FILES


@pytest.mark.parametrize("name", ["pets", "alice/pets/model", "alice/..", "", "alice/pe ts", "../alice"])
def test_a_name_that_the_hub_does_not_allow_is_refused_without_a_request(hub: StandIn, folder: Path, name: str) -> None:
    with pytest.raises(UserError, match="Expected: a repository to publish to: OWNER/NAME"):
        publish_folder(folder, name, kind="model", private=True, message="m")
    assert hub.asked == []


def test_with_the_hub_switched_off_it_says_so(hub: StandIn, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    assert "HF_HUB_OFFLINE, which turns it off" in refused(folder)


REFUSALS = [
    (Fault("POST /api/repos/create", 402, words="PRO needed"), "402: PRO needed", "subscribe"),
    (Fault("POST /api/repos/create", 403, words="You may not"), "403: You may not", "`hf auth login`"),
    (Fault("/preupload/", 403, words="Private repository storage limit reached"), "storage limit", "make room"),
    (Fault("/info/lfs/", 413, words="Too large"), "413: Too large", "make room"),
    (Fault("PUT /storage", 403, words="quota exceeded"), "403: quota exceeded", "make room"),
    (Fault("/commit/", 412), "another commit", "repeat the command"),
    (Fault("/commit/", 400, words="Bad name"), "400: Bad name", "fix"),
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
def test_an_error_of_the_hub_is_explained_and_leaves_nothing_incomplete(
    hub: StandIn, folder: Path, monkeypatch: pytest.MonkeyPatch, fault: Fault, found: str, do: str
) -> None:
    """When the fault is over, the same call completes the push."""
    hub.faults = [fault]
    # Not for the second push: on a busy machine an answer may take longer.
    with monkeypatch.context() as patch:
        if fault.what == "hang":
            patch.setattr(hub_account, "ANSWER_WITHIN_SECONDS", 0.2)
            patch.setattr(publish, "LONGEST_SILENCE", 0.2)
            patch.setattr(answers, "HANGS_SECONDS", 0.5)
        message = refused(folder)
    assert found in message.split("Found:    ")[1].split("\n")[0]
    assert do in message.split("Do this:  ")[1]
    assert WRITER not in message
    repository = hub.repositories.get(("models", NAME))
    assert repository is None or ours(repository) == {}
    hub.faults = []
    assert pushed(folder).revision == hub.model(NAME).commit
    assert ours(hub.model(NAME)) == FILES


TEMPORARY = [
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


@pytest.mark.parametrize("fault", TEMPORARY, ids=lambda fault: f"{fault.where} {fault.what}")
def test_a_temporary_fault_is_retried_and_leaves_one_commit(hub: StandIn, folder: Path, fault: Fault) -> None:
    """Also if the commit was made and only the answer was lost."""
    hub.faults = [fault]
    done = pushed(folder)
    assert fault.times == 0
    assert ours(hub.model(NAME)) == FILES
    assert [commit.message for commit in hub.model(NAME).commits] == ["initial commit", "it is done"]
    assert done.revision == hub.model(NAME).commit


def test_a_space_that_has_to_be_paid_for_is_reported(
    hub: StandIn, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", FREE)
    with pytest.raises(UserError) as error:
        publish_folder(folder, "carol/demo", kind="space", private=True, message="m")
    assert "Found:    402: Spaces that run code need a PRO subscription\n" in str(error.value)
    assert "Do this:  subscribe (https://huggingface.co/pricing)" in str(error.value)


def test_errors_of_the_client_itself_are_explained_too(
    hub: StandIn, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A card with invalid metadata; and an error of the storage with a token in its message."""
    message = refused(a_folder(folder, README__md=b"---\na: [\n---\n"))
    assert "Found:    400: Invalid metadata: " in message

    def fails(*_: object, **__: object) -> None:
        raise RuntimeError(f"storage\nsays no to {WRITER}")

    monkeypatch.setattr(HfApi, "create_commit", fails)
    assert "Found:    RuntimeError: storage says no to ***\n" in refused(a_folder(folder))


def test_an_answer_of_a_gateway_is_retried(hub: StandIn, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An HTML page, where the client expects JSON."""
    commit, times = HfApi.create_commit, iter(range(9))

    def once_html(*arguments: Any, **named: Any) -> Any:
        if next(times) == 0:
            json.loads("<html>")
        return commit(*arguments, **named)

    monkeypatch.setattr(HfApi, "create_commit", once_html)
    assert pushed(folder).revision == hub.model(NAME).commit


@pytest.mark.parametrize(
    ("head", "languages"),
    [("language: en", ("en",)), ("language:\n- en\n- de", ("en", "de")), ("license: mit", ()), ("", ())],
)
def test_the_languages_of_a_data_set_are_those_of_its_card(hub: StandIn, head: str, languages: tuple[str, ...]) -> None:
    made = hub.repositories["datasets", "org/texts"] = Repository()
    made.add({"README.md": Stored(f"---\n{head}\n---\n".encode() if head else b"no head")}, "card")
    info = hub_access.ask_hub("org/texts", kind="dataset", revision="main")
    assert info == hub_access.RepositoryInfo(made.commit, languages)
