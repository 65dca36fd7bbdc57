"""The demo of images with texts in a browser: both, an image alone, a text alone."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from classifier import Classifier, Sample
from pictures import decode
from tests.space.browser import DESKTOP, PHONE, TABS, Visit, visit
from tests.space.conftest import Served
from tests.space.pairs import TEXTS

pytestmark = pytest.mark.slow
TEXT = "word20 word21"


@pytest.fixture(scope="module")
def pairs_page(browser: Any, pairs_demo: Served) -> Iterator[Visit]:
    """A visit on a desktop."""
    with visit(browser, pairs_demo.url) as here:
        yield here


@pytest.fixture
def pairs(pairs_page: Visit) -> Visit:
    """The page, just loaded."""
    return pairs_page.restart()


@pytest.fixture(scope="module")
def classifier(pairs_demo: Served) -> Classifier:
    return Classifier(pairs_demo.folder / "model", trust_remote_code=True)


def predicted(classifier: Classifier, picture: Path | None, text: str) -> tuple[str, str]:
    """Label and share as the page shows them."""
    (scores,) = classifier.scores([Sample(decode(picture) if picture else None, (text,))])
    return classifier.labels[scores.index(max(scores))], f"{max(scores):.1%}".replace("%", " %")


def test_an_image_alone_a_text_alone_and_both_get_their_labels(
    pairs: Visit, pairs_demo: Served, classifier: Classifier
) -> None:
    """And only the given parts are explained."""
    page, picture = pairs.page, pairs_demo.folder / "examples/0.png"
    pairs.tab("Try it")
    page.locator("#picture input[type=file]").first.set_input_files(picture)
    page.locator("#picture img").wait_for()
    for text, shown, which in ((None, (1, 0), picture), (TEXT, (1, 1), picture), (TEXT, (0, 1), None)):
        if text:
            page.get_by_label("Text", exact=True).fill(text)
        if which is None:
            page.get_by_label("Remove Image").click()
            page.locator("#picture img").wait_for(state="detached")
        page.locator("#classify").click()
        expected = predicted(classifier, which, text or "")
        page.locator(".verdict .answer", has_text=expected[1]).wait_for()
        assert pairs.answer() == expected
        heat_map, words = page.locator(".looked img"), page.locator(".weighed .words")
        (heat_map if shown[0] else words).first.wait_for()
        assert (heat_map.count(), words.count()) == shown
        pairs.picture(f"pairs-{'both' if text and which else 'image' if which else 'text'}")


def test_examples_are_of_both_or_of_one(pairs: Visit, pairs_demo: Served, classifier: Classifier) -> None:
    """An example without a picture or a text removes that of the sample before."""
    pairs.tab("Try it")
    for number, text in enumerate(TEXTS):
        picture = pairs_demo.folder / f"examples/{number}.png"
        pairs.page.locator(f"button[data-example='{number}']").click()
        pairs.page.locator(".verdict .truth", has_text=f"True class: class {number}.").wait_for()
        assert pairs.answer() == predicted(classifier, picture if picture.is_file() else None, text)
        assert pairs.page.get_by_label("Text", exact=True).input_value() == text
        assert pairs.page.locator("#picture img").count() == int(picture.is_file())


def test_a_broken_image_is_an_error_even_with_a_text(pairs: Visit, tmp_path: Path) -> None:
    """It is not treated as missing."""
    pairs.tab("Try it")
    pairs.page.locator("button[data-example='2']").click()
    pairs.page.locator(".verdict .truth").wait_for()
    (tmp_path / "broken.png").write_bytes(b"no picture")
    pairs.page.locator("#picture input[type=file]").first.set_input_files(tmp_path / "broken.png")
    pairs.page.get_by_label("Remove Image").wait_for()
    pairs.page.locator("#classify").click()
    pairs.page.locator(".verdict.problem", has_text="It is empty or damaged").wait_for()


def test_a_table_names_the_images_that_come_with_it(pairs: Visit, pairs_demo: Served, tmp_path: Path) -> None:
    """Rows may lack one of both."""
    pairs.tab("Many at once")
    (tmp_path / "cups.csv").write_text("image,text\n0.png,word7 word8\n1.png,\n,word9\n9.png,word9\n")
    pictures = [pairs_demo.folder / f"examples/{number}.png" for number in (0, 1)]
    pairs.page.locator(".batch input[type=file]").set_input_files([*pictures, tmp_path / "cups.csv"])
    pairs.page.get_by_text("cups").first.wait_for()
    pairs.page.get_by_role("button", name="Classify all").click()
    pairs.page.locator(".results table").wait_for()
    assert "3 of 4 classified" in pairs.page.locator(".results caption").inner_text()
    assert pairs.page.get_by_text("No picture with this name was uploaded.").count() == 1
    pairs.picture("pairs-many")


@pytest.mark.parametrize(("size", "scheme"), [(DESKTOP, "dark"), (PHONE, "light")], ids=["desktop", "phone"])
def test_every_tab_of_it_can_be_read_by_everybody(
    browser: Any, pairs_demo: Served, size: tuple[int, int], scheme: str
) -> None:
    """axe finds nothing, and nothing has to be scrolled sideways."""
    with visit(browser, pairs_demo.url, size=size, scheme=scheme) as here:
        for tab in TABS:
            here.tab(tab)
            if tab == "Try it":
                here.page.locator("button[data-example='0']").click()
                here.page.locator(".verdict .truth").wait_for()
            here.page.wait_for_timeout(300)
            assert here.problems() == [], tab
            assert here.width() <= size[0], tab
            here.picture(f"pairs-{tab.lower().replace(' ', '-')}-{scheme}")
