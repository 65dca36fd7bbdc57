"""Errors that the person running a command can fix."""

from collections.abc import Sequence


class UserError(Exception):
    """An error in settings, data or environment: commands print it without a traceback and exit with code 2.

    Args:
        message: what is printed.
        found: the part of it that says what was found; empty where it has no parts.
    """

    def __init__(self, message: str, *, found: str = "") -> None:
        super().__init__(message)
        self.found = found


class SharedError(UserError):
    """An error that another process of the run prints: this one ends with it, and prints nothing."""


LISTED = 5


def some(names: Sequence[str]) -> str:
    """The first few names, for an error message, and how many more there are."""
    more = len(names) - LISTED
    return ", ".join(names[:LISTED]) + (f" and {more} more" if more > 0 else "")


def user_error(*, expected: str, found: str, do: str) -> UserError:
    """The error to raise, in the three parts that every error message of this project has."""
    return UserError(f"Expected: {expected}\nFound:    {found}\nDo this:  {do}", found=found)
