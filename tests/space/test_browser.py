"""The demo in a browser, at desktop and phone width: what visitors do, see, and can reach."""

import csv
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from about import Settings, read_settings
from hf_transfer.evaluation.predictor import load
from tests.space.browser import DESKTOP, PHONE, TABS, WATCH, Visit, visit
from tests.space.conftest import Served
from tests.space.hostile import HOSTILE, Demo, png

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def digits_page(browser: Any, digits_demo: Served) -> Iterator[Visit]:
    """A visit to the digits on a desktop."""
    with visit(browser, digits_demo.url) as here:
        yield here


@pytest.fixture
def digits(digits_page: Visit) -> Visit:
    """The page of the digits, just loaded."""
    return digits_page.restart()


@pytest.fixture(scope="module")
def texts_page(browser: Any, texts_demo: Served) -> Iterator[Visit]:
    """A visit to the messages on a desktop."""
    with visit(browser, texts_demo.url) as here:
        yield here


@pytest.fixture
def texts(texts_page: Visit) -> Visit:
    """The page of the messages, just loaded."""
    return texts_page.restart()


@pytest.fixture(scope="module")
def digits_settings(digits_space: Path) -> Settings:
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("MODEL_ID", raising=False)
        return read_settings(digits_space)


def predicted(space: Path, path: Path) -> tuple[str, str]:
    """The prediction of hf_transfer itself: label and share as the page shows them."""
    ((label, share),) = load(space / "model")([path], top=1)[0].items()
    return label, f"{share:.1%}".replace("%", " %")


def test_the_head_shows_what_the_model_is_and_how_good_it_is(digits: Visit, digits_space: Path) -> None:
    """From results.json, with the interval."""
    head = digits.page.locator(".masthead").inner_text()
    score = read_settings(digits_space).score
    assert score is not None
    assert score["low"] < score["value"] < score["high"]
    for share in (score["value"], score["low"], score["high"]):
        assert f"{share:.1%}".replace("%", " %") in head
    assert "Hand written digits" in head
    assert "sample:vit-glyphs" in head
    digits.picture("digits-empty")


def test_an_uploaded_picture_gets_its_label(digits: Visit, digits_space: Path, digits_settings: Settings) -> None:
    """The same as by hf_transfer itself, and mostly the true one."""
    digits.tab("Try it")
    right = []
    for example in digits_settings.examples:
        path = digits_space / str(example.picture)
        digits.page.locator("#picture input[type=file]").first.set_input_files(path)
        digits.page.locator("#picture img").wait_for()
        expected = predicted(digits_space, path)
        digits.page.locator(".verdict .answer", has_text=expected[1]).wait_for()
        assert digits.answer() == expected
        right.append(expected[0] == example.label)
        heat_map = digits.page.locator(".looked img")
        assert heat_map.get_attribute("alt")
        assert heat_map.get_attribute("src").startswith("data:image/jpeg;base64,")
        digits.page.get_by_label("Remove Image").click()
        digits.page.locator(".verdict.empty").wait_for()
    assert sum(right) >= 4


def test_an_example_shows_its_picture_its_answer_and_its_true_class(
    digits: Visit, digits_space: Path, digits_settings: Settings
) -> None:
    """One click."""
    digits.tab("Try it")
    example = digits_settings.examples[2]
    digits.page.locator("button[data-example='2']").click()
    digits.page.locator(".verdict .truth", has_text=f"True class: {example.label}.").wait_for()
    assert digits.answer() == predicted(digits_space, digits_space / str(example.picture))
    digits.page.locator("#picture img").wait_for()
    digits.picture("digits")


def test_a_file_that_is_no_picture_is_explained(digits: Visit, tmp_path: Path) -> None:
    """And the page can be used further."""
    digits.tab("Try it")
    (tmp_path / "broken.png").write_bytes(b"no picture")
    digits.page.locator("#picture input[type=file]").first.set_input_files(tmp_path / "broken.png")
    problem = digits.page.locator(".verdict.problem")
    problem.wait_for()
    title, reason = problem.inner_text().splitlines()
    assert title == "That did not work"
    # The formats at the end of the list are those of the installed Pillow.
    assert reason.startswith("It is empty or damaged, or no picture of JPEG, PNG, WEBP, BMP, GIF, TIFF")
    digits.picture("digits-broken")
    digits.page.get_by_label("Remove Image").click()
    digits.page.locator(".verdict.empty").wait_for()


def test_the_camera_takes_a_picture(digits: Visit) -> None:
    """Chromium's fake camera shows a green field."""
    digits.tab("Try it")
    field = digits.page.locator("#picture")
    field.get_by_label("Capture from camera").click()
    field.get_by_title("grant webcam access").click()
    digits.page.wait_for_function("document.querySelector('#picture video')?.videoWidth > 0")
    field.get_by_label("capture photo").click()
    assert digits.answer()[1].endswith("%")


def test_a_picture_is_pasted(digits: Visit, digits_space: Path, digits_settings: Settings) -> None:
    """From the clipboard."""
    digits.tab("Try it")
    path = digits_space / str(digits_settings.examples[1].picture)
    digits.page.evaluate(
        """async bytes => {
          const blob = new Blob([new Uint8Array(bytes)], {type: "image/png"});
          await navigator.clipboard.write([new ClipboardItem({"image/png": blob})]);
        }""",
        list(path.read_bytes()),
    )
    digits.page.locator("#picture").get_by_label("Paste from clipboard").click()
    assert digits.answer() == predicted(digits_space, path)


def test_a_page_can_be_left_while_it_waits_for_an_answer(browser: Any, digits_demo: Served) -> None:
    """What gradio's client then writes about its aborted requests is no error of the page."""
    with visit(browser, digits_demo.url) as here:
        for _ in range(5):
            here.page.locator("button[data-example='2']").click()
            here.restart()


def test_many_pictures_become_a_table_and_a_file(
    digits: Visit, digits_space: Path, digits_settings: Settings, tmp_path: Path
) -> None:
    """For a broken picture the table has the reason."""
    digits.tab("Many at once")
    (tmp_path / "broken.png").write_bytes(b"no picture")
    paths = [digits_space / str(example.picture) for example in digits_settings.examples]
    digits.page.locator(".batch input[type=file]").set_input_files([*paths, tmp_path / "broken.png"])
    digits.page.get_by_text("broken").first.wait_for()
    digits.page.get_by_role("button", name="Classify all").click()
    digits.page.locator(".results table").wait_for()
    rows = [row.inner_text().split("\t") for row in digits.page.locator(".results tbody tr").all()]
    for row, path in zip(rows, paths, strict=False):
        assert tuple(cell.strip() for cell in row[:3]) == (path.name, *predicted(digits_space, path))
    assert "damaged" in rows[-1][3]
    assert f"{len(paths)} of {len(paths) + 1} classified" in digits.page.locator(".results caption").inner_text()
    with digits.page.expect_download() as download:
        digits.page.get_by_role("button", name="Download as CSV").or_(
            digits.page.get_by_role("link", name="Download as CSV")
        ).first.click()
    lines = list(csv.reader(io.StringIO(Path(download.value.path()).read_text())))
    assert lines[0] == ["image", "label", "probability", "note"]
    assert [line[0] for line in lines[1:]] == [*(path.name for path in paths), "broken.png"]
    digits.picture("digits-many")


def test_a_text_gets_its_label_and_its_words_their_weights(texts: Visit, texts_space: Path) -> None:
    """The same as by hf_transfer itself."""
    text = "I paid twice for this order, please check the invoice."
    texts.page.get_by_label("Text").fill(text)
    texts.page.locator("#classify").click()
    ((label, share),) = load(texts_space / "model")([text], top=1)[0].items()
    assert texts.answer() == (label, f"{share:.1%}".replace("%", " %"))
    assert label == "payment"
    texts.page.locator(".weighed .words").wait_for()
    assert texts.page.locator(".weighed .words").inner_text() == text
    assert texts.page.locator(".weighed .words .word.for").count() >= 1
    texts.picture("texts")


def test_the_explanation_can_be_turned_off(texts: Visit) -> None:
    """It takes time."""
    texts.page.get_by_label("Text").fill("Is this the illustrated edition of the atlas?")
    texts.page.locator("#classify").click()
    texts.page.locator(".weighed", has_text="illustrated edition").wait_for()
    answer = texts.answer()
    texts.page.get_by_label("Explain the prediction").uncheck()
    texts.page.locator(".weighed").wait_for(state="detached")
    assert texts.answer() == answer
    texts.page.get_by_label("Explain the prediction").check()
    texts.page.locator(".weighed").wait_for()


def test_the_code_in_the_documentation_of_the_api_can_be_copied(texts: Visit) -> None:
    """And the button says so."""
    texts.tab("API")
    for name in ("Python", "Answer", "Shell"):
        button = texts.page.get_by_label(f"Copy the {name} example")
        button.evaluate(WATCH)
        button.click()
        texts.page.wait_for_function("shown.includes('Copied')")
        shown = texts.page.locator(".code", has=button).locator("pre").inner_text()
        texts.page.wait_for_function("async text => await navigator.clipboard.readText() === text", arg=shown)


def test_an_empty_text_is_not_classified(texts: Visit) -> None:
    """The page says what to do."""
    texts.page.get_by_label("Text").fill("   ")
    texts.page.locator("#classify").click()
    texts.page.locator(".verdict.empty", has_text="Write a text, or choose an example").wait_for()


def test_all_can_be_done_with_the_keyboard(texts: Visit) -> None:
    """Each stop can be seen, and Enter takes an example."""
    texts.tab("Try it")
    # The page loads its fields one after the other.
    for field in ("textarea", "input[type=checkbox]", "#classify", "button[data-example='0']"):
        texts.page.locator(field).first.wait_for()
    texts.page.locator("h1").click()
    reached: list[str] = []
    for _ in range(30):
        texts.page.keyboard.press("Tab")
        name, outline = texts.page.evaluate(
            "() => { const e = document.activeElement; const s = getComputedStyle(e); return "
            "[e.dataset.example !== undefined ? 'example ' + e.dataset.example : e.id || e.innerText || e.type, "
            "s.outlineStyle + ' ' + s.outlineWidth] }"
        )
        reached.append(name)
        if name not in ("", "BODY"):
            assert outline == "solid 3px", name
        if name == "example 0":
            break
    for stop in ("Try it", "Many at once", "textarea", "checkbox", "classify", "example 0"):
        assert stop in reached, reached
    texts.page.keyboard.press("Enter")
    texts.page.locator(".verdict .truth").wait_for()


@pytest.mark.parametrize(("size", "scheme"), [(DESKTOP, "light"), (PHONE, "dark")], ids=["desktop", "phone"])
@pytest.mark.parametrize("which", ["digits", "texts"])
def test_every_tab_can_be_read_by_everybody(
    browser: Any, digits_demo: Served, texts_demo: Served, which: str, size: tuple[int, int], scheme: str
) -> None:
    """Contrast, names, roles, order: axe finds nothing; nothing has to be scrolled sideways."""
    demo = {"digits": digits_demo, "texts": texts_demo}[which]
    with visit(browser, demo.url, size=size, scheme=scheme) as here:
        for tab in TABS:
            here.tab(tab)
            if tab == "Try it":
                here.page.locator("button[data-example='1']").click()
                here.answer()
                # On a phone, too, the answer is brought into view.
                assert here.answer_in_view()["width"] > 340, "there it has the whole width"
            here.page.wait_for_timeout(300)
            assert here.broken_words() == []
            assert here.problems() == [], tab
            assert here.width() <= size[0], tab
            here.picture(f"{which}-{tab.lower().replace(' ', '-')}-{scheme}")


def test_hostile_names_are_shown_and_not_run(browser: Any, demo: Demo, tmp_path: Path) -> None:
    """Of classes, model, base model, card and files: no dialog, no address, no element that is not ours."""
    evil = tmp_path / "<img src=x onerror=alert(1)>.png"
    evil.write_bytes(png(Image.new("RGB", (30, 30), "red")))
    with visit(browser, demo.url) as here:
        here.page.locator("#picture input[type=file]").first.set_input_files(evil)
        label, _ = here.answer()
        assert label in HOSTILE
        shown = [row.inner_text() for row in here.page.locator(".verdict .name").all()]
        assert sorted(shown) == sorted(HOSTILE)
        here.tab("Many at once")
        here.page.locator(".batch input[type=file]").set_input_files(evil)
        here.page.get_by_role("button", name="Classify all").click()
        here.page.locator(".results table").wait_for()
        for tab in TABS:
            here.tab(tab)
            here.page.wait_for_timeout(200)
        assert HOSTILE[0] in here.page.locator("h1").first.inner_text()
        inside = ".masthead, .verdict, .looked, .results, .card-text, .api, .examples"
        assert here.page.locator(inside).locator("script, img:not([src^='data:']), iframe").count() == 0
        here.picture("hostile")
