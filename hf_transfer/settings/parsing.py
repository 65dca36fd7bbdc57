"""From a command line and a YAML file to settings, and how a recipe starts and ends."""

import os
import sys
import time
from argparse import ArgumentParser
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any, NoReturn, TypeVar

from hf_transfer.errors import SharedError, UserError, user_error
from hf_transfer.garbage import skip_last_collection
from hf_transfer.installation import check_installation, explaining_torchvision
from hf_transfer.interruption import Interrupted, ending_at_once, same_command
from hf_transfer.settings.fields import unknown_settings
from hf_transfer.settings.files import file_as_arguments
from hf_transfer.settings.flags import FlagParser
from hf_transfer.settings.run import RunConfig, part, required, without_effect

Config = TypeVar("Config", bound=RunConfig)
# A run writes all settings that have a value; nobody writes so many by hand.
WRITTEN_BY_A_RUN = 40
SECONDS_FOR_ANOTHER_TO_PRINT = 1.0


def run_recipe(main: Callable[[Config], object], config_class: type[Config], argv: Sequence[str] | None = None) -> None:
    """Run a recipe from the command line: a user's error becomes a message and exit code 2."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    debug, config = "--debug" in arguments, None
    skip_last_collection()
    try:
        check_installation()
        config = parse(config_class, arguments)
        debug = config.output.debug
        with ending_at_once(), explaining_torchvision():
            main(config)
    except UserError as error:
        if debug:
            raise
        exit_with(error)
    except Interrupted as interrupted:
        # What auto has tried stays whatever the last run has saved.
        decides = config is not None and config.chooses_strategy() and not interrupted.is_early
        exit_interrupted(interrupted, config_class, has_work=interrupted.saved or decides)


def exit_interrupted(interrupted: Interrupted, config_class: type[RunConfig], *, has_work: bool) -> NoReturn:
    """Print how the run is resumed, and end the process with the code that stands for the signal.

    Args:
        interrupted: by which signal.
        config_class: the settings of the recipe.
        has_work: whether the folder of the run has something to go on from.
    """
    for_one_command = {name for name, one in config_class.settings().items() if one.metadata["affects"] == "command"}
    # Given again, they would start over the run that has just been saved.
    start_over = for_one_command - {"allow_mismatch"} if has_work else frozenset[str]()
    if os.environ.get("RANK", "0") == "0":
        command = same_command(without=start_over)
        print(f"\nInterrupted by {interrupted}\nTo resume:   {command}\n", file=sys.stderr, flush=True)
    sys.exit(interrupted.exit_code)


def exit_with(error: UserError) -> NoReturn:
    """Print an error without a traceback, unless another process does, and end the process with code 2."""
    rank = os.environ.get("RANK", "0")
    if isinstance(error, SharedError):
        # A launcher ends all processes as soon as one has ended: that which prints the error comes first.
        time.sleep(SECONDS_FOR_ANOTHER_TO_PRINT)
    else:
        print(f"\nerror{'' if rank == '0' else f' on rank {rank}'}:\n{error}\n", file=sys.stderr, flush=True)
    sys.exit(2)


def parse(config_class: type[Config], argv: Sequence[str], *, without: Collection[str] = ()) -> Config:
    """Settings from the command line, over those in a `--config` file, over the defaults.

    A setting of the file that has no effect beside the flags is ignored.

    Args:
        config_class: the settings of the recipe.
        argv: the command line.
        without: names of settings, of one value each, that are not taken from the file.

    Raises:
        UserError: an unknown or abbreviated setting, a value of the wrong type or out of range, an unreadable file, or
            a setting that has no effect on the run.
    """
    flags = list(argv)
    path = config_path(flags)
    from_file = [] if path is None else file_as_arguments(path, config_class)
    left_out = {f"--{name}" for name in without}
    config = _parsed(config_class, [*(word for word in from_file if word.partition("=")[0] not in left_out), *flags])
    ineffective = config.ineffective()
    if not ineffective:
        return config
    inconsistent = set() if _is_of_a_run(path, from_file) else _ineffective_alone(config_class, from_file)
    for name, need in ineffective.items():
        if name in _names(flags):
            raise without_effect(config, name, need)
        if name in inconsistent:
            raise without_effect(config, name, need, str(path))
    if os.environ.get("RANK", "0") == "0":
        print(f"Ignored, as they have no effect on this run: {', '.join(ineffective)} in {path}.")
    return config.without_ineffective()


def load_settings(config_class: type[Config], path: Path) -> Config:
    """Settings from a YAML file alone."""
    return parse(config_class, ["--config", str(path)])


def _is_of_a_run(path: Path | None, arguments: Sequence[str]) -> bool:
    """Whether a run wrote a file of settings; versions up to 0.1 accepted settings without effect."""
    return len(arguments) >= WRITTEN_BY_A_RUN or (path is not None and (path.parent / "results.json").exists())


def _ineffective_alone(config_class: type[RunConfig], from_file: Sequence[str]) -> set[str]:
    """The settings of a file that have no effect whatever else a command line says."""
    missing = [f"--{name}=any" for name in required(config_class)]
    try:
        return set(_parsed(config_class, [*missing, *from_file]).ineffective())
    except UserError:
        # It is a part of the settings, which flags complete.
        return set()


def names_in(flags: Sequence[str]) -> list[str]:
    """The flags of a command line, without their values and with underscores."""
    return [flag.partition("=")[0].removeprefix("--").replace("-", "_") for flag in flags if flag.startswith("--")]


def _names(flags: Sequence[str]) -> set[str]:
    """The settings that a command line names."""
    names = {*names_in(flags)}
    return names | {name.removeprefix("no_") for name in names}


def _parsed(config_class: type[Config], arguments: list[str]) -> Config:
    """The settings of a whole command line, of which none is checked against the others' effects."""
    topics = config_class.topic_types()
    parser = FlagParser(topics.values())
    parser.add_argument("--config", metavar="FILE.yaml", default=None, help="Settings in a file; flags win over it.")
    known = [name.removeprefix("--") for name in parser._option_string_actions if name.startswith("--")]
    if bare := [argument for argument in arguments if "--" in (argument, argument.partition("=")[2])]:
        # argparse takes it for the end of the flags, wherever it stands, and leaves a setting without its value.
        raise user_error(
            expected="settings with their values", found=", ".join(bare), do="leave -- out, or use another name"
        )
    values, unknown = parser.parse_known_args(arguments)
    parsed: dict[str, Any] = {name: topic(**part(topic, vars(values))) for name, topic in topics.items()}
    if unknown:
        names = [name.split("=")[0].removeprefix("--") for name in unknown if name.startswith("-")]
        raise unknown_settings(names or unknown, known)
    return config_class(**parsed)


def config_path(argv: Sequence[str]) -> Path | None:
    """The file of settings that a command line names; a missing name is an error of the whole command line."""
    parser = ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--config", type=Path, nargs="?")
    return parser.parse_known_args(argv)[0].config  # type: ignore[no-any-return]
