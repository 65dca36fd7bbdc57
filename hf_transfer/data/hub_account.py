"""The user's token for the Hub: whose it is, and whether it may write to a repository; messages for errors there."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from json import JSONDecodeError
from typing import Any, Literal

import httpx2
import huggingface_hub
import huggingface_hub.constants
from huggingface_hub import HfApi, get_session, is_offline_mode
from huggingface_hub.errors import HfHubHTTPError, RepositoryNotFoundError
from huggingface_hub.utils import build_hf_headers, hf_raise_for_status  # type: ignore[attr-defined]

from hf_transfer.data.hub_access import ANSWER_WITHIN_SECONDS, is_valid_name
from hf_transfer.errors import UserError, user_error

Kind = Literal["model", "space"]
MAY_WRITE = ("admin", "write", "contributor")
LOG_IN = "`hf auth login` with a token that may write, from https://huggingface.co/settings/tokens, or set HF_TOKEN"
# Status codes of temporary trouble, and of too many requests.
TEMPORARY = (408, 425, 429, 500, 502, 503, 504)
WORDS_FOR_FULL = ("storage", "quota", "limit")


@dataclass(frozen=True)
class Destination:
    """A repository that may be written to.

    Attributes:
        name: OWNER/NAME.
        kind: model or space.
        account: the owner of the token.
        exists: whether it exists already.
    """

    name: str
    kind: Kind
    account: str
    exists: bool


def find_destination(repository: str, *, kind: Kind = "model", private: bool = True) -> Destination:
    """Ask the Hub whose the token is, and whether it may write to a repository; nothing is changed there.

    Args:
        repository: OWNER/NAME.
        kind: model or space.
        private: refuse a repository that exists already and is public.

    Raises:
        UserError: no token, or one that may not write there; a public repository; no answer.
    """
    _check_name(repository)
    owner = repository.split("/")[0]
    if is_offline_mode():
        raise user_error(
            expected="the Hub, to publish to it",
            found="HF_HUB_OFFLINE, which turns it off",
            do="unset it, or publish later: `hf-transfer push OUT OWNER/NAME`",
        )
    user = whoami(repository)
    token = user.get("auth", {}).get("accessToken", {})
    teams = {team["name"]: team.get("roleInOrg") for team in user.get("orgs", [])}
    if token.get("role") == "read":
        raise _no_right(repository, "a token that may only read")
    # A fine-grained token does not say what it may do: the request below finds out.
    if token.get("role") == "write" and owner != user["name"] and teams.get(owner) not in MAY_WRITE:
        raise _no_right(repository, f"a token of {user['name']}, who may not write for {owner}")
    return Destination(repository, kind, user["name"], _exists(repository, kind, private))


def whoami(repository: str) -> dict[str, Any]:
    """What the Hub says of the owner of the token.

    Raises:
        UserError: there is no token, or one that the Hub does not know, or no answer.
    """
    token = huggingface_hub.get_token()
    if token is None:
        raise user_error(expected=f"a token for the Hub that may write to {repository}", found="no token", do=LOG_IN)
    with explaining_hub_errors(f"an answer from the Hub before anything is published as {repository}"):
        return _owner(token)


def describe_token() -> str:
    """Whether there is a token, whose it is and what it may do, as far as the Hub says; never the token itself."""
    token = huggingface_hub.get_token()
    if token is None or is_offline_mode():
        return "none" if token is None else "present"
    try:
        user = _owner(token)
    except (HfHubHTTPError, httpx2.HTTPError, OSError) as error:
        return f"present; {explanation(error)[0]}"
    return f"of {user['name']}, to {user.get('auth', {}).get('accessToken', {}).get('role', 'read')}"


def _owner(token: str) -> dict[str, Any]:
    answer = get_session().get(
        f"{huggingface_hub.constants.ENDPOINT}/api/whoami-v2",
        headers=build_hf_headers(token=token),
        timeout=ANSWER_WITHIN_SECONDS,
    )
    hf_raise_for_status(answer)
    user: dict[str, Any] = answer.json()
    return user


def _check_name(repository: str) -> None:
    if repository.count("/") != 1 or not is_valid_name(repository):
        raise user_error(
            expected="a repository to publish to: OWNER/NAME", found=repr(repository), do="correct the name"
        )


def _exists(repository: str, kind: Kind, private: bool) -> bool:
    with explaining_hub_errors(f"an answer from the Hub before anything is published as {repository}"):
        try:
            info = HfApi().repo_info(repository, repo_type=kind, timeout=ANSWER_WITHIN_SECONDS)
            HfApi().auth_check(repository, repo_type=kind, write=True)
        except RepositoryNotFoundError:
            return False
    if private and not info.private:
        raise user_error(
            expected=f"a private repository {repository}",
            found="a public one",
            do="make it private in its settings on the Hub, or publish openly: --hub_private_repo false",
        )
    return True


def _no_right(repository: str, found: str) -> UserError:
    return user_error(expected=f"a token for the Hub that may write to {repository}", found=found, do=LOG_IN)


@contextmanager
def explaining_hub_errors(expected: str) -> Iterator[None]:
    """Turn errors of the Hub, of its client and of the network into a `UserError`.

    Args:
        expected: what the block needs from the Hub.
    """
    try:
        yield
    except (HfHubHTTPError, httpx2.HTTPError, OSError, RuntimeError, ValueError) as error:
        found, do = explanation(error)
        raise user_error(expected=expected, found=found, do=do) from error


def is_temporary(error: BaseException) -> bool:
    """Whether the same request may succeed later."""
    answer = _answer(error)
    return answer.status_code in TEMPORARY if answer is not None else _network_error(error) is not None


def explanation(error: BaseException) -> tuple[str, str]:
    """What went wrong at the Hub or on the way to it, and what to do."""
    answer, network = _answer(error), _network_error(error)
    if answer is None and network is None:
        # From the client itself: metadata that are not valid YAML, for example.
        message = " ".join(without_token(str(error)).split())
        return f"{type(error).__name__}: {message}", "fix what this message names, and repeat the command"
    if answer is None:
        late = isinstance(network, httpx2.TimeoutException)
        problem = "no answer" if late else f"no connection ({type(network).__name__})"
        endpoint = huggingface_hub.constants.ENDPOINT
        return f"{problem} from {endpoint}", "connect to the network, or wait until the Hub answers"
    status, message = answer.status_code, without_token(_message(error, answer))
    full = status == 413 or any(word in message.lower() for word in WORDS_FOR_FULL)
    if status == 401:
        return f"a token that the Hub does not know (401: {message})", LOG_IN
    if status == 402:
        return f"402: {message}", "subscribe (https://huggingface.co/pricing), or leave out what has to be paid for"
    if status in (403, 413) and full:
        return f"{status}: {message}", "make room (https://huggingface.co/settings/storage), or subscribe"
    if status == 403:
        return f"403: {message}", LOG_IN
    if status == 412:
        return "another commit, made at the same time", "repeat the command"
    if status in TEMPORARY:
        return f"{status}: {message}", "wait until the Hub has recovered"
    return f"{status}: {message}", "fix what the Hub names"


def _answer(error: BaseException | None) -> httpx2.Response | None:
    """The Hub's answer in an error; the client wraps it in other errors while it uploads."""
    while error is not None:
        if isinstance(error, HfHubHTTPError | httpx2.HTTPStatusError):
            return error.response
        error = error.__cause__
    return None


def _network_error(error: BaseException | None) -> Exception | None:
    """The error of the network; also an answer that is not JSON, since a proxy and not the Hub has sent it."""
    while error is not None:
        if isinstance(error, httpx2.TransportError | ConnectionError | TimeoutError | JSONDecodeError):
            return error
        error = error.__cause__
    return None


def _message(error: BaseException, answer: httpx2.Response) -> str:
    message = answer.headers.get("X-Error-Message") or getattr(error, "server_message", None) or answer.reason_phrase
    return " ".join(str(message).split())


def without_token(text: str) -> str:
    """The text without this user's token."""
    token = huggingface_hub.get_token()
    return text.replace(token, "***") if token else text
