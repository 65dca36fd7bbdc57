"""What do large photographs cost, and what does decoding them at a fraction of their size change?

    OMP_NUM_THREADS=1 python -m benchmarks.large_photographs PICTURES [MODEL]

120 JPEG files of 8 to 12 megapixels are made of the test pictures of a data set, with a fixed seed: each is a mosaic of
four pictures of one class, enlarged, with the grain of a sensor. Then two things are measured.

Cost: what a run does with the pictures (checks, search for copies, decoding, resizing, storing, and reading all rows
once for training) in its first and in its second start, next to a loop over `Image.draft` and `resize`, once with the
size of the model and once with twice that size, which is what a run decodes. Rounds are interleaved, in an order drawn
at random; the second loop is measured twice (A/A).

Effect: the pixels, the logits of MODEL and the answers of a linear probe, which was trained on the training pictures of
the data set, with all pixels decoded and with 1, 2 and 4 decoded for each one of the model. Beside them stands what
half a grey level more or less in each pixel changes, as another way of rounding would.
"""

import argparse
import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import datasets
import numpy as np
import torch
from PIL import Image
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor, nn

from hf_transfer.data.checked import load_splits
from hf_transfer.data.groups import key_of
from hf_transfer.data.pictures import decode
from hf_transfer.data.rows import encoded_image
from hf_transfer.data.splits import Split
from hf_transfer.modalities.image import ImageModality
from hf_transfer.modalities.image_batches import ImageRows
from hf_transfer.modalities.pixels import PixelPreprocessing
from hf_transfer.models.pretrained import Checkpoint
from hf_transfer.settings.run import VisionConfig

SIZES = ((4000, 3000), (3000, 4000), (3648, 2736), (3264, 2448))
PHOTOGRAPHS = 120
# So many are held in memory, whose parts of the costs are measured.
PARTS_OF = 24
QUALITY, GRAIN = 90, 6.0
ROUNDS = 5
BATCH = 16
FACTORS = (1, 2, 4)
# Inverse strength of the regularisation of the probe.
PENALTY = 0.1
ALL = "all"
RESULTS = Path(__file__).parent / "results" / "large_photographs.json"
Loop = Callable[[], object]


def photographs(test: Split, folder: Path) -> Split:
    """Mosaics of the pictures of a split, in files, with the classes of these pictures."""
    generator = np.random.default_rng(0)
    grain = generator.normal(0, GRAIN, (4000, 4000, 1)).astype(np.float32)
    paths, targets = [], []
    for number in range(PHOTOGRAPHS):
        width, height = SIZES[number % len(SIZES)]
        target = int(test.targets[number * len(test) // PHOTOGRAPHS])
        chosen = generator.choice(test.rows[test.targets == target], 4)
        mosaic = Image.new("RGB", (width, height))
        for place, row in enumerate(chosen.tolist()):
            part = decode(encoded_image(test, row)).resize((width // 2, height // 2), Image.Resampling.LANCZOS)
            mosaic.paste(part, (place % 2 * (width // 2), place // 2 * (height // 2)))
        shift = int(generator.integers(0, 1000))
        noisy = np.asarray(mosaic, np.float32) + np.roll(grain, shift)[:height, :width]
        path = folder / f"{number:03}.jpg"
        Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(path, quality=QUALITY)
        paths.append(path)
        targets.append(target)
    features = datasets.Features({"image": datasets.Image(decode=False)})
    table = datasets.Dataset.from_dict({"image": [{"bytes": None, "path": str(path)} for path in paths]}, features)
    return Split(table, np.arange(len(paths)), np.asarray(targets))


def whole_run(split: Split, preprocessing: PixelPreprocessing, cache: Path) -> None:
    """What a run does with its pictures, up to the pixels of every row."""
    config = VisionConfig.of(
        dataset_name="photographs", model_name_or_path="model", output_dir="out", cache_dir=str(cache)
    )
    modality = ImageModality().for_run(preprocessing, config)
    checked = modality.checked(split, "train", config)
    modality.keys(checked, config)
    modality.copies({"train": checked, "test": checked})
    rows = ImageRows(checked, preprocessing, keep_bytes=0, kept=modality._kept)
    for position in range(len(rows)):
        rows[position]["pixel_values"].sum()


def by_hand(paths: Sequence[Path], side: int, decoded_side: int | None) -> None:
    """`Image.draft` and `resize`, as anybody would write it; None: all pixels are decoded."""
    for path in paths:
        with Image.open(path) as picture:
            if decoded_side is not None:
                picture.draft("RGB", (decoded_side, decoded_side))
            np.asarray(resized(picture.convert("RGB"), side)).sum()


def decoded(path: Path, side: int) -> Image.Image:
    """A photograph with at least so many pixels of each side."""
    with Image.open(path) as picture:
        picture.draft("RGB", (side, side))
        picture.load()
        return picture


def milliseconds_of_parts(paths: Sequence[Path], side: int, rounds: int) -> dict[str, float]:
    """Of the processor, for one photograph: the median of rounds over those photographs that fit into memory."""
    paths = paths[:PARTS_OF]
    contents = [path.read_bytes() for path in paths]
    pictures = {factor: [decoded(path, factor * side) for path in paths] for factor in (1, 2)}
    # By the number of a photograph; what comes out is dropped, so that its memory is used again.
    parts: dict[str, Callable[[int], object]] = {
        "decoding, once the size": lambda number: decoded(paths[number], side),
        "decoding, twice the size": lambda number: decoded(paths[number], 2 * side),
        "resizing, once the size": lambda number: resized(pictures[1][number], side),
        "resizing, twice the size": lambda number: resized(pictures[2][number], side),
        "the hash of a file": lambda number: key_of(contents[number]),
        "reading a file as a whole": lambda number: paths[number].read_bytes(),
    }
    seconds: dict[str, list[float]] = {name: [] for name in parts}
    for round_number in range(rounds):
        for name in np.random.default_rng(round_number).permutation(list(parts)).tolist():
            start = time.process_time()
            for number in range(len(paths)):
                parts[name](number)
            seconds[name].append(time.process_time() - start)
    return {name: 1000 * median(one) / len(paths) for name, one in seconds.items()}


def resized(picture: Image.Image, side: int) -> Image.Image:
    return picture.resize((side, side), Image.Resampling.BICUBIC)


def costs(split: Split, preprocessing: PixelPreprocessing, folder: Path, rounds: int) -> dict[str, Any]:
    """Seconds of the processor and of the clock for all photographs, by what was measured [rounds]."""
    paths, side = [Path(encoded_image(split, row)["path"]) for row in split.rows.tolist()], preprocessing.shape[1]
    caches = iter(folder / f"cache-{number}" for number in range(rounds + 1))
    warm = next(caches)
    whole_run(split, preprocessing, warm)
    loops: dict[str, Loop] = {
        "all pixels": lambda: by_hand(paths, side, None),
        "draft, once the size": lambda: by_hand(paths, side, side),
        "draft, twice the size": lambda: by_hand(paths, side, 2 * side),
        "draft, twice the size (A/A)": lambda: by_hand(paths, side, 2 * side),
        "run, first": lambda: whole_run(split, preprocessing, next(caches)),
        "run, second": lambda: whole_run(split, preprocessing, warm),
    }
    seconds: dict[str, dict[str, list[float]]] = {name: {"processor": [], "clock": []} for name in loops}
    for number in range(rounds):
        for name in np.random.default_rng(number).permutation(list(loops)).tolist():
            start = time.process_time(), time.perf_counter()
            loops[name]()
            seconds[name]["processor"].append(time.process_time() - start[0])
            seconds[name]["clock"].append(time.perf_counter() - start[1])
    return seconds


@torch.inference_mode()
def logits_and_features(model: nn.Module, pixels: Tensor, preprocessing: PixelPreprocessing) -> tuple[Tensor, Tensor]:
    """Logits [pictures, classes] and what enters the last layer [pictures, features]."""
    entering: list[Tensor] = []
    last = [layer for layer in model.modules() if isinstance(layer, nn.Linear)][-1]
    handle = last.register_forward_hook(lambda _, inputs, __: entering.append(inputs[0]))
    batches = (preprocessing.normalise(batch.float()) for batch in pixels.split(BATCH))
    logits = torch.cat([model(pixel_values=batch).logits for batch in batches])
    handle.remove()
    return logits, torch.cat(entering)


def effects(
    model: nn.Module, train: Split, split: Split, preprocessing: PixelPreprocessing
) -> dict[str, dict[str, float]]:
    """What fewer decoded pixels change, by how many there are for each one of the model."""
    side, kept = max(preprocessing.shape[1:]), preprocessing.least_side
    pixels: dict[str, Tensor] = {}
    for name, factor in {ALL: None, **{str(one): one for one in FACTORS}}.items():
        preprocessing.least_side = None if factor is None else factor * side
        rows = [preprocessing.read(encoded_image(split, row)) for row in split.rows.tolist()]
        pixels[name] = torch.stack(rows).float()
    preprocessing.least_side = kept
    signs = torch.randint(0, 2, pixels[ALL].shape, generator=torch.Generator().manual_seed(0)) - 0.5
    pixels[f"{ALL}, half a grey level more or less"] = pixels[ALL] + signs
    small = torch.stack([preprocessing.read(encoded_image(train, row)) for row in train.rows.tolist()])
    features = logits_and_features(model, small, preprocessing)[1].numpy()
    probe = make_pipeline(StandardScaler(), LogisticRegression(C=PENALTY, max_iter=2000)).fit(features, train.targets)
    outputs = {name: logits_and_features(model, one, preprocessing) for name, one in pixels.items()}
    answers = {name: probe.predict(entering.numpy()) for name, (_, entering) in outputs.items()}
    whole = outputs[ALL][0]
    return {
        name: {
            "mean difference of pixels": float((pixels[name] - pixels[ALL]).abs().mean()),
            "largest difference of pixels": float((pixels[name] - pixels[ALL]).abs().max()),
            "difference of logits": float((logits - whole).pow(2).mean().sqrt() / whole.std()),
            "same first class": float((logits.argmax(1) == whole.argmax(1)).float().mean()),
            "same answer of the probe": float((answers[name] == answers[ALL]).mean()),
            "accuracy of the probe": float((answers[name] == split.targets).mean()),
        }
        for name, (logits, _) in outputs.items()
    }


def table_of_costs(seconds: dict[str, Any]) -> str:
    """Medians, and the ratio of the processor's seconds to those of `draft` with twice the size, round by round."""
    reference = seconds["draft, twice the size"]["processor"]
    lines = ["| what | processor, s | clock, s | against draft, twice the size |", "|---|---:|---:|---:|"]
    for name, one in seconds.items():
        ratio = median(mine / theirs for mine, theirs in zip(one["processor"], reference, strict=True))
        lines.append(f"| {name} | {median(one['processor']):.2f} | {median(one['clock']):.2f} | {ratio:.2f} |")
    return "\n".join(lines)


def table_of_effects(rows: dict[str, dict[str, float]]) -> str:
    """By how many pixels are decoded for each one of the model."""
    lines = [
        "| decoded for each pixel | pixels: mean, largest | logits | same first class | probe: same answer, accuracy |",
        "|---|---:|---:|---:|---:|",
    ]
    for name, one in rows.items():
        lines.append(
            f"| {name} | {one['mean difference of pixels']:.2f}, {one['largest difference of pixels']:.3g} "
            f"| {one['difference of logits']:.1%} | {one['same first class']:.1%} "
            f"| {one['same answer of the probe']:.1%}, {one['accuracy of the probe']:.1%} |"
        )
    return "\n".join(lines)


def main() -> None:
    """Measure, print the tables, and write the raw figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pictures", help="A data set of pictures with classes, as --dataset_name takes it.")
    parser.add_argument(
        "model", nargs="?", default="sample:efficientnet-lite0",
        help="A pretrained model with a head, as --model_name_or_path takes it [%(default)s].",
    )  # fmt: skip
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    with TemporaryDirectory() as name:
        folder = Path(name)
        config = VisionConfig.of(
            dataset_name=arguments.pictures, model_name_or_path=arguments.model, output_dir="out",
            cache_dir=str(folder / "cache"), label_column_name="label",
        )  # fmt: skip
        splits, checkpoint = load_splits(config, ImageModality()), Checkpoint(arguments.model)
        preprocessing = PixelPreprocessing(checkpoint.processor())
        (folder / "photographs").mkdir()
        split = photographs(splits.test, folder / "photographs")
        files = sorted((folder / "photographs").iterdir())
        content: dict[str, Any] = {
            "photographs": len(files), "bytes": sum(file.stat().st_size for file in files), "sizes": SIZES,
            "seconds": costs(split, preprocessing, folder, arguments.rounds),
            "milliseconds": milliseconds_of_parts(files, preprocessing.shape[1], arguments.rounds),
        }  # fmt: skip
        print(table_of_costs(content["seconds"]), flush=True)
        print("\n".join(f"{name}: {value:.2f} ms" for name, value in content["milliseconds"].items()), flush=True)
        model = checkpoint.finished_classifier().eval()
        content["effects"] = effects(model, splits.train, split, preprocessing)
    print(f"\n{table_of_effects(content['effects'])}")
    RESULTS.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
