"""The user's token for the Hub: whose it is, and whether it may write to a repository; messages for errors there."""

from collections.abc import Iterator
from contextlib import contextmanager
from json import JSONDecodeError
from typing import Any, Literal, NamedTuple

import httpx2
from huggingface_hub import HfApi, constants, get_session, get_token, is_offline_mode
from huggingface_hub.errors import HfHubHTTPError, RepositoryNotFoundError
from huggingface_hub.utils import build_hf_headers, hf_raise_for_status  # type: ignore[attr-defined]

from hf_transfer.data.hub_access import ANSWER_WITHIN_SECONDS, is_valid_name
from hf_transfer.errors import UserError, user_error

Kind = Literal["model", "space"]
MAY_WRITE = ("admin", "write", "contributor")
LOG_IN = "`hf auth login` with a token that may write, from https://huggingface.co/settings/tokens, or set HF_TOKEN"
# Status codes of temporary trouble, and of too many requests.
TEMPORARY = (408, 425, 429, 500, 502, 503, 504)
WHAT_TO_DO = {
    402: "subscribe (https://huggingface.co/pricing), or leave out what has to be paid for",
    403: LOG_IN,
    413: "make room (https://huggingface.co/settings/storage), or subscribe",
    **dict.fromkeys(TEMPORARY, "wait until the Hub has recovered"),
}
WORDS_FOR_FULL = ("storage", "quota", "limit")
# An answer that is not JSON was sent by a proxy, and not by the Hub.
NETWORK_ERRORS = (httpx2.TransportError, ConnectionError, TimeoutError, JSONDecodeError)
REFUSALS = (HfHubHTTPError, httpx2.HTTPStatusError)


class Destination(NamedTuple):
    """A repository that may be written to.

    Attributes:
        account: the owner of the token.
        exists: whether it exists already.
    """

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
    if repository.count("/") != 1 or not is_valid_name(repository):
        raise user_error(
            expected="a repository to publish to: OWNER/NAME", found=repr(repository), do="correct the name"
        )
    if is_offline_mode():
        raise user_error(
            expected="the Hub, to publish to it",
            found="HF_HUB_OFFLINE, which turns it off",
            do="unset it, or publish later: `hf-transfer push OUT OWNER/NAME`",
        )
    token = get_token()
    if token is None:
        raise _no_right(repository, "no token")
    with explaining_hub_errors(f"an answer from the Hub before anything is published as {repository}"):
        account = _owner(token)
        _refuse_without_right(repository, account)
        exists = _exists(repository, kind, private)
    return Destination(account["name"], exists)


def _refuse_without_right(repository: str, account: dict[str, Any]) -> None:
    owner, name = repository.split("/")[0], account["name"]
    role = account.get("auth", {}).get("accessToken", {}).get("role")
    teams = {team["name"]: team.get("roleInOrg") for team in account.get("orgs", [])}
    if role == "read":
        raise _no_right(repository, "a token that may only read")
    # A fine-grained token does not say what it may do: the next request finds out.
    if role == "write" and owner != name and teams.get(owner) not in MAY_WRITE:
        raise _no_right(repository, f"a token of {name}, who may not write for {owner}")


def _no_right(repository: str, found: str) -> UserError:
    return user_error(expected=f"a token for the Hub that may write to {repository}", found=found, do=LOG_IN)


def _exists(repository: str, kind: Kind, private: bool) -> bool:
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


def describe_token() -> str:
    """Whether there is a token, whose it is and what it may do, as far as the Hub says; never the token itself."""
    token = get_token()
    if token is None or is_offline_mode():
        return "none" if token is None else "present"
    try:
        user = _owner(token)
    except (HfHubHTTPError, httpx2.HTTPError, OSError) as error:
        return f"present; {explanation(error)[0]}"
    return f"of {user['name']}, to {user.get('auth', {}).get('accessToken', {}).get('role', 'read')}"


def _owner(token: str) -> dict[str, Any]:
    answer = get_session().get(
        f"{constants.ENDPOINT}/api/whoami-v2", headers=build_hf_headers(token=token), timeout=ANSWER_WITHIN_SECONDS
    )
    hf_raise_for_status(answer)
    user: dict[str, Any] = answer.json()
    return user


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
    return answer.status_code in TEMPORARY if answer is not None else _cause(error, NETWORK_ERRORS) is not None


def explanation(error: BaseException) -> tuple[str, str]:
    """What went wrong at the Hub or on the way to it, and what to do."""
    answer, network = _answer(error), _cause(error, NETWORK_ERRORS)
    if answer is None and network is None:
        # From the client itself: metadata that are not valid YAML, for example.
        return f"{type(error).__name__}: {_in_a_line(error)}", "fix what this message names, and repeat the command"
    if answer is None:
        late = isinstance(network, httpx2.TimeoutException)
        problem = "no answer" if late else f"no connection ({type(network).__name__})"
        return f"{problem} from {constants.ENDPOINT}", "connect to the network, or wait until the Hub answers"
    status = answer.status_code
    message = answer.headers.get("X-Error-Message") or getattr(error, "server_message", None) or answer.reason_phrase
    found = f"{status}: {_in_a_line(message)}"
    if status == 401:
        return f"a token that the Hub does not know ({found})", LOG_IN
    if status == 412:
        return "another commit, made at the same time", "repeat the command"
    if status == 403 and any(word in found.lower() for word in WORDS_FOR_FULL):
        return found, WHAT_TO_DO[413]
    return found, WHAT_TO_DO.get(status, "fix what the Hub names")


def _answer(error: BaseException) -> httpx2.Response | None:
    """The Hub's answer in an error; the client wraps it in other errors while it uploads."""
    answer: httpx2.Response | None = getattr(_cause(error, REFUSALS), "response", None)
    return answer


def _cause(error: BaseException | None, kinds: tuple[type[Exception], ...]) -> BaseException | None:
    """The error, or the first of its causes that is of one of these kinds."""
    while error is not None and not isinstance(error, kinds):
        error = error.__cause__
    return error


def _in_a_line(message: object) -> str:
    """The message without this user's token."""
    token = get_token()
    text = str(message).replace(token, "***") if token else str(message)
    return " ".join(text.split())
