"""What happens when somebody asks: from files and texts to an answer, or to words on what is wrong with them."""

import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import gradio as gr
from PIL import Image

import page
from about import Settings
from batch import BadBatchError, check_question, classify_rows, header, read_rows, write_table
from classifier import Classifier, Question
from explanation import Answer, Explainer
from heat import overlay, seen_by
from pictures import BadPictureError, decode

Function = TypeVar("Function", bound=Callable[..., Any])


def on_gpu(function: Function) -> Function:
    """On a Space of shared GPUs the function gets one while it runs; elsewhere it stays as it is."""
    try:
        import spaces  # type: ignore[import-not-found,unused-ignore]
    except ImportError:
        return function
    lent: Function = spaces.GPU(function)
    return lent


class Service:
    """Answers the page and the API.

    Args:
        classifier: the model.
        settings: names of the texts, and examples.
        folder: where the examples' pictures are.
        uploads: gradio's folder for files of visitors.
    """

    def __init__(self, classifier: Classifier, settings: Settings, folder: Path, *, uploads: Path) -> None:
        self.classifier = classifier
        self.explainer = Explainer(classifier)
        self._uploads = uploads
        self.text_names = settings.texts if classifier.takes_text else ()
        self.examples = settings.examples
        self.pictures = [decode(folder / one.picture) if one.picture else None for one in settings.examples]

        # No method: what it is called with is sent to the process that has the GPU, and that must not be the model.
        @on_gpu
        def answer(question: Question, explain: bool) -> Answer:
            if explain:
                return self.explainer.answer(question)
            return Answer(classifier.probabilities([question])[0])

        self._answer = answer

    @property
    def explains(self) -> bool:
        """Whether there is anything to show of what the model looked at."""
        return self.explainer.method is not None or self.explainer.weighs_words

    def show(
        self, picture: str | None = None, text: str = "", second_text: str = "", explain: bool = True
    ) -> tuple[str, str]:
        """The answer for the page, and what the model looked at."""
        if picture is None and not (text or second_text).strip():
            return page.nothing_yet(self.classifier, self.examples), ""
        try:
            question = self._question(picture, text, second_text)
        except (BadBatchError, BadPictureError) as error:
            return page.problem(error), ""
        started = time.perf_counter()
        answer = self._answer(question, explain)
        seconds = time.perf_counter() - started
        labels = self.classifier.labels
        best = labels[answer.scores.index(max(answer.scores))]
        looked = ""
        if answer.heat is not None and question.picture is not None and self.explainer.method:
            seen = seen_by(self.classifier.processor, question.picture)
            looked += page.figure(overlay(seen, answer.heat), self.explainer.method, best)
        if answer.words:
            looked += page.weighed_words(answer.words, best)
        return page.verdict(answer, labels, seconds, self._truth(question)), looked

    def take_example(self, data: gr.EventData) -> Any:
        """What an example asks, for the inputs of the page."""
        number = int(data.index)
        example, picture = self.examples[number], self.pictures[number]
        inputs = [*([picture] if self.classifier.takes_picture else []), *example.texts]
        return inputs if len(inputs) > 1 else inputs[0]

    def classify(
        self, picture: str | None = None, text: str = "", second_text: str = "", explain: bool = False
    ) -> dict[str, Any]:
        """Classify one sample.

        Returns the most probable label, the probability of every label, and, if asked to explain, a heat map over the
        picture (rows of numbers from 0 to 1) and the words of each text with weights from -1 to 1.
        """
        try:
            question = self._question(picture, text, second_text)
        except (BadBatchError, BadPictureError) as error:
            raise friendly(error) from error
        answer = self._answer(question, explain)
        scores = dict(zip(self.classifier.labels, answer.scores, strict=True))
        found: dict[str, Any] = {"label": max(scores, key=lambda label: scores[label]), "scores": scores}
        if answer.heat is not None:
            found["heat"] = [[round(float(value), 4) for value in row] for row in answer.heat]
        if answer.words:
            found["words"] = [list(map(list, text)) for text in answer.words]
        return found

    def classify_files(self, files: list[str] | None) -> tuple[str, str | None]:
        """The table for the page, and the file to download."""
        try:
            rows = read_rows(files or [], self.classifier, self.text_names)
            lines = list(classify_rows(rows, self.classifier))
        except BadBatchError as error:
            raise friendly(error) from error
        names = header(self.classifier, self.text_names)
        # From there it may be downloaded, and after an hour it is deleted.
        path = Path(tempfile.mkdtemp(dir=self._uploads)) / "predictions.csv"
        write_table(path, names, lines)
        return page.table(names, lines), str(path)

    def _truth(self, question: Question) -> str | None:
        """The true class of what is an example, however it came."""
        for example, picture in zip(self.examples, self.pictures, strict=True):
            if example.texts == question.texts and _same(picture, question.picture):
                return example.label
        return None

    def _question(self, picture: str | None, *texts: str) -> Question:
        asked = texts[: len(self.text_names)]
        check_question(self.classifier, asked, has_picture=picture is not None)
        return Question(decode(picture) if picture else None, asked)


def _same(one: Image.Image | None, other: Image.Image | None) -> bool:
    if one is None or other is None:
        return one is other
    return one.size == other.size and one.tobytes() == other.tobytes()


def friendly(error: Exception) -> gr.Error:
    """The error for whoever asked; the log of the server is not troubled with it."""
    return gr.Error(page.shown(error), duration=8, print_exception=False)
