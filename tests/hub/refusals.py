"""The error responses of the stand-in."""

from typing import Any, NoReturn

KNOWN = {
    "GatedRepo": (403, "Access to it is restricted and you are not in the authorized list."),
    "RepoNotFound": (404, "Repository not found"),
    "RevisionNotFound": (404, "Invalid rev id"),
    "EntryNotFound": (404, "Entry not found"),
}


class RefusedError(Exception):
    """The request is refused.

    Args:
        status: of HTTP.
        words: the message.
        code: the Hub's name of the error.
        headers: further headers.
        more: what the body has beside the message.
    """

    def __init__(
        self, status: int, words: str, code: str = "", headers: dict[str, str] | None = None, **more: Any
    ) -> None:
        super().__init__(words)
        self.status, self.body = status, {"error": words, **more}
        self.headers = {
            "X-Error-Message": " ".join(words.split()),
            **({"X-Error-Code": code} if code else {}),
            **(headers or {}),
        }


def refuse(code: str, headers: dict[str, str] | None = None) -> NoReturn:
    """Refuse with the Hub's message."""
    status, words = KNOWN[code]
    raise RefusedError(status, words, code, headers)
