"""Whose token there is for the Hub, and whether it may write where a result is to go; words for what fails there."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import httpx2
import huggingface_hub
import huggingface_hub.constants
from huggingface_hub import HfApi, get_session, is_offline_mode
from huggingface_hub.errors import HfHubHTTPError, RepositoryNotFoundError
from huggingface_hub.utils import build_hf_headers, hf_raise_for_status  # type: ignore[attr-defined]

from hf_transfer.config import UserError, mistake
from hf_transfer.data.hub_access import ANSWER_WITHIN_SECONDS, is_valid_name

Kind = Literal["model", "space"]
MAY_WRITE = ("admin", "write", "contributor")
LOG_IN = "`hf auth login` with a token that may write, from https://huggingface.co/settings/tokens, or set HF_TOKEN"
# What the Hub answers while it has trouble, or has been asked too often.
PASSING = (408, 425, 429, 500, 502, 503, 504)
FULL = ("storage", "quota", "limit")


@dataclass(frozen=True)
class Destination:
    """A repository that may be written to.

    Attributes:
        name: OWNER/NAME.
        kind: model or space.
        account: whose token it is.
        exists: whether there is one already.
    """

    name: str
    kind: Kind
    account: str
    exists: bool


def find_destination(repository: str, *, kind: Kind = "model", private: bool = True) -> Destination:
    """Ask the Hub whose token there is, and whether it may write; nothing is changed there.

    Args:
        repository: OWNER/NAME.
        kind: model or space.
        private: whether it is to be hidden from others: a public one is refused then.

    Raises:
        UserError: no token, or one that may not write there; a repository that everybody sees; no answer.
    """
    _check_name(repository)
    owner = repository.split("/")[0]
    if is_offline_mode():
        raise mistake(
            expected="the Hub, to publish to it",
            found="HF_HUB_OFFLINE, which switches it off",
            do="unset it, or publish later: `hf-transfer push OUT OWNER/NAME`",
        )
    about = whoami(repository)
    token = about.get("auth", {}).get("accessToken", {})
    teams = {team["name"]: team.get("roleInOrg") for team in about.get("orgs", [])}
    if token.get("role") == "read":
        raise _no_right(repository, "a token that may only read")
    # What a fine-grained token may do, the Hub itself is asked for below.
    if token.get("role") == "write" and owner != about["name"] and teams.get(owner) not in MAY_WRITE:
        raise _no_right(repository, f"a token of {about['name']}, who may not write for {owner}")
    return Destination(repository, kind, about["name"], _exists(repository, kind, private))


def whoami(repository: str) -> dict[str, Any]:
    """What the Hub knows of whoever the token belongs to.

    Raises:
        UserError: there is no token, or none that the Hub knows, or no answer.
    """
    token = huggingface_hub.get_token()
    if token is None:
        raise mistake(expected=f"a token for the Hub that may write to {repository}", found="no token", do=LOG_IN)
    with failing_in_words(f"an answer from the Hub before anything is published as {repository}"):
        return _owner(token)


def describe_token() -> str:
    """Whether there is a token, whose it is and what it may do, as far as the Hub tells; never the token itself."""
    token = huggingface_hub.get_token()
    if token is None or is_offline_mode():
        return "none" if token is None else "present"
    try:
        about = _owner(token)
    except (HfHubHTTPError, httpx2.HTTPError, OSError) as error:
        return f"present; {in_words(error)[0]}"
    return f"of {about['name']}, to {about.get('auth', {}).get('accessToken', {}).get('role', 'read')}"


def _owner(token: str) -> dict[str, Any]:
    answer = get_session().get(
        f"{huggingface_hub.constants.ENDPOINT}/api/whoami-v2",
        headers=build_hf_headers(token=token),
        timeout=ANSWER_WITHIN_SECONDS,
    )
    hf_raise_for_status(answer)
    known: dict[str, Any] = answer.json()
    return known


def _check_name(repository: str) -> None:
    if repository.count("/") != 1 or not is_valid_name(repository):
        raise mistake(expected="a repository to publish to: OWNER/NAME", found=repr(repository), do="correct the name")


def _exists(repository: str, kind: Kind, private: bool) -> bool:
    with failing_in_words(f"an answer from the Hub before anything is published as {repository}"):
        try:
            about = HfApi().repo_info(repository, repo_type=kind, timeout=ANSWER_WITHIN_SECONDS)
            HfApi().auth_check(repository, repo_type=kind, write=True)
        except RepositoryNotFoundError:
            return False
    if private and not about.private:
        raise mistake(
            expected=f"a private repository {repository}",
            found="one that everybody sees",
            do="make it private in its settings on the Hub, or publish openly: --hub_private_repo false",
        )
    return True


def _no_right(repository: str, found: str) -> UserError:
    return mistake(expected=f"a token for the Hub that may write to {repository}", found=found, do=LOG_IN)


@contextmanager
def failing_in_words(expected: str, then: str = "") -> Iterator[None]:
    """Turn whatever the Hub, or the way to it, answers with into a message to the user.

    Args:
        expected: what was to be had.
        then: what to do afterwards, the command that completes it, say.
    """
    try:
        yield
    except Exception as error:
        if _answer(error) is None and _broken(error) is None:
            raise
        found, do = in_words(error)
        raise mistake(expected=expected, found=found, do=f"{do}, then: {then}" if then else do) from error


def passing(error: BaseException) -> bool:
    """Whether it may well be over when one asks again."""
    answer = _answer(error)
    return answer.status_code in PASSING if answer is not None else _broken(error) is not None


def in_words(error: BaseException) -> tuple[str, str]:
    """What the Hub, or the way to it, has answered, and what to do."""
    answer = _answer(error)
    if answer is None:
        broken = _broken(error) or error
        late = isinstance(broken, httpx2.TimeoutException)
        where = huggingface_hub.constants.ENDPOINT
        words = "no answer" if late else f"no connection ({type(broken).__name__})"
        return f"{words} from {where}", "connect to the network, or wait until the Hub answers"
    status = answer.status_code
    said = without_token(_message(error, answer))
    full = status == 413 or any(word in said.lower() for word in FULL)
    if status == 401:
        return f"a token that the Hub does not know (401: {said})", LOG_IN
    if status == 402:
        return f"402: {said}", "subscribe (https://huggingface.co/pricing), or leave out what has to be paid for"
    if status in (403, 413) and full:
        return f"{status}: {said}", "make room (https://huggingface.co/settings/storage), or subscribe"
    if status == 403:
        return f"403: {said}", LOG_IN
    if status == 412:
        return "a commit of somebody else, made at the same time", "repeat the command"
    if status in PASSING:
        return f"{status}: {said}", "wait until the Hub has recovered"
    return f"{status}: {said}", "mend what the Hub says"


def _answer(error: BaseException | None) -> httpx2.Response | None:
    """The Hub's answer behind an error, which the client wraps in others while it uploads."""
    while error is not None:
        if isinstance(error, HfHubHTTPError | httpx2.HTTPStatusError):
            return error.response
        error = error.__cause__
    return None


def _broken(error: BaseException | None) -> httpx2.TransportError | OSError | None:
    while error is not None:
        if isinstance(error, httpx2.TransportError | ConnectionError | TimeoutError):
            return error
        error = error.__cause__
    return None


def _message(error: BaseException, answer: httpx2.Response) -> str:
    said = answer.headers.get("X-Error-Message") or getattr(error, "server_message", None) or answer.reason_phrase
    return " ".join(str(said).split())


def without_token(text: str) -> str:
    """The text without this user's token, whoever wrote it in."""
    token = huggingface_hub.get_token()
    return text.replace(token, "***") if token else text
