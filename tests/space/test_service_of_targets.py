"""Labels and numbers from a request to its answer: the page, programs and files, for images, texts and pairs."""

import csv
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import app
from about import Example, Settings, read_card, read_settings
from classifier import Classifier
from service import Service
from tests.ports import held_port
from tests.space.finished import (
    HEIGHTS,
    SHARES,
    TAGS,
    TEXTS,
    THRESHOLDS,
    labels_of_texts,
    labels_space,
    model_of_pairs,
    number_space,
)
from tests.space.pairs import a_picture
from tests.space.programs import Programs

MULTI_LABEL = "multi_label_classification"


@pytest.fixture(scope="module")
def spaces(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("spaces")
    return {"labels": labels_space(root / "labels"), "numbers": number_space(root / "numbers")}


def service_of(space: Path) -> Service:
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("MODEL_ID", raising=False)
        settings = read_settings(space)
    return Service(Classifier(space / "model"), settings, space, uploads=space)


def test_examples_have_what_is_true_of_them(spaces: dict[str, Path]) -> None:
    """Names of labels, or numbers."""
    labels, numbers = service_of(spaces["labels"]).examples, service_of(spaces["numbers"]).examples
    assert labels[0] == Example("Game; Education", texts=(TEXTS[0],), truth=("Game", "Education"))
    assert (labels[2].label, labels[2].truth) == ("no label", ())
    assert numbers[0] == Example("71.5", "examples/1.png", truth=(71.5,))


def test_labels_of_a_text_are_shown_and_compared_with_the_true_ones(spaces: dict[str, Path]) -> None:
    service = service_of(spaces["labels"])
    verdicts = [service.show(text=text)[0] for text in TEXTS]
    names = [verdict.split("<strong>")[1].split("</strong>")[0] for verdict in verdicts]
    assert names == ["Game; Education", "Office; Audio and video", "No label"]
    assert "The prediction is right." in verdicts[0]
    assert "Missing: <b>Network</b>." in verdicts[1]
    assert "True labels: <b>none</b>." in verdicts[2]
    assert "True" not in service.show(text="word50")[0]


def test_the_first_chosen_label_of_a_text_is_explained(spaces: dict[str, Path]) -> None:
    """Without a chosen one the most probable one."""
    service = service_of(spaces["labels"])
    explanations = [service.show(text=text)[1] for text in TEXTS]
    for explanation, name in zip(explanations, ("Game", "Office", "Settings"), strict=True):
        assert f"</span> {name}, or" in " ".join(explanation.split())
    assert service.show(text=TEXTS[0], explain=False)[1] == ""


def test_the_number_of_a_picture_is_shown_with_its_interval(spaces: dict[str, Path]) -> None:
    """An example is found by its pixels."""
    service = service_of(spaces["numbers"])
    verdict, explanation = service.show(str(spaces["numbers"] / "examples/1.png"))
    assert "<strong>74.2</strong> <span>height in cm</span>" in verdict
    assert "<b>61.8 to 86.6</b> (&plusmn; 12.4)" in verdict
    assert "True value: <b>71.5</b>, inside the interval" in verdict
    assert "this area raises or lowers height in cm" in explanation
    assert "outside the interval" in service.show(str(spaces["numbers"] / "examples/3.png"))[0]


def test_programs_get_labels_or_numbers(spaces: dict[str, Path]) -> None:
    """With an explanation, if they ask for it."""
    answer = service_of(spaces["labels"]).classify(text=TEXTS[1], explain=True)
    assert list(answer) == ["labels", "scores", "thresholds", "words"]
    assert answer["labels"] == ["Office", "Audio and video"]
    assert answer["scores"] == pytest.approx(dict(zip(TAGS, SHARES[1], strict=True)), abs=1e-4)
    assert answer["thresholds"] == dict(zip(TAGS, THRESHOLDS, strict=True))
    answer = service_of(spaces["numbers"]).classify(str(spaces["numbers"] / "examples/1.png"))
    assert answer["values"] == {"height in cm": pytest.approx(HEIGHTS[0], abs=1e-2)}
    value = answer["values"]["height in cm"]
    assert answer["intervals"] == {"height in cm": [value - 12.4, value + 12.4]}


def files_of(service: Service, files: list[Path]) -> tuple[str, list[dict[str, str]]]:
    """The table of the page, and the rows of the CSV file."""
    shown, button = service.predict_files([str(file) for file in files])
    with Path(str(button.value["path"] if isinstance(button.value, dict) else button.value)).open(newline="") as file:
        return shown, list(csv.DictReader(file))


def test_many_texts_get_their_labels_in_a_table(spaces: dict[str, Path], tmp_path: Path) -> None:
    """A row without a text has the reason, one without a label has empty cells."""
    (tmp_path / "t.csv").write_text("text,x\n" + "".join(f'"{text}",1\n' for text in (*TEXTS, " ")))
    shown, rows = files_of(service_of(spaces["labels"]), [tmp_path / "t.csv"])
    assert list(rows[0]) == ["text", "labels", "probabilities", "note"]
    assert [row["labels"] for row in rows] == ["Game; Education", "Office; Audio and video", "", ""]
    assert [row["probabilities"] for row in rows] == ["0.97; 0.41", "0.88; 0.31", "", ""]
    assert [row["note"] for row in rows] == ["", "", "", "The text is empty."]
    assert "3 of 4 predicted" in shown


def test_many_pictures_get_their_numbers_in_a_table(spaces: dict[str, Path], tmp_path: Path) -> None:
    """With the ends of their intervals; numbers below zero stay numbers."""
    (tmp_path / "broken.png").write_bytes(b"no picture")
    service = service_of(spaces["numbers"])
    paths = [spaces["numbers"] / f"examples/{number}.png" for number in (1, 2)]
    shown, rows = files_of(service, [*paths, tmp_path / "broken.png"])
    assert list(rows[0]) == ["image", "height in cm", "low", "high", "note"]
    assert [float(row["height in cm"]) for row in rows[:2]] == pytest.approx(list(HEIGHTS[:2]), abs=1e-2)
    for row in rows[:2]:
        half_widths = [
            float(row["high"]) - float(row["height in cm"]), float(row["height in cm"]) - float(row["low"])
        ]  # fmt: skip
        assert half_widths == pytest.approx([12.4, 12.4], abs=1e-4)
    assert (rows[2]["height in cm"], rows[2]["low"], rows[2]["high"]) == ("", "", "")
    assert "damaged" in rows[2]["note"]
    assert "2 of 3 predicted" in shown
    service.classifier.model.classifier[-1].bias.data -= 100
    _, rows = files_of(service, paths)
    assert [float(row["height in cm"]) for row in rows] == pytest.approx([-25.8, -56.1], abs=1e-2)


@pytest.mark.parametrize("kind", [MULTI_LABEL, "regression"])
def test_images_with_texts_get_labels_or_numbers(tmp_path: Path, kind: str) -> None:
    """From both together, an image alone or a text alone."""
    names, logits = ("price", "weight"), (2.0, -1.5)
    interval = {"coverage": 0.9, "half_widths": [0.5, 0.25], "samples": 99}
    more: dict[str, Any] = {"thresholds": [0.9, 0.1]} if kind == MULTI_LABEL else {"prediction_interval": interval}
    model_of_pairs(tmp_path / "model", names, logits, problem_type=kind, **more)
    classifier = Classifier(tmp_path / "model", trust_remote_code=True)
    service = Service(classifier, Settings(), tmp_path, uploads=tmp_path)
    a_picture(0).save(tmp_path / "a.png")
    both = service.classify(str(tmp_path / "a.png"), TEXTS[0])
    if kind == MULTI_LABEL:
        assert both["labels"] == ["weight"]
        assert both["scores"] == pytest.approx({"price": 0.880797, "weight": 0.182426}, abs=1e-4)
    else:
        assert both["values"] == pytest.approx({"price": 2.0, "weight": -1.5}, abs=1e-3)
        assert both["intervals"]["weight"] == pytest.approx([-1.75, -1.25], abs=1e-3)
    key = "scores" if kind == MULTI_LABEL else "values"
    alone = [service.classify(str(tmp_path / "a.png"), ""), service.classify(None, TEXTS[0])]
    assert len({round(answer[key]["price"], 4) for answer in (both, *alone)}) == 3
    for picture, text, answer in ((str(tmp_path / "a.png"), "", alone[0]), (None, TEXTS[0], alone[1])):
        rows = classifier.model.predict(picture, text or None, top_k=None)
        assert answer[key] == pytest.approx({row["label"]: row["score"] for row in rows}, abs=1e-5)
    _, explanation = service.show(str(tmp_path / "a.png"), TEXTS[0])
    assert "Where the model looked" in explanation
    assert "Which words mattered" in explanation


@pytest.fixture(scope="module")
def labels_demo(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Programs]:
    """A demo of labels, served from a thread of this process."""
    root = tmp_path_factory.mktemp("served")
    labels_of_texts(root / "model")
    (root / "uploads").mkdir()
    with pytest.MonkeyPatch.context() as patch, held_port() as port:
        patch.setenv("GRADIO_ANALYTICS_ENABLED", "False")
        patch.setenv("GRADIO_TEMP_DIR", str(root / "uploads"))
        patch.setenv("GRADIO_SERVER_PORT", str(port))
        settings = Settings(model=str(root / "model"))
        service = Service(Classifier(root / "model"), settings, root, uploads=root / "uploads")
        blocks = app.build(service, settings, read_card(root / "model"))
        yield Programs(app.launch(blocks, wait=False))
        blocks.close()


def test_the_server_returns_and_documents_labels(labels_demo: Programs) -> None:
    """Over HTTP; the buttons of the page say what it does."""
    status, answer = labels_demo.ask(TEXTS[0], False)
    assert status == 200
    assert json.loads(answer.split("data: ", 1)[1])[0]["labels"] == ["Game", "Education"]
    _, _, content = labels_demo.request("GET", "/gradio_api/info")
    endpoint = json.loads(content)["named_endpoints"]["/classify"]
    assert endpoint["description"].startswith(
        "Predict one sample. Returns its labels, the probability of every label, the threshold from which on a label "
        "is chosen and, if asked to explain,"
    )
    _, _, content = labels_demo.request("GET", "/config")
    buttons = [one["props"]["value"] for one in json.loads(content)["components"] if one["type"] == "button"]
    assert {"Predict", "Predict all"} <= set(buttons)
