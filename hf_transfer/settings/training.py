"""How a model learns: steps, rates, regularisation, batches and precision."""

from dataclasses import dataclass
from typing import ClassVar, Literal

from hf_transfer.settings.fields import STEPS, TRAINS, Need, Topic, setting
from hf_transfer.settings.ranges import BELOW_ONE, FACTOR, NOT_NEGATIVE, RATE, SEED, at_least
from hf_transfer.settings.strategy import ADAPTERS, one_of

# In which pretrained weights learn.
FROM_PRETRAINED = ("partial", "gradual", "lp_ft", "full", "bitfit", *ADAPTERS)
# Of default batches: how many an epoch has at least, and how many samples each has at least.
FEWEST_BATCHES, SMALLEST_BATCH = 16, 4
# As many as 64 texts of 128 tokens. Longer texts in whole batches need much more memory on CPUs, and save no time.
TOKENS_AT_ONCE = 64 * 128
# R-Drop by default: with these strategies, and with fewer training samples than this.
STRATEGIES_WITH_RDROP = ("full", "scratch")
SAMPLES_WITHOUT_RDROP = 500
COMPILES = Need("--torch_compile", lambda config: config.training.torch_compile, "a run that compiles nothing")


@dataclass(frozen=True)
class TrainingSettings(Topic):
    """What all modalities share."""

    num_train_epochs: int = setting("Passes over the training split.", 20, at_least(1), STEPS)
    learning_rate: float | None = setting("Peak learning rate (default: the strategy's own).", None, RATE, STEPS)
    head_learning_rate: float | None = setting(
        "Peak learning rate of the head (default: as the rest).", None, RATE, STEPS
    )
    layer_lr_decay: float = setting(
        "Factor of the learning rate from each block to the one below it.", 1.0, FACTOR, STEPS
    )
    lr_scheduler_type: Literal["cosine", "linear", "constant_with_warmup"] = setting(
        "How the learning rate changes after warm-up.", "cosine", STEPS
    )
    warmup_steps: float = setting(
        "Warm-up: a number of steps, or below 1 a share of all steps.", 0.1, NOT_NEGATIVE, STEPS
    )
    weight_decay: float = setting("AdamW's weight decay; norms and biases are exempt.", 0.05, NOT_NEGATIVE, STEPS)
    l2_sp: float = setting(
        "Pull toward the pretrained weights, in place of their decay (L2-SP); 0: none.",
        0.0, NOT_NEGATIVE, TRAINS, one_of(*FROM_PRETRAINED),
    )  # fmt: skip
    label_smoothing_factor: float = setting("Share of the target spread over all classes.", 0.0, BELOW_ONE, STEPS)
    multi_label_loss: Literal["binary_cross_entropy", "asymmetric"] = setting(
        "Loss of samples with several labels; asymmetric: easy negatives count little.", "binary_cross_entropy", STEPS
    )
    regression_loss: Literal["mse", "huber"] = setting(
        "Loss of numbers, in standard deviations; huber: large errors count less.", "mse", STEPS
    )
    class_weights: Literal["none", "balanced"] = setting(
        "Weight the loss so that each class counts the same; of labels, positives and negatives.", "none", TRAINS
    )
    ema_decay: float = setting(
        "Evaluate and keep an exponential moving average of the weights (for example 0.999); 0: none.",
        0.0, BELOW_ONE, STEPS,
    )  # fmt: skip
    soup_size: int = setting(
        "Average up to this many of the best epochs, as long as validation improves.", 1, at_least(1), STEPS
    )
    max_grad_norm: float = setting("Clip the gradient to this norm; 0: no clipping.", 1.0, NOT_NEGATIVE, STEPS)
    per_device_train_batch_size: int | None = setting(
        "Samples in a batch, on each process (default: 32, of texts 16; of few training samples less, down to 4, so "
        "that an epoch has 16 steps).", None, at_least(1), STEPS,
    )  # fmt: skip
    per_device_eval_batch_size: int | None = setting(
        "Samples in an evaluation batch, on each process (default: 64; on CPUs 16 with images, and with texts 64 of "
        "which at most 8,192 tokens are computed at once: both take less memory and no more time).",
        None, at_least(1),
    )  # fmt: skip
    gradient_accumulation_steps: int = setting("Batches of one optimizer step.", 1, at_least(1), STEPS)
    auto_batch_size: bool = setting(
        "Use the largest batches that fit into memory, with as many samples in a step as without.", False, STEPS
    )
    gradient_checkpointing: bool = setting("Recompute activations in the backward pass to save memory.", False, STEPS)
    torch_compile: bool = setting(
        "Compile the blocks that learn, for faster steps (needs a C++ compiler, on a GPU also Triton).", False, STEPS
    )
    torch_compile_backend: str | None = setting("Backend of torch.compile (default: inductor).", None, STEPS, COMPILES)
    tf32: bool | None = setting(
        "Round the factors of float32 products to 10 bits on GPUs that are faster with that (default: where they are).",
        None,
    )
    bf16: bool = setting("Mixed precision in bfloat16.", False)
    fp16: bool = setting("Mixed precision in float16 (needs a GPU).", False)
    metric_for_best_model: str | None = setting(
        "Validation metric that selects the epoch to keep (default: accuracy for classes, map for labels, rmse for "
        "numbers); ties go to the lower loss.",
        None, TRAINS,
    )  # fmt: skip
    early_stopping_patience: int = setting(
        "Stop after this many epochs without a better one; 0: never.", 0, at_least(0), STEPS
    )
    seed: int = setting("Seed of the head, the order of samples, dropout and augmentation.", 0, SEED, TRAINS)

    # Of a default batch.
    largest_batch: ClassVar[int] = 32

    def train_batch_size(self, samples: int) -> int:
        """Samples in a batch of training; on few samples a model needs more steps than large batches would leave it.

        Reference: Mosbach, Andriushchenko and Klakow, "On the Stability of Fine-tuning BERT: Misconceptions,
        Explanations, and Strong Baselines", ICLR 2021, https://arxiv.org/abs/2006.04884 (few steps on few samples).

        Args:
            samples: of the training split.
        """
        if self.per_device_train_batch_size is not None:
            return self.per_device_train_batch_size
        wanted = max(samples // (FEWEST_BATCHES * self.gradient_accumulation_steps), 1)
        power_of_two: int = 2 ** (wanted.bit_length() - 1)
        return min(max(power_of_two, SMALLEST_BATCH), self.largest_batch)

    def passes_of_a_step(self, strategy: str, samples: int) -> int:  # noqa: ARG002
        """How often a step passes each of its samples through the model.

        Args:
            strategy: by which the model is trained.
            samples: of the training split.
        """
        return 1

    def evaluation_batch_size(self, device: str) -> int:
        """Samples in a batch of evaluation, and of the pass through frozen layers.

        Args:
            device: the type of device on which the model runs.
        """
        return self.per_device_eval_batch_size or (16 if device == "cpu" else 64)

    def tokens_at_once(self, device: str) -> int | None:  # noqa: ARG002
        """Tokens, with padding, that go through the model at once in evaluation; None: those of the whole batch.

        Args:
            device: the type of device on which the model runs.
        """
        return None


@dataclass(frozen=True)
class ImageTrainingSettings(TrainingSettings):
    """What training on images adds."""

    mixup_alpha: float = setting("Mix each image with another; 0.2 is mild, 0: never.", 0.0, NOT_NEGATIVE, STEPS)
    cutmix_alpha: float = setting(
        "Paste a box of another image into each; 1: of any size, 0: never.", 0.0, NOT_NEGATIVE, STEPS
    )


@dataclass(frozen=True)
class TextTrainingSettings(TrainingSettings):
    """What training on texts adds: a pretrained language model needs few passes over a text, but many steps."""

    largest_batch: ClassVar[int] = 16

    num_train_epochs: int = setting("Passes over the training split.", 6, at_least(1), STEPS)
    rdrop_alpha: float | None = setting(
        "R-Drop: weight of the agreement of two dropout samples (default: 1 with --strategy full or scratch and fewer "
        f"than {SAMPLES_WITHOUT_RDROP} training samples, else 0).",
        None, NOT_NEGATIVE, STEPS,
    )  # fmt: skip

    def rdrop_weight(self, strategy: str, samples: int) -> float:
        """The weight of R-Drop, if the model can have it; by default only where samples, and so its cost, are few.

        Measured in docs/benchmarks.md, "Are the defaults of training good?".

        Args:
            strategy: by which the model is trained.
            samples: of the training split.
        """
        if self.rdrop_alpha is not None:
            return self.rdrop_alpha
        return float(strategy in STRATEGIES_WITH_RDROP and samples < SAMPLES_WITHOUT_RDROP)

    def passes_of_a_step(self, strategy: str, samples: int) -> int:
        """See `TrainingSettings.passes_of_a_step`: twice with R-Drop."""
        return 2 if self.rdrop_weight(strategy, samples) > 0 else 1

    def evaluation_batch_size(self, device: str) -> int:  # noqa: ARG002
        """See `TrainingSettings.evaluation_batch_size`; batches of texts take little memory, or go in parts."""
        return self.per_device_eval_batch_size or 64

    def tokens_at_once(self, device: str) -> int | None:
        """See `TrainingSettings.tokens_at_once`; a batch whose size the user has chosen goes as a whole."""
        return None if self.per_device_eval_batch_size or device != "cpu" else TOKENS_AT_ONCE
