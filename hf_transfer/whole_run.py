"""The steps of a run in one call, for Python programs and for commands."""

import hashlib
from collections.abc import Mapping, Sequence
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import datasets
import pandas

from hf_transfer.advice.auto import decided
from hf_transfer.data.files import files_below
from hf_transfer.data.pictures import SUFFIXES
from hf_transfer.data.samples import is_sample, load_sample
from hf_transfer.errors import UserError, user_error
from hf_transfer.evaluation.predictor import modalities_of_model
from hf_transfer.installation import check_installation
from hf_transfer.modalities.table import MODALITIES, modality_named
from hf_transfer.run import Run, open_run
from hf_transfer.settings.model import MEMORY_PREFIX
from hf_transfer.settings.run import TOWERS, RunConfig

if TYPE_CHECKING:
    from hf_transfer.advice.advising import Advice
    from hf_transfer.advice.ranking import ModelRanking

Data: TypeAlias = str | Path | datasets.DatasetDict | datasets.Dataset | pandas.DataFrame


def train(
    data: Data, model: str | tuple[str, str] | None = None, *, output_dir: str | Path, modality: str | None = None,
    **settings: Any,
) -> Run:  # fmt: skip
    """Teach a pretrained model a new task: with the same checks, resuming and files as a recipe.

        run = train("path/to/pictures", model="google/vit-base-patch16-224", output_dir="runs/first")
        print(run.metrics["test"])

    The same call on an interrupted run resumes it, and on a finished one returns its results.

    Args:
        data: a folder, a table, a Hub id or sample:NAME; or data in memory: a `datasets.DatasetDict` with a split
            `train`, a `datasets.Dataset` or a pandas frame, from which validation and test are split off.
        model: a Hub id, a local folder or sample:NAME; for images with texts, two of them or a dual encoder.
        output_dir: folder for the model, the report and the results.
        modality: the recipe: vision, text or multimodal; None: inferred from model and data.
        **settings: any setting of that recipe, by its name.

    Returns:
        The finished run: `metrics`, `results`, `push_to_hub`.

    Raises:
        UserError: anything that has to be fixed in the settings, the data or the environment.
    """
    check_installation()
    name, given = _named(data)
    models = _models(model, settings)
    recipe = modality or _recipe_for(models, name, given)
    config_class = modality_named(recipe).config
    return run_all_steps(config_class.of(dataset_name=name, output_dir=str(output_dir), **models, **settings), given)


def advise(
    data: Data, model: str | tuple[str, str] | None = None, *, modality: str | None = None,
    with_fresh_weights: bool = True, **settings: Any,
) -> "Advice":  # fmt: skip
    """Say what to try with a model and data: nothing is trained, and a test split is not read.

        advice = advise("path/to/pictures", model="google/vit-base-patch16-224")
        for arm in advice.shortlist.arms:
            print(arm.name, arm.seconds, arm.reason)

    Args:
        data: see `train`.
        model: see there.
        modality: see there.
        with_fresh_weights: whether the same architecture with random weights is compared, which takes another pass.
        **settings: any setting of that recipe, by its name.

    Raises:
        UserError: what a run would stop at before training.
    """
    check_installation()
    name, given = _named(data)
    models = _models(model, settings)
    config_class = modality_named(modality or _recipe_for(models, name, given)).config
    config = config_class.of(**{"output_dir": "none", "dataset_name": name, **models, **settings})
    from hf_transfer.advice import advising

    return advising.advise(config, given, with_fresh_weights=with_fresh_weights)


def rank(
    data: Data, models: Sequence[str | Path] = (), *, image_models: Sequence[str | Path] = (),
    text_models: Sequence[str | Path] = (), modality: str | None = None, **settings: Any,
) -> "ModelRanking":  # fmt: skip
    """Rank pretrained models by heads that are solved on their frozen features of training rows.

        ranking = rank("path/to/pictures", ["google/vit-base-patch16-224", "facebook/dinov2-base"])
        for place in ranking.places:
            print(place.model.name, place.model.probe.score, place.is_equal)

    Args:
        data: see `train`.
        models: Hub ids, local folders or sample:NAME; of equal ones the first is preferred. For images with texts: dual
            encoders.
        image_models: for images with texts: models for the images, each of which is combined with each of the others.
        text_models: for images with texts: models for the texts.
        modality: the recipe: vision, text or multimodal; None: inferred from models and data.
        **settings: any setting of data, samples and batches of that recipe, by its name.

    Raises:
        UserError: a model is named twice, none can be used, or a setting is wrong.
    """
    check_installation()
    lists = {"models": models, "image_models": image_models, "text_models": text_models}
    for what, given in lists.items():
        if isinstance(given, str) or not any(lists.values()):
            raise user_error(expected=f"{what}: a list of names", found=repr(given), do="name the models in a list")
    name, loaded = _named(data)
    from hf_transfer.advice.candidates import Candidates, configs_by_settings
    from hf_transfer.advice.ranking import rank as rank_candidates

    candidates = Candidates(**{what: [str(model) for model in given] for what, given in lists.items()})
    recipe = modality or ("multimodal" if candidates.has_towers else recipe_for(candidates.models, name, loaded))
    configs = configs_by_settings(modality_named(recipe).config, candidates, dataset_name=name, **settings)
    return rank_candidates(configs, loaded)


def run_all_steps(config: RunConfig, data: datasets.DatasetDict | None = None) -> Run:
    """Run everything that the settings ask for.

    Args:
        config: the settings.
        data: a data set in memory; None: what the settings name.
    """
    with open_run(decided(config, data), data) as run:
        if not run.is_finished:
            run.load_data()
            run.load_model()
            run.choose_what_learns()
            run.train()
            run.evaluate()
            run.write_report()
        run.publish()
    return run


def _named(data: Data) -> tuple[str, datasets.DatasetDict | None]:
    """The name of the data in the settings and, if they are in memory, their splits."""
    if isinstance(data, str | Path):
        return str(data), None
    if isinstance(data, pandas.DataFrame):
        data = datasets.Dataset.from_pandas(data, preserve_index=False)
    if isinstance(data, datasets.Dataset):
        data = datasets.DatasetDict({"train": data})
    if not isinstance(data, datasets.DatasetDict):
        raise user_error(
            expected="data: a path, a name, a datasets.DatasetDict, a datasets.Dataset or a pandas frame",
            found=type(data).__name__,
            do="convert it to one of these",
        )
    # By content: the same data resume the same run.
    digest = hashlib.sha256()
    for split, rows in sorted(data.items()):
        digest.update(f"{split}{rows.features}{len(rows)}".encode())
        for batch in rows.with_format("arrow").iter(1_000):
            digest.update(datasets.fingerprint.Hasher.hash(batch.to_pylist()).encode())
    return f"{MEMORY_PREFIX}{digest.hexdigest()[:16]}", data


def _models(model: str | tuple[str, str] | None, settings: Mapping[str, Any]) -> dict[str, str]:
    """The settings that name the models."""
    if model is None:
        return {}
    if twice := {"model_name_or_path", *TOWERS} & settings.keys():
        raise user_error(
            expected="the model once", found=f"model and {', '.join(sorted(twice))}", do="leave one of them out"
        )
    if isinstance(model, str | Path):
        return {"model_name_or_path": str(model)}
    if len(model) != len(TOWERS):
        raise user_error(
            expected="as model a name, or two of them: for the images and for the texts",
            found=f"{len(model)}: {', '.join(map(str, model))}",
            do="name one model, or two in a tuple",
        )
    return dict(zip(TOWERS, map(str, model), strict=True))


def _recipe_for(models: Mapping[str, str], name: str, data: datasets.DatasetDict | None) -> str:
    if "model_name_or_path" not in models:
        return "multimodal"
    return recipe_for([models["model_name_or_path"]], name, data)


def recipe_for(
    models: Sequence[str], name: str, data: datasets.DatasetDict | None = None, *, setting: str = "modality="
) -> str:
    """The recipe that suits one of some models, and where several do, the data.

    Args:
        models: their names.
        name: of the data.
        data: in memory; None: what `name` says.
        setting: where the recipe can be named, for the message.

    Raises:
        UserError: none or several do.
    """
    by_model: list[str] = []
    for model in models:
        # Of several models, one that does not exist is a fault of that one alone.
        with suppress(UserError) if len(models) > 1 else nullcontext():
            by_model += [one.config.recipe for one in modalities_of_model(model)]
    suiting = [one for recipe, one in MODALITIES.items() if recipe in by_model] or list(MODALITIES.values())
    if len(suiting) > 1:
        features = _features(name, data)
        suiting = [one for one in suiting if one.suits(features)]
    if len(suiting) != 1:
        raise user_error(
            expected=f"data that tell whether samples are {', '.join(one.samples for one in MODALITIES.values())}",
            found=f"{name} and the model {', '.join(models)}, which do not",
            do=f"name it: {' or '.join(setting + recipe for recipe in MODALITIES)}",
        )
    return suiting[0].config.recipe


def _features(name: str, data: datasets.DatasetDict | None) -> datasets.Features:
    """The columns of the data with their types, as far as they can be told without reading them."""
    if data is None and is_sample(name):
        data = load_sample(name)
    if data is not None:
        return next(iter(data.values())).features
    path = Path(name).expanduser()
    if path.is_dir() and files_below(path, SUFFIXES):
        return datasets.Features({"image": datasets.Image()})
    return datasets.Features({"text": datasets.Value("string")})
