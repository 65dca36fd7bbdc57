"""The demos of labels and of numbers in a browser, at desktop and phone width, light and dark."""

import csv
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.space.browser import DESKTOP, PHONE, TABS, Visit, visit
from tests.space.conftest import Served, served
from tests.space.finished import HEIGHTS, SHARES, TAGS, TEXTS, THRESHOLDS, labels_space, number_space

pytestmark = pytest.mark.slow
SCREENS = [(DESKTOP, "light"), (PHONE, "dark"), (DESKTOP, "dark"), (PHONE, "light")]


@pytest.fixture(scope="module")
def labels_demo(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    space = labels_space(tmp_path_factory.mktemp("labels") / "space")
    with served(space / "app.py", space.parent / "log") as demo:
        yield demo


@pytest.fixture(scope="module")
def number_demo(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    space = number_space(tmp_path_factory.mktemp("number") / "space")
    with served(space / "app.py", space.parent / "log") as demo:
        yield demo


@pytest.fixture(scope="module")
def labels_page(browser: Any, labels_demo: Served) -> Iterator[Visit]:
    with visit(browser, labels_demo.url) as here:
        yield here


@pytest.fixture
def labels(labels_page: Visit) -> Visit:
    """The page of labels, just loaded."""
    return labels_page.restart()


@pytest.fixture(scope="module")
def number_page(browser: Any, number_demo: Served) -> Iterator[Visit]:
    with visit(browser, number_demo.url) as here:
        yield here


@pytest.fixture
def number(number_page: Visit) -> Visit:
    """The page of a number, just loaded."""
    return number_page.restart()


def middles(visit: Visit, selector: str, within: str) -> list[float]:
    """Where the middles of elements are in the element that holds them, from 0 (left) to 1 (right)."""
    places: list[float] = visit.page.locator(selector).evaluate_all(
        """(elements, within) => elements.map(element => {
          const place = element.getBoundingClientRect(), whole = element.closest(within).getBoundingClientRect();
          return (place.left + place.width / 2 - whole.left) / whole.width;
        })""",
        within,
    )
    return places


def choose_example(here: Visit, position: int, expected: str) -> None:
    """Wait until the expected prediction and its explanation are shown."""
    here.page.locator(f"button[data-example='{position}']").click()
    here.page.get_by_text(expected, exact=True).and_(here.page.locator(".verdict .answer strong")).wait_for()
    here.page.locator(".verdict .truth b").first.wait_for()
    here.page.locator(".looked, .weighed").first.wait_for()


def test_labels_have_bars_with_the_marks_of_their_thresholds(labels: Visit) -> None:
    """Chosen ones also have a tick and thicker letters, for those who do not tell colours apart."""
    choose_example(labels, 0, "Game; Education")
    ranking = sorted(range(len(TAGS)), key=lambda place: -SHARES[0][place])[:5]
    marks = middles(labels, ".verdict .track > i", ".track")
    assert marks == pytest.approx([THRESHOLDS[place] for place in ranking], abs=0.01)
    bars = labels.page.locator(".verdict .track > span").evaluate_all(
        "bars => bars.map(bar => bar.getBoundingClientRect().width / bar.parentElement.getBoundingClientRect().width)"
    )
    assert bars == pytest.approx([SHARES[0][place] for place in ranking], abs=0.01)
    rows = labels.page.locator(".verdict li").all()
    weights = [row.locator(".name").evaluate("name => Number(getComputedStyle(name).fontWeight)") for row in rows]
    ticks = ["✓" in row.inner_text() for row in rows]
    assert ticks == [weight > 600 for weight in weights] == [True, True, False, False, False]


def test_a_text_gets_its_labels_or_none(labels: Visit) -> None:
    """By the button, too."""
    labels.page.get_by_label("Text").fill(TEXTS[2])
    labels.page.get_by_role("button", name="Predict", exact=True).click()
    labels.page.locator(".verdict .answer", has_text="No label").wait_for()
    assert "No label reaches its threshold." in labels.page.locator(".verdict").inner_text()


def test_many_texts_become_a_table_of_labels_and_a_file(labels: Visit, tmp_path: Path) -> None:
    """Each label is on the line of its probability."""
    labels.tab("Many at once")
    (tmp_path / "apps.csv").write_text("text,x\n" + "".join(f'"{text}",1\n' for text in TEXTS))
    labels.page.locator(".batch input[type=file]").set_input_files(tmp_path / "apps.csv")
    labels.page.get_by_text("apps").first.wait_for()
    labels.page.get_by_role("button", name="Predict all").click()
    labels.page.locator(".results table").wait_for()
    cells = labels.page.locator(".results tbody tr").nth(1).locator("td")
    assert cells.nth(1).locator(".one").all_inner_texts() == ["Office", "Audio and video"]
    assert cells.nth(2).locator(".one").all_inner_texts() == ["88.0 %", "31.0 %"]
    tops = "lines => lines.map(line => Math.round(line.getBoundingClientRect().top))"
    assert cells.nth(1).locator(".one").evaluate_all(tops) == cells.nth(2).locator(".one").evaluate_all(tops)
    with labels.page.expect_download() as download:
        labels.page.get_by_role("button", name="Download as CSV").or_(
            labels.page.get_by_role("link", name="Download as CSV")
        ).first.click()
    with Path(download.value.path()).open(newline="") as file:
        assert [row["labels"] for row in csv.DictReader(file)] == ["Game; Education", "Office; Audio and video", ""]
    labels.picture("labels-many")


def test_a_number_is_a_dot_in_its_interval_on_a_line(number: Visit) -> None:
    """Where the ticks say."""
    choose_example(number, 0, "74.2")
    ticks = number.page.locator(".ticks span").all_inner_texts()
    ends = [float(tick) for tick in (ticks[0], ticks[-1])]
    (dot,) = middles(number, ".scale .dot", ".line")
    (true,) = middles(number, ".scale .line .diamond", ".line")
    (interval,) = middles(number, ".scale .range", ".line")
    for place, value in ((dot, HEIGHTS[0]), (true, 71.5), (interval, HEIGHTS[0])):
        assert ends[0] + place * (ends[1] - ends[0]) == pytest.approx(value, abs=1.5)
    shown = " ".join(number.page.locator(".verdict").inner_text().split())
    assert "90 % interval: 61.8 to 86.6 (± 12.4) True value: 71.5, inside the interval." in shown
    choose_example(number, 2, "181.6")
    assert "True value: 240, outside the interval." in number.page.locator(".verdict").inner_text()


@pytest.mark.parametrize(("size", "scheme"), SCREENS, ids=["desktop", "phone", "desktop-dark", "phone-light"])
@pytest.mark.parametrize("which", ["labels", "number"])
def test_every_tab_of_labels_and_numbers_can_be_read_by_everybody(
    browser: Any, labels_demo: Served, number_demo: Served, which: str, size: tuple[int, int], scheme: str
) -> None:
    """axe finds nothing, nothing has to be scrolled sideways, and the answer has the width of a phone."""
    demo = {"labels": labels_demo, "number": number_demo}[which]
    with visit(browser, demo.url, size=size, scheme=scheme) as here:
        for tab in TABS:
            here.tab(tab)
            if tab == "Try it":
                # An example whose prediction is wrong.
                choose_example(here, *{"labels": (1, "Office; Audio and video"), "number": (2, "181.6")}[which])
                assert here.answer_in_view()["width"] > 340
            here.page.wait_for_timeout(300)
            assert here.problems() == [], tab
            assert here.width() <= size[0], tab
            here.picture(f"{which}-{tab.lower().replace(' ', '-')}-{scheme}")


@pytest.mark.parametrize("size", [DESKTOP, PHONE], ids=["desktop", "phone"])
def test_the_wide_table_of_a_card_scrolls_in_its_box_and_no_word_is_broken(
    browser: Any, labels_demo: Served, size: tuple[int, int]
) -> None:
    """With the keyboard, too."""
    with visit(browser, labels_demo.url, size=size) as here:
        here.tab("About")
        box = here.page.locator(".card-text .scroll").first
        box.locator("table").wait_for()
        here.page.wait_for_timeout(300)
        assert here.broken_words() == []
        whole, seen = box.evaluate("box => [box.scrollWidth, box.clientWidth]")
        assert whole > seen + 100
        assert here.width() <= size[0]
        cards = here.page.locator(".card-text").evaluate_all(
            "cards => cards.map(card => card.scrollWidth - card.clientWidth)"
        )
        assert max(cards) <= 0, "only the table scrolls"
        box.focus()
        here.page.keyboard.press("ArrowRight")
        here.page.wait_for_function("document.activeElement.scrollLeft > 0")
