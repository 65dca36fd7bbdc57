"""The Space of a finished run: a folder with the demo, its settings, examples, and the model.

The demo is in `space/` and imports nothing of this package; here its settings are written.
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
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pandas
from huggingface_hub import HfApi, SpaceCard

from hf_transfer.data.hub_account import explaining_hub_errors
from hf_transfer.data.levels import LARGEST_PIXEL_VALUE
from hf_transfer.data.pictures import BadImageError, decode
from hf_transfer.data.rows import encoded_image, texts_of
from hf_transfer.data.splits import Split
from hf_transfer.errors import UserError, user_error
from hf_transfer.evaluation.predictor import load
from hf_transfer.evaluation.results import Results
from hf_transfer.evaluation.run_data import splits_of_run
from hf_transfer.evaluation.run_folder import CARD_FILE, CONFIG_FILE, MODEL_FOLDER, finished_run
from hf_transfer.evaluation.templates import render
from hf_transfer.hub.card import as_line
from hf_transfer.hub.card_text import code_files, needs_timm, source_of
from hf_transfer.hub.publish import MODEL_FILES, Published, publish_folder, visibility
from hf_transfer.interruption import Interrupted, ending_at_once
from hf_transfer.modalities.modality import PREPROCESSING_FILE, read_description, saved_description
from hf_transfer.modalities.table import modality_named, recipe_of
from hf_transfer.models import (
    fusion,
    modeling_deep_probe,
    modeling_pair,
    modeling_pair_probe,
    modeling_pooled,
    modeling_pooled_image,
    modeling_pooled_probe,
)
from hf_transfer.models.pretrained import Checkpoint
from hf_transfer.settings.parsing import load_settings
from hf_transfer.settings.run import RunConfig
from hf_transfer.strategies.adapter_files import is_adapter_folder, merged
from hf_transfer.targets.target import Strata

# What the Space installs, and what it installs beside it for a model of timm.
REQUIREMENTS, TIMM_REQUIREMENTS = "requirements.txt", "timm.txt"
SETTINGS_FILE = "settings.json"
MOST_EXAMPLES = 6
# Larger than the page shows a picture, and than most models take.
EXAMPLE_SIDE = 1024


def demo_folder() -> Path:
    """The folder of the demo's files: in a clone beside this package, in an installation inside it.

    Raises:
        UserError: the files are missing.
    """
    package = Path(__file__).parents[1]
    for folder in (package.parent / "space", package / "space"):
        if (folder / "app.py").is_file():
            return folder
    raise user_error(
        expected=f"the demo's files in {package / 'space'}",
        found="none",
        do="pip install --force-reinstall --no-deps hf-transfer-learning",
    )


def assemble_space(
    out: Path, target: Path, *, title: str | None = None, model: str | None = None, revision: str | None = None,
    examples: int = MOST_EXAMPLES,
) -> Path:  # fmt: skip
    """Write the files of a demo of a finished run.

    Args:
        out: the run's folder.
        target: the folder to write to; it is created, and must be new or empty.
        title: of the page; None: the name of the run's folder.
        model: from where the demo loads the model: a Hub id or a folder. None: from a copy in the Space. An adapter
            is always copied, merged into its base model, as the demo has no peft.
        revision: the commit of a Hub id.
        examples: how many samples of the test split to show, spread over the classes; 0 for none.

    Returns:
        The target folder.

    Raises:
        UserError: there is no finished run, its model has foreign code, or its data cannot be loaded any more.
    """
    results, folder = finished_run(out)
    config = load_settings(recipe_of(out / CONFIG_FILE), out / CONFIG_FILE)
    target.mkdir(parents=True, exist_ok=True)
    for path in sorted(demo_folder().iterdir()):
        if path.suffix in (".py", ".css", ".html", ".js") or path.name == REQUIREMENTS:
            shutil.copyfile(path, target / path.name)
    if needs_timm(folder):
        with (target / REQUIREMENTS).open("a", encoding="utf-8") as requirements:
            requirements.write((demo_folder() / TIMM_REQUIREMENTS).read_text(encoding="utf-8"))
    if model is None or is_adapter_folder(folder):
        _copy_model(folder, target / MODEL_FOLDER, config)
        model, revision = f"./{MODEL_FOLDER}", None
    settings: dict[str, Any] = {
        "model": model,
        "revision": revision,
        "title": title or _title(out.resolve().name),
        "base_model": source_of(results, "model_name_or_path").shown,
        "dataset": source_of(results, "dataset_name").shown,
        "score": _score(results),
        "trust_remote_code": _has_own_code(folder),
        "examples": _examples(folder, config, results, target, examples),
        **_text_settings(folder, config),
    }
    (target / SETTINGS_FILE).write_text(json.dumps(settings, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    (target / CARD_FILE).write_text(_space_card(settings, results), encoding="utf-8")
    return target


def publish_space(
    out: Path, repository: str, *, private: bool, model: str | None = None, revision: str | None = None,
    examples: int = MOST_EXAMPLES,
) -> Published:  # fmt: skip
    """Create or update the Space of a finished run.

    A public model is loaded from the Hub, at its commit. A model that is private or not published is copied into the
    Space, so that the Space needs no token.

    Args:
        out: the run's folder.
        repository: OWNER/NAME of the Space.
        private: hide it from others.
        model: Hub id of the published model, if there is one.
        revision: its branch, tag or commit; None: the newest commit.
        examples: how many samples of the test split to show.

    Raises:
        UserError: as `assemble_space`; or the model is private and the Space is not, or the Hub refuses.
    """
    model_is_private = False
    if model is not None:
        with explaining_hub_errors(f"the model {model} on the Hub"):
            info = HfApi().model_info(model, revision=revision)
        revision, model_is_private = info.sha, bool(info.private)
    if model_is_private and not private:
        raise user_error(
            expected=f"a private Space, as the private model {model} is copied into it",
            found="--hub_private_repo false",
            do="leave it out, or make the model public first",
        )
    with TemporaryDirectory() as scratch:
        folder = assemble_space(
            out, Path(scratch) / "space", title=_title(repository.split("/")[-1]),
            model=None if model_is_private else model, revision=revision, examples=examples,
        )  # fmt: skip
        try:
            return publish_folder(folder, repository, kind="space", private=private, message="Demo of the model")
        except UserError as error:
            flags = [*visibility(private), *(["--hub_model_id", model] if model else [])]
            publish = shlex.join(["hf-transfer", "space", str(out), repository, *flags])
            demo = shlex.join(["hf-transfer", "demo", str(out)])
            raise UserError(f"{error}\nTo publish it: {publish}\nTo see the demo on this machine: {demo}") from error


def serve_demo(out: Path, *, port: int, examples: int = MOST_EXAMPLES) -> int:
    """Serve the demo of a finished run on this machine until it is stopped; returns the exit code of its process.

    Args:
        out: the run's folder.
        port: of this machine.
        examples: how many samples of the test split to show.

    Raises:
        UserError: as `assemble_space`.
    """
    with TemporaryDirectory() as scratch:
        model = str((out / MODEL_FOLDER).resolve())
        space = assemble_space(out, Path(scratch) / "space", model=model, examples=examples)
        # Uploads are deleted when the demo ends. MODEL_ID would name another model than that of this run.
        environment = {name: value for name, value in os.environ.items() if name not in ("MODEL_ID", "MODEL_REVISION")}
        environment |= {"GRADIO_TEMP_DIR": str(Path(scratch) / "uploads"), "GRADIO_SERVER_PORT": str(port)}
        process = subprocess.Popen([sys.executable, "app.py"], cwd=space, env=environment)
        try:
            with ending_at_once():
                return process.wait()
        except Interrupted as interrupted:
            process.terminate()
            process.wait()
            # Ctrl-C is the usual way to stop a demo.
            return 0 if interrupted.number == signal.SIGINT else interrupted.exit_code
        finally:
            process.kill()


def _title(name: str) -> str:
    return as_line(re.sub(r"[-_]+", " ", name)).capitalize()


def _copy_model(folder: Path, target: Path, config: RunConfig) -> None:
    """Copy the files of a model; an adapter is merged into its base model.

    Raises:
        UserError: an adapter that cannot be merged.
    """
    target.mkdir()
    if not is_adapter_folder(folder):
        for pattern in MODEL_FILES:
            for path in folder.glob(pattern):
                shutil.copyfile(path, target / path.name)
        return
    finished = load(folder, modality=config.recipe)
    whole: Any = merged(finished.model.cpu())
    whole.save_pretrained(target)
    finished.preprocessing.save(target)
    for name in (PREPROCESSING_FILE, CARD_FILE):
        if (folder / name).is_file():
            shutil.copyfile(folder / name, target / name)


def _has_own_code(folder: Path) -> bool:
    """Whether the demo must run a modelling file that is saved beside the model.

    Raises:
        UserError: it is not the file that this version saves with a model.
    """
    if is_adapter_folder(folder) or not code_files(folder):
        return False
    modules = (
        modeling_pooled, modeling_pooled_image, modeling_deep_probe, modeling_pooled_probe, modeling_pair,
        modeling_pair_probe, fusion,
    )  # fmt: skip
    known = {path.name: path.read_bytes() for path in (Path(str(module.__file__)) for module in modules)}
    foreign = [path.name for path in folder.glob("*.py") if known.get(path.name) != path.read_bytes()]
    if foreign:
        raise user_error(
            expected=f"no code beside the model in {folder} but that of this version, as the demo would run it",
            found=", ".join(foreign),
            do="train the model again with this version, or remove that file",
        )
    return True


def _score(results: Results) -> dict[str, Any]:
    """The main metric of the test split, for the page."""
    metric, test = results.target.metrics[0], results.test
    low, high = test.intervals[metric.name]
    score = {"title": metric.title, "value": test.metrics[metric.name], "low": low, "high": high}
    return {**score, "is_share": metric.is_share, "samples": test.shown_samples}


def _text_settings(folder: Path, config: RunConfig) -> dict[str, Any]:
    """The names of the texts of a sample, and the length at which they are truncated; nothing, if it has no texts.

    They are saved with the model since version 0.2; for older models the settings of the run name them.
    """
    settings = config.flat()
    if "max_seq_length" not in settings:
        return {}
    saved = saved_description(Checkpoint(str(folder), task=modality_named(config.recipe).task))
    columns = saved.get("columns") or settings
    texts = [columns.get("text_column_name") or "text", columns.get("text_pair_column_name")]
    max_length = saved.get("max_length") or settings["max_seq_length"]
    return {"texts": [name for name in texts if name], "max_length": max_length}


def _examples(folder: Path, config: RunConfig, results: Results, target: Path, count: int) -> list[dict[str, Any]]:
    """Samples of the test split for the demo; pictures are written into the target, without their metadata."""
    if count == 0:
        return []
    path = folder / PREPROCESSING_FILE
    columns = read_description(path, str(folder))["columns"] if path.is_file() else {}
    try:
        splits = splits_of_run(config, results, columns)
    except UserError as error:
        raise UserError(f"{error}\nOr leave the examples out: --examples 0") from error
    split, white = splits.test, columns.get(LARGEST_PIXEL_VALUE)
    parts = split.dataset.column_names
    texts = texts_of(split) if "text" in parts else None
    examples: list[dict[str, Any]] = []
    for position in choose_examples(split, splits.target.strata(split.targets), count):
        value = split.targets[position]
        example: dict[str, Any] = {"label": splits.target.shown(value)}
        if (truth := splits.target.truth(value)) is not None:
            example["truth"] = truth
        raw = encoded_image(split, int(split.rows[position])) if "image" in parts else {}
        if any(raw.values()):
            try:
                picture = decode(raw, white)
            except BadImageError:
                continue
            picture.thumbnail((EXAMPLE_SIDE, EXAMPLE_SIDE))
            example["picture"] = f"examples/{len(examples) + 1}.png"
            (target / "examples").mkdir(exist_ok=True)
            # Without its metadata, which may tell who took it, and where.
            picture.save(target / example["picture"])
        if texts is not None:
            example["texts"] = [text or "" for text in texts[position]]
        examples.append(example)
    return examples


def choose_examples(split: Split, strata: Strata, count: int) -> list[int]:
    """Positions of readable samples of evenly spaced strata, and of each stratum about equally many.

    Args:
        split: the samples.
        strata: a number for each sample, such as its class.
        count: how many to choose, at most.
    """
    samples = pandas.DataFrame({"stratum": strata, "position": range(len(strata))})[split.counted]
    numbers = sorted(set(samples.stratum))
    if len(numbers) > count:
        numbers = [numbers[place * len(numbers) // count] for place in range(count)]
    samples = samples[samples.stratum.isin(numbers)]
    samples["turn"] = samples.groupby("stratum").cumcount()
    chosen = samples.sort_values(["turn", "stratum"])[:count]
    positions: list[int] = chosen.sort_values(["stratum", "position"]).position.tolist()
    return positions


def _space_card(settings: Mapping[str, Any], results: Results) -> str:
    """README.md of the Space: metadata as the demo's own, which tell the Hub how to run it; model and commit."""
    data = SpaceCard.load(demo_folder() / CARD_FILE).data
    on_hub = settings["model"] if settings["revision"] else None
    dataset = source_of(results, "dataset_name").hub_id
    data.title, data.tags = settings["title"], ["hf_transfer", "transfer-learning"]
    data.models = data["preload_from_hub"] = [on_hub] if on_hub else None
    data.datasets = [dataset] if dataset else None
    return render("hub/space.md.jinja", metadata=data.to_yaml(), on_hub=on_hub, revision=settings["revision"])
