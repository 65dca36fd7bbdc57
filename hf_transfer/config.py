"""Every setting of a run: the only list of flags, with its help, its checks and its YAML form."""

import dataclasses
import difflib
import importlib.metadata
import os
import sys
from argparse import Action, ArgumentDefaultsHelpFormatter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal, NoReturn, Self, TypeVar, get_origin

import yaml

MAX_CONFIG_BYTES = 1_000_000
RETIRED_DISTRIBUTION = "hf-transfer"


class UserError(Exception):
    """A mistake that the person running the command can mend: no traceback, exit code 2."""


def mistake(*, expected: str, found: str, do: str) -> UserError:
    """The error to raise, in the three parts that every message of this project has."""
    return UserError(f"Expected: {expected}\nFound:    {found}\nDo this:  {do}")


def setting(default: Any = dataclasses.MISSING, *, help: str) -> Any:
    """A dataclass field that carries its own `--help` line."""
    return field(default=default, metadata={"help": help}, kw_only=True)


@dataclass
class RunConfig:
    """The settings that every recipe has."""

    recipe: ClassVar[str]
    # Free to change between two runs that are to be the same run: they steer speed and talk, never the result.
    without_effect: ClassVar[frozenset[str]] = frozenset(
        {"output_dir", "overwrite_output_dir", "debug", "report_to", "dataloader_num_workers", "cache_dir"}
    )

    # Model
    model_name_or_path: str = setting(help="Pretrained model: a Hub id, a local folder, or sample:NAME.")
    model_revision: str = setting("main", help="Branch, tag or commit of a model on the Hub.")

    # Data
    dataset_name: str = setting(help="Hub id, local folder, CSV/JSON/Parquet file or folder of them, or sample:NAME.")
    dataset_config_name: str | None = setting(None, help="Configuration of a data set on the Hub that has several.")
    dataset_revision: str = setting("main", help="Branch, tag or commit of a data set on the Hub.")
    label_column_name: str | None = setting(None, help="Column with the labels (default: found by name and type).")
    validation_fraction: float = setting(0.15, help="Share of the training split to cut off if there is no validation.")
    test_fraction: float = setting(0.15, help="Share of the training split to cut off if there is no test.")
    split_seed: int = setting(
        0, help="Seed of the cut; leave it when --seed varies, and all runs share one test split."
    )
    max_train_samples_per_class: int | None = setting(None, help="Keep at most so many training samples of each class.")
    on_bad_sample: Literal["error", "skip"] = setting(
        "error", help="A sample that cannot be read: stop, or mask it in place (up to 1 %% of the rows)."
    )
    verify_samples: int = setting(10_000, help="Decode so many samples before training; headers are read of all.")
    cache_dir: str | None = setting(None, help="Where checks are remembered (default: HF_HOME/hf_transfer).")

    # What learns
    strategy: Literal["linear_probe", "partial", "full", "scratch"] = setting(
        "full", help="What learns: the head; the top layers and the head; all; or all, from fresh weights."
    )
    trainable_layers: int = setting(1, help="For --strategy partial: how many blocks learn, counted from the head.")

    # Training
    num_train_epochs: int = setting(20, help="Passes over the training split.")
    learning_rate: float | None = setting(None, help="Peak learning rate (default: the strategy's own).")
    lr_scheduler_type: Literal["cosine", "linear", "constant_with_warmup"] = setting(
        "cosine", help="How the learning rate moves after warm-up."
    )
    warmup_steps: float = setting(0.1, help="Warm-up: a number of steps, or below 1 a share of all steps.")
    weight_decay: float = setting(0.05, help="AdamW's decay; norms and biases are spared.")
    max_grad_norm: float = setting(1.0, help="Clip the gradient to this norm; 0 leaves it.")
    per_device_train_batch_size: int = setting(32, help="Samples in a batch, on each process.")
    per_device_eval_batch_size: int = setting(64, help="Samples in an evaluation batch, on each process.")
    gradient_accumulation_steps: int = setting(1, help="Batches that share one optimizer step.")
    gradient_checkpointing: bool = setting(False, help="Recompute activations in the backward pass to save memory.")
    bf16: bool = setting(False, help="Mixed precision in bfloat16.")
    fp16: bool = setting(False, help="Mixed precision in float16 (needs a GPU).")
    metric_for_best_model: Literal["accuracy", "f1_macro", "loss"] = setting(
        "accuracy", help="Validation metric that picks the epoch to keep; ties go to the lower loss."
    )
    early_stopping_patience: int = setting(0, help="Stop after so many epochs without a better one; 0 never stops.")
    dataloader_num_workers: int | None = setting(
        None, help="Processes that decode samples (default: 0 for small data, else up to 4)."
    )
    seed: int = setting(0, help="Seed of the head, the order of samples, dropout and augmentation.")

    # Output
    output_dir: str = setting(help="Folder for the model, the report and the results.")
    overwrite_output_dir: bool = setting(False, help="Replace an earlier run in --output_dir.")
    evaluate_only: bool = setting(False, help="Train nothing: judge --model_name_or_path with its own head.")
    report_to: list[str] = field(
        default_factory=lambda: ["none"],
        kw_only=True,
        metadata={"help": "Experiment trackers (tensorboard, wandb, trackio, ...), 'all', or 'none'."},
    )
    debug: bool = setting(False, help="Show the traceback of an error.")

    def __post_init__(self) -> None:
        for name in ("num_train_epochs", "per_device_train_batch_size", "per_device_eval_batch_size"):
            self.require(name, "a whole number of at least 1", getattr(self, name) >= 1)
        for name in ("gradient_accumulation_steps", "trainable_layers"):
            self.require(name, "a whole number of at least 1", getattr(self, name) >= 1)
        for name in ("early_stopping_patience", "verify_samples"):
            self.require(name, "a whole number of at least 0", getattr(self, name) >= 0)
        for name in ("seed", "split_seed"):
            self.require(name, "a whole number from 0 to 4294967295", 0 <= getattr(self, name) < 2**32)
        for name in ("model_name_or_path", "dataset_name", "output_dir"):
            self.require(name, "a name or a path", bool(getattr(self, name).strip()))
        for name in ("weight_decay", "max_grad_norm", "warmup_steps"):
            self.require(name, "a number of at least 0", 0 <= getattr(self, name) < float("inf"))
        for name in ("validation_fraction", "test_fraction"):
            self.require(name, "a share above 0 and at most 0.5", 0 < getattr(self, name) <= 0.5)
        rate = self.learning_rate
        self.require("learning_rate", "a number above 0 and at most 10", rate is None or 0 < rate <= 10)
        per_class = self.max_train_samples_per_class
        self.require("max_train_samples_per_class", "at least 1", per_class is None or per_class >= 1)
        workers = self.dataloader_num_workers
        self.require("dataloader_num_workers", "at least 0", workers is None or workers >= 0)
        if self.bf16 and self.fp16:
            raise mistake(
                expected="one kind of mixed precision",
                found="both --bf16 and --fp16",
                do="keep --bf16 on recent GPUs and CPUs, --fp16 on GPUs older than Ampere",
            )

    def require(self, name: str, expected: str, holds: bool) -> None:
        """Raise the error for a value out of range, unless `holds`."""
        if not holds:
            raise mistake(expected=f"--{name}: {expected}", found=str(getattr(self, name)), do=f"change --{name}")

    def resolved(self) -> dict[str, Any]:
        """All settings as plain values, in the order of `--help`, with the name of the recipe first."""
        return {"recipe": self.recipe, **dataclasses.asdict(self)}

    def save(self, path: Path) -> None:
        """Write the settings as a YAML file that `--config` takes back.

        The leave to replace an earlier run is for one command: whoever takes the file up must give it anew.
        """
        left_out = ("overwrite_output_dir",)
        written = {key: value for key, value in self.resolved().items() if value is not None and key not in left_out}
        path.write_text(yaml.safe_dump(written, sort_keys=False, allow_unicode=True), encoding="utf-8")

    def differences(self, other: Self) -> list[str]:
        """What sets two runs apart, as `name: ours -> theirs`; settings without effect on the result do not count."""
        ours, theirs = dataclasses.asdict(self), dataclasses.asdict(other)
        return [
            f"{name}: {ours[name]} -> {theirs[name]}"
            for name in ours
            if name not in self.without_effect and ours[name] != theirs[name]
        ]


@dataclass
class VisionConfig(RunConfig):
    """The settings of `recipes/vision.py`."""

    recipe: ClassVar[str] = "vision"

    image_column_name: str | None = setting(None, help="Column with the images (default: found by name and type).")
    augmentation: Literal["none", "light", "standard", "trivial"] = setting(
        "light", help="Random changes to training images: small shifts; crops and colour; or one strong operation each."
    )
    horizontal_flip: bool | None = setting(
        None, help="Let augmentation mirror images (default: yes, except for samples whose classes it would change)."
    )
    cache_views: int | None = setting(
        None,
        help="Augmented views of a sample; 0: a new one in every epoch (default: 4 behind a frozen prefix, else 0).",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require("cache_views", "at least 0", self.cache_views is None or self.cache_views >= 0)


Config = TypeVar("Config", bound=RunConfig)


def run(main: Callable[[Config], object], config_class: type[Config], argv: Sequence[str] | None = None) -> None:
    """Run a recipe from the command line: a user's mistake becomes a message and exit code 2."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in arguments
    try:
        check_installation()
        config = parse(config_class, arguments)
        debug = config.debug
        main(config)
    except UserError as error:
        if debug:
            raise
        exit_with(error)


def exit_with(error: UserError) -> NoReturn:
    """Print what to mend, without a traceback, and end the process with code 2."""
    rank = os.environ.get("RANK", "0")
    print(f"\nerror{'' if rank == '0' else f' on rank {rank}'}:\n{error}\n", file=sys.stderr)
    sys.exit(2)


def parse(config_class: type[Config], argv: Sequence[str]) -> Config:
    """Settings from the command line, on top of those in a `--config` file, on top of the defaults.

    Raises:
        UserError: an unknown or abbreviated setting, a value of the wrong type or out of range, an unreadable file.
    """
    from transformers import HfArgumentParser

    class Help(ArgumentDefaultsHelpFormatter):
        def _get_help_string(self, action: Action) -> str | None:
            said = action.default is None or "(default" in (action.help or "")
            return action.help if said else super()._get_help_string(action)

    class Parser(HfArgumentParser):
        def error(self, message: str) -> NoReturn:
            raise mistake(expected="settings as --help lists them", found=message, do="correct that setting")

    parser = Parser(config_class, allow_abbrev=False, formatter_class=Help)  # type: ignore[arg-type]
    parser.add_argument("--config", metavar="FILE.yaml", default=None, help="Settings in a file; flags win over it.")
    known = [name.removeprefix("--") for name in parser._option_string_actions if name.startswith("--")]
    own = list(argv)
    from_file = _file_as_arguments(_config_path(own), config_class)
    config, _, unknown = parser.parse_args_into_dataclasses(
        [*from_file, *own], return_remaining_strings=True, look_for_args_file=False
    )
    if unknown:
        names = [name.split("=")[0].removeprefix("--") for name in unknown if name.startswith("-")]
        raise _unknown_settings(names or unknown, known)
    return config


def load(config_class: type[Config], path: Path) -> Config:
    """Settings from a YAML file alone."""
    return parse(config_class, ["--config", str(path)])


def _config_path(argv: Sequence[str]) -> Path | None:
    path = None
    for position, argument in enumerate(argv):
        if argument.startswith("--config="):
            path = Path(argument.removeprefix("--config="))
        if argument == "--config" and position + 1 < len(argv):
            path = Path(argv[position + 1])
    return path


def _file_as_arguments(path: Path | None, config_class: type[RunConfig]) -> list[str]:
    """The file's settings as command-line arguments, so that types and "the last one wins" are argparse's alone."""
    if path is None:
        return []
    values = _read_yaml(path)
    recipe = values.pop("recipe", config_class.recipe)
    if recipe != config_class.recipe:
        raise mistake(
            expected=f"settings of the {config_class.recipe} recipe",
            found=f"{path} with 'recipe: {recipe}'",
            do=f"run recipes/{recipe}.py with it",
        )
    types = {field.name: field.type for field in dataclasses.fields(config_class)}
    if unknown := [str(key) for key in values if key not in types]:
        raise _unknown_settings(unknown, list(types), path)
    arguments: list[str] = []
    for key, value in values.items():
        if isinstance(value, list) and get_origin(types[key]) is list and all(isinstance(item, str) for item in value):
            arguments += [f"--{key}", *value]
        elif isinstance(value, dict | list):
            found = "a mapping" if isinstance(value, dict) else f"the list {value}"
            raise mistake(expected=f"one value for {key} in {path}", found=found, do="write 'name: value' lines")
        elif value is not None:
            # In one word, as a value may begin with a dash.
            arguments.append(f"--{key}={value}")
    return arguments


class _PlainLoader(yaml.SafeLoader):
    """Plain YAML: no tags, no aliases (which can expand without bound), no key twice.

    Values stay text, but for null: `1e-4` is a number, and a revision `0123456` or a column `no` is a name, as the
    setting's own type has it.
    """

    yaml_implicit_resolvers = {  # noqa: RUF012 (the stubs declare it so)
        first: [(tag, pattern) for tag, pattern in found if tag == "tag:yaml.org,2002:null"]
        for first, found in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            raise yaml.YAMLError("aliases (*name) are not allowed")
        if tag := getattr(self.peek_event(), "tag", None):  # type: ignore[no-untyped-call]
            raise yaml.YAMLError(f"tags ({tag}) are not allowed")
        return super().compose_node(parent, index)

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        keys = [str(key.value) for key, _ in node.value]
        if twice := {key for key in keys if keys.count(key) > 1}:
            raise yaml.YAMLError(f"{', '.join(sorted(twice))}: given more than once")
        return super().construct_mapping(node, deep)


def _read_yaml(path: Path) -> dict[Any, Any]:
    if not path.is_file():
        raise mistake(expected="a YAML file for --config", found=f"no file {path}", do="correct the path")
    if path.stat().st_size > MAX_CONFIG_BYTES:
        raise mistake(expected="a short YAML file", found=f"{path.stat().st_size} bytes in {path}", do="check the path")
    try:
        values = yaml.load(path.read_text(encoding="utf-8"), Loader=_PlainLoader)  # noqa: S506 (a safe loader)
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        raise mistake(expected=f"readable YAML in {path}", found=str(error), do="correct that line") from error
    if not isinstance(values or {}, dict):
        raise mistake(expected=f"'name: value' lines in {path}", found=type(values).__name__, do="correct the file")
    return values or {}


def _unknown_settings(names: Sequence[str], known: Sequence[str], path: Path | None = None) -> UserError:
    hints = []
    for name in names:
        near = difflib.get_close_matches(name, known, n=1, cutoff=0.4) or [k for k in known if k.startswith(name)][:1]
        hints.append(f"{name}" + (f" (nearest: {near[0]})" if near else ""))
    return mistake(
        expected="settings that exist, spelled out in full",
        found=f"{', '.join(hints)}" + (f" in {path}" if path else ""),
        do="use the nearest name, or see --help for all",
    )


def check_installation() -> None:
    """Refuse to run beside the retired download accelerator, whose import name is also `hf_transfer`.

    Whichever of the two was installed last has overwritten files of the other, and removing it
    removes them for both: hence the reinstallation.
    """
    try:
        found = f"the retired download accelerator hf_transfer {importlib.metadata.version(RETIRED_DISTRIBUTION)}"
    except importlib.metadata.PackageNotFoundError:
        if hasattr(sys.modules[__name__.partition(".")[0]], "_HOMES"):
            return
        found = "a hf_transfer/__init__.py that is not ours"
    raise mistake(
        expected="the import name hf_transfer for the distribution hf-transfer-learning alone",
        found=found,
        do="pip uninstall -y hf_transfer && pip install --force-reinstall --no-deps hf-transfer-learning",
    )
