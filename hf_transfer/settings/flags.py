"""The flags of a recipe: one for each setting, for the standard library's argparse."""

import dataclasses
from argparse import Action, ArgumentDefaultsHelpFormatter, ArgumentParser, ArgumentTypeError
from collections.abc import Iterable
from types import NoneType
from typing import Any, Literal, NoReturn, get_args, get_origin

from hf_transfer.errors import user_error
from hf_transfer.settings.fields import Topic, choices_of, default_of, is_required, types_of

TRUE, FALSE = ("yes", "true", "t", "y", "1"), ("no", "false", "f", "n", "0")


class _Help(ArgumentDefaultsHelpFormatter):
    def _get_help_string(self, action: Action) -> str | None:
        stated = action.default is None or "(default" in (action.help or "")
        return action.help if stated else super()._get_help_string(action)


class FlagParser(ArgumentParser):
    """Parses a command line whose flags are the settings of some topics.

    A flag may be written with hyphens in place of underscores. That of a setting which is true or false stands for
    true where it has no value, and one whose default is true has a second flag, `--no_NAME`.

    Args:
        topics: the classes of the settings, in the order of `--help`.
    """

    def __init__(self, topics: Iterable[type[Topic]]) -> None:
        super().__init__(allow_abbrev=False, formatter_class=_Help)
        for topic in topics:
            for one in dataclasses.fields(topic):
                self._add_flags(one)

    def error(self, message: str) -> NoReturn:
        """See `ArgumentParser.error`; here it is an error of the user."""
        raise user_error(expected="settings as --help lists them", found=message, do="correct that setting")

    def _add_flags(self, one: dataclasses.Field[Any]) -> None:
        text = one.metadata["help"]
        options: dict[str, Any] = {"required": True} if is_required(one) else {"default": default_of(one)}
        self.add_argument(*spellings(f"--{one.name}"), help=text, **options, **_values(one))
        if bool in types_of(one) and options.get("default") is True:
            self.add_argument(
                *spellings(f"--no_{one.name}"), help=text, action="store_false", dest=one.name, default=False
            )


def spellings(flag: str) -> list[str]:
    """A flag, and the same with hyphens in place of underscores."""
    return list(dict.fromkeys((flag, flag.replace("_", "-"))))


def _values(one: dataclasses.Field[Any]) -> dict[str, Any]:
    """What argparse is told of the values of a setting."""
    if choices := choices_of(one):
        return {"choices": choices}
    kind = next(kind for kind in types_of(one) if kind is not NoneType)
    if kind is bool:
        may_be_left_open = default_of(one) is None
        return {"type": _true_or_false} | ({} if may_be_left_open else {"nargs": "?", "const": True})
    if get_origin(kind) is list:
        return {"type": get_args(kind)[0], "nargs": "+"}
    assert get_origin(kind) is not Literal
    return {"type": kind}


def _true_or_false(text: str) -> bool:
    if text.lower() in (*TRUE, *FALSE):
        return text.lower() in TRUE
    raise ArgumentTypeError(
        f"Truthy value expected: got {text} but expected one of yes/no, true/false, t/f, y/n, 1/0 (case insensitive)."
    )
