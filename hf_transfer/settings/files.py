"""Settings in a YAML file: plain YAML, read as text, and turned into arguments of a command line."""

from pathlib import Path
from typing import Any, get_origin

import yaml

from hf_transfer.errors import user_error
from hf_transfer.settings.fields import unknown_settings
from hf_transfer.settings.run import RunConfig

MAX_CONFIG_BYTES = 1_000_000


class _PlainLoader(yaml.SafeLoader):
    """Plain YAML: no tags, no aliases (which can expand without bound), no key twice.

    Values stay text, except null: `1e-4` is a number, and a revision `0123456` or a column `no` is a name, as the
    setting's own type says.
    """

    yaml_implicit_resolvers = {  # noqa: RUF012 (the stubs declare it so)
        first: [(tag, pattern) for tag, pattern in resolvers if tag == "tag:yaml.org,2002:null"]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
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


def read_yaml(path: Path) -> dict[Any, Any]:
    """The names and values of a file of settings; values are text, lists of text or None.

    Raises:
        UserError: no such file, or not plain YAML.
    """
    if not path.is_file():
        raise user_error(expected="a YAML file for --config", found=f"no file {path}", do="correct the path")
    if path.stat().st_size > MAX_CONFIG_BYTES:
        raise user_error(
            expected="a short YAML file", found=f"{path.stat().st_size} bytes in {path}", do="check the path"
        )
    try:
        values = yaml.load(path.read_text(encoding="utf-8"), Loader=_PlainLoader)  # noqa: S506 (a safe loader)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise user_error(expected=f"readable YAML in {path}", found=str(error), do="correct that line") from error
    if not isinstance(values or {}, dict):
        raise user_error(expected=f"'name: value' lines in {path}", found=type(values).__name__, do="correct the file")
    return values or {}


def file_as_arguments(path: Path, config_class: type[RunConfig]) -> list[str]:
    """The settings of a file as command-line arguments: types and "the last one wins" are then argparse's alone.

    Raises:
        UserError: settings of another recipe, unknown ones, or nested values.
    """
    values = read_yaml(path)
    recipe = values.pop("recipe", config_class.recipe)
    if recipe != config_class.recipe:
        raise user_error(
            expected=f"settings of the {config_class.recipe} recipe",
            found=f"{path} with 'recipe: {recipe}'",
            do=f"run recipes/{recipe}.py with it",
        )
    known = config_class.settings()
    if unknown := [str(key) for key in values if key not in known]:
        raise unknown_settings(unknown, list(known), path)
    arguments: list[str] = []
    for key, value in values.items():
        if isinstance(value, list) and get_origin(known[key].type) is list and all(isinstance(v, str) for v in value):
            arguments += [f"--{key}", *value]
        elif isinstance(value, dict | list):
            found = "a mapping" if isinstance(value, dict) else f"the list {value}"
            raise user_error(expected=f"one value for {key} in {path}", found=found, do="write 'name: value' lines")
        elif value is not None:
            # In one word, as a value may begin with a dash.
            arguments.append(f"--{key}={value}")
    return arguments
