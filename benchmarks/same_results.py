"""Does a change leave all results as they were, to the last bit?

    python -m benchmarks.same_results freeze BEFORE --checkout PATH_BEFORE
    python -m benchmarks.same_results freeze AFTER --checkout PATH_AFTER --models BEFORE/models
    python -m benchmarks.same_results compare BEFORE AFTER

The recipes of a checkout run as a user runs them, one after the other: the demos, every strategy on images, texts and
pairs of both, and what else changes arithmetic. Of each run stays what it came to, with digests of all saved tensors.
Only runs on one machine with the same versions can be equal to the last bit. Whether it pays to store what frozen
layers make of the samples is measured, and what is stored is computed in other batches, which round otherwise: that
choice is made here by `--cache_frozen`, except in the demos, which run as they are.
"""

import argparse
import csv
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

Record = dict[str, Any]
STRATEGIES = (
    "linear_probe", "partial", "gradual", "lp_ft", "full", "scratch", "bitfit", "lora", "dora", "ia3", "lokr", "adapter"
)  # fmt: skip
# What is compared of results.json, beside metrics by split and numbers by epoch.
COMPARED = ("parameters", "labels", "soup", "best_epoch")
TIMINGS = ("seconds", "frozen_seconds", "samples_per_second")
# What was decided by the clock on frozen layers; other sentences beside it tell how good these are.
DECIDED = "Frozen store:"
# What may explain a difference.
CIRCUMSTANCES = ("versions", "threads", "processes", "frozen_store")
LISTED, LINES_OF_ERROR = 6, 15
# In flags: where the tiny model and the small data sets lie.
MODELS = "{models}"
RECIPES = {"image": "vision", "text": "text", "pair": "multimodal"}
DEMOS = {"digits": "image", "intents": "text", "glyph_names": "pair"}
TINY: dict[str, dict[str, Any]] = {
    "image": {
        "model_name_or_path": "sample:vit-glyphs", "dataset_name": "sample:digits", "max_train_samples_per_class": 3,
        "num_train_epochs": 3, "cache_frozen": "off", "per_device_train_batch_size": 8,
    },
    "text": {
        "model_name_or_path": f"{MODELS}/bert", "dataset_name": "sample:intents", "max_train_samples_per_class": 4,
        "num_train_epochs": 3, "cache_frozen": "off",
    },
    "pair": {
        "image_model_name_or_path": "sample:vit-glyphs", "text_model_name_or_path": f"{MODELS}/bert",
        "dataset_name": f"{MODELS}/pairs", "max_train_samples_per_class": 4,
        "num_train_epochs": 2, "cache_frozen": "off", "per_device_train_batch_size": 8,
    },
}  # fmt: skip
# Classes of different size, and a picture that cannot be read.
UNEVEN = {"dataset_name": f"{MODELS}/pictures", "on_bad_sample": "skip", "max_train_samples_per_class": 1000}
VARIANTS: dict[str, dict[str, Any]] = {
    "image-full-smoothed": {"label_smoothing_factor": 0.1},
    "image-full-balanced": UNEVEN | {"class_weights": "balanced", "label_smoothing_factor": 0.1},
    "image-full-mixup": {"mixup_alpha": 0.2},
    "image-full-cutmix": {"cutmix_alpha": 1.0},
    "image-full-standard": {"augmentation": "standard"},
    "image-full-average": {"ema_decay": 0.9, "soup_size": 2},
    "image-full-soup": {"soup_size": 3, "learning_rate": 2e-3, "num_train_epochs": 8},
    "image-full-accumulation": {"gradient_accumulation_steps": 2},
    "image-full-bf16": {"bf16": True},
    "image-full-resnet": {"model_name_or_path": "sample:resnet-glyphs"},
    "image-full-bad": UNEVEN,
    "image-partial-stored": {"cache_frozen": "on"},
    "image-linear_probe-balanced": UNEVEN | {"class_weights": "balanced"},
    "image-linear_probe-svm": {"probe": "svm"},
    "image-linear_probe-knn": {"probe": "knn", "feature_layers": [1, 2]},
    "text-full-plain": {"rdrop_alpha": 0},
    "text-lora-rdrop": {"rdrop_alpha": 1},
    "text-full-mean": {"pooling": "mean"},
    "text-full-pull": {"l2_sp": 0.01, "layer_lr_decay": 0.9},
    "text-full-short": {"max_seq_length": 8},
    "text-full-recomputed": {"gradient_checkpointing": True},
    "text-full-linear": {"lr_scheduler_type": "linear", "warmup_steps": 3, "head_learning_rate": 0.01,
                         "metric_for_best_model": "loss", "train_sampling_strategy": "random"},
    "text-lora-merged": {"merge_adapter": True},
    "text-gradual-patience": {"early_stopping_patience": 1, "num_train_epochs": 8, "learning_rate": 0.03},
    "text-partial-stored": {"cache_frozen": "on"},
    "pair-linear_probe-gated": {"fusion": "gated", "image_strategy": "lora", "text_strategy": "partial"},
    "pair-full-plain": {"augmentation": "none", "modality_dropout": 0, "auxiliary_weight": 0},
    "pair-full-product": {"fusion": "product"},
    "pair-full-attention": {"fusion": "attention"},
    "pair-linear_probe-stored": {"cache_frozen": "on"},
}  # fmt: skip
# What a solved head does not read: newer versions refuse it.
STEPWISE = ("num_train_epochs", "per_device_train_batch_size")
IN_TWO_PROCESSES = ("image-full", "image-linear_probe", "text-lora")

LETTERS, OTHER_SIGNS = "abcdefghijklmnopqrstuvwxyz", "0123456789.,;:!?'\"()-&%$#*+=/@_"
SHAPES, COLOURS, SIDE = ("bar", "pole", "box"), ("red", "blue"), 16
# Rows of the first shape, of which the others have a half and a quarter; and rows of pairs.
PICTURES = {"train": 72, "validation": 24, "test": 32}
PAIRS = {"train": 60, "validation": 24, "test": 36}


@dataclass(frozen=True)
class Run:
    """A run of a recipe: what its record is called, the recipe with its flags, and how many processes train."""

    name: str
    recipe: str
    flags: Mapping[str, Any]
    processes: int = 1

    def command(self, models: Path, scratch: Path) -> list[str]:
        """The command line, in a checkout; its cache and its output lie in `scratch`."""
        start = [sys.executable]
        if self.processes > 1:
            start += ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={self.processes}"]
        arguments: list[str] = []
        for name, value in {**self.flags, "cache_dir": scratch / "cache", "output_dir": scratch / "out"}.items():
            values = value if isinstance(value, list) else [value]
            arguments += [f"--{name}", *(str(one).replace(MODELS, str(models)) for one in values)]
        return [*start, f"recipes/{self.recipe}.py", *arguments]


def runs() -> list[Run]:
    """All runs, in the order in which they are done."""
    tiny = {f"{kind}-{strategy}": {**TINY[kind], "strategy": strategy} for kind in TINY for strategy in STRATEGIES}
    for name, flags in VARIANTS.items():
        tiny[name] = tiny[name.rpartition("-")[0]] | flags
    for name, flags in tiny.items():
        if flags["strategy"] == "linear_probe" and not name.startswith("pair"):
            tiny[name] = {flag: value for flag, value in flags.items() if flag not in STEPWISE}
    all_runs = [Run(name, RECIPES[name.partition("-")[0]], flags) for name, flags in tiny.items()]
    together = [run for run in all_runs if run.name in IN_TWO_PROCESSES]
    all_runs += [Run(f"{run.name}-two-processes", run.recipe, run.flags, processes=2) for run in together]
    demos = {name: {"config": f"recipes/configs/{name}.yaml"} for name in DEMOS}
    return all_runs + [Run(f"demo-{name}", RECIPES[DEMOS[name]], flags) for name, flags in demos.items()]


def is_wanted(name: str, patterns: Sequence[str]) -> bool:
    """Whether a name matches one of the patterns; all do if there is none."""
    return not patterns or any(fnmatch(name, pattern) for pattern in patterns)


def make_models(folder: Path) -> None:
    """Write the tiny model and the small data sets, always the same ones; whole or not at all."""
    partial = folder.with_name(f"{folder.name}-partial")
    shutil.rmtree(partial, ignore_errors=True)
    write_bert(partial / "bert")
    write_pictures(partial / "pictures")
    write_pairs(partial / "pairs")
    partial.rename(folder)


def write_bert(folder: Path) -> None:
    """A tiny BERT with random weights, none of them 0 or 1, and a WordPiece tokenizer of one and two letters."""
    import torch
    from transformers import BertConfig, BertModel, BertTokenizer

    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    pieces = [*LETTERS, *OTHER_SIGNS, *(first + second for first in LETTERS for second in LETTERS)]
    words = [*special, *pieces, *(f"##{piece}" for piece in pieces)]
    tokenizer = BertTokenizer(vocab={word: number for number, word in enumerate(words)}, model_max_length=64)
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(words), hidden_size=32, num_hidden_layers=3, num_attention_heads=2, intermediate_size=64,
        max_position_embeddings=64, initializer_range=0.2,
    )  # fmt: skip
    model = BertModel(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.05)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def picture(shape: str, generator: np.random.Generator) -> Image.Image:
    """A bright shape on a dark ground, in noise."""
    pixels = generator.integers(0, 200, (SIDE, SIDE))
    rows = slice(None) if shape == "pole" else slice(5, 11)
    columns = slice(None) if shape == "bar" else slice(5, 11)
    pixels[rows, columns] += 55
    return Image.fromarray(pixels.astype(np.uint8))


def write_pictures(folder: Path) -> None:
    """Folders of pictures by split and class; one for training ends in the middle."""
    generator = np.random.default_rng(1)
    for split, count in PICTURES.items():
        for place, shape in enumerate(SHAPES):
            (folder / split / shape).mkdir(parents=True)
            for number in range(count >> place):
                picture(shape, generator).save(folder / split / shape / f"{number:02d}.png")
    broken = folder / "train" / SHAPES[1] / "17.png"
    broken.write_bytes(broken.read_bytes()[: broken.stat().st_size // 2])


def write_pairs(folder: Path) -> None:
    """Tables of pictures and texts, which tell the class together; some rows have only one of them."""
    generator = np.random.default_rng(2)
    for split, count in PAIRS.items():
        (folder / split).mkdir(parents=True)
        rows = [["file_name", "text", "label"]]
        for number in range(count):
            shape, colour = SHAPES[number % 3], COLOURS[number // 3 % 2]
            if file := "" if number % 10 == 7 else f"{number:02d}.png":
                picture(shape, generator).save(folder / split / file)
            text = f"number {generator.integers(1000)} in {split} is of a {colour} colour"
            rows.append([file, "" if number % 10 == 3 else text, f"{colour} {shape}"])
        with (folder / split / "metadata.csv").open("w", encoding="utf-8", newline="") as table:
            csv.writer(table, lineterminator="\n").writerows(rows)


def freeze(folder: Path, checkout: Path, given: Path | None, patterns: Sequence[str]) -> bool:
    """Run what has no record in the folder yet, and write one for each run; whether all of them ended well."""
    folder.mkdir(parents=True, exist_ok=True)
    refuse_other_code(checkout)
    models = given or folder / "models"
    if not given and not models.is_dir():
        make_models(models)
    wanted = [run for run in runs() if is_wanted(run.name, patterns)]
    missing = [run for run in wanted if not (folder / f"{run.name}.json").is_file()]
    print(f"{len(wanted)} runs, {len(wanted) - len(missing)} of them recorded earlier", flush=True)
    began, failed = time.perf_counter(), 0
    for run in missing:
        started = time.perf_counter()
        error = record(run, folder, checkout, models.resolve())
        failed += error is not None
        print(f"{run.name}: {error or f'{time.perf_counter() - started:.1f} s'}", flush=True)
    print(f"{len(missing) - failed} recorded, {failed} failed, {time.perf_counter() - began:.0f} s in all")
    return failed == 0


def record(run: Run, folder: Path, checkout: Path, models: Path) -> str | None:
    """Run it in a folder of its own, and write its record; the end of what it said if it failed."""
    with tempfile.TemporaryDirectory() as name:
        scratch = Path(name)
        around = surroundings(checkout, run.processes) | {"HF_HOME": str(scratch / "home")}
        ended = subprocess.run(
            run.command(models, scratch), cwd=checkout, env=around, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            text=True, check=False,
        )  # fmt: skip
        if ended.returncode:
            return "\n".join([f"exit code {ended.returncode}", *ended.stdout.splitlines()[-LINES_OF_ERROR:]])
        record = recorded(scratch / "out")
    partial = folder / f".{run.name}-partial"
    partial.write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    partial.replace(folder / f"{run.name}.json")
    return None


def surroundings(checkout: Path, processes: int = 1) -> dict[str, str]:
    """Environment of a run: the checkout's code, one thread for each process, no network."""
    fixed = {"PYTHONPATH": str(checkout), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    return {**os.environ, **fixed, **({"ACCELERATE_USE_CPU": "1"} if processes > 1 else {})}


def refuse_other_code(checkout: Path) -> None:
    """Stop if the package that is imported is not that of the checkout."""
    asking = [sys.executable, "-c", "import hf_transfer; print(hf_transfer.__file__)"]
    imported = subprocess.check_output(asking, cwd=checkout, env=surroundings(checkout), text=True).strip()
    if not Path(imported).resolve().is_relative_to(checkout):
        sys.exit(f"Expected: hf_transfer from {checkout}\nFound:    {imported}\nDo this:  name a checkout")


def recorded(out: Path) -> Record:
    """What is kept of a finished run: results without timings, and digests of the saved weights."""
    results = json.loads((out / "results.json").read_text(encoding="utf-8"))
    model = out / "model"
    weights = {path.relative_to(model).as_posix(): weights_of(path) for path in sorted(model.rglob("*.safetensors"))}
    return {
        "metrics": results["metrics"],
        "history": [{name: row[name] for name in row if name not in TIMINGS} for row in results["history"]],
        **{name: results[name] for name in COMPARED},
        "probes": [note for note in results["frozen_store"] if not note.startswith(DECIDED)],
        "files": weights,
        "circumstances": {name: results.get(name) for name in CIRCUMSTANCES},
    }


def weights_of(path: Path) -> Record:
    """Digest of a safetensors file, and digest, type and shape of each tensor in it."""
    content = path.read_bytes()
    start = 8 + int.from_bytes(content[:8], "little")
    header, body = json.loads(content[8:start]), content[start:]
    tensors = {
        name: {"sha256": sha256(body[slice(*entry.pop("data_offsets"))]).hexdigest(), **entry}
        for name, entry in sorted(header.items()) if name != "__metadata__"
    }  # fmt: skip
    return {"sha256": sha256(content).hexdigest(), "tensors": tensors}


def compare(before: Path, after: Path, patterns: Sequence[str]) -> bool:
    """Print for each run whether two folders of records agree; whether all of them do, and there are some."""
    names = sorted({path.stem for folder in (before, after) for path in folder.glob("*.json")})
    names = [name for name in names if is_wanted(name, patterns)]
    different = 0
    for name in names:
        lines = differences([folder / f"{name}.json" for folder in (before, after)])
        different += bool(lines)
        print("\n  ".join([f"{name}: {'differs' if lines else 'equal'}", *lines]))
    print(f"{len(names) - different} of {len(names)} runs are equal")
    return bool(names) and not different


def differences(paths: Sequence[Path]) -> list[str]:
    """What sets two records apart, in lines; none if they are equal."""
    if missing := [path for path in paths if not path.is_file()]:
        return [f"no record {path}" for path in missing]
    before, after = (json.loads(path.read_text(encoding="utf-8")) for path in paths)
    changes = [*some(changed_values(numbers(before), numbers(after))), *changed_files(before["files"], after["files"])]
    return changes and [*changes, *changed_values(flat(before["circumstances"]), flat(after["circumstances"]))]


def numbers(one: Record) -> Record:
    """All that is compared of a record, but for its files, by names that say where it stands."""
    epochs = {f"epoch {number}": row for number, row in enumerate(one["history"], start=1)}
    return flat({"metrics": one["metrics"], **{name: one[name] for name in (*COMPARED, "probes")}, **epochs})


def flat(value: Any, name: str = "") -> Record:
    """Single values by their path through mappings and lists."""
    if isinstance(value, list):
        value = {str(place): item for place, item in enumerate(value)}
    if not isinstance(value, dict):
        return {name: value}
    return {path: item for key, part in value.items() for path, item in flat(part, f"{name} {key}".strip()).items()}


def changed_values(before: Record, after: Record) -> list[str]:
    """A line for each value that is another, or in one of both alone."""
    lines = []
    for name in dict.fromkeys([*before, *after]):
        values = [record.get(name, "nothing") for record in (before, after)]
        # As written: a number that is none is equal to itself.
        if repr(values[0]) == repr(values[1]):
            continue
        both = all(isinstance(value, int | float) for value in values)
        by = f" (by {values[1] - values[0]:+.3g})" if both else ""
        lines.append(f"{name}: {values[0]} -> {values[1]}{by}")
    return lines


def changed_files(before: Record, after: Record) -> list[str]:
    """Lines on files of weights that differ, down to their tensors."""
    lines = []
    for name in sorted({*before, *after}):
        if name not in before or name not in after:
            lines.append(f"{name}: only {'before' if name in before else 'after'}")
        elif before[name]["sha256"] != after[name]["sha256"]:
            lines += [f"{name}: {line}" for line in changed_tensors(before[name]["tensors"], after[name]["tensors"])]
    return lines


def changed_tensors(before: Record, after: Record) -> list[str]:
    """How two files of other bytes differ."""
    groups = {
        f"of {len(before)} tensors differ": [name for name in before if before[name] != after.get(name, before[name])],
        "only before": [name for name in before if name not in after],
        "only after": [name for name in after if name not in before],
    }
    lines = [f"{len(names)} {change}: {', '.join(some(names))}" for change, names in groups.items() if names]
    return lines or ["equal tensors, in another order or beside other notes"]


def some(lines: Sequence[str]) -> list[str]:
    """The first ones, and how many there are more."""
    more = len(lines) - LISTED
    return [*lines[:LISTED], *([f"and {more} more"] if more > 0 else [])]


def main() -> None:
    """Freeze or compare; exit code 1 if a run failed, or if anything differs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    one = commands.add_parser("freeze", help="Run the recipes of a checkout, and record what they come to.")
    one.add_argument("folder", type=Path, help="Where the records go; runs that have one are not repeated.")
    one.add_argument("--checkout", type=Path, required=True, help="The working tree whose recipes run.")
    one.add_argument("--models", type=Path, help="The models of another freeze (default: FOLDER/models, made anew).")
    two = commands.add_parser("compare", help="Compare the records of two folders.")
    two.add_argument("before", type=Path, help="A folder of records.")
    two.add_argument("after", type=Path, help="Another one.")
    for command in (one, two):
        command.add_argument("--only", nargs="+", default=[], metavar="PATTERN", help="Only these, as in 'image-*'.")
    asked = parser.parse_args()
    if asked.command == "freeze":
        sys.exit(not freeze(asked.folder, asked.checkout.resolve(), asked.models, asked.only))
    sys.exit(not compare(asked.before, asked.after, asked.only))


if __name__ == "__main__":
    main()
