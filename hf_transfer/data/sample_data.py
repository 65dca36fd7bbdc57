"""The data sets of the samples, as they are made or read from the tables of this package."""

import csv
from collections.abc import Callable
from pathlib import Path

import datasets
import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFilter, ImageFont

from hf_transfer.data import digit_samples, intent_samples

TEXT_FOLDER = Path(__file__).parent / "sample_texts"
GLYPHS_PER_CLASS = 160
GLYPH_SEED = 20_001
GLYPH_CANVAS = 64
# Most have the resolution of the digits, some a higher one, so that a backbone learns shapes at several resolutions.
GLYPH_SIZES = (8, 8, 8, 10, 12, 16, 24, 32)
# Lower-case letters only if they differ from their capitals in shape; symbols and Greek letters add other shapes.
GLYPH_CHARACTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZabdefghijmnqrtyαβγδεζηθλμξπρστφψωΓΔΘΛΞΠΣΦΨΩ&@#$%?!+=<>{}[]()/*~^"
GLYPH_STYLES = {
    "DejaVuSans": ("", "-Bold", "-Oblique"),
    "DejaVuSansMono": ("", "-Bold", "-Oblique"),
    "DejaVuSerif": ("", "-Bold", "-Italic"),
    "STIXGeneral": ("", "Bol", "Italic"),
}
GLYPH_FONTS = [family + style for family, styles in GLYPH_STYLES.items() for style in styles]
GLYPH_NAMES_SEED = 30_011


def render_glyph(character: str, font_name: str, generator: np.random.Generator) -> Image.Image:
    """One printed character as a grey image, light on dark, as irregular as handwriting.

    The font is one of those that come with matplotlib. Size, stroke width, slant, rotation, position, sharpness and
    resolution are drawn from `generator`.
    """
    import matplotlib

    font_path = Path(matplotlib.get_data_path(), "fonts", "ttf", f"{font_name}.ttf")
    font = ImageFont.truetype(str(font_path), int(generator.integers(34, 46)))
    canvas = Image.new("L", (GLYPH_CANVAS, GLYPH_CANVAS), 0)
    ImageDraw.Draw(canvas).text(
        (GLYPH_CANVAS / 2, GLYPH_CANVAS / 2), character, fill=255, font=font, anchor="mm",
        stroke_width=int(generator.integers(0, 3)),
    )  # fmt: skip
    canvas = _cropped_to_ink(_warped(canvas, generator), generator)
    canvas = canvas.filter(ImageFilter.GaussianBlur(float(generator.uniform(0.0, 1.2))))
    side = int(generator.choice(GLYPH_SIZES))
    pixels = np.asarray(canvas.resize((side, side), Image.Resampling.BOX), dtype=np.float64)
    contrast = generator.uniform(0.75, 1.0) * 255.0 / max(pixels.max(), 1.0)
    noise = generator.normal(0.0, generator.uniform(0.0, 8.0), pixels.shape)
    return Image.fromarray((pixels * contrast + noise).clip(0, 255).astype(np.uint8))


def _warped(canvas: Image.Image, generator: np.random.Generator) -> Image.Image:
    angle = np.deg2rad(generator.uniform(-15, 15))
    shear = generator.uniform(-0.25, 0.25)
    wide, high = generator.uniform(0.75, 1.35, size=2)
    matrix = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    matrix = matrix @ np.array([[wide, shear], [0.0, high]])
    centre = np.full(2, GLYPH_CANVAS / 2)
    shift = centre - matrix @ centre
    coefficients = (*matrix[0], shift[0], *matrix[1], shift[1])
    return canvas.transform(canvas.size, Image.Transform.AFFINE, coefficients, Image.Resampling.BICUBIC)


def _cropped_to_ink(canvas: Image.Image, generator: np.random.Generator) -> Image.Image:
    """A box around the ink with uneven margins, as in pictures of handwriting."""
    left, top, right, bottom = canvas.getbbox() or (0, 0, *canvas.size)
    margins = generator.uniform(-0.02, 0.18, size=4) * max(right - left, bottom - top)
    box = (left - margins[0], top - margins[1], right + margins[2], bottom + margins[3])
    # A narrow glyph keeps part of its shape: stretched to squares, I and a dash would look the same.
    width, height = box[2] - box[0], box[3] - box[1]
    grow = max(0.0, height * generator.uniform(0.5, 0.9) - width) / 2, max(0.0, width * 0.8 - height) / 2
    box = (box[0] - grow[0], box[1] - grow[1], box[2] + grow[0], box[3] + grow[1])
    return canvas.transform(canvas.size, Image.Transform.EXTENT, box, Image.Resampling.BILINEAR)


def _glyphs() -> datasets.DatasetDict:
    """Printed letters and symbols, and no digits, rendered from the fonts that come with matplotlib."""
    generator = np.random.default_rng(GLYPH_SEED)
    characters = [character for character in GLYPH_CHARACTERS for _ in range(GLYPHS_PER_CLASS)]
    chosen_fonts = generator.choice(len(GLYPH_FONTS), size=len(characters))
    images = [
        render_glyph(character, GLYPH_FONTS[font], generator)
        for character, font in zip(characters, chosen_fonts, strict=True)
    ]
    labels = np.repeat(np.arange(len(GLYPH_CHARACTERS)), GLYPHS_PER_CLASS)
    return _as_dataset(images, labels, list(GLYPH_CHARACTERS))


def _as_dataset(images: list[Image.Image], labels: npt.NDArray[np.int64], names: list[str]) -> datasets.DatasetDict:
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=names)})
    rows = {"image": images, "label": labels.tolist()}
    return datasets.DatasetDict({"train": datasets.Dataset.from_dict(rows, features=features)})


def _intents() -> datasets.DatasetDict:
    """Messages to a small bookshop, written for this project, with the intent of each."""
    features = datasets.Features({"text": datasets.Value("string"), "label": _labels("intents")})
    tables = _tables("intents").items()
    return datasets.DatasetDict({name: datasets.Dataset.from_list(rows, features=features) for name, rows in tables})


def _glyph_names() -> datasets.DatasetDict:
    """Pictures of letters that look the same in three scripts, and texts on where they were seen; some lack one."""
    features = datasets.Features(
        {"image": datasets.Image(), "text": datasets.Value("string"), "label": _labels("glyph-names")}
    )
    splits = {}
    for number, (split, rows) in enumerate(_tables("glyph-names").items()):
        generator = np.random.default_rng((GLYPH_NAMES_SEED, number, GLYPH_CANVAS))
        columns = {
            "image": [
                render_glyph(row["character"], row["font"], generator) if row["character"] else None for row in rows
            ],
            "text": [row["text"] or None for row in rows],
            "label": [row["label"] for row in rows],
        }
        splits[split] = datasets.Dataset.from_dict(columns, features=features)
    return datasets.DatasetDict(splits)


def _intent_sets() -> datasets.DatasetDict:
    return intent_samples.intent_sets(_tables("intents"), _labels("intents").names, TEXT_FOLDER / "intent-sets")


def _intent_deadlines() -> datasets.DatasetDict:
    return intent_samples.intent_deadlines(_tables("intents"), TEXT_FOLDER / "intent-deadlines")


def _tables(name: str) -> dict[str, list[dict[str, str]]]:
    """The rows of each split of a sample that is shipped in tables."""
    tables = {}
    for split in ("train", "validation", "test"):
        with (TEXT_FOLDER / name / f"{split}.csv").open(encoding="utf-8", newline="") as file:
            tables[split] = list(csv.DictReader(file))
    return tables


def _labels(name: str) -> datasets.ClassLabel:
    return datasets.ClassLabel(names=(TEXT_FOLDER / name / "labels.txt").read_text(encoding="utf-8").splitlines())


MAKERS: dict[str, Callable[[], datasets.DatasetDict]] = {
    "digits": digit_samples.digits,
    "glyphs": _glyphs,
    "intents": _intents,
    "glyph-names": _glyph_names,
    "digit-sets": digit_samples.digit_sets,
    "digit-slants": digit_samples.digit_slants,
    "intent-sets": _intent_sets,
    "intent-deadlines": _intent_deadlines,
}
