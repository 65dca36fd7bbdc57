"""Texts for people are made from templates beside the code; names from outside are escaped in them by filters."""

import re
import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from hf_transfer.targets.shown_scores import shown_interval, shown_score


def plain(text: str) -> str:
    """A name from the user's data, escaped for a Markdown table: no markup, no line break, no column."""
    signs = "&\\`*_{}[]<>|#$~"
    return "".join(f"&#{ord(sign)};" if sign in signs else sign for sign in " ".join(text.split()))


def as_text(name: str) -> str:
    """A name for a page that others read: `plain`, and no link, no mention, no invisible characters."""
    visible = "".join(sign for sign in name if unicodedata.category(sign) not in ("Cc", "Cf", "Cs") or sign.isspace())
    return plain(visible).replace("@", "&#64;").replace("://", "&#58;//").replace("www.", "www&#46;")


def cell(value: object, escaped: Callable[[str], str]) -> str:
    """A value in a table of Markdown."""
    return escaped(value) if isinstance(value, str) else f"{value:.4f}" if isinstance(value, float) else str(value)


def fenced(text: str, language: str) -> str:
    """A block of code, whatever backticks the text contains."""
    longest = max(map(len, re.findall("`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return "\n".join([f"{fence}{language}", *text.rstrip("\n").splitlines(), fence])


def render(template: str, **context: Any) -> str:
    """The text of a template.

    Args:
        template: its path in this package.
        context: what it shows.
    """
    return TEMPLATES.get_template(template).render(context)


# The escaping of Jinja itself is for HTML.
TEMPLATES = Environment(  # noqa: S701
    loader=FileSystemLoader(Path(__file__).parents[1]), undefined=StrictUndefined, trim_blocks=True,
    lstrip_blocks=True, keep_trailing_newline=True,
)  # fmt: skip
TEMPLATES.filters |= {"plain": plain, "as_text": as_text, "cell": cell, "fenced": fenced}
TEMPLATES.globals |= {
    "plain": plain, "as_text": as_text, "shown_score": shown_score, "shown_interval": shown_interval,
}  # fmt: skip
