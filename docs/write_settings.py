"""All settings as a page in Markdown: `python docs/write_settings.py > docs/settings.md`."""

import dataclasses
from typing import Any

from hf_transfer.settings.fields import TYPE_WORDS, Topic, choices_of, default_of, is_required, types_of
from hf_transfer.settings.run import RunConfig

HEAD = """# Settings

This page is generated: `python docs/write_settings.py > docs/settings.md`.

Each setting is a flag of its recipes, a line of a YAML file (`--config FILE.yaml`) and an argument of
`hf_transfer.train`. A flag wins over the file, and the file over the default. A setting that differs from its default
and has no effect on the run is an error that names it; if a flag takes the effect of a setting in the file away, the
setting is ignored, and a message says so.

What a setting **affects**: the *result*; only the *speed*, or the memory and disk that a run takes; the *output*, that
is where and how results are written; the *publication* on the Hub; or this *command* alone. Only settings that affect
the result tell two runs apart. Those of a publication or a command are not saved with the run.
"""
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
    return HEAD + "".join(tables)


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
