"""Handle a request: from files and texts to a prediction, or to a message on what is wrong with them."""

import tempfile
import time
from collections.abc import Callable
from html import escape
from pathlib import Path
from typing import Any, TypeVar

import gradio as gr
from PIL import Image

import page
from about import Example, Settings
from batch import check_sample, header, predict_rows, read_rows, write_table
from classifier import Classifier, Sample
from explanation import Answer, Explainer
from heat import overlay, seen_by
from pictures import BadInputError, decode

Function = TypeVar("Function", bound=Callable[..., Any])


def on_gpu(function: Function) -> Function:
    """On a Space with shared GPUs: the function with a GPU while it runs; elsewhere the function as it is."""
    try:
        import spaces  # type: ignore[import-not-found,unused-ignore]
    except ImportError:
        return function
    with_gpu: Function = spaces.GPU(function)
    return with_gpu


class Service:
    """Handles the requests of the page and the API.

    Args:
        classifier: the model.
        settings: names of the texts, and examples.
        folder: with the pictures of the examples.
        uploads: gradio's folder for uploads.
    """

    def __init__(self, classifier: Classifier, settings: Settings, folder: Path, *, uploads: Path) -> None:
        self.classifier = classifier
        self.explainer = Explainer(classifier)
        self._uploads = uploads
        self.text_names = settings.text_names if classifier.takes_text else ()
        self.examples = settings.examples
        self.pictures = [decode(folder / one.picture) if one.picture else None for one in settings.examples]

        # Not a method: its arguments are sent to the process with the GPU, and the model must not be among them.
        @on_gpu
        def answer(sample: Sample, explain: bool) -> Answer:
            if explain:
                return self.explainer.answer(sample)
            return Answer(classifier.scores([sample])[0])

        self._answer = answer

    def show(
        self, picture: str | None = None, text: str = "", second_text: str = "", explain: bool = True
    ) -> tuple[str, str]:
        """The prediction and its explanation, for the page."""
        if picture is None and not (text or second_text).strip():
            return page.no_sample_yet(self.classifier, self.examples), ""
        try:
            sample = self._sample(picture, text, second_text)
        except BadInputError as error:
            return page.problem(error), ""
        started = time.perf_counter()
        answer = self._answer(sample, explain)
        seconds = time.perf_counter() - started
        target = self.classifier.target
        name = target.names[target.explained(answer.scores)]
        explanation = ""
        if answer.heat is not None and sample.picture is not None and self.explainer.method:
            visible = seen_by(self.classifier.processor, sample.picture)
            explanation += page.figure(target, overlay(visible, answer.heat), self.explainer.method, name)
        if answer.words:
            explanation += page.weighed_words(target, answer.words, name)
        return page.verdict(target, answer.scores, seconds, self._example(sample), self.examples), explanation

    def choose_example(self, data: gr.EventData) -> Any:
        """The values of an example for the fields of the page."""
        number = int(data.index)
        example, picture = self.examples[number], self.pictures[number]
        values = [*([picture] if self.classifier.takes_picture else []), *example.texts]
        return values if len(values) > 1 else values[0]

    @property
    def description(self) -> str:
        """What `classify` does, in the documentation that programs get from the server."""
        target = self.classifier.target
        return (
            f"{target.action} one sample. Returns {target.returns} and, if asked to explain, a heat map over the "
            "picture (rows of numbers from 0 to 1) and the words of each text with weights from -1 to 1."
        )

    def classify(
        self, picture: str | None = None, text: str = "", second_text: str = "", explain: bool = False
    ) -> dict[str, Any]:
        """What `description` says, for programs."""
        try:
            sample = self._sample(picture, text, second_text)
        except BadInputError as error:
            raise shown_error(error) from error
        answer = self._answer(sample, explain)
        content = self.classifier.target.as_json(answer.scores)
        if answer.heat is not None:
            content["heat"] = [[round(float(value), 4) for value in row] for row in answer.heat]
        if answer.words:
            content["words"] = [list(map(list, text)) for text in answer.words]
        return content

    def predict_files(self, files: list[str] | None) -> tuple[str, gr.DownloadButton]:
        """The table for the page, and the button to download it."""
        try:
            rows = read_rows(files or [], self.classifier, self.text_names)
            lines = list(predict_rows(rows, self.classifier))
        except BadInputError as error:
            raise shown_error(error) from error
        names = header(self.classifier, self.text_names)
        # Files in this folder can be downloaded, and are deleted after an hour.
        path = Path(tempfile.mkdtemp(dir=self._uploads)) / "predictions.csv"
        target = self.classifier.target
        write_table(path, names, lines, target)
        return page.table(target, names, lines), gr.DownloadButton(value=str(path), interactive=True)

    def _example(self, sample: Sample) -> Example | None:
        """The example that a sample is, if it is one."""
        for example, picture in zip(self.examples, self.pictures, strict=True):
            if example.texts == sample.texts and _same(picture, sample.picture):
                return example
        return None

    def _sample(self, picture: str | None, *texts: str) -> Sample:
        of_sample = texts[: len(self.text_names)]
        check_sample(self.classifier, of_sample, has_picture=picture is not None)
        return Sample(self.classifier.decode(picture) if picture else None, of_sample)


def _same(one: Image.Image | None, other: Image.Image | None) -> bool:
    if one is None or other is None:
        return one is other
    return one.size == other.size and one.tobytes() == other.tobytes()


def shown_error(error: Exception) -> gr.Error:
    """The error for the visitor; it is not written to the log of the server."""
    return gr.Error(escape(str(error)), duration=8, print_exception=False)
