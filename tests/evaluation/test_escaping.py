"""Names from the data are escaped wherever the report shows them."""

from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from hypothesis import example, given, settings
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from hf_transfer.evaluation.pictures import draw_confusion
from hf_transfer.evaluation.report import write_report
from hf_transfer.evaluation.templates import plain
from tests.evaluation.examples import class_tables, results_of

HOSTILE = [
    "<script>alert(1)</script>", "<!-- -->", "</td></tr></table>", "a|b", "|", "\\|", "`x", "```", "a\nb",
    "a\r\n\r\n# b",
    "---", "===", "# head", "- item", "1. item", "> quote", "[a](javascript:alert(1))", "![a](http://x)", "[a]: b",
    "<http://x>", "&lt;", "&#60;", "\\&#60;", "*a*", "__a__", "~~a~~", "$x_{$", "$$", ":---:", "\t", "    code",
    "{{ x }}", "\0", "\u2028", "a  ", "www.evil.org", "\x1b[31m",
]  # fmt: skip
NAMES = st.text(max_size=12) | st.lists(st.sampled_from([*HOSTILE, "a", " "]), max_size=3).map("".join)
MARKDOWN = MarkdownIt("commonmark").enable(["table", "strikethrough"])
# The elements of a report; every other one would come from a name.
REPORT_TAGS = {
    "h1",
    "h2",
    "p",
    "strong",
    "em",
    "table",
    "thead",
    "tbody",
    "tr",
    "th",
    "td",
    "ul",
    "li",
    "img",
    "code",
    "",
}


def shown(name: str) -> str:
    """What a reader should see: white space as one blank, and a replacement for the byte 0."""
    return " ".join(name.split()).replace("\0", "\ufffd")


def cells_of(page: str) -> list[list[str]]:
    """The text of each row of each table of a page, as a renderer that follows the standard sees it."""
    rows: list[list[str]] = []
    before = ""
    for token in MARKDOWN.parse(page):
        assert token.tag in REPORT_TAGS, token
        if token.type == "tr_open":
            rows.append([])
        if token.type == "inline" and before in ("td_open", "th_open"):
            children = token.children or []
            assert {child.type for child in children} <= {"text", "text_special"}, token
            rows[-1].append("".join(child.content for child in children))
        before = token.type
    return rows


@given(st.lists(NAMES, min_size=1, max_size=4))
@settings(max_examples=100)
@example(HOSTILE)
def test_a_table_of_any_names_is_whole_and_shows_them_as_they_are(names: list[str]) -> None:
    """By a parser of CommonMark with tables."""
    rows = "".join(f"| {plain(name)} | {number} |\n" for number, name in enumerate(names))
    table = cells_of(f"| class | number |\n|---|---:|\n{rows}")
    assert table[1:] == [[shown(name), str(number)] for number, name in enumerate(names)]


@given(st.lists(NAMES, min_size=2, max_size=3), NAMES, NAMES)
@example(HOSTILE, "sample:digits\n# b", "<b>")
def test_a_report_with_any_names_in_it_is_the_same_report(names: list[str], dataset: str, note: str) -> None:
    """Headings, lists and tables, and as many of each."""

    def page(names: list[str], dataset: str, note: str) -> str:
        results = results_of(
            model_name_or_path=dataset, dataset_name=dataset, labels=names, tables=class_tables(*names), history=[],
            notes=[f"Columns of text that are not used: {note}."] * 2,
        )  # fmt: skip
        with TemporaryDirectory() as folder:
            write_report(Path(folder), results, [])
            return (Path(folder) / "report.md").read_text(encoding="utf-8")

    def outline(text: str) -> list[str]:
        return [token.type for token in MARKDOWN.parse(text)]

    report = page(names, dataset, note)
    assert outline(report) == outline(page(["x"] * len(names), "x", "x"))
    classes = [row[0] for row in cells_of(report) if len(row) == 5][-len(names) :]
    assert classes == [shown(name) for name in names]


@given(st.lists(NAMES, min_size=2, max_size=3))
@settings(max_examples=8)
@example(["$", "$x$"])
@example(["\\$x\\$", "$\\frac{$"])
def test_a_picture_can_be_drawn_with_any_names(names: list[str]) -> None:
    """A dollar sign starts a formula, and an invalid formula would end the run."""
    with TemporaryDirectory() as folder:
        path = Path(folder) / "confusion.png"
        draw_confusion(path, (np.eye(len(names), dtype=np.int64), names))
        assert path.stat().st_size > 1000
