"""From a command line and a YAML file to settings, and how a recipe starts and ends."""

import dataclasses
import difflib
import os
import sys
from argparse import Action, ArgumentDefaultsHelpFormatter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn, TypeVar, get_origin

import yaml

from hf_transfer.config import RunConfig, TextConfig, UserError, VisionConfig, mistake
from hf_transfer.config_multimodal import MultimodalConfig
from hf_transfer.installation import check_installation
from hf_transfer.interruption import Interrupted, ending_at_once, same_command

MAX_CONFIG_BYTES = 1_000_000
Config = TypeVar("Config", bound=RunConfig)


def run(main: Callable[[Config], object], config_class: type[Config], argv: Sequence[str] | None = None) -> None:
    """Run a recipe from the command line: a user's mistake becomes a message and exit code 2."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in arguments
    try:
        check_installation()
        config = parse(config_class, arguments)
        debug = config.debug
        with ending_at_once():
            main(config)
    except UserError as error:
        if debug:
            raise
        exit_with(error)
    except Interrupted as asked:
        end_interrupted(asked)


def end_interrupted(asked: Interrupted) -> NoReturn:
    """Say how the run is taken up again, and end the process with the code that stands for the signal."""
    # Said once more, what was to become of an earlier run would befall the one that has just been saved.
    done = RunConfig.for_one_command - {"allow_mismatch"} if asked.saved else frozenset[str]()
    if os.environ.get("RANK", "0") == "0":
        print(f"\nInterrupted by {asked}\nTo go on:    {same_command(without=done)}\n", file=sys.stderr, flush=True)
    sys.exit(asked.exit_code)


def exit_with(error: UserError) -> NoReturn:
    """Print what to mend, without a traceback, and end the process with code 2."""
    rank = os.environ.get("RANK", "0")
    print(f"\nerror{'' if rank == '0' else f' on rank {rank}'}:\n{error}\n", file=sys.stderr)
    sys.exit(2)


def parse(config_class: type[Config], argv: Sequence[str]) -> Config:
    """Settings from the command line, on top of those in a `--config` file, on top of the defaults.

    Raises:
        UserError: an unknown or abbreviated setting, a value of the wrong type or out of range, an unreadable file.
    """
    from transformers import HfArgumentParser

    class Help(ArgumentDefaultsHelpFormatter):
        def _get_help_string(self, action: Action) -> str | None:
            said = action.default is None or "(default" in (action.help or "")
            return action.help if said else super()._get_help_string(action)

    class Parser(HfArgumentParser):
        def error(self, message: str) -> NoReturn:
            raise mistake(expected="settings as --help lists them", found=message, do="correct that setting")

    parser = Parser(config_class, allow_abbrev=False, formatter_class=Help)  # type: ignore[arg-type]
    parser.add_argument("--config", metavar="FILE.yaml", default=None, help="Settings in a file; flags win over it.")
    known = [name.removeprefix("--") for name in parser._option_string_actions if name.startswith("--")]
    own = list(argv)
    from_file = _file_as_arguments(_config_path(own), config_class)
    arguments = [*from_file, *own]
    if bare := [argument for argument in arguments if "--" in (argument, argument.partition("=")[2])]:
        # argparse takes it for the end of the flags, wherever it stands, and leaves a setting without its value.
        raise mistake(
            expected="settings with their values", found=", ".join(bare), do="leave -- out, or use another name"
        )
    config, _, unknown = parser.parse_args_into_dataclasses(
        arguments, return_remaining_strings=True, look_for_args_file=False
    )
    if unknown:
        names = [name.split("=")[0].removeprefix("--") for name in unknown if name.startswith("-")]
        raise _unknown_settings(names or unknown, known)
    return config


def load(config_class: type[Config], path: Path) -> Config:
    """Settings from a YAML file alone."""
    return parse(config_class, ["--config", str(path)])


def recipe_of(path: Path) -> type[RunConfig]:
    """The class of the settings in a YAML file, by the recipe that it names."""
    recipe = _read_yaml(path).get("recipe")
    classes = {kind.recipe: kind for kind in (VisionConfig, TextConfig, MultimodalConfig)}
    if recipe not in classes:
        raise mistake(
            expected=f"a line 'recipe: NAME' in {path}, with one of {', '.join(classes)}",
            found=str(recipe),
            do="add it; a run writes it into the config.yaml of its --output_dir",
        )
    return classes[recipe]


def _config_path(argv: Sequence[str]) -> Path | None:
    path = None
    for position, argument in enumerate(argv):
        if argument.startswith("--config="):
            path = Path(argument.removeprefix("--config="))
        if argument == "--config" and position + 1 < len(argv):
            path = Path(argv[position + 1])
    return path


def _file_as_arguments(path: Path | None, config_class: type[RunConfig]) -> list[str]:
    """The file's settings as command-line arguments, so that types and "the last one wins" are argparse's alone."""
    if path is None:
        return []
    values = _read_yaml(path)
    recipe = values.pop("recipe", config_class.recipe)
    if recipe != config_class.recipe:
        raise mistake(
            expected=f"settings of the {config_class.recipe} recipe",
            found=f"{path} with 'recipe: {recipe}'",
            do=f"run recipes/{recipe}.py with it",
        )
    types = {field.name: field.type for field in dataclasses.fields(config_class)}
    if unknown := [str(key) for key in values if key not in types]:
        raise _unknown_settings(unknown, list(types), path)
    arguments: list[str] = []
    for key, value in values.items():
        if isinstance(value, list) and get_origin(types[key]) is list and all(isinstance(item, str) for item in value):
            arguments += [f"--{key}", *value]
        elif isinstance(value, dict | list):
            found = "a mapping" if isinstance(value, dict) else f"the list {value}"
            raise mistake(expected=f"one value for {key} in {path}", found=found, do="write 'name: value' lines")
        elif value is not None:
            # In one word, as a value may begin with a dash.
            arguments.append(f"--{key}={value}")
    return arguments


class _PlainLoader(yaml.SafeLoader):
    """Plain YAML: no tags, no aliases (which can expand without bound), no key twice.

    Values stay text, but for null: `1e-4` is a number, and a revision `0123456` or a column `no` is a name, as the
    setting's own type has it.
    """

    yaml_implicit_resolvers = {  # noqa: RUF012 (the stubs declare it so)
        first: [(tag, pattern) for tag, pattern in found if tag == "tag:yaml.org,2002:null"]
        for first, found in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            raise yaml.YAMLError("aliases (*name) are not allowed")
        if tag := getattr(self.peek_event(), "tag", None):  # type: ignore[no-untyped-call]
            raise yaml.YAMLError(f"tags ({tag}) are not allowed")
        return super().compose_node(parent, index)

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        keys = [str(key.value) for key, _ in node.value]
        if twice := {key for key in keys if keys.count(key) > 1}:
            raise yaml.YAMLError(f"{', '.join(sorted(twice))}: given more than once")
        return super().construct_mapping(node, deep)


def _read_yaml(path: Path) -> dict[Any, Any]:
    if not path.is_file():
        raise mistake(expected="a YAML file for --config", found=f"no file {path}", do="correct the path")
    if path.stat().st_size > MAX_CONFIG_BYTES:
        raise mistake(expected="a short YAML file", found=f"{path.stat().st_size} bytes in {path}", do="check the path")
    try:
        values = yaml.load(path.read_text(encoding="utf-8"), Loader=_PlainLoader)  # noqa: S506 (a safe loader)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise mistake(expected=f"readable YAML in {path}", found=str(error), do="correct that line") from error
    if not isinstance(values or {}, dict):
        raise mistake(expected=f"'name: value' lines in {path}", found=type(values).__name__, do="correct the file")
    return values or {}


def _unknown_settings(names: Sequence[str], known: Sequence[str], path: Path | None = None) -> UserError:
    hints = []
    for name in names:
        near = difflib.get_close_matches(name, known, n=1, cutoff=0.4) or [k for k in known if k.startswith(name)][:1]
        hints.append(f"{name}" + (f" (nearest: {near[0]})" if near else ""))
    return mistake(
        expected="settings that exist, spelled out in full",
        found=f"{', '.join(hints)}" + (f" in {path}" if path else ""),
        do="use the nearest name, or see --help for all",
    )
