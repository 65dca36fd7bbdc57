"""Class names of any text go into a model's config and come out of it again, in their order."""

import json
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from transformers import AutoConfig, PretrainedConfig

from hf_transfer.models.pretrained import Checkpoint
from tests.tiny_models import tiny_model
from tests.tiny_text_models import save_text_checkpoint

NAMES = st.text(st.characters(codec="utf-8"), min_size=1, max_size=6) | st.sampled_from(
    ["1", "01", "0", "-1", " a", "a ", "LABEL_0", "LABEL_1", "None", "true", "\n", "a\0b", '"', "\\u0041", "{}", "ü"]
)
Saved = Callable[[list[str]], PretrainedConfig]


@pytest.fixture(scope="module", params=["vit", "bert", "pooled"])
def checkpoint(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    """Models of images, of texts, and one with a file of its own."""
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
def test_class_names_come_back_from_a_saved_model_as_they_were(checkpoint: Checkpoint, names: list[str]) -> None:
    """Also by transformers alone, in both directions."""
    with TemporaryDirectory() as folder:
        model = checkpoint.classifier(names, seed=0, fresh_weights=True)
        model.config.save_pretrained(folder)
        assert Checkpoint(folder, task=checkpoint.task).class_names(names) == names
        read = json.loads((Path(folder) / "config.json").read_text(encoding="utf-8"))
        if read["model_type"] in ("vit", "bert"):
            plain = AutoConfig.from_pretrained(folder)
            assert plain.id2label == dict(enumerate(names))
            assert plain.label2id == {name: number for number, name in enumerate(names)}
            assert plain.num_labels == len(names)
