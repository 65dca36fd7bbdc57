"""Class names of any text are saved in a model's config and are read from it in the same order."""

import json
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from transformers import AutoConfig

from hf_transfer.models.pretrained import Checkpoint
from hf_transfer.targets.classes import Classes
from tests.tiny_models import tiny_model
from tests.tiny_text_models import save_text_checkpoint

NAMES = st.text(st.characters(codec="utf-8"), min_size=1, max_size=6) | st.sampled_from(
    ["1", "01", "0", "-1", " a", "a ", "LABEL_0", "LABEL_1", "None", "true", "\n", "a\0b", '"', "\\u0041", "{}", "ü"]
)


@pytest.fixture(scope="module", params=["vit", "bert", "pooled"])
def checkpoint(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    """An image model, a text model, and a text model with its own modelling file."""
    folder = tmp_path_factory.mktemp("checkpoint")
    if request.param == "vit":
        tiny_model("vit").save_pretrained(folder)
        return Checkpoint(str(folder))
    save_text_checkpoint(folder, "bert")
    return Checkpoint(str(folder), task="text-classification", pooling="mean" if request.param == "pooled" else "own")


@given(st.lists(NAMES, min_size=2, max_size=6, unique=True))
@settings(max_examples=15)
@example(["LABEL_1", "LABEL_0"])
@example(["10", "9", "1", "01"])
def test_class_names_are_the_same_after_saving_and_loading(checkpoint: Checkpoint, names: list[str]) -> None:
    """Also by transformers alone, in both directions."""
    with TemporaryDirectory() as folder:
        target = Classes(tuple(names))
        model = checkpoint.classifier(target, seed=0, fresh_weights=True)
        model.config.save_pretrained(folder)
        assert Classes.of_model(Checkpoint(folder, task=checkpoint.task).config) == target
        read = json.loads((Path(folder) / "config.json").read_text(encoding="utf-8"))
        if read["model_type"] in ("vit", "bert"):
            plain = AutoConfig.from_pretrained(folder)
            assert plain.id2label == dict(enumerate(names))
            assert plain.label2id == {name: number for number, name in enumerate(names)}
            assert plain.num_labels == len(names)
