"""Evaluation, `hf-transfer predict`, `--evaluate_only`, the card's code and the Space see a sample alike."""

import json
from pathlib import Path
from typing import Any

import datasets
import gradio as gr
import numpy as np
import pytest
from PIL import Image
from transformers import AutoTokenizer

import hf_transfer as ht
import page
from about import Settings, read_settings, with_preprocessing
from app import _inputs
from classifier import Classifier, NoClassifierError, Sample
from hf_transfer import command_line
from hf_transfer.errors import UserError
from hf_transfer.evaluation.predictor import classify_files
from hf_transfer.evaluation.results import Results
from hf_transfer.hub.space import assemble_space
from hf_transfer.modalities.table import MODALITIES
from hf_transfer.modalities.tokens import TokenPreprocessing
from hf_transfer.whole_run import run_all_steps
from pictures import decode
from service import Service
from tests.hub.card_programs import card_code, label_of, printed_by
from tests.hub.preprocessed_runs import RUNS, SHORT, FinishedRun, make_run, read_rows, write_data, write_rows

OF_TEXTS = ("texts", "adapter of texts")
LONG = "word " * 900


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, FinishedRun]:
    root = tmp_path_factory.mktemp("preprocessed")
    write_data(root)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(datasets.config, "HF_DATASETS_CACHE", root / "hf")
        return {name: make_run(root, name) for name in RUNS}


@pytest.fixture(scope="module")
def printed(runs: dict[str, FinishedRun], tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[Any]]:
    """What the code in each card prints for the test samples, and for a very long text."""
    programs = {name: (card_code(run.out), run.samples) for name, run in runs.items()}
    programs |= {f"{name}, long": (card_code(runs[name].out), [{'"a text"': LONG}]) for name in OF_TEXTS}
    return printed_by(programs, tmp_path_factory.mktemp("without us"))


def predicted(run: FinishedRun) -> list[str]:
    """Labels by the library itself."""
    return [answer.scores[0][0] for answer in classify_files(run.out, run.files, top=1)]


@pytest.mark.slow
@pytest.mark.parametrize("name", RUNS)
def test_predict_and_the_code_in_the_card_give_the_accuracy_of_the_report(
    runs: dict[str, FinishedRun], printed: dict[str, list[Any]], name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    run = runs[name]
    labels = predicted(run)
    assert len(set(labels)) == 2, "a model that always predicts the same class shows nothing"
    assert run.accuracy_of(labels) == pytest.approx(run.accuracy)
    capsys.readouterr()
    command_line.main(["predict", str(run.out / "model"), *map(str, run.files), "--top", "1"])
    assert [next(iter(json.loads(line)["scores"])) for line in capsys.readouterr().out.splitlines()] == labels
    # The code for images with texts predicts each sample three times: whole first.
    of_samples = printed[name][:: len(printed[name]) // len(run.samples)]
    assert [label_of(one) for one in of_samples] == labels


@pytest.mark.parametrize("name", OF_TEXTS)
def test_the_code_in_the_card_truncates_long_texts(
    runs: dict[str, FinishedRun], printed: dict[str, list[Any]], name: str
) -> None:
    """The length is saved with the tokenizer, and in preprocessing.json."""
    assert label_of(printed[f"{name}, long"][0]) in {"spring", "music"}
    assert AutoTokenizer.from_pretrained(runs[name].out / "model").model_max_length == SHORT
    assert json.loads((runs[name].out / "model/preprocessing.json").read_text())["max_length"] == SHORT


def test_without_truncation_or_orientation_the_answers_would_differ(runs: dict[str, FinishedRun]) -> None:
    """Otherwise the comparisons above show nothing."""
    texts, pictures = runs["texts"], runs["pictures"]
    predictor = ht.load(texts.out)
    assert isinstance(predictor.preprocessing, TokenPreprocessing)
    predictor.preprocessing.max_length = 64
    answers = predictor([sample['"a text"'] for sample in texts.samples], top=1)
    assert texts.accuracy_of([next(iter(answer)) for answer in answers]) < texts.accuracy - 0.2
    as_stored = [Image.fromarray(np.asarray(Image.open(path))) for path in pictures.files]
    answers = ht.load(pictures.out)(as_stored, top=1)
    assert pictures.accuracy_of([next(iter(answer)) for answer in answers]) < pictures.accuracy - 0.2


@pytest.mark.parametrize("name", RUNS)
def test_evaluate_only_gives_the_accuracy_of_the_report(
    runs: dict[str, FinishedRun], name: str, tmp_path: Path
) -> None:
    """The settings name neither a length nor columns."""
    recipe, data, _ = RUNS[name]
    root, config_class = runs[name].out.parents[1], MODALITIES[recipe].config
    run = run_all_steps(
        config_class.of(
            model_name_or_path=str(runs[name].out / "model"), dataset_name=str(root / data), evaluate_only=True,
            output_dir=str(tmp_path / "out"), cache_dir=str(root / "cache"),
        )
    )  # fmt: skip
    assert run.metrics == Results.read(runs[name].out).metrics


@pytest.mark.parametrize("forgotten", [False, True], ids=["as written", "without texts in settings.json"])
@pytest.mark.parametrize("name", RUNS)
def test_the_space_predicts_what_the_library_predicts(
    runs: dict[str, FinishedRun], name: str, tmp_path: Path, forgotten: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It has the length and the names of the texts from settings.json, or else from preprocessing.json."""
    monkeypatch.delenv("MODEL_ID", raising=False)
    run = runs[name]
    space = assemble_space(run.out, tmp_path / "space", examples=0)
    if forgotten:
        content = json.loads((space / "settings.json").read_text())
        (space / "settings.json").write_text(json.dumps(dict(content, texts=[], max_length=None)))
    classifier, service = served(space)
    names = {"pairs": ("one", "two"), "pictures": (), "adapter of pictures": ()}
    assert service.text_names == names.get(name, ("text",))
    samples = [space_sample(sample) for sample in run.samples]
    labels = [classifier.labels[int(np.argmax(scores))] for scores in classifier.scores(samples)]
    assert labels == predicted(run)


def served(space: Path) -> tuple[Classifier, Service]:
    """Model and service as `app.main` makes them."""
    settings = read_settings(space)
    settings = with_preprocessing(settings, Path(settings.model))
    classifier = Classifier(
        Path(settings.model), texts=len(settings.text_names), max_length=settings.max_length,
        trust_remote_code=settings.trust_remote_code,
    )  # fmt: skip
    return classifier, Service(classifier, settings, space, uploads=space)


def space_sample(sample: dict[str, Any]) -> Sample:
    texts, picture = [sample[key] for key in sample if "picture" not in key], sample.get('"picture.png"')
    flat = [text for one in texts for text in (one.values() if isinstance(one, dict) else [one])]
    return Sample(decode(picture) if picture else None, tuple(flat))


def test_the_space_of_a_model_of_pairs_shows_two_fields(
    runs: dict[str, FinishedRun], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also for a model alone, without a settings.json."""
    monkeypatch.setenv("MODEL_ID", str(runs["pairs"].out / "model"))
    _, service = served(tmp_path)
    with gr.Blocks():
        assert [field.label for field in _inputs(service).values()] == ["One", "Two"]
    with pytest.raises(gr.Error, match="One of the texts is empty"):
        service.classify(None, "flower", "")
    assert "Write 2 texts" in page.no_sample_yet(service.classifier, ())


def test_a_model_of_pairs_that_gets_single_texts_is_an_error(
    runs: dict[str, FinishedRun], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """And a model of single texts that gets pairs; each message says what to change."""
    pairs, texts = runs["pairs"], runs["texts"]
    single = write_rows(tmp_path / "single.csv", [{"one": row["one"]} for row in read_rows(pairs.files[0])])
    with pytest.raises(SystemExit):
        command_line.main(["predict", str(pairs.out / "model"), str(single)])
    error = capsys.readouterr().err
    assert "Expected: pairs of texts, as the model was trained on" in error
    assert f"Found:    one column of {single}" in error
    assert "--text_pair_column_name" in error
    with pytest.raises(UserError, match=r"Expected: pairs of texts, .*\nFound:    a single text: "):
        ht.load(pairs.out)(["flower"])
    assert ht.load(pairs.out)([("flower", "tree")], top=1)[0].keys() == {"alike"}
    columns = {"text_column_name": "one", "text_pair_column_name": "two"}
    with pytest.raises(UserError, match=r"Expected: single texts, .*\nFound:    two columns of "):
        classify_files(texts.out, pairs.files, columns=columns)
    with pytest.raises(UserError, match=r"Expected: single texts, .*\nFound:    a pair: "):
        ht.load(texts.out)([("flower", "tree")])


@pytest.mark.parametrize("content", ["[]", "{", '{"columns": []}', '{"columns": {}, "max_length": "x"}'])
def test_a_damaged_preprocessing_file_is_refused_by_the_space(tmp_path: Path, content: str) -> None:
    (tmp_path / "preprocessing.json").write_text(content)
    with pytest.raises(NoClassifierError, match=r"preprocessing\.json cannot be read"):
        with_preprocessing(Settings(), tmp_path)
