"""How fast does a model train on one GPU? Ours next to `transformers.Trainer`, with the same model and batches.

    python -m benchmarks.gpu            # on one GPU, under ten minutes
    python -m benchmarks.gpu --tiny     # tiny models, to try the script on a CPU

The models have the shapes of ViT-B/16, ResNet-50 and BERT-base, and random weights; pictures and texts are noise. So
nothing is downloaded, and no accuracy means anything. Trainer gets our prepared model and the inputs that our loop
makes of the same batches, with the same rate, optimizer and precision. An epoch warms up (and compiles), the others
count. The solved probe computes its features once; Trainer trains the same head for as many epochs as are counted.
"""

import argparse
import contextlib
import gc
import io
import json
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
import transformers
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from torch.utils.data import DataLoader
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    PreTrainedTokenizerFast,
    ResNetConfig,
    ResNetForImageClassification,
    Trainer,
    TrainerCallback,
    TrainingArguments,
    ViTConfig,
    ViTForImageClassification,
)
from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

from benchmarks.trials import epochs_of_ours, ready_run, settings_of, train
from hf_transfer.run import Run
from hf_transfer.strategies.freezing import set_trainable
from hf_transfer.training.compiling import compiled
from hf_transfer.versions import versions

RESULTS = Path(__file__).parent / "results" / "gpu.json"
# No arm begins later than this: all together stay under ten minutes.
LATEST_START = 8.5 * 60
CLASSES = 10
WORDS = 5_000
RATE = 1e-4
# Strategy and whether its layers are compiled; all in bfloat16.
ARMS = (("full", False), ("full", True), ("lora", False), ("linear_probe", False))


@dataclass(frozen=True)
class Scale:
    """How large everything is.

    Attributes:
        samples: of training.
        batch_size: of training.
        epochs: that count.
        tiny: whether the models have two small layers.
    """

    samples: int = 1_024
    batch_size: int = 64
    epochs: int = 4
    tiny: bool = False

    @property
    def side(self) -> int:
        """Height and width of pictures."""
        return 32 if self.tiny else 224

    @property
    def tokens(self) -> int:
        """Tokens of a text."""
        return 16 if self.tiny else 128


TINY = Scale(samples=24, batch_size=8, epochs=2, tiny=True)


@dataclass(frozen=True)
class Row:
    """What was measured of a program.

    Attributes:
        model: its name.
        strategy: what learned.
        compiled: whether its layers were compiled.
        program: ours or Trainer.
        seconds: the median of an epoch; of a solved probe, of its whole training.
        samples_per_second: of training.
        training_seconds: of as many epochs as count; of a solved probe as above.
        peak_bytes: on the GPU; None without one.
    """

    model: str
    strategy: str
    compiled: bool
    program: str
    seconds: float
    samples_per_second: float
    training_seconds: float
    peak_bytes: int | None


def write_model(name: str, folder: Path, scale: Scale) -> None:
    """A checkpoint with random weights, and its processor or tokenizer."""
    torch.manual_seed(0)
    small: dict[str, Any] = {
        "num_hidden_layers": 2,
        "hidden_size": 32,
        "num_attention_heads": 2,
        "intermediate_size": 64,
    }
    labels: dict[str, Any] = {"num_labels": CLASSES}
    model: Any
    if name == "bert-base":
        model = BertForSequenceClassification(BertConfig(**labels, **(small if scale.tiny else {})))
        _tokenizer(scale).save_pretrained(folder)
    else:
        if name == "vit-base":
            shape: dict[str, Any] = {**small, "image_size": scale.side, "patch_size": 16} if scale.tiny else {}
            model = ViTForImageClassification(ViTConfig(**labels, **shape))
        else:
            sizes: dict[str, Any] = (
                {"embedding_size": 8, "hidden_sizes": [16, 32], "depths": [1, 1]} if scale.tiny else {}
            )
            model = ResNetForImageClassification(ResNetConfig(**labels, **sizes))
        ViTImageProcessorPil(size={"height": scale.side, "width": scale.side}).save_pretrained(folder)
    model.save_pretrained(folder)


def _tokenizer(scale: Scale) -> PreTrainedTokenizerFast:
    special = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
    names = dict(zip(("pad_token", "unk_token", "cls_token", "sep_token", "mask_token"), special, strict=True))
    vocabulary = {word: number for number, word in enumerate((*special, *(f"w{n}" for n in range(WORDS))))}
    words = Tokenizer(models.WordLevel(vocabulary, unk_token=names["unk_token"]))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    words.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[(token, vocabulary[token]) for token in ("[CLS]", "[SEP]")]
    )
    return PreTrainedTokenizerFast(tokenizer_object=words, model_max_length=scale.tokens, **names)


def write_data(folder: Path, scale: Scale) -> dict[str, Path]:
    """Pictures and texts of noise, with labels that mean nothing; the folders by recipe."""
    generator = np.random.default_rng(0)
    counts = {"train": scale.samples, "validation": 2 * CLASSES, "test": 2 * CLASSES}
    for split, count in counts.items():
        lines = []
        for number in range(count):
            label = f"c{number % CLASSES}"
            pixels = generator.integers(0, 256, (scale.side, scale.side, 3), dtype=np.uint8)
            path = folder / "pictures" / split / label / f"{number}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(path)
            words = " ".join(f"w{word}" for word in generator.integers(0, WORDS, scale.tokens - 2))
            lines.append(json.dumps({"text": words, "label": label}))
        texts = folder / "texts" / f"{split}.jsonl"
        texts.parent.mkdir(exist_ok=True)
        texts.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return {"vision": folder / "pictures", "text": folder / "texts"}


def settings_for(
    model: Path, recipe: str, data: Path, strategy: str, scale: Scale, *, compiles: bool, backend: str | None
) -> dict[str, Any]:
    """The settings of a run, those for other recipes and strategies among them."""
    chosen = {
        "model_name_or_path": str(model), "dataset_name": str(data), "output_dir": "unused", "strategy": strategy,
        "learning_rate": RATE, "lr_scheduler_type": "constant_with_warmup", "warmup_steps": 0.0, "weight_decay": 0.0,
        "num_train_epochs": scale.epochs + 1, "per_device_train_batch_size": scale.batch_size, "bf16": True,
        "torch_compile": compiles, "torch_compile_backend": backend if compiles else None, "cache_frozen": "off",
        "save_steps": 0, "cache_dir": str(model.parent / "cache"),
    }  # fmt: skip
    of_recipe = {"augmentation": "none"} if recipe == "vision" else {"rdrop_alpha": 0.0}
    return chosen | of_recipe


def epochs_measured(run: Run, scale: Scale) -> list[float]:
    """Seconds of the epochs of our loop that count."""
    prepared, training = run.prepared, run.config.training
    (stage, *_) = run.strategy.stages(prepared.groups, training.num_train_epochs)
    set_trainable(prepared.model, prepared.groups, stage.trainable, updates_statistics=stage.updates_statistics)
    with compiled(prepared.model, prepared.groups, training, lengths_vary=run.config.recipe == "text"):
        epoch = epochs_of_ours(run)
        return [epoch(number)["seconds"] for number in range(scale.epochs + 1)][1:]


def probe_measured(run: Run, scale: Scale) -> list[float]:  # noqa: ARG001
    """Seconds of solving a head, twice; the second counts."""
    with contextlib.redirect_stdout(io.StringIO()):
        return [train(run)[1] for _ in range(2)][1:]


def trainers_measured(run: Run, scale: Scale) -> list[float]:
    """Seconds of the epochs of Trainer that count."""
    clock, loaders, training = _Clock(), run.loaders, run.config.training
    prepared = run.prepared
    (stage, *_) = run.strategy.stages(prepared.groups, 1)
    set_trainable(prepared.model, prepared.groups, stage.trainable, updates_statistics=stage.updates_statistics)

    class OnOurInputs(Trainer):
        def get_train_dataloader(self) -> DataLoader[Any]:
            return _Inputs(run)  # type: ignore[return-value]

    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            output_dir=folder, num_train_epochs=scale.epochs + 1, learning_rate=RATE, lr_scheduler_type="constant",
            weight_decay=0.0, per_device_train_batch_size=scale.batch_size, optim="adamw_torch_fused", bf16=True,
            torch_compile=training.torch_compile, torch_compile_backend=training.torch_compile_backend,
            report_to="none", save_strategy="no", logging_strategy="no", disable_tqdm=True,
            use_cpu=not torch.cuda.is_available(),
        )  # fmt: skip
        trainer = OnOurInputs(prepared.model, arguments, train_dataset=loaders.train.dataset, callbacks=[clock])
        with contextlib.redirect_stdout(io.StringIO()):
            trainer.train()
    return clock.seconds[1:]


class _Inputs:
    """What our loop makes of its batches, with labels, as Trainer takes it."""

    def __init__(self, run: Run) -> None:
        self._run, self._epoch = run, 0
        self.dataset = run.loaders.train.dataset

    def __len__(self) -> int:
        return len(self._run.loaders.train)

    def __iter__(self) -> Iterator[Any]:
        loaders, device = self._run.loaders, self._run.accelerator.device
        loaders.train.set_epoch(self._epoch)
        for batch in loaders.train:
            inputs, targets, _, _ = loaders.to_inputs(batch, device, "train", self._epoch)
            yield {**inputs, "labels": targets}
        self._epoch += 1


class _Clock(TrainerCallback):
    """Seconds of each epoch, until the GPU has finished it."""

    def __init__(self) -> None:
        self.seconds: list[float] = []

    def on_epoch_begin(self, *_: Any, **__: Any) -> None:
        _wait()
        self._started = time.perf_counter()

    def on_epoch_end(self, *_: Any, **__: Any) -> None:
        _wait()
        self.seconds.append(time.perf_counter() - self._started)


def _wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def measured(name: str, settings: dict[str, Any], recipe: str, program: str, scale: Scale) -> Row:
    """Run a program with some settings, in a fresh run."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    solved = settings["strategy"] == "linear_probe" and program == "ours"
    measure: Callable[[Run, Scale], list[float]] = probe_measured if solved else epochs_measured
    with ready_run(settings_of(recipe, settings)) as run:
        seconds = median((trainers_measured if program == "Trainer" else measure)(run, scale))
    peak = torch.cuda.max_memory_allocated() if torch.cuda.is_available() else None
    whole = seconds if solved else seconds * scale.epochs
    return Row(
        name, settings["strategy"], settings["torch_compile"], program, seconds, scale.samples / seconds, whole, peak
    )


def measure_all(scale: Scale, backend: str | None = None) -> list[Row]:
    """All arms of all models, as long as there is time."""
    started, rows = time.perf_counter(), []
    with tempfile.TemporaryDirectory() as folder:
        data = write_data(Path(folder), scale)
        for name, recipe in (("vit-base", "vision"), ("resnet-50", "vision"), ("bert-base", "text")):
            model = Path(folder) / name
            write_model(name, model, scale)
            for strategy, compiles in ARMS:
                if strategy == "lora" and name == "resnet-50":
                    # What most people adapt are the linear layers of transformers.
                    continue
                settings = settings_for(
                    model, recipe, data[recipe], strategy, scale, compiles=compiles, backend=backend
                )
                for program in ("ours", "Trainer"):
                    if time.perf_counter() - started > LATEST_START:
                        print(f"No time left for {name}, {strategy}, {program}.")
                        continue
                    rows.append(measured(name, settings, recipe, program, scale))
                    print(rows[-1], flush=True)
    return rows


def table(rows: list[Row]) -> str:
    """A Markdown table: ours next to Trainer."""
    by_arm: dict[tuple[str, str, bool], dict[str, Row]] = {}
    for row in rows:
        by_arm.setdefault((row.model, row.strategy, row.compiled), {})[row.program] = row
    lines = [
        "| model | strategy | compiled | samples/s, ours | Trainer | training, ours | Trainer | peak, ours | Trainer |",
        "|---|---|---|---:|---:|---:|---:|---:|---:|",
    ]
    for (model, strategy, is_compiled), arm in by_arm.items():
        pair = [arm.get(program) for program in ("ours", "Trainer")]
        cells = [
            *("" if row is None else f"{row.samples_per_second:,.0f}" for row in pair),
            *("" if row is None else f"{row.training_seconds:.2f} s" for row in pair),
            *("" if row is None or row.peak_bytes is None else f"{row.peak_bytes / 2**30:.1f} GiB" for row in pair),
        ]
        lines.append(f"| {model} | {strategy} | {'yes' if is_compiled else 'no'} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    """Measure, print the table, save the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tiny", action="store_true", help="Tiny models, to try the script; on a CPU, too.")
    parser.add_argument("--out", type=Path, default=RESULTS, help="File for the figures.")
    arguments = parser.parse_args()
    if not (arguments.tiny or torch.cuda.is_available()):
        parser.exit(2, "Expected: a GPU\nFound:    none\nDo this:  add --tiny to try the script on a CPU\n")
    transformers.utils.logging.set_verbosity_error()
    scale = TINY if arguments.tiny else Scale()
    # On a CPU, inductor would compile longer than everything else takes.
    rows = measure_all(scale, None if torch.cuda.is_available() else "aot_eager")
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"
    machine = {"device": device, "versions": versions(), **asdict(scale)}
    arguments.out.parent.mkdir(exist_ok=True)
    figures = {"machine": machine, "rows": [asdict(row) for row in rows]}
    arguments.out.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")
    print(table(rows))


if __name__ == "__main__":
    main()
