"""Folders of models that try to run code, or are damaged: nothing is run, and errors are explained."""

import json
import os
import pickle  # noqa: TID251 (to show that it is never read)
import shutil
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hf_transfer.errors import UserError
from hf_transfer.modalities.tokens import TokenPreprocessing
from hf_transfer.models.pretrained import Checkpoint
from hf_transfer.targets.classes import Classes
from tests.conftest import DRAWN_ONLY
from tests.tiny_models import save_checkpoint, tiny_model
from tests.tiny_text_models import save_text_checkpoint

TARGET = Classes(("a", "b"))


class Payload:
    """When it is unpickled, it makes a folder."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (str(self.path),)


@pytest.fixture
def ran(tmp_path: Path) -> Path:
    """The folder that a payload makes."""
    return tmp_path / "ran"


def with_pickle(folder: Path, ran: Path) -> Path:
    """A saved model whose weights are only a pickle."""
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps({"weight": Payload(ran)}))
    return folder


def refused(load: object) -> str:
    assert callable(load)
    with pytest.raises(UserError) as caught:
        load()
    return str(caught.value)


def test_the_payload_runs_when_it_is_unpickled(ran: Path) -> None:
    pickle.loads(pickle.dumps(Payload(ran)))  # noqa: S301
    assert ran.exists()


@pytest.mark.parametrize("finished", [False, True])
def test_a_pickle_instead_of_weights_is_refused_and_not_run(finished: bool, tmp_path: Path, ran: Path) -> None:
    tiny_model("vit", num_labels=2).save_pretrained(tmp_path / "m")
    checkpoint = Checkpoint(str(with_pickle(tmp_path / "m", ran)))
    message = refused(
        checkpoint.finished_classifier
        if finished
        else lambda: checkpoint.classifier(TARGET, seed=0, fresh_weights=False)
    )
    assert message.splitlines() == [
        f"Expected: weights in safetensors in {tmp_path / 'm'}",
        "Found:    only pickles (pytorch_model.bin), which can run any code when they are read",
        "Do this:  if you trust them, convert them with transformers: load the model and call its save_pretrained",
    ]
    assert not ran.exists()


def test_a_text_model_with_another_pooling_reads_no_pickle(tmp_path: Path, ran: Path) -> None:
    folder = with_pickle(save_text_checkpoint(tmp_path / "m", "bert"), ran)
    torch.save({"weight": torch.zeros(1)}, folder / "pytorch_model.bin")  # noqa: TID251 (the same)
    checkpoint = Checkpoint(str(folder), task="text-classification", pooling="mean")
    assert "weights in safetensors" in refused(lambda: checkpoint.classifier(TARGET, seed=0, fresh_weights=False))


def test_a_pickle_beside_weights_is_not_read(tmp_path: Path, ran: Path) -> None:
    tiny_model("vit", num_labels=2).save_pretrained(tmp_path / "m")
    for name in ("pytorch_model.bin", "training_args.bin", "optimizer.pt", "rng_state.pth"):
        (tmp_path / "m" / name).write_bytes(pickle.dumps(Payload(ran)))
    Checkpoint(str(tmp_path / "m")).classifier(TARGET, seed=0, fresh_weights=False)
    assert not ran.exists()


def test_code_beside_a_model_is_not_run(tmp_path: Path, ran: Path) -> None:
    """Even if its config names it."""
    tiny_model("vit", num_labels=2).save_pretrained(tmp_path / "m")
    path = tmp_path / "m" / "config.json"
    settings = json.loads(path.read_text())
    settings |= {"auto_map": {name: f"evil.{name}" for name in ("AutoConfig", "AutoModelForImageClassification")}}
    path.write_text(json.dumps(settings))
    (tmp_path / "m" / "evil.py").write_text(f"import os\nos.mkdir({str(ran)!r})\n")
    Checkpoint(str(tmp_path / "m")).classifier(TARGET, seed=0, fresh_weights=False)
    settings["model_type"] = "evil"
    path.write_text(json.dumps(settings))
    assert "Expected:" in refused(lambda: Checkpoint(str(tmp_path / "m")))
    assert not ran.exists()


def test_a_kernel_that_a_config_names_is_not_downloaded(tmp_path: Path) -> None:
    """CVE-2026-4372: an attention implementation named in a config ran untrusted code."""
    tiny_model("vit", num_labels=2).save_pretrained(tmp_path / "m")
    path = tmp_path / "m" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"_attn_implementation_internal": "evil/kernel"}))
    model = Checkpoint(str(tmp_path / "m")).classifier(TARGET, seed=0, fresh_weights=False)
    assert model.config._attn_implementation in ("sdpa", "eager")


@pytest.mark.parametrize(
    ("file", "auto_map", "more"),
    [
        ("config.json", {"AutoConfig": "evil.Evil"}, {"model_type": "evil"}),
        ("config.json", {"AutoModelForSequenceClassification": "evil.Evil"}, {"model_type": "bert"}),
        ("tokenizer_config.json", {"AutoTokenizer": ["evil.Evil", "evil.Evil"]}, {"tokenizer_class": "Evil"}),
        ("preprocessor_config.json", {"AutoImageProcessor": "evil.Evil"}, {"image_processor_type": "Evil"}),
    ],
)
def test_code_beside_a_model_is_not_run_even_if_the_user_would_agree(
    file: str, auto_map: Any, more: dict[str, str], tmp_path: Path, ran: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """transformers asks at the terminal if trust_remote_code is not set."""
    monkeypatch.setattr("builtins.input", lambda *_: "y")
    folder = (save_checkpoint if file.startswith("pre") else save_text_checkpoint)(tmp_path / "m", ARCHITECTURES[file])
    path = folder / file
    path.write_text(json.dumps(json.loads(path.read_text()) | {"auto_map": auto_map} | more))
    (folder / "evil.py").write_text(f"import os\nos.mkdir({str(ran)!r})\nclass Evil: pass\n")
    with suppress(UserError):
        load(folder, file.startswith("pre"))
    assert not ran.exists()


ARCHITECTURES = {"config.json": "bert", "tokenizer_config.json": "bert", "preprocessor_config.json": "vit"}


def load(folder: Path, images: bool) -> Checkpoint:
    """Read everything of a checkpoint that a run reads."""
    checkpoint = Checkpoint(str(folder), task="image-classification" if images else "text-classification")
    if images:
        checkpoint.processor()
    else:
        TokenPreprocessing(checkpoint.tokenizer(), model_limit=checkpoint.longest_input).example()
    checkpoint.classifier(TARGET, seed=0, fresh_weights=False)
    return checkpoint


PRIVATE = "hf_transfer_private"


@pytest.mark.parametrize(
    "settings",
    [
        {"vocab": ".env"}, {"vocab": "{here}/.env"}, {"init_inputs": [".env"]}, {"vocab": {"vocab": ".env"}},
        *({name: "{here}/.env"} for name in ("vocab_file", "merges_file", "tokenizer_file", "spm_file")),
        *({name: "../.env"} for name in ("special_tokens_map_file", "added_tokens_file", "chat_template_file")),
    ],
    ids=str,
)  # fmt: skip
@pytest.mark.parametrize("kind", ["bert", "gpt2"])
def test_a_local_file_does_not_become_a_vocabulary_that_is_saved(
    settings: dict[str, Any], kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / ".env").write_text(f"{PRIVATE}\n")
    folder = save_text_checkpoint(tmp_path / "m", kind)
    (folder / "tokenizer.json").unlink()
    path = folder / "tokenizer_config.json"
    hostile = json.loads(json.dumps(settings).replace("{here}", str(tmp_path)))
    name = {"bert": "BertTokenizer", "gpt2": "GPT2Tokenizer"}[kind]
    path.write_text(json.dumps(json.loads(path.read_text()) | {"tokenizer_class": name} | hostile))
    with suppress(UserError):
        Checkpoint(str(folder), task="text-classification").tokenizer().save_pretrained(tmp_path / "out")
    saved = tmp_path / "out"
    assert not any(PRIVATE in file.read_text(encoding="utf-8") for file in saved.glob("*"))


def test_the_error_names_the_local_file_that_a_tokenizer_would_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / ".env").write_text(f"{PRIVATE}\n")
    folder = save_text_checkpoint(tmp_path / "m", "bert")
    path = folder / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"vocab": ".env"}))
    assert refused(Checkpoint(str(folder), task="text-classification").tokenizer).splitlines() == [
        f"Expected: a tokenizer in {folder} that reads only the checkpoint's files",
        "Found:    'vocab' in its settings is '.env', a file on this machine",
        "Do this:  do not use this checkpoint: it would copy that file into the finished model",
    ]


@pytest.mark.parametrize(
    "header", [(2**62).to_bytes(8, "little") + b"{}", (2).to_bytes(8, "little") + b"[]", b"", b"{"]
)
def test_weights_with_a_wrong_header_are_refused(header: bytes, tmp_path: Path) -> None:
    folder = save_checkpoint(tmp_path / "m", "vit")
    (folder / "model.safetensors").write_bytes(header)
    assert f"a complete transformers checkpoint in {folder}" in refused(lambda: load(folder, images=True))


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Folders of an image model and of a text model."""
    images = save_checkpoint(tmp_path_factory.mktemp("images") / "m", "vit")
    return [images, save_text_checkpoint(tmp_path_factory.mktemp("texts") / "m", "bert")]


VALUES = st.sampled_from([None, -1, 0, 1, 10**6, 1.5, "x", "", [], {}, [1], {"a": 1}, True, float("nan"), "../../x"])


@given(st.data())
@settings(max_examples=40, phases=DRAWN_ONLY)
def test_a_folder_with_a_damaged_file_is_read_or_refused_with_a_clear_error(
    checkpoints: list[Path], data: st.DataObject
) -> None:
    """transformers and tokenizers can raise any error."""
    whole = data.draw(st.sampled_from(checkpoints))
    with TemporaryDirectory() as made:
        folder = Path(shutil.copytree(whole, Path(made) / "m"))
        path = folder / data.draw(st.sampled_from(sorted(path.name for path in whole.iterdir())))
        content = path.read_bytes()
        if path.suffix == ".json" and data.draw(st.booleans()):
            read = json.loads(content)
            name = data.draw(st.sampled_from([*sorted(read), "auto_map", "quantization_config", "id2label", "vocab"]))
            path.write_text(json.dumps(read | {name: data.draw(VALUES)}))
        else:
            place = data.draw(st.integers(0, len(content)))
            path.write_bytes(content[:place] + data.draw(st.binary(max_size=2)) + content[place + 2 :])
        with suppress(UserError):
            load(folder, images=whole == checkpoints[0])
