"""What a setting is: a dataclass field with its help, its range, what it affects and what it needs."""

import dataclasses
import difflib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal, NamedTuple, get_args, get_origin

from hf_transfer.errors import UserError, user_error
from hf_transfer.settings.ranges import Range, can_encode

# result: another value is another run. speed: only how fast, or with how much memory. output: where and how it is
# written and shown. publication: whether and where this result is published. command: this command only.
Effect = Literal["result", "speed", "output", "publication", "command"]
REQUIRED = dataclasses.MISSING
TYPE_WORDS: dict[Any, str] = {str: "text", bool: "true or false", int: "a whole number", float: "a number"}
TYPE_WORDS |= {list[str]: "a list of texts", list[int]: "a list of whole numbers"}


class Need(NamedTuple):
    """Without this, a setting has no effect on the run.

    Attributes:
        words: what it is, for the error message.
        holds: whether a `RunConfig` has it.
        otherwise: what the `RunConfig` has instead, for the error message: a text, or what makes one of it.
        do: what to do, for the error message; empty: leave the setting out.
    """

    words: str
    holds: Callable[[Any], bool]
    otherwise: str | Callable[[Any], str]
    do: str = ""


TRAINS = Need("training", lambda config: config.trains(), "--evaluate_only")
STEPS = Need(
    "a strategy that trains step by step",
    lambda config: config.trains_stepwise(),
    lambda config: f"{config.strategy.flag()}, whose head is solved" if config.trains() else "--evaluate_only",
)


def setting(help: str, default: Any, *traits: Range | Need | Effect) -> Any:
    """A field of a topic.

    Args:
        help: its line in `--help`.
        default: its value where none is given; a list is copied. `REQUIRED`: there is none.
        traits: its range; what it affects, if that is not the result; and the needs without which it has no effect,
            beside those of its topic.
    """
    metadata = {
        "help": help,
        "within": next((trait for trait in traits if isinstance(trait, Range)), None),
        "affects": next((trait for trait in traits if isinstance(trait, str)), "result"),
        "needs": tuple(trait for trait in traits if isinstance(trait, Need)),
    }
    value: dict[str, Any] = {"default_factory": default.copy} if isinstance(default, list) else {"default": default}
    return dataclasses.field(**value, metadata=metadata, kw_only=True)


@dataclass(frozen=True)
class Topic:
    """Settings that belong together; a room of the package gets the topics that it works with."""

    needs: ClassVar[tuple[Need, ...]] = ()

    def __post_init__(self) -> None:
        for one in dataclasses.fields(self):
            if problem := _problem(one, getattr(self, one.name)):
                expected, found = problem
                raise user_error(expected=f"--{one.name}: {expected}", found=found, do=f"change --{one.name}")

    def given(self) -> Iterator[dataclasses.Field[Any]]:
        """The settings that differ from their defaults; required ones do not count."""
        for one in dataclasses.fields(self):
            if not is_required(one) and getattr(self, one.name) != default_of(one):
                yield one


def default_of(one: dataclasses.Field[Any]) -> Any:
    """The default of a setting that is not required."""
    return one.default if one.default_factory is dataclasses.MISSING else one.default_factory()


def is_required(one: dataclasses.Field[Any]) -> bool:
    """Whether a setting has no default."""
    return one.default is dataclasses.MISSING and one.default_factory is dataclasses.MISSING


def types_of(one: dataclasses.Field[Any]) -> tuple[Any, ...]:
    """The types that the values of a setting have; `NoneType` is one of them if it may be left open."""
    return (one.type,) if get_origin(one.type) in (None, list, Literal) else get_args(one.type)


def choices_of(one: dataclasses.Field[Any]) -> tuple[str, ...]:
    """The values of a setting that has a fixed choice; none for any other setting."""
    return next((get_args(kind) for kind in types_of(one) if get_origin(kind) is Literal), ())


def converted(one: dataclasses.Field[Any], value: Any) -> Any:
    """A value from Python in the type of its setting: paths are text, a whole number may stand for a number."""
    if isinstance(value, Path):
        return str(value)
    return float(value) if float in types_of(one) and type(value) is int else value


def unknown_settings(names: Sequence[str], known: Sequence[str], path: Path | None = None) -> UserError:
    """The error for names that are no settings, each with the nearest one that is."""
    hints = []
    for name in names:
        near = difflib.get_close_matches(name, known, n=1, cutoff=0.4) or [k for k in known if k.startswith(name)][:1]
        hints.append(f"{name}" + (f" (nearest: {near[0]})" if near else ""))
    return user_error(
        expected="settings that exist, spelled out in full",
        found=f"{', '.join(hints)}" + (f" in {path}" if path else ""),
        do="use the nearest name, or see --help for all",
    )


def _problem(one: dataclasses.Field[Any], value: Any) -> tuple[str, str] | None:
    """What is expected of a setting, and the value that is something else; None, if the value is right."""
    kinds, within = types_of(one), one.metadata["within"]
    if value is None and type(None) in kinds:
        return None
    if choices := choices_of(one):
        return None if value in choices else (f"one of {', '.join(choices)}", str(value))
    if not _is_of_type(value, kinds[0]):
        return TYPE_WORDS[kinds[0]], repr(value)
    if isinstance(value, str) and ("\0" in value or not can_encode(value, "utf-8")):
        return "text in UTF-8 without a zero byte", ascii(value)
    return None if within is None or within.holds(value) else (within.words, str(value))


def _is_of_type(value: Any, kind: Any) -> bool:
    if get_origin(kind) is list:
        return isinstance(value, list) and all(_is_of_type(item, get_args(kind)[0]) for item in value)
    allowed = (int, float) if kind is float else kind
    return isinstance(value, allowed) and (kind is bool or not isinstance(value, bool))
