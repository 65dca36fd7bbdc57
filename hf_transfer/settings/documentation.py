"""All settings as a page in Markdown: `python -m hf_transfer.settings.documentation > docs/settings.md`."""

import dataclasses
from pathlib import Path
from typing import Any

from hf_transfer.settings.fields import TYPE_WORDS, Topic, choices_of, default_of, is_required, types_of
from hf_transfer.settings.run import RunConfig

# What stands above the tables.
HEAD = Path(__file__).with_suffix(".md")
COLUMNS = ("Setting", "Default", "Values", "Recipes", "Affects", "Has an effect with", "Meaning")
Cells = tuple[str, ...]
# By setting: its variants, each with the recipes that have it.
Variants = dict[str, dict[Cells, list[str]]]


def documentation() -> str:
    """The page, with a table for each topic; a setting that differs between recipes has a line for each variant."""
    topics: dict[str, Variants] = {}
    # Those of the package alone: programs, and tests, may define more.
    for config in (one for one in RunConfig.__subclasses__() if one.__module__.startswith("hf_transfer.")):
        for name, topic in config.topic_types().items():
            for one in dataclasses.fields(topic):
                variants = topics.setdefault(name, {}).setdefault(one.name, {})
                variants.setdefault(_cells(topic, one), []).append(config.recipe)
    tables = (f"\n## {name.capitalize()}\n\n{_table(settings)}" for name, settings in topics.items())
    return HEAD.read_text(encoding="utf-8") + "".join(tables)


def _table(settings: Variants) -> str:
    lines = [COLUMNS, ("---",) * len(COLUMNS)]
    for variants in settings.values():
        lines += [(*cells[:3], ", ".join(recipes), *cells[3:]) for cells, recipes in variants.items()]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _cells(topic: type[Topic], one: dataclasses.Field[Any]) -> Cells:
    within, needs = one.metadata["within"], (*topic.needs, *one.metadata["needs"])
    values = ", ".join(f"`{choice}`" for choice in choices_of(one))
    return (
        f"`--{one.name}`",
        "required" if is_required(one) else _shown(default_of(one)),
        values or (TYPE_WORDS[types_of(one)[0]] if within is None else within.words),
        one.metadata["affects"],
        "; ".join(dict.fromkeys(need.words for need in needs)),
        one.metadata["help"].replace("%%", "%"),
    )


def _shown(default: Any) -> str:
    if isinstance(default, list):
        return " ".join(f"`{value}`" for value in default)
    return "" if default is None else f"`{str(default).lower() if isinstance(default, bool) else default}`"


if __name__ == "__main__":
    print(documentation(), end="")
