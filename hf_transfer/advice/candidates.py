"""The models that a ranking compares, and the settings of a run with each of them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hf_transfer.errors import user_error
from hf_transfer.models.locating import located_once
from hf_transfer.models.pretrained_pair import TowerSettings, dual_checkpoint, image_checkpoint, text_checkpoint
from hf_transfer.settings.model import PairModelSettings, exists
from hf_transfer.settings.parsing import names_in, parse
from hf_transfer.settings.run import MODEL, TOWERS, RunConfig
from hf_transfer.settings.strategy import TOWER_STRATEGIES

# Settings of a run that have no part in a ranking: `rank` sets them itself, or nothing is written.
NOT_ASKED = (
    "strategy", *TOWER_STRATEGIES, MODEL, *TOWERS, "output_dir", "evaluate_only", "push_to_hub",
    "hub_model_id", "push_space", "overwrite_output_dir", "resume_from_checkpoint", "report_to",
)  # fmt: skip
# Between the names of two towers, as in the name of their checkpoint.
AND = " + "
# Where `rank` takes the models.
FLAGS = TowerSettings("models", "image_models", "text_models")


@dataclass(frozen=True)
class Candidates:
    """The models of a ranking, as they were given.

    Attributes:
        models: each of which reads whole samples; of images with texts, dual encoders.
        image_models: towers for images: each of them is combined with each of `text_models`.
        text_models: towers for texts.

    Raises:
        UserError: no model is named, one is named twice, or towers of one kind alone.
    """

    models: Sequence[str] = ()
    image_models: Sequence[str] = ()
    text_models: Sequence[str] = ()

    def __post_init__(self) -> None:
        given = {name: models for name, models in vars(self).items() if models}
        if not given:
            raise user_error(
                expected="--models or, for images with texts, --image_models and --text_models",
                found="no model",
                do="name the models to compare",
            )
        if self.has_towers and not (self.image_models and self.text_models):
            raise user_error(
                expected="--image_models and --text_models, of which each is combined with each",
                found=f"--{'image_models' if self.image_models else 'text_models'} alone",
                do="add the other list",
            )
        for name, models in given.items():
            _refuse_twice(name, models)

    @property
    def has_towers(self) -> bool:
        """Whether models are named that read one part of a sample each."""
        return bool(self.image_models or self.text_models)

    def settings(self) -> dict[str, dict[str, str]]:
        """The settings that name the models of a run, by the name of the candidate."""
        pairs = [(image, text) for image in self.image_models for text in self.text_models]
        return {model: {MODEL: model} for model in self.models} | {
            AND.join(pair): dict(zip(TOWERS, pair, strict=True)) for pair in pairs
        }

    def check(self, config_class: type[RunConfig]) -> None:
        """Refuse towers for samples that have one part.

        Raises:
            UserError: there are some.
        """
        if self.has_towers and config_class.has_simple_head:
            raise user_error(
                expected="--image_models and --text_models with --recipe multimodal",
                found=f"--recipe {config_class.recipe}",
                do="name the models in --models",
            )


def configs_of(
    config_class: type[RunConfig], candidates: Candidates, flags: Sequence[str], strategy: str = ""
) -> dict[str, RunConfig]:
    """The settings of a run with each candidate, by its name; nothing is published, and no tracker is started.

    Args:
        config_class: the settings of a run with such models.
        candidates: the models.
        flags: other settings of these runs, as on a command line.
        strategy: of the runs; empty: a head is solved.

    Raises:
        UserError: a model is named twice, a tower is none, or a setting is wrong or has no part in a ranking.
    """
    first = _check(config_class, candidates, names_in(flags), is_race=bool(strategy))
    named = [word for name, model in first.items() for word in (f"--{name}", model)]
    fixed = [*named, "--output_dir", "none", "--strategy", strategy or config_class.solved, "--report_to", "none"]
    # What a file says of the strategy of each tower counts no more than what it says of that of both.
    config = parse(config_class, [*flags, *fixed], without=TOWER_STRATEGIES).replaced(
        push_to_hub=False, push_space=False, hub_model_id=None, overwrite_output_dir=False
    )
    return _with_each(config, candidates)


def configs_by_settings(config_class: type[RunConfig], candidates: Candidates, **settings: Any) -> dict[str, RunConfig]:
    """The same for heads that are solved, with other settings by name."""
    first = _check(config_class, candidates, list(settings))
    return _with_each(config_class.of(**first, output_dir="none", strategy=config_class.solved, **settings), candidates)


def folder_of_model(name: str) -> str:
    """A name for a folder of a run with this candidate."""
    return "+".join(Path(part).name.replace(":", "-") for part in name.split(AND))


def short_names(names: Sequence[str]) -> dict[str, str]:
    """The last part of each path, if that tells the candidates apart."""
    short = {name: AND.join(Path(part).name or part for part in name.split(AND)) for name in names}
    return short if len(set(short.values())) == len(short) else {name: name for name in names}


def _check(
    config_class: type[RunConfig], candidates: Candidates, given: Sequence[str], *, is_race: bool = False
) -> Mapping[str, str]:
    """Refuse settings that have no part in a ranking, and wrong candidates; the settings that name the first one."""
    if refused := [name for name in given if name in NOT_ASKED]:
        raise user_error(
            expected="settings of data, samples and batches: a ranking solves heads, and saves no model",
            found=f"--{refused[0]}",
            do="say --race_strategy: it is that of --race" if refused[0] == "strategy" and is_race
            else f"leave --{refused[0]} out",
        )  # fmt: skip
    candidates.check(config_class)
    return next(iter(candidates.settings().values()))


def _with_each(config: RunConfig, candidates: Candidates) -> dict[str, RunConfig]:
    others = {name: None for name in (MODEL, *TOWERS) if name in config.settings()}
    configs = {name: config.replaced(**others | models) for name, models in candidates.settings().items()}
    if isinstance(config.model, PairModelSettings):
        _refuse_wrong_towers(config.model, candidates)
    return configs


def _refuse_wrong_towers(settings: PairModelSettings, candidates: Candidates) -> None:
    """Refuse what is no tower, by its small files: it would fail again in each combination, after data were read."""
    with located_once():
        for model in candidates.models:
            dual_checkpoint(model, settings.model_revision, FLAGS)
        for model in candidates.image_models:
            image_checkpoint(model, settings.image_model_revision, FLAGS)
        for model in candidates.text_models:
            text_checkpoint(model, settings.text_model_revision, FLAGS)


def _refuse_twice(flag: str, models: Sequence[str]) -> None:
    names: dict[str, str] = {}
    for model in models:
        place = str(Path(model).expanduser().resolve()) if exists(model) else model
        if place in names:
            raise user_error(
                expected=f"each model once in --{flag}",
                found=model if names[place] == model else f"{names[place]} and {model}, which are the same",
                do="leave one of them out",
            )
        names[place] = model
