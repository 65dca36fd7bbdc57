"""The words in which the stand-in refuses."""

from typing import Any, NoReturn

KNOWN = {
    "GatedRepo": (403, "Access to it is restricted and you are not in the authorized list."),
    "RepoNotFound": (404, "Repository not found"),
    "RevisionNotFound": (404, "Invalid rev id"),
    "EntryNotFound": (404, "Entry not found"),
}


class RefusedError(Exception):
    """The request is not to be done.

    Args:
        status: of HTTP.
        words: what is wrong.
        code: the Hub's own word for it.
        headers: further ones.
        more: what the answer holds beside the words.
    """

    def __init__(
        self, status: int, words: str, code: str = "", headers: dict[str, str] | None = None, **more: Any
    ) -> None:
        super().__init__(words)
        self.status, self.body = status, {"error": words, **more}
        self.headers = {"X-Error-Message": words, **({"X-Error-Code": code} if code else {}), **(headers or {})}


def refuse(code: str, headers: dict[str, str] | None = None) -> NoReturn:
    """Refuse in the Hub's own words."""
    status, words = KNOWN[code]
    raise RefusedError(status, words, code, headers)
