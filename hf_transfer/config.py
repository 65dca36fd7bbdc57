"""Every setting of a run: the only list of flags, with its help and its checks."""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

import yaml

ADAPTERS = ("lora", "dora", "ia3", "lokr", "adapter")
WITH_RANK = ("lora", "dora", "lokr", "adapter")
Strategy = Literal[
    "linear_probe", "partial", "gradual", "lp_ft", "full", "scratch", "bitfit", "lora", "dora", "ia3", "lokr", "adapter"
]
# Settings that only some strategies have an eye on: with any other they would be passed over in silence.
SERVES: dict[str, tuple[str, ...]] = {
    "trainable_layers": ("partial",),
    "adapter_layers": ADAPTERS,
    "merge_adapter": ADAPTERS,
    **dict.fromkeys(("adapter_rank", "adapter_alpha", "adapter_dropout"), WITH_RANK),
    "peft_type": ("adapter",),
    "probe": ("linear_probe", "lp_ft"),
    "feature_layers": ("linear_probe", "lp_ft"),
    "l2_sp": ("partial", "gradual", "lp_ft", "full", "bitfit", *ADAPTERS),
    "rdrop_alpha": ("partial", "gradual", "lp_ft", "full", "scratch", "bitfit", *ADAPTERS),
}


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
    never_empty: ClassVar[tuple[str, ...]] = ("model_name_or_path", "dataset_name", "output_dir")
    # What is to become of an earlier run: it does not go into the file of settings.
    for_one_command: ClassVar[frozenset[str]] = frozenset(
        {"overwrite_output_dir", "no_resume", "resume_from_checkpoint", "allow_mismatch"}
    )
    # Free to change between two runs that are to be the same run: they steer speed and talk, never the result.
    without_effect: ClassVar[frozenset[str]] = for_one_command | {
        "output_dir", "debug", "report_to", "dataloader_num_workers", "cache_dir", "cache_frozen", "save_steps",
        "save_total_limit", "push_to_hub", "push_space", "hub_model_id", "hub_private_repo",
    }  # fmt: skip
    # Whoever repeats a run has not said that its result is to take the place of the first one's.
    of_this_result: ClassVar[frozenset[str]] = frozenset(
        {"push_to_hub", "push_space", "hub_model_id", "hub_private_repo"}
    )

    # Model
    model_name_or_path: str = setting(help="Pretrained model: a Hub id, a local folder, or sample:NAME.")
    model_revision: str = setting("main", help="Branch, tag or commit of a model on the Hub.")

    # Data
    dataset_name: str = setting(help="Hub id, local folder, CSV/JSON/Parquet file or folder of them, or sample:NAME.")
    dataset_config_name: str | None = setting(None, help="Configuration of a data set on the Hub that has several.")
    dataset_revision: str = setting("main", help="Branch, tag or commit of a data set on the Hub.")
    encoding: str = setting("utf-8", help="Encoding of CSV and JSON files.")
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
    cache_dir: str | None = setting(
        None, help="Where checks and the outputs of frozen layers are kept (default: HF_HOME/hf_transfer)."
    )

    # What learns
    strategy: Strategy = setting("full", help="What learns, and when: README says it of each.")  # noqa: RUF009
    trainable_layers: int = setting(1, help="For --strategy partial: how many blocks learn, counted from the head.")
    adapter_layers: int | None = setting(None, help="Adapters in so many top blocks only (default: in all).")
    adapter_rank: int = setting(8, help="Rank of an adapter's matrices.")
    adapter_alpha: float | None = setting(None, help="Scale of an adapter, over its rank (default: 2 x rank).")
    adapter_dropout: float = setting(0.05, help="Dropout in front of an adapter.")
    peft_type: str = setting("LOHA", help="For --strategy adapter: any method of peft that can attach to the model.")
    merge_adapter: bool = setting(False, help="Save a plain transformers model, the adapter worked into its weights.")

    # Training
    num_train_epochs: int = setting(20, help="Passes over the training split.")
    learning_rate: float | None = setting(None, help="Peak learning rate (default: the strategy's own).")
    head_learning_rate: float | None = setting(None, help="Peak learning rate of the head (default: as all else).")
    layer_lr_decay: float = setting(1.0, help="Each block learns at so much of the rate of the block above it.")
    lr_scheduler_type: Literal["cosine", "linear", "constant_with_warmup"] = setting(
        "cosine", help="How the learning rate moves after warm-up."
    )
    warmup_steps: float = setting(0.1, help="Warm-up: a number of steps, or below 1 a share of all steps.")
    weight_decay: float = setting(0.05, help="AdamW's decay; norms and biases are spared.")
    l2_sp: float = setting(0.0, help="Pull toward the pretrained weights, in place of their decay (L2-SP); 0: none.")
    label_smoothing_factor: float = setting(0.0, help="Share of the target spread over all classes.")
    class_weights: Literal["none", "balanced"] = setting("none", help="Let each class count alike in the loss.")
    ema_decay: float = setting(0.0, help="Judge and keep a moving average of the weights (0.999, say); 0: none.")
    soup_size: int = setting(1, help="Average up to so many of the best epochs, as long as validation gains by it.")
    max_grad_norm: float = setting(1.0, help="Clip the gradient to this norm; 0 leaves it.")
    per_device_train_batch_size: int = setting(32, help="Samples in a batch, on each process.")
    per_device_eval_batch_size: int = setting(64, help="Samples in an evaluation batch, on each process.")
    gradient_accumulation_steps: int = setting(1, help="Batches that share one optimizer step.")
    auto_batch_size: bool = setting(
        False, help="Take the largest batches that the memory has room for, with as many samples in a step as without."
    )
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

    # Frozen layers
    cache_frozen: Literal["auto", "on", "off"] = setting(
        "auto", help="Run frozen layers once for each sample and store what comes out: if it pays, always, or never."
    )
    probe: Literal["logistic", "svm", "knn"] = setting(
        "logistic",
        help="How a head on frozen features is solved: logistic regression or a support vector machine; knn: the "
        "first, and the report says how good nearest neighbours are.",
    )
    feature_layers: list[int] = field(
        default_factory=list,
        kw_only=True,
        metadata={"help": "Blocks, counted from 1 at the input, whose features the report is to judge by a probe."},
    )
    cache_dtype: Literal["auto", "float32", "bfloat16", "float16"] = setting(
        "auto", help="Type of what is stored (default: that of the computation)."
    )

    # Checkpoints
    save_steps: int | None = setting(
        None, help="Save after every so many optimizer steps (default: about once a minute); 0: never."
    )
    save_total_limit: int = setting(2, help="How many checkpoints stay; at least 2.")
    resume_from_checkpoint: str | None = setting(None, help="Go on from this one (default: the newest that is whole).")
    no_resume: bool = setting(False, help="Begin anew, though --output_dir has an interrupted run of these settings.")
    allow_mismatch: bool = setting(
        False, help="Go on though versions, threads or device are others than when the checkpoint was written."
    )

    # Output
    output_dir: str = setting(help="Folder for the model, the report and the results.")
    overwrite_output_dir: bool = setting(False, help="Replace an earlier run in --output_dir.")
    evaluate_only: bool = setting(False, help="Train nothing: judge --model_name_or_path with its own head.")
    push_to_hub: bool = setting(False, help="Publish the finished model as --hub_model_id; asked for before training.")
    push_space: bool = setting(False, help="Publish a demo of it as well: the Space of the same name.")
    hub_model_id: str | None = setting(None, help="Where to publish it on the Hub: OWNER/NAME.")
    hub_private_repo: bool = setting(True, help="Hide what is published from others; false shows it to everybody.")
    report_to: list[str] = field(
        default_factory=lambda: ["none"],
        kw_only=True,
        metadata={"help": "Experiment trackers (tensorboard, wandb, trackio, ...), 'all', or 'none'."},
    )
    debug: bool = setting(False, help="Show the traceback of an error.")

    def __post_init__(self) -> None:
        at_least_one = ("num_train_epochs", "per_device_train_batch_size", "per_device_eval_batch_size")
        for name in (*at_least_one, "gradient_accumulation_steps", "trainable_layers", "adapter_rank", "soup_size"):
            self.require(name, "a whole number of at least 1", getattr(self, name) >= 1)
        for name in ("early_stopping_patience", "verify_samples"):
            self.require(name, "a whole number of at least 0", getattr(self, name) >= 0)
        for name in ("seed", "split_seed"):
            self.require(name, "a whole number from 0 to 4294967295", 0 <= getattr(self, name) < 2**32)
        for name, value in dataclasses.asdict(self).items():
            if isinstance(value, str) and ("\0" in value or not _can_encode(value, "utf-8")):
                raise mistake(
                    expected=f"--{name}: text in UTF-8 without a zero byte", found=ascii(value), do=f"change --{name}"
                )
        for name in self.never_empty:
            self.require(name, "a name or a path", bool(getattr(self, name).strip()))
        for name in ("weight_decay", "max_grad_norm", "warmup_steps", "l2_sp"):
            self.require(name, "a number of at least 0", 0 <= getattr(self, name) < float("inf"))
        for name in ("label_smoothing_factor", "adapter_dropout", "ema_decay"):
            self.require(name, "a number from 0 to below 1", 0 <= getattr(self, name) < 1)
        for name in ("validation_fraction", "test_fraction"):
            self.require(name, "a share above 0 and at most 0.5", 0 < getattr(self, name) <= 0.5)
        self.require("save_total_limit", "a whole number of at least 2", self.save_total_limit >= 2)
        self.require("feature_layers", "numbers of at least 1", min(self.feature_layers, default=1) >= 1)
        self.require("layer_lr_decay", "a number above 0 and at most 1", 0 < self.layer_lr_decay <= 1)
        self.require("encoding", "the name of an encoding, such as utf-8 or latin-1", _can_encode("a", self.encoding))
        self._check_what_may_be_left_out()
        self._check_what_serves_the_strategy()
        self._check_what_excludes_each_other()

    def _check_what_excludes_each_other(self) -> None:
        if self.no_resume and self.resume_from_checkpoint is not None:
            raise mistake(
                expected="a run that goes on, or one that begins anew",
                found="both --resume_from_checkpoint and --no_resume",
                do="leave one of them out",
            )
        if self.resume_from_checkpoint is not None and (self.overwrite_output_dir or self.evaluate_only):
            raise mistake(
                expected="--resume_from_checkpoint with a run that goes on",
                found="--evaluate_only" if self.evaluate_only else "--overwrite_output_dir, which removes checkpoints",
                do="leave one of them out, or go on in another --output_dir",
            )
        if self.auto_batch_size and self.evaluate_only:
            raise mistake(
                expected="--auto_batch_size with training",
                found="--evaluate_only",
                do="leave it out, and set --per_device_eval_batch_size",
            )
        if self.push_to_hub != (self.hub_model_id is not None):
            raise mistake(
                expected="--push_to_hub and --hub_model_id OWNER/NAME together",
                found=f"{'--push_to_hub' if self.push_to_hub else '--hub_model_id'} alone",
                do="add the other one, or leave both out",
            )
        if self.push_space and not self.push_to_hub:
            raise mistake(
                expected="--push_space with --push_to_hub",
                found="--push_space alone",
                do="add --push_to_hub, or publish a Space alone afterwards: `hf-transfer space OUT OWNER/NAME`",
            )
        if self.push_to_hub and self.evaluate_only:
            raise mistake(
                expected="--push_to_hub with training", found="--evaluate_only, which makes no model", do="leave it out"
            )
        if self.bf16 and self.fp16:
            raise mistake(
                expected="one kind of mixed precision",
                found="both --bf16 and --fp16",
                do="keep --bf16 on recent GPUs and CPUs, --fp16 on GPUs older than Ampere",
            )

    def _check_what_serves_the_strategy(self) -> None:
        defaults: dict[str, Any] = {one.name: one.default for one in dataclasses.fields(self)} | {"feature_layers": []}
        for name, strategies in SERVES.items():
            if not {*self.strategies()} & {*strategies} and getattr(self, name, None) != defaults.get(name):
                raise mistake(
                    expected=f"--{name} with --strategy {' or '.join(strategies)}",
                    found=f"--strategy {' and '.join(self.strategies())}, on which it has no effect",
                    do="leave it out, or choose such a strategy",
                )

    def _check_what_may_be_left_out(self) -> None:
        for name in ("learning_rate", "head_learning_rate"):
            self.require_if_given(name, "a number above 0 and at most 10", lambda rate: 0 < rate <= 10)
        self.require_if_given("adapter_alpha", "a number above 0", lambda alpha: 0 < alpha < float("inf"))
        for name in ("max_train_samples_per_class", "adapter_layers"):
            self.require_if_given(name, "at least 1", lambda count: count >= 1)
        for name in ("dataloader_num_workers", "save_steps"):
            self.require_if_given(name, "at least 0", lambda count: count >= 0)

    def strategies(self) -> list[str]:
        """What learns by this run's settings: one strategy for all, or one for each tower."""
        return [self.strategy]

    def require(self, name: str, expected: str, holds: bool) -> None:
        """Raise the error for a value out of range, unless `holds`."""
        if not holds:
            raise mistake(expected=f"--{name}: {expected}", found=str(getattr(self, name)), do=f"change --{name}")

    def require_if_given(self, name: str, expected: str, holds: Callable[[float], bool]) -> None:
        """The same for a setting that may be left out."""
        self.require(name, expected, (value := getattr(self, name)) is None or holds(value))

    def resolved(self) -> dict[str, Any]:
        """All settings as plain values, in the order of `--help`, with the name of the recipe first."""
        return {"recipe": self.recipe, **dataclasses.asdict(self)}

    def save(self, path: Path) -> None:
        """Write the settings as a YAML file that `--config` takes back.

        What becomes of an earlier run is for one command: whoever takes the file up must say it anew.
        """
        written = {
            key: value
            for key, value in self.resolved().items()
            if value not in (None, []) and key not in self.for_one_command | self.of_this_result
        }
        text = yaml.safe_dump(written, sort_keys=False, allow_unicode=True)
        if "\x85" in text:
            # It ends a line for whoever reads YAML, though not for PyYAML when it writes.
            text = yaml.safe_dump(written, sort_keys=False)
        path.write_text(text, encoding="utf-8")

    def differences(self, other: Self) -> list[str]:
        """What sets two runs apart, as `name: ours -> theirs`; settings without effect on the result do not count."""
        ours, theirs = dataclasses.asdict(self), dataclasses.asdict(other)
        return [
            f"{name}: {ours[name]} -> {theirs[name]}"
            for name in ours
            if name not in self.without_effect and ours[name] != theirs[name]
        ]


def _can_encode(text: str, encoding: str) -> bool:
    # Not by the encoding's name alone: hex and rot13 are codecs, too, but no encodings of text.
    try:
        text.encode(encoding)
    except (LookupError, ValueError):
        return False
    return True


@dataclass
class ImageSettings(RunConfig):
    """What recipes with images have beside."""

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
        self.require_if_given("cache_views", "at least 0", lambda views: views >= 0)


@dataclass
class VisionConfig(ImageSettings):
    """The settings of `recipes/vision.py`."""

    recipe: ClassVar[str] = "vision"

    mixup_alpha: float = setting(0.0, help="Mix each image with another; 0.2 is mild, 0: never.")
    cutmix_alpha: float = setting(0.0, help="Paste a box of another image into each; 1: of any size, 0: never.")

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("mixup_alpha", "cutmix_alpha"):
            self.require(name, "a number of at least 0", 0 <= getattr(self, name) < float("inf"))


@dataclass
class TextSettings(RunConfig):
    """What recipes with texts have beside."""

    text_column_name: str | None = setting(None, help="Column with the texts (default: found by name and type).")
    max_seq_length: int | None = setting(None, help="Cut texts behind so many tokens (default: what the model takes).")
    train_sampling_strategy: Literal["group_by_length", "random"] = setting(
        "group_by_length", help="Fill a batch with texts of like length, or with any."
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require_if_given("max_seq_length", "at least 3", lambda length: length >= 3)


@dataclass
class TextConfig(TextSettings):
    """The settings of `recipes/text.py`."""

    recipe: ClassVar[str] = "text"

    # A pretrained language model needs few passes over a text, but many steps.
    num_train_epochs: int = setting(6, help="Passes over the training split.")
    per_device_train_batch_size: int = setting(16, help="Samples in a batch, on each process.")
    rdrop_alpha: float | None = setting(
        None, help="R-Drop: weight of the agreement of two draws of dropout (default: 1 with --strategy full, else 0)."
    )
    text_pair_column_name: str | None = setting(None, help="Column with a second text, for pairs of sentences.")
    pooling: Literal["own", "cls", "mean"] = setting(
        "own", help="What the head sees of a text: as the checkpoint has it, the first token, or the mean of all."
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require_if_given("rdrop_alpha", "a number of at least 0", lambda alpha: 0 <= alpha < float("inf"))
        if self.pooling != "own" and self.evaluate_only:
            raise mistake(
                expected="with --evaluate_only a model that is judged as it was saved",
                found=f"--pooling {self.pooling}, which is for a new head",
                do="leave --pooling out; a model that was trained with it knows it",
            )
        if self.pooling != "own" and self.strategy in ADAPTERS and not self.merge_adapter:
            raise mistake(
                expected=f"an adapter that peft can load elsewhere, or --merge_adapter with --pooling {self.pooling}",
                found=f"--strategy {self.strategy} without it",
                do="add --merge_adapter, or use --pooling own",
            )
