"""Which files are published: those that a model needs, and none that contains a secret."""

import struct
from pathlib import Path

import pytest

from hf_transfer.hub import publish
from hf_transfer.hub.publish import files_to_publish, secrets_in
from tests.hub.pushes import CARD, FILES, NAME, a_folder, ours, pushed, refused
from tests.hub.stand_in import StandIn


def test_only_the_files_that_a_model_needs_are_published(hub: StandIn, folder: Path) -> None:
    """Not pickles of Trainer, checkpoints, notes and other files that are there by accident."""
    for name in ("training_args.bin", "notes.txt", ".env", "model.safetensors.bak", "run.log", "x.py", "secret.json"):
        (folder / name).write_bytes(b"x")
    (folder / "checkpoints").mkdir()
    (folder / "checkpoints/config.json").write_bytes(b"{}")
    (folder / "modeling_pooled.py").write_bytes(b"x")
    pushed(folder)
    assert ours(hub.model(NAME)) == FILES | {"modeling_pooled.py": b"x"}


def test_of_a_space_its_files_and_its_model_are_published(hub: StandIn, tmp_path: Path) -> None:
    files = {"README.md": CARD, "app.py": b"x", "requirements.txt": b"x", "model/config.json": b"{}"}
    files |= {"examples/1.png": b"x", "model/optimizer.pt": b"x", "examples/deep/1.png": b"x", ".env": b"x"}
    for name, content in files.items():
        (tmp_path / "space" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "space" / name).write_bytes(content)
    done = pushed(tmp_path / "space", kind="space")
    made = hub.repositories["spaces", NAME]
    assert set(ours(made)) == {"README.md", "app.py", "requirements.txt", "model/config.json", "examples/1.png"}
    assert (made.sdk, made.private, done.url) == ("gradio", True, f"{hub.endpoint}/spaces/{NAME}")


SECRETS = {
    "a token of the Hub": "hf_" + "aB3" * 11 + "x",
    "a key of AWS": "AKIA" + "Q" * 16,
    "a private key": "-----BEGIN RSA " + "PRIVATE KEY-----",
    "a token of GitHub": "ghp_" + "a1" * 18,
    "a token of Slack": "xoxb-" + "1" * 24,
    "a key of Google": "AIza" + "b" * 35,
    "a key of OpenAI": "sk-proj-" + "c" * 44,
    "a key of Weights & Biases": 'WANDB_API_KEY = "' + "0f" * 20,
}


@pytest.mark.parametrize("what", SECRETS)
@pytest.mark.parametrize("file", ["config.json", "tokenizer.json", "vocab.txt", "README.md", "modeling_pooled.py"])
def test_a_secret_is_named_and_not_shown(hub: StandIn, folder: Path, what: str, file: str) -> None:
    """In any file: a hostile model can name a secret file of this machine as its vocabulary."""
    (folder / file).write_text(f"a line\nand {SECRETS[what]} in it\n")
    message = refused(folder)
    assert f"Found:    {file}, line 2: {what}\n" in message
    assert SECRETS[what] not in message
    assert hub.asked == []


def test_every_kind_of_secret_is_tested() -> None:
    assert SECRETS.keys() == publish.SECRETS.keys()


def test_the_header_of_safetensors_is_searched_and_the_weights_are_not(tmp_path: Path) -> None:
    secret = SECRETS["a token of the Hub"].encode()
    for name, header, weights in (("a", secret, b""), ("b", b"{}", secret)):
        (tmp_path / f"{name}.safetensors").write_bytes(struct.pack("<Q", len(header)) + header + weights)
    assert [what for _, what in secrets_in(tmp_path / "a.safetensors")] == ["a token of the Hub"]
    assert list(secrets_in(tmp_path / "b.safetensors")) == []


def test_the_token_of_the_user_is_found_in_any_form(
    hub: StandIn, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "quite.another-form+of")
    assert "config.json, line 1: your own token" in refused(a_folder(folder, config__json=b"quite.another-form+of"))


def test_texts_that_only_look_like_secrets_are_published(folder: Path) -> None:
    words = ["hf_transfer", "sk-learn", "AKIA", "-----BEGIN CERTIFICATE-----", "a" * 80, "risk-" + "b" * 40]
    (folder / "vocab.txt").write_text("\n".join(words))
    assert set(files_to_publish(folder, "model")) == {*FILES, "vocab.txt"}
