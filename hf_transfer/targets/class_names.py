"""Names of classes and labels, for people: lists of them, and names that are easily taken for each other."""

from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence

NAMES_SHOWN = 20
LONGEST_SHOWN = 60


def shown_names(names: Sequence[str]) -> str:
    """The first twenty names, and how many more there are."""
    more = len(names) - NAMES_SHOWN
    return ", ".join(map(_shown, names[:NAMES_SHOWN])) + (f" and {more:,} more" if more > 0 else "")


def notes_on_lacking(lacking: Mapping[str, Sequence[str]], one: str, several: str) -> list[str]:
    """Sentences on names that no sample of a split has.

    Args:
        lacking: these names, by split.
        one: what such a name is ("class").
        several: the same in the plural.
    """
    return [
        f"In {split} no sample has the {several if len(names) > 1 else one} {shown_names(names)}."
        for split, names in lacking.items()
        if names
    ]


def similar_names(name: str, others: Iterable[str]) -> list[str]:
    """The other names that differ from a name only in case or in surrounding spaces."""
    return [other for other in others if other != name and _folded(other) == _folded(name)]


def notes_on_similar_names(counts: Mapping[str, int], outputs: str) -> list[str]:
    """A sentence on each group of names that differ only in case or in surrounding spaces.

    Args:
        counts: of the samples of each name.
        outputs: what the names are ("classes").
    """
    return [
        f"Warning: {outputs} that differ only in case or surrounding spaces: "
        f"{' and '.join(f'{name!r} ({counts[name]:,} samples)' for name in group)}. They are kept apart."
        for group in _similar_groups(counts)
    ]


def _similar_groups(names: Collection[str]) -> list[list[str]]:
    groups: dict[str, list[str]] = defaultdict(list)
    for name in names:
        groups[_folded(name)].append(name)
    return [group for group in groups.values() if len(group) > 1]


def _folded(name: str) -> str:
    return name.strip().casefold()


def _shown(name: str) -> str:
    """A name in a list; in quotes where it could not be told apart from its neighbours."""
    short = name if len(name) <= LONGEST_SHOWN else name[: LONGEST_SHOWN - 3] + "..."
    is_plain = name.isprintable() and name == name.strip() and "," not in name and name != ""
    return short if is_plain else repr(short)
