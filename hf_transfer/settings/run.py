"""The settings of a run: its topics, read and written as one flat list of names."""

import dataclasses
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Self, get_type_hints

import yaml

from hf_transfer.errors import UserError, user_error
from hf_transfer.settings.data import CaptionSettings, DataSettings, FusionSettings, ImageSettings, SentenceSettings
from hf_transfer.settings.fields import Effect, Need, Topic, converted, default_of, is_required, unknown_settings
from hf_transfer.settings.model import ModelSettings, PairModelSettings
from hf_transfer.settings.output import CHECKPOINTS_FOLDER, CheckpointSettings, OutputSettings
from hf_transfer.settings.store import StoreSettings
from hf_transfer.settings.strategy import ADAPTERS, AUTO, HOW_TO_DECIDE, PROBES, PairStrategySettings, StrategySettings
from hf_transfer.settings.training import ImageTrainingSettings, TextTrainingSettings, TrainingSettings

# Version 0.1 wrote these defaults down, which are left open now.
EARLIER_DEFAULTS = {"metric_for_best_model": "accuracy"}
MODEL = "model_name_or_path"
TOWERS = ("image_model_name_or_path", "text_model_name_or_path")


@dataclass(frozen=True)
class RunConfig:
    """The topics that every run has; a subclass adds or replaces some, and names the recipe that takes them.

    Attributes:
        model: which pretrained model.
        data: which samples.
        strategy: what learns, and when.
        training: how it learns.
        store: how frozen layers are stored.
        checkpoints: how the run is saved and resumed.
        output: what is written and published.
    """

    recipe: ClassVar[str]
    # Whether a new head is one layer, which a strategy may solve instead of training it.
    has_simple_head: ClassVar[bool] = True
    # The strategy that solves a head and trains nothing.
    solved: ClassVar[str] = "linear_probe"

    model: ModelSettings
    data: DataSettings
    strategy: StrategySettings
    training: TrainingSettings
    store: StoreSettings
    checkpoints: CheckpointSettings
    output: OutputSettings

    def __post_init__(self) -> None:
        for error in self._wrong_combinations():
            raise error

    @classmethod
    def topic_types(cls) -> dict[str, type[Topic]]:
        """The topics by name, in the order of `--help`."""
        types = get_type_hints(cls)
        return {one.name: types[one.name] for one in dataclasses.fields(cls)}

    @classmethod
    def settings(cls) -> dict[str, dataclasses.Field[Any]]:
        """All settings by name, in the order of `--help`."""
        return {one.name: one for topic in cls.topic_types().values() for one in dataclasses.fields(topic)}

    @classmethod
    def of(cls, **values: Any) -> Self:
        """Settings from one flat list of names, as on the command line.

        Raises:
            UserError: an unknown name, a missing or wrong value, or a setting that has no effect on the run.
        """
        known = cls.settings()
        if unknown := [name for name in values if name not in known]:
            raise unknown_settings(unknown, list(known))
        if missing := [f"--{name}" for name in required(cls) if name not in values]:
            raise user_error(expected=", ".join(missing), found="no value", do="add what is missing")
        given = {name: converted(known[name], value) for name, value in values.items()}
        topics: dict[str, Any] = {name: topic(**part(topic, given)) for name, topic in cls.topic_types().items()}
        config = cls(**topics)
        if ineffective := config.ineffective():
            raise without_effect(config, *next(iter(ineffective.items())))
        return config

    def flat(self) -> dict[str, Any]:
        """All settings as plain values by name, in the order of `--help`."""
        return {name: value for topic in vars(self).values() for name, value in vars(topic).items()}

    def affecting(self, *effects: Effect) -> dict[str, Any]:
        """The settings that affect one of these, as plain values by name."""
        known = self.settings()
        return {name: value for name, value in self.flat().items() if known[name].metadata["affects"] in effects}

    def replaced(self, **values: Any) -> Self:
        """The same settings with other values for some, by their flat names."""
        assert values.keys() <= self.settings().keys(), f"settings that do not exist: {sorted(values)}"
        topics = {name: dataclasses.replace(one, **part(type(one), values)) for name, one in vars(self).items()}
        return type(self)(**topics)

    @property
    def named_models(self) -> dict[str, str]:
        """The pretrained models of the run, by the setting that names each."""
        values = self.flat()
        return {name: str(values[name]) for name in (MODEL, *TOWERS) if values.get(name) is not None}

    def trains(self) -> bool:
        """Whether anything learns: a run can also evaluate a finished model."""
        return not self.output.evaluate_only

    def chooses_strategy(self) -> bool:
        """Whether a strategy is chosen by trials before the run."""
        return self.trains() and AUTO in self.strategy.names()

    def refuse_open_choices(self) -> None:
        """Refuse settings that leave to the evidence what a run must know.

        Raises:
            UserError: a strategy or a pooling is still to be chosen.
        """
        self.strategy.refuse_auto()
        if self.flat().get("pooling") == AUTO:
            raise user_error(
                expected="a pooling that has been chosen, before open_run",
                found="--pooling auto",
                do=f"name a --pooling; or {HOW_TO_DECIDE}",
            )

    def trains_stepwise(self) -> bool:
        """Whether anything learns in steps of an optimizer: a probe's head is solved."""
        solved = {*self.strategy.names()} <= ({*PROBES} if self.has_simple_head else {self.solved})
        return self.trains() and not solved

    def ineffective(self) -> dict[str, Need]:
        """The settings that differ from their defaults and have no effect on this run, each with what it lacks."""
        ineffective = {}
        for topic in vars(self).values():
            for one in topic.given():
                if lacking := [need for need in (*topic.needs, *one.metadata["needs"]) if not need.holds(self)]:
                    ineffective[one.name] = lacking[0]
        return ineffective

    def refuse(self, names: Collection[str], reason: str) -> None:
        """Refuse settings that turn out to have no effect once data or model are known.

        Args:
            names: of these settings; a kind of run may lack some of them.
            reason: what the run has, with which they have no effect.

        Raises:
            UserError: one of them differs from its default.
        """
        for one in (one for topic in vars(self).values() for one in topic.given()):
            if one.name in names:
                raise user_error(
                    expected=f"no --{one.name}",
                    found=f"{reason}, with which --{one.name} has no effect",
                    do=f"leave --{one.name} out",
                )

    def without_ineffective(self) -> Self:
        """The same settings with the defaults in place of those that have no effect."""
        return self.replaced(**{name: default_of(self.settings()[name]) for name in self.ineffective()})

    def saved(self) -> dict[str, Any]:
        """What a file of settings holds: what is for one command, or publishes one result, must be given again."""
        values = self.affecting("result", "speed", "output")
        return {"recipe": self.recipe, **{name: value for name, value in values.items() if value not in (None, [])}}

    def save(self, path: Path) -> None:
        """Write the settings as a YAML file that `--config` reads."""
        text = yaml.safe_dump(self.saved(), sort_keys=False, allow_unicode=True)
        if "\x85" in text:
            # In YAML it ends a line, but PyYAML writes it as it is.
            text = yaml.safe_dump(self.saved(), sort_keys=False)
        path.write_text(text, encoding="utf-8")

    def differences(self, other: Self) -> list[str]:
        """What makes two runs different, as `name: here -> there`; only settings that affect the result count."""
        here, there = self.affecting("result"), other.affecting("result")
        for values in (here, there):
            # What is left open is the default that version 0.1 wrote down.
            values |= {name: None for name, value in EARLIER_DEFAULTS.items() if values[name] == value}
        return [f"{name}: {here[name]} -> {there[name]}" for name in here if here[name] != there[name]]

    def _wrong_combinations(self) -> Iterator[UserError]:
        checkpoints, output = self.checkpoints, self.output
        named = checkpoints.resume_from_checkpoint
        resumes = named is not None
        if checkpoints.no_resume and resumes:
            yield user_error(
                expected="a run that resumes, or one that starts again",
                found="both --resume_from_checkpoint and --no_resume",
                do="leave one of them out",
            )
        removed = output.overwrite_output_dir and _is_in_folder(named, Path(output.output_dir, CHECKPOINTS_FOLDER))
        if resumes and (removed or output.evaluate_only):
            other = "--evaluate_only" if output.evaluate_only else "--overwrite_output_dir, which removes checkpoints"
            yield user_error(
                expected="--resume_from_checkpoint with a run that resumes",
                found=other,
                do="leave one of them out, or resume in another --output_dir",
            )
        if output.push_to_hub != (output.hub_model_id is not None):
            yield user_error(
                expected="--push_to_hub and --hub_model_id OWNER/NAME together",
                found=f"{'--push_to_hub' if output.push_to_hub else '--hub_model_id'} alone",
                do="add the other one, or leave both out",
            )
        if output.push_space and not output.push_to_hub:
            yield user_error(
                expected="--push_space with --push_to_hub",
                found="--push_space alone",
                do="add --push_to_hub, or publish a Space alone afterwards: `hf-transfer space OUT OWNER/NAME`",
            )
        if output.push_to_hub and output.evaluate_only:
            yield user_error(
                expected="--push_to_hub with training", found="--evaluate_only, which makes no model", do="leave it out"
            )
        if self.data.label_column_name is not None and self.data.label_column_names:
            yield user_error(
                expected="--label_column_name, or --label_column_names for several columns",
                found="both",
                do="leave one of them out",
            )
        if self.training.bf16 and self.training.fp16:
            yield user_error(
                expected="one kind of mixed precision",
                found="both --bf16 and --fp16",
                do="keep --bf16 on recent GPUs and CPUs, --fp16 on GPUs older than Ampere",
            )


@dataclass(frozen=True)
class VisionConfig(RunConfig):
    """The settings of `recipes/vision.py`."""

    recipe: ClassVar[str] = "vision"

    training: ImageTrainingSettings
    image: ImageSettings


@dataclass(frozen=True)
class TextConfig(RunConfig):
    """The settings of `recipes/text.py`."""

    recipe: ClassVar[str] = "text"

    training: TextTrainingSettings
    text: SentenceSettings

    def _wrong_combinations(self) -> Iterator[UserError]:
        yield from super()._wrong_combinations()
        strategy, pooling = self.strategy, self.text.pooling
        if pooling not in ("own", "auto") and strategy.strategy in ADAPTERS and not strategy.merge_adapter:
            yield user_error(
                expected=f"an adapter that peft can load elsewhere, or --merge_adapter with --pooling {pooling}",
                found=f"--strategy {strategy.strategy} without it",
                do="add --merge_adapter, or use --pooling own",
            )


@dataclass(frozen=True)
class MultimodalConfig(RunConfig):
    """The settings of `recipes/multimodal.py`."""

    recipe: ClassVar[str] = "multimodal"
    # Projections of both towers, and the layer behind them; a head on taps is one layer, which is always solved.
    has_simple_head: ClassVar[bool] = False
    solved: ClassVar[str] = "deep_probe"

    model: PairModelSettings
    strategy: PairStrategySettings
    image: ImageSettings
    text: CaptionSettings
    fusion: FusionSettings

    def _wrong_combinations(self) -> Iterator[UserError]:
        yield from super()._wrong_combinations()
        model = self.model
        given = [name for name in TOWERS if getattr(model, name) is not None]
        if model.model_name_or_path is not None and given:
            yield user_error(
                expected="one dual encoder, or two models, one for the images and one for the texts",
                found=f"--model_name_or_path {model.model_name_or_path} together with --{given[0]}",
                do="leave --model_name_or_path out, or name a dual encoder there and nothing else",
            )
        if model.model_name_or_path is None and len(given) < len(TOWERS):
            missing = [f"--{name}" for name in TOWERS if name not in given]
            yield user_error(
                expected=f"{' and '.join(f'--{name}' for name in TOWERS)}, or a dual encoder as --model_name_or_path",
                found=f"--{given[0]} alone" if given else "none of them",
                do=f"add {' and '.join(missing)}",
            )
        if self.output.evaluate_only and given:
            yield user_error(
                expected="with --evaluate_only a finished model as --model_name_or_path",
                found="two models to start from",
                do="name the folder OUT/model of a run there, and leave the two out",
            )
        strategy = self.strategy
        both = {AUTO, "deep_probe"} & {*strategy.names()}
        if both and self.trains() and (strategy.image_strategy or strategy.text_strategy):
            name = "image_strategy" if strategy.image_strategy else "text_strategy"
            yield user_error(
                expected=f"--strategy {min(both)} for both towers together",
                found=f"--{name} {getattr(strategy, name)} beside it",
                do=f"leave --{name} out, or name a --strategy for the other tower",
            )
        if not self.strategy.merge_adapter:
            yield user_error(
                expected="--merge_adapter true: a model of two towers is saved whole", found="false", do="leave it out"
            )


def _is_in_folder(path: str | None, folder: Path) -> bool:
    return path is not None and Path(path).resolve().is_relative_to(folder.resolve())


def without_effect(config: RunConfig, name: str, need: Need, origin: str = "") -> UserError:
    """The error for a setting that has no effect on the run.

    Args:
        config: the settings.
        name: of the setting.
        need: what the run lacks.
        origin: the file that it was given in.
    """
    instead = need.otherwise if isinstance(need.otherwise, str) else need.otherwise(config)
    return user_error(
        expected=f"--{name} with {need.words}",
        found=f"{instead}, with which --{name} has no effect",
        do=need.do or f"leave --{name} out" + (f" of {origin}" if origin else ""),
    )


def required(config_class: type[RunConfig]) -> list[str]:
    """Names of the settings that have no default."""
    return [name for name, one in config_class.settings().items() if is_required(one)]


def part(topic: type[Topic], values: Mapping[str, Any]) -> dict[str, Any]:
    """The values that belong to a topic."""
    return {one.name: values[one.name] for one in dataclasses.fields(topic) if one.name in values}
