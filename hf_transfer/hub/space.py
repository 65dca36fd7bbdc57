"""The Space of a finished run: a folder with the demo, what it is to say of the model, and the model itself.

The demo is in `space/` and imports nothing of ours; here it only gets its settings.
"""

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from huggingface_hub import HfApi, SpaceCardData
from PIL import Image

from hf_transfer.config import RunConfig, TextConfig, UserError, VisionConfig, mistake
from hf_transfer.config_multimodal import MultimodalConfig
from hf_transfer.data.hub_account import failing_in_words
from hf_transfer.data.images import BadImageError, decode
from hf_transfer.data.pairs import load_pair_splits
from hf_transfer.data.sources import load_image_splits, load_text_splits
from hf_transfer.data.splits import Split
from hf_transfer.evaluation.modalities import headline
from hf_transfer.evaluation.run_folder import CONFIG_FILE, RESULTS_FILE, load_finished
from hf_transfer.hub.card import CARD_FILE, as_line
from hf_transfer.hub.card_text import hub_id, shown_name
from hf_transfer.hub.publish import MODEL_FILES, Published, publish_folder
from hf_transfer.hub.usage import needs_own_code
from hf_transfer.interruption import Interrupted, ending_at_once
from hf_transfer.models import fusion, modeling_pooled
from hf_transfer.models.pretrained import Checkpoint
from hf_transfer.parsing import load, recipe_of
from hf_transfer.strategies.adapter_files import is_adapter_folder, merged

SETTINGS_FILE = "settings.json"
MODEL_FOLDER = "model"
MOST_EXAMPLES = 6
# Larger pictures tell no more on the page; the model's own size is smaller still.
EXAMPLE_SIDE = 1024
PYTHON_VERSION = "3.12"
TASKS = {"vision": "image-classification", "text": "text-classification"}


def demo_folder() -> Path:
    """Where the demo's files are: in a clone beside this package, in an installation within it.

    Raises:
        UserError: they are in neither place.
    """
    package = Path(__file__).parents[1]
    for folder in (package.parent / "space", package / "space"):
        if (folder / "app.py").is_file():
            return folder
    raise mistake(
        expected=f"the demo's files in {package / 'space'}",
        found="none",
        do="pip install --force-reinstall --no-deps hf-transfer-learning",
    )


def assemble_space(
    out: Path, target: Path, *, title: str | None = None, model: str | None = None, revision: str | None = None,
    examples: int = MOST_EXAMPLES,
) -> Path:  # fmt: skip
    """Fill a folder with the demo of a finished run.

    Args:
        out: the run's folder.
        target: is created; it must be new or empty.
        title: what the page is called; None for the name of the run's folder.
        model: where the demo finds the model: a Hub id or a folder. None puts a copy into the Space; so does an
            adapter, worked into its base, as the demo has no peft.
        revision: the commit of a Hub id.
        examples: how many samples of the test split go along, one of each class as far as they reach; 0 for none.

    Returns:
        The target.

    Raises:
        UserError: no finished run, foreign code beside its model, or data that are not to be had any more.
    """
    results, config, folder = _finished_run(out)
    target.mkdir(parents=True, exist_ok=True)
    for path in sorted(demo_folder().iterdir()):
        if path.suffix in (".py", ".css") or path.name == "requirements.txt":
            shutil.copyfile(path, target / path.name)
    if model is None or is_adapter_folder(folder):
        _copy_model(folder, target / MODEL_FOLDER, config)
        model, revision = f"./{MODEL_FOLDER}", None
    settings: dict[str, Any] = {
        "model": model,
        "revision": revision,
        "title": title or as_line(re.sub(r"[-_]+", " ", out.resolve().name)).capitalize(),
        "base_model": shown_name(results, "model_name_or_path"),
        "dataset": shown_name(results, "dataset_name"),
        "accuracy": _accuracy(results),
        "trust_remote_code": _brings_our_code(folder),
        "examples": _examples(config, results, target, examples),
    }
    if isinstance(config, TextConfig | MultimodalConfig):
        pair = config.text_pair_column_name if isinstance(config, TextConfig) else None
        settings["texts"] = [config.text_column_name or "text", *filter(None, [pair])]
        settings["max_length"] = config.max_seq_length
    text = json.dumps(settings, indent=2, ensure_ascii=False)
    (target / SETTINGS_FILE).write_text(text + "\n", encoding="utf-8")
    (target / CARD_FILE).write_text(_space_card(settings, results), encoding="utf-8")
    return target


def publish_space(
    out: Path, repository: str, *, private: bool, model: str | None = None, revision: str | None = None,
    examples: int = MOST_EXAMPLES,
) -> Published:  # fmt: skip
    """Make or update a Space that shows a finished run.

    A model that everybody sees is named with its commit; one that is private, or only here, goes into the Space, so
    that no token is needed.

    Args:
        out: the run's folder.
        repository: OWNER/NAME of the Space.
        private: hide it from others.
        model: Hub id of the published model, if there is one.
        revision: its branch, tag or commit; None for the newest.
        examples: how many samples of the test split go along.

    Raises:
        UserError: as `assemble_space`; the model on the Hub is hidden and the Space is not, or the Hub refuses.
    """
    hidden = False
    if model is not None:
        revision, hidden = _on_the_hub(model, revision)
    if hidden and not private:
        raise mistake(
            expected=f"a Space as private as its model {model}, which goes into it",
            found="--hub_private_repo false",
            do="leave it out, or make the model public first",
        )
    with TemporaryDirectory() as scratch:
        pinned = None if hidden else model
        folder = assemble_space(
            out, Path(scratch) / "space", title=_title(repository), model=pinned, revision=revision, examples=examples
        )
        try:
            return publish_folder(folder, repository, kind="space", private=private, message="Demo of the model")
        except UserError as error:
            again = [
                "hf-transfer",
                "space",
                str(out),
                repository,
                *([] if private else ["--hub_private_repo", "false"]),
            ]
            left = shlex.join([*again, *(["--hub_model_id", model] if model else [])])
            here = shlex.join(["hf-transfer", "demo", str(out)])
            raise UserError(f"{error}\nWhat is left to do: {left}\nTo see the demo on this machine: {here}") from error


def serve_demo(out: Path, *, port: int, examples: int = MOST_EXAMPLES) -> int:
    """Serve the demo of a finished run on this machine until it is ended; the exit code of its process.

    Args:
        out: the run's folder.
        port: where on this machine.
        examples: how many samples of the test split go along.

    Raises:
        UserError: as `assemble_space`.
    """
    _, _, folder = _finished_run(out)
    with TemporaryDirectory() as scratch:
        space = assemble_space(out, Path(scratch) / "space", model=str(folder.resolve()), examples=examples)
        # What visitors upload goes when the demo ends; a model of the environment's is not the one of this run.
        environment = {name: value for name, value in os.environ.items() if name not in ("MODEL_ID", "MODEL_REVISION")}
        environment |= {"GRADIO_TEMP_DIR": str(Path(scratch) / "uploads"), "GRADIO_SERVER_PORT": str(port)}
        process = subprocess.Popen([sys.executable, "app.py"], cwd=space, env=environment)
        try:
            with ending_at_once():
                return process.wait()
        except Interrupted as asked:
            process.terminate()
            process.wait()
            # Ctrl-C is how a demo is meant to end.
            return 0 if asked.number == signal.SIGINT else asked.exit_code
        finally:
            process.kill()


def _finished_run(out: Path) -> tuple[dict[str, Any], RunConfig, Path]:
    """Results, settings, and the folder of the model."""
    folder = out / MODEL_FOLDER
    if not (out / RESULTS_FILE).is_file() or not folder.is_dir():
        raise mistake(
            expected=f"a finished run in {out}: {RESULTS_FILE} and {MODEL_FOLDER}/",
            found="no such folder" if not out.is_dir() else "a folder without them",
            do="name the --output_dir of a run, and finish the run first: the command that began it goes on",
        )
    settings = out / CONFIG_FILE
    results = json.loads((out / RESULTS_FILE).read_text(encoding="utf-8"))
    return results, load(recipe_of(settings), settings), folder


def _title(repository: str) -> str:
    return re.sub(r"[-_]+", " ", repository.split("/")[-1]).strip().capitalize()


def _on_the_hub(model: str, revision: str | None) -> tuple[str, bool]:
    """The commit that a revision of a model stands for, and whether the model is hidden."""
    with failing_in_words(f"the model {model} on the Hub"):
        found = HfApi().model_info(model, revision=revision)
    assert found.sha is not None
    return found.sha, bool(found.private)


def _copy_model(folder: Path, target: Path, config: RunConfig) -> None:
    """The files that a model needs; an adapter worked into its base.

    Raises:
        UserError: the adapter is one of those that cannot be.
    """
    target.mkdir()
    if not is_adapter_folder(folder):
        for pattern in MODEL_FILES:
            for path in folder.glob(pattern):
                shutil.copyfile(path, target / path.name)
        return
    task = TASKS.get(config.recipe)
    if task is None:
        raise mistake(
            expected=f"a whole model in {folder}, as the demo has no peft",
            found="an adapter of a model of images with texts",
            do="train it with --merge_adapter",
        )
    checkpoint = Checkpoint(str(folder), task=task)
    whole: Any = merged(load_finished(checkpoint))
    whole.save_pretrained(target)
    (checkpoint.processor() if task == "image-classification" else checkpoint.tokenizer()).save_pretrained(target)
    if (folder / CARD_FILE).is_file():
        shutil.copyfile(folder / CARD_FILE, target / CARD_FILE)


def _brings_our_code(folder: Path) -> bool:
    """Whether the demo must run a modelling file that lies beside the model.

    Raises:
        UserError: it is another than the one that we save with our models.
    """
    if is_adapter_folder(folder) or not needs_own_code(folder):
        return False
    files = [Path(module.__file__ or "") for module in (modeling_pooled, fusion)]
    ours = {path.name: path.read_bytes() for path in files}
    foreign = [path.name for path in folder.glob("*.py") if ours.get(path.name) != path.read_bytes()]
    if foreign:
        raise mistake(
            expected=f"beside the model in {folder} no code but our own, as the demo would run it",
            found=", ".join(foreign),
            do="train the model with this version again, or take that file away",
        )
    return True


def _accuracy(results: Mapping[str, Any]) -> dict[str, float]:
    low, high = results["intervals"]["test"]["accuracy"]
    test = headline(results["metrics"]["test"])
    return {"value": test["accuracy"], "low": low, "high": high, "samples": results["samples"]["test"]}


def _examples(config: RunConfig, results: Mapping[str, Any], target: Path, count: int) -> list[dict[str, Any]]:
    """Samples of the test split for the demo; pictures are written into the target, without what a camera notes."""
    if count == 0:
        return []
    # As they were: of the same commit, and verified when the run began.
    commit = results["commits"].get("dataset_name")
    config = replace(config, verify_samples=0, **({"dataset_revision": commit} if commit else {}))
    try:
        split = _test_split(config)
    except UserError as error:
        raise UserError(f"{error}\nOr leave the examples out: --examples 0") from error
    texts = split.texts() if "text" in split.dataset.column_names else None
    found: list[dict[str, Any]] = []
    for position in choose_examples(split, count):
        example: dict[str, Any] = {"label": results["labels"][int(split.labels[position])]}
        raw = split.raw(int(split.rows[position])) if "image" in split.dataset.column_names else {}
        if any(raw.values()):
            try:
                example["picture"] = _saved(decode(raw), target, f"examples/{len(found) + 1}.png")
            except BadImageError:
                continue
        if texts is not None:
            example["texts"] = [text or "" for text in texts[position]]
        found.append(example)
    return found


def _test_split(config: RunConfig) -> Split:
    if isinstance(config, VisionConfig):
        return load_image_splits(config).test
    if isinstance(config, MultimodalConfig):
        return load_pair_splits(config).test
    assert isinstance(config, TextConfig)
    return load_text_splits(config).test


def _saved(picture: Image.Image, target: Path, name: str) -> str:
    """Without what a camera notes of whoever used it."""
    (target / name).parent.mkdir(exist_ok=True)
    picture.thumbnail((EXAMPLE_SIDE, EXAMPLE_SIDE))
    picture.save(target / name)
    return name


def choose_examples(split: Split, count: int) -> list[int]:
    """Positions of samples that can be read, of classes that lie evenly among all, and of each of them equally many."""
    good = [position for position, row in enumerate(split.rows.tolist()) if row not in split.bad]
    members: dict[int, list[int]] = {}
    for position in good:
        members.setdefault(int(split.labels[position]), []).append(position)
    classes = sorted(members)
    if len(classes) > count:
        classes = [classes[number * len(classes) // count] for number in range(count)]
    chosen: list[int] = []
    turn = 0
    while len(chosen) < min(count, sum(len(members[label]) for label in classes)):
        chosen += [members[label][turn] for label in classes if turn < len(members[label])]
        turn += 1
    return sorted(chosen[:count], key=lambda position: (int(split.labels[position]), position))


def _space_card(settings: Mapping[str, Any], results: Mapping[str, Any]) -> str:
    """README.md of the Space: how the Hub is to run it, with the model and its commit."""
    on_hub = settings["model"] if settings["revision"] else None
    dataset = hub_id(results, "dataset_name")
    more: dict[str, Any] = {"preload_from_hub": [on_hub]} if on_hub else {}
    data = SpaceCardData(
        title=settings["title"],
        emoji="🔎",
        colorFrom="green",
        colorTo="gray",
        sdk="gradio",
        sdk_version=pinned_version("gradio"),
        python_version=PYTHON_VERSION,
        app_file="app.py",
        pinned=False,
        short_description="What a fine-tuned model says, and where it looked",
        models=[on_hub] if on_hub else None,
        datasets=[dataset] if dataset else None,
        tags=["hf_transfer", "transfer-learning"],
        **more,
    )
    where = f"[{on_hub}](https://huggingface.co/{on_hub}) at commit `{settings['revision']}`" if on_hub else "`./model`"
    return (
        f"---\n{data.to_yaml()}\n---\n\nThe demo of a classifier. It serves the model in {where}, needs no token, and "
        f"runs on your machine, too:\n\n```bash\npip install -r requirements.txt\npython app.py\n```\n"
    )


def pinned_version(package: str) -> str:
    """The version of a package that the demo's requirements.txt pins."""
    text = (demo_folder() / "requirements.txt").read_text(encoding="utf-8")
    found = re.search(rf"^{re.escape(package)}==(\S+)", text, re.MULTILINE)
    assert found is not None, f"requirements.txt pins {package}"
    return found[1]
