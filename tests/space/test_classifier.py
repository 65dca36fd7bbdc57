"""The model of the demo: its predictions equal those of hf_transfer to 1e-6, for every kind of upload."""

import io
import re
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tokenizers.processors import TemplateProcessing

from classifier import Classifier, NoClassifierError, Sample, find_model, longest_text
from hf_transfer.data.pictures import BadImageError
from hf_transfer.data.pictures import decode as decoded_in_training
from hf_transfer.data.pictures import readable_formats as formats_in_training
from hf_transfer.evaluation.predictor import classify_files, load
from hf_transfer.evaluation.saved_model import load_finished
from hf_transfer.modalities.tokens import TokenPreprocessing
from hf_transfer.models.pooling import pooled_classifier
from hf_transfer.models.pretrained import Checkpoint
from hf_transfer.targets.classes import Classes
from pictures import BadInputError, decode, readable_formats
from tests.conftest import REPOSITORY
from tests.data.deep_pictures import png16, tiff16
from tests.tiny_models import save_checkpoint
from tests.tiny_text_models import END, save_text_checkpoint

NOISE = np.random.default_rng(0).integers(0, 256, (40, 30, 4), dtype=np.uint8)
DEEP = (np.arange(1200, dtype=np.uint16) * 50).reshape(40, 30)
COLOURS = Image.fromarray(NOISE[..., :3])


def turned() -> bytes:
    """A photograph with an EXIF orientation."""
    exif = Image.Exif()
    exif[274] = 6
    buffer = io.BytesIO()
    COLOURS.save(buffer, "JPEG", exif=exif)
    return buffer.getvalue()


def saved(picture: Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, kind, **options)
    return buffer.getvalue()


UPLOADS: dict[str, Callable[[], bytes]] = {
    "colours": lambda: saved(COLOURS, "PNG"),
    "alpha": lambda: saved(Image.fromarray(NOISE), "PNG"),
    "grey-alpha": lambda: saved(Image.fromarray(NOISE[..., :2]), "PNG"),
    "palette": lambda: saved(COLOURS.quantize(16), "GIF"),
    "animated": lambda: saved(COLOURS, "GIF", save_all=True, append_images=[Image.new("RGB", (30, 40))]),
    "cmyk": lambda: saved(COLOURS.convert("CMYK"), "JPEG"),
    "sixteen-bits": lambda: saved(Image.fromarray(DEEP), "PNG"),
    "float": lambda: saved(Image.fromarray(NOISE[..., 0] / np.float32(255)), "TIFF"),
    "bilevel": lambda: saved(COLOURS.convert("1"), "PNG"),
    "turned": turned,
    "webp": lambda: saved(COLOURS, "WEBP"),
    "twelve-bits": lambda: saved(Image.fromarray(DEEP // 16), "TIFF"),
    "integers": lambda: saved(Image.fromarray(DEEP.astype(np.int32)), "TIFF"),
    "floats-to-255": lambda: saved(Image.fromarray(NOISE[..., 0].astype(np.float32)), "TIFF"),
    "sixteen-bit-colours": lambda: png16(np.stack([DEEP] * 3, axis=2)),
    "eight-bits-in-sixteen": lambda: tiff16(NOISE[..., :3].astype(np.uint16)),
    "palette-with-transparency": lambda: saved(COLOURS.quantize(16), "PNG", transparency=3),
    "avif": lambda: saved(COLOURS, "AVIF"),
    "heic": lambda: saved(COLOURS, "HEIF"),
}


@pytest.fixture(scope="module")
def uploads(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("uploads")
    paths = {name: folder / f"{name}.bin" for name in UPLOADS if name != "heic" or "HEIF" in readable_formats()}
    for name, path in paths.items():
        path.write_bytes(UPLOADS[name]())
    return paths


@pytest.mark.parametrize("name", UPLOADS)
def test_every_kind_of_picture_is_decoded_as_in_training(uploads: dict[str, Path], name: str) -> None:
    """First frame, EXIF orientation applied, alpha dropped, more than 8 bits scaled by what was white in training."""
    if name not in uploads:
        pytest.skip("needs the extra heif")
    for white in (None, 65535.0):
        here = decode(uploads[name], white)
        there = decoded_in_training({"bytes": None, "path": str(uploads[name])}, white)
        assert here.mode == there.mode == "RGB"
        assert np.array_equal(np.asarray(here), np.asarray(there))


@pytest.mark.parametrize(
    ("values", "words"),
    [
        (DEEP.astype(np.int32) - 1, "It cannot be scaled to 8 bits: it has values below 0, such as -1."),
        (np.full((4, 4), np.nan, np.float32), "it has values that are NaN or infinite."),
        (np.full((4, 4), np.inf, np.float32), "it has values that are NaN or infinite."),
        (DEEP, "its values go up to 59,950, above 4,095, which is white."),
    ],
)
def test_values_that_are_no_shades_are_refused_as_in_training(values: Any, words: str, tmp_path: Path) -> None:
    (tmp_path / "upload").write_bytes(saved(Image.fromarray(values), "TIFF"))
    with pytest.raises(BadInputError, match=re.escape(words)):
        decode(tmp_path / "upload", 4095.0)
    with pytest.raises(BadImageError):
        decoded_in_training({"bytes": None, "path": str(tmp_path / "upload")}, 4095.0)


def test_both_read_the_same_formats_with_the_same_code() -> None:
    """The file is copied, since the demo imports nothing of the package."""
    copied = (REPOSITORY / "space/levels.py").read_bytes()
    assert copied == (REPOSITORY / "hf_transfer/data/levels.py").read_bytes()
    assert {"HEIC" if name == "HEIF" else name for name in readable_formats()} == set(formats_in_training())


@pytest.mark.parametrize("architecture", ["vit", "resnet_basic"])
def test_pictures_get_the_scores_of_the_library(tmp_path: Path, uploads: dict[str, Path], architecture: str) -> None:
    """With plain transformers, to 1e-6."""
    folder = save_checkpoint(tmp_path / "model", architecture)
    classifier = Classifier(find_model(str(folder)))
    assert (classifier.takes_picture, classifier.takes_text) == (True, False)
    paths = list(uploads.values())
    expected = classify_files(folder, paths, top=99)
    predicted = classifier.scores([Sample(decode(path)) for path in paths])
    for answer, scores in zip(expected, predicted, strict=True):
        assert dict(zip(classifier.labels, scores, strict=True)) == pytest.approx(dict(answer.scores), abs=1e-6)


TEXTS = [("word7 word8",), ("nothing known here",), (" ".join(f"word{n % 50}" for n in range(90)),), ("word9",)]


@pytest.mark.parametrize(("name", "pad"), [("bert", True), ("roberta", True), ("gpt2", False), ("deberta", True)])
def test_texts_get_the_scores_of_the_library(tmp_path: Path, name: str, pad: bool) -> None:
    """Truncated to the positions of the model, and padded even if the tokenizer has no pad token."""
    # Training writes it into the config: the end-of-text token is the pad token then.
    folder = save_text_checkpoint(tmp_path / "model", name, pad=pad, **({} if pad else {"pad_token_id": END}))
    classifier = Classifier(folder)
    assert (classifier.takes_picture, classifier.takes_text, classifier.texts) == (False, True, 1)
    expected = load(folder)(TEXTS, top=99)
    # One by one, as on the page, and together, as in a batch.
    alone = [classifier.scores([Sample(texts=texts)])[0] for texts in TEXTS]
    together = classifier.scores([Sample(texts=texts) for texts in TEXTS])
    for answer, *predicted in zip(expected, alone, together, strict=True):
        for scores in predicted:
            assert dict(zip(classifier.labels, scores, strict=True)) == pytest.approx(answer, abs=1e-6)


def test_a_text_is_truncated_to_the_given_length(tmp_path: Path) -> None:
    """The --max_seq_length of the run."""
    folder = save_text_checkpoint(tmp_path / "model")
    classifier = Classifier(folder, max_length=6)
    start, whole = Sample(texts=("word7 word8 word9 word10",)), Sample(texts=("word7 word8 word9 word10 word11",))
    assert classifier.scores([start]) == classifier.scores([whole])
    assert Classifier(folder).scores([start]) != Classifier(folder).scores([whole])


def test_a_model_has_as_many_tokens_as_it_has_positions(tmp_path: Path) -> None:
    """RoBERTa's first positions belong to the padding."""
    folder = save_text_checkpoint(tmp_path / "model", "roberta", pad_token_id=1)
    classifier = Classifier(folder)
    classifier.tokenizer.model_max_length = 10**30
    checkpoint = Checkpoint(str(folder), task="text-classification")
    preprocessing = TokenPreprocessing(classifier.tokenizer, model_limit=checkpoint.longest_input)
    assert longest_text(classifier.model, classifier.tokenizer) == preprocessing.max_length == 38


def test_a_pair_of_texts_is_one_sample(tmp_path: Path) -> None:
    folder = save_text_checkpoint(tmp_path / "model")
    classifier = Classifier(folder, texts=2)
    pairs = [("word7", "word8 word9"), ("word8 word9", "word7")]
    predicted = classifier.scores([Sample(texts=pair) for pair in pairs])
    for answer, scores in zip(load(folder)(pairs, top=99), predicted, strict=True):
        assert dict(zip(classifier.labels, scores, strict=True)) == pytest.approx(answer, abs=1e-6)


def test_a_text_without_tokens_is_classified(tmp_path: Path) -> None:
    """A tokenizer without special tokens makes no token of some characters."""
    folder = save_text_checkpoint(tmp_path / "model", "gpt2")
    classifier = Classifier(folder)
    classifier.tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single="$A", pair="$A $B")
    (scores,) = classifier.scores([Sample(texts=("\n",))])
    assert sum(scores) == pytest.approx(1, abs=1e-6)


def test_a_model_with_a_modelling_file_is_served_only_if_it_is_trusted(tmp_path: Path) -> None:
    """Mean pooling, which transformers has no class for."""
    base, folder = save_text_checkpoint(tmp_path / "base"), tmp_path / "model"
    labels = {"id2label": {0: "a", 1: "b"}, "label2id": {"a": 0, "b": 1}}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model, _ = pooled_classifier(str(base), pooling="mean", labels=labels)
    model.save_pretrained(folder)
    Checkpoint(str(base), task="text-classification").tokenizer().save_pretrained(folder)
    with pytest.raises(NoClassifierError, match="read it, and set TRUST_REMOTE_CODE=1 to run it"):
        Classifier(folder)
    classifier = Classifier(folder, trust_remote_code=True)
    ours = load_finished(Checkpoint(str(folder), task="text-classification"), Classes(("a", "b")))
    inputs, _ = classifier.encode([Sample(texts=TEXTS[0])])
    with torch.no_grad():
        expected = ours.eval()(**inputs).logits.softmax(-1)[0].tolist()
    assert classifier.scores([Sample(texts=TEXTS[0])])[0] == pytest.approx(expected, abs=1e-6)


def test_a_folder_without_a_classifier_is_refused(tmp_path: Path) -> None:
    """An empty folder, and a model without a head."""
    with pytest.raises(NoClassifierError, match=r"has no config.json: name a model in MODEL_ID"):
        Classifier(tmp_path)
    folder = save_checkpoint(tmp_path / "model")
    config = (folder / "config.json").read_text()
    (folder / "config.json").write_text(config.replace("ViTForImageClassification", "ViTModel"))
    with pytest.raises(NoClassifierError, match=r"holds ViTModel; this demo serves"):
        Classifier(folder)


def test_weights_in_a_pickle_are_not_read(tmp_path: Path) -> None:
    """Loading a pickle can run any code."""
    folder = save_checkpoint(tmp_path / "model")
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(OSError, match="safetensors"):
        Classifier(folder)


def bomb(side: int) -> bytes:
    """A PNG of a few bytes that declares a square of pixels."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    start = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header)
    return start + chunk(b"IDAT", zlib.compress(b"\0" * 100)) + chunk(b"IEND", b"")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "empty or damaged"),
        (b"no picture", "empty or damaged"),
        (saved(COLOURS, "PNG")[:300], "empty or damaged"),
        (b'<svg xmlns="http://www.w3.org/2000/svg"><script>alert(1)</script></svg>', "or no picture of JPEG, PNG"),
        (b"<html><script>alert(1)</script></html>", "or no picture of JPEG, PNG"),
        (bomb(12_000), "declares 12000 x 12000 pixels"),
        (bomb(60_000), "far more pixels"),
        (saved(COLOURS, "PNG") + b"\0" * 10_000_000, "It has 10 MB, and the limit is 10 MB"),
    ],
)
def test_a_file_that_is_no_picture_is_refused_with_the_reason(tmp_path: Path, content: bytes, words: str) -> None:
    """Before it is decoded, if it is too large."""
    (tmp_path / "upload").write_bytes(content)
    with pytest.raises(BadInputError, match=words):
        decode(tmp_path / "upload")


FUSION = """
import torch
from torch import nn
from transformers import PretrainedConfig, PreTrainedModel
from transformers.modeling_outputs import SequenceClassifierOutput


class FusionConfig(PretrainedConfig):
    model_type = "toy_fusion"
    _auto_class = "AutoConfig"


class Fusion(PreTrainedModel):
    config_class = FusionConfig
    _auto_class = "AutoModel"

    def __init__(self, config):
        super().__init__(config)
        self.picture = nn.Conv2d(3, 4, 4, stride=4)
        self.words = nn.Embedding(64, 6)
        self.head = nn.Linear(10, config.num_labels)
        self.post_init()

    def forward(self, pixel_values=None, input_ids=None, attention_mask=None, token_type_ids=None, **_):
        seen = self.picture(pixel_values).tanh().mean((2, 3))
        read = (self.words(input_ids) * attention_mask[..., None]).sum(1)
        return SequenceClassifierOutput(logits=self.head(torch.cat([seen, read], 1)))
"""


@pytest.fixture
def fusion(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A model of a picture and its text, with its modelling file."""
    import importlib

    (tmp_path / "modeling_toy_fusion.py").write_text(FUSION)
    monkeypatch.syspath_prepend(str(tmp_path))
    module = importlib.import_module("modeling_toy_fusion")
    folder = save_checkpoint(tmp_path / "both")
    (folder / "config.json").unlink()
    (folder / "model.safetensors").unlink()
    save_text_checkpoint(tmp_path / "text")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (tmp_path / "text" / name).rename(folder / name)
    with torch.random.fork_rng():
        torch.manual_seed(3)
        model = module.Fusion(module.FusionConfig(num_labels=3))
    for parameter in model.parameters():
        parameter.data.normal_(generator=torch.Generator().manual_seed(parameter.numel()))
    model.save_pretrained(folder)
    return folder


def test_a_model_with_image_processor_and_tokenizer_takes_picture_and_text(fusion: Path) -> None:
    from explanation import Explainer

    classifier = Classifier(fusion, trust_remote_code=True)
    assert (classifier.takes_picture, classifier.takes_text) == (True, True)
    picture = Image.fromarray(NOISE[..., :3])
    sample = Sample(picture, ("word7 word8",))
    (scores,) = classifier.scores([sample])
    assert classifier.scores([Sample(picture, ("word9",))]) != [scores]
    assert classifier.scores([Sample(Image.new("RGB", (9, 9)), sample.texts)]) != [scores]
    explainer = Explainer(classifier)
    assert (explainer.method, explainer.weighs_words) == ("Grad-CAM", True)
    answer = explainer.answer(sample)
    assert answer.scores == pytest.approx(scores, abs=1e-6)
    assert answer.heat is not None
    assert answer.heat.shape == (4, 4)
    assert [piece for piece, _ in answer.words[0]] == ["word7", " ", "word8"]
