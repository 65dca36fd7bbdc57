"""Errors that the person running a command can fix."""


class UserError(Exception):
    """An error in settings, data or environment: commands print it without a traceback and exit with code 2.

    Args:
        message: what is printed.
        found: the part of it that says what was found; empty where it has no parts.
    """

    def __init__(self, message: str, *, found: str = "") -> None:
        super().__init__(message)
        self.found = found


def user_error(*, expected: str, found: str, do: str) -> UserError:
    """The error to raise, in the three parts that every error message of this project has."""
    return UserError(f"Expected: {expected}\nFound:    {found}\nDo this:  {do}", found=found)
