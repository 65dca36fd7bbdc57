"""The demo of a model of images with texts, either of which may be missing."""

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from about import Settings, read_settings
from batch import predict_rows, read_rows
from classifier import Classifier, Sample
from explanation import Explainer
from page import api, batch_help, no_sample_yet
from pictures import BadInputError
from service import Service
from tests.space.pairs import a_picture, pair_space, save_pair, save_pair_probe

PICTURE, TEXT = a_picture(0), "word7 word8, word9"
SAMPLES = [Sample(PICTURE, (TEXT,)), Sample(PICTURE, ("",)), Sample(None, (TEXT,))]


@pytest.fixture(scope="module")
def space(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pair_space(tmp_path_factory.mktemp("pairs") / "space")


@pytest.fixture(scope="module")
def classifier(space: Path) -> Classifier:
    return Classifier(space / "model", trust_remote_code=True)


@pytest.mark.parametrize(
    ("name", "fusion"),
    [("vit", "concat"), ("resnet_basic", "attention"), ("clip", "gated"), ("vit", "none"), ("clip", "none")],
)
def test_both_or_either_get_the_scores_of_the_model_itself(tmp_path: Path, name: str, fusion: str) -> None:
    """Alone and in one batch, to 1e-6; also of a model whose one layer reads both towers at several depths."""
    save = save_pair_probe if fusion == "none" else partial(save_pair, fusion=fusion)
    classifier = Classifier(save(tmp_path / "model", name), trust_remote_code=True)
    assert (classifier.takes_picture, classifier.takes_text, classifier.either) == (True, True, True)
    together = classifier.scores(SAMPLES)
    for sample, scores in zip(SAMPLES, together, strict=True):
        rows = classifier.model.predict(sample.picture, sample.texts[0] or None, top_k=None)
        expected = {row["label"]: row["score"] for row in rows}
        assert dict(zip(classifier.labels, scores, strict=True)) == pytest.approx(expected, abs=1e-6)
        assert classifier.scores([sample])[0] == pytest.approx(scores, abs=1e-6)
    assert np.abs(np.diff(together, axis=0)).max(axis=1).min() > 1e-3, "a missing part makes a difference"


@pytest.mark.parametrize("save", [save_pair, save_pair_probe])
@pytest.mark.parametrize(("name", "method"), [("vit", "attention rollout"), ("resnet_basic", "Grad-CAM")])
def test_only_the_parts_of_a_sample_are_explained(tmp_path: Path, name: str, method: str, save: Any) -> None:
    """And the prediction is the same as without explanation."""
    classifier = Classifier(save(tmp_path / "model", name), trust_remote_code=True)
    explainer = Explainer(classifier)
    assert (explainer.method, explainer.weighs_words) == (method, True)
    for sample in SAMPLES:
        answer = explainer.answer(sample)
        assert answer.scores == pytest.approx(classifier.scores([sample])[0], abs=1e-6)
        assert (answer.heat is not None) is (sample.picture is not None)
        assert [piece for text in answer.words for piece, _ in text] == (
            ["word7", " ", "word8", ",", " ", "word9"] if sample.texts[0] else []
        )
    assert not any(parameter.requires_grad for parameter in classifier.model.parameters())


def test_a_batch_may_lack_pictures_or_texts_of_some_rows_or_of_all(classifier: Classifier, tmp_path: Path) -> None:
    """A row names a picture that was not uploaded."""
    PICTURE.save(tmp_path / "a.png")
    (tmp_path / "t.csv").write_text(f'image,text\na.png,"{TEXT}"\na.png,\n,"{TEXT}"\nb.png,"{TEXT}"\nx,\n')
    lines = list(
        predict_rows(read_rows([str(tmp_path / n) for n in ("a.png", "t.csv")], classifier, ["text"]), classifier)
    )
    expected = classifier.scores(SAMPLES)
    for line, scores in zip(lines, expected, strict=False):
        assert line[2:] == [classifier.labels[int(np.argmax(scores))], pytest.approx(max(scores), abs=1e-4), ""]
    assert [line[-1] for line in lines[3:]] == ["No picture with this name was uploaded."] * 2
    (tmp_path / "only.csv").write_text(f'text,x\n"{TEXT}",1\n')
    for name, scores in (("a.png", expected[1]), ("only.csv", expected[2])):
        ((*_, share, note),) = predict_rows(read_rows([str(tmp_path / name)], classifier, ["text"]), classifier)
        assert share == pytest.approx(max(scores), abs=1e-4)
        assert note == ""
    (tmp_path / "neither.csv").write_text("a,b\n1,2\n")
    with pytest.raises(BadInputError, match=r"Expected the column image and text, found a, b\."):
        read_rows([str(tmp_path / "neither.csv")], classifier, ["text"])


def test_the_page_says_that_one_of_both_is_enough(classifier: Classifier, space: Path) -> None:
    """Before there is a sample, and in the help."""
    assert "Choose a picture, write its text, or both." in no_sample_yet(classifier, ())
    assert "or only one of them" in batch_help(classifier, ["text"], 9)
    assert "null if there is none" in api(classifier, ["text"], 2, 32)
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("MODEL_ID", raising=False)
        service = Service(classifier, read_settings(space), space, uploads=space)
    verdict, explanation = service.show(None, " ")
    assert "The prediction appears here" in verdict
    assert explanation == ""
    with pytest.raises(Exception, match="Choose a picture, write its text, or both"):
        service.classify(None, "")
    verdict, explanation = service.show(None, TEXT)
    assert "Which words mattered" in explanation
    assert "Where the model looked" not in explanation
    verdict, explanation = service.show(str(space / "examples/1.png"), "")
    assert "Where the model looked" in explanation
    assert "Which words mattered" not in explanation
    # It is recognised as an example without a text.
    assert "True class: <b>class 1</b>" in verdict


def test_code_of_a_model_is_run_only_if_that_is_set(space: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In settings.json, which hf_transfer writes, or in the environment."""
    monkeypatch.setenv("MODEL_ID", str(space / "model"))
    assert read_settings(space) == Settings(model=str(space / "model"))
    monkeypatch.setenv("TRUST_REMOTE_CODE", "1")
    assert read_settings(space).trust_remote_code
