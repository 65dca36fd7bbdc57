"""Answers one picture or text with a model in ONNX format, without torch and transformers.

    python serve.py PICTURE
    python serve.py TEXT [SECOND TEXT]
    python serve.py PICTURE TEXT            ("" for a picture or a text that is missing)

It needs onnxruntime and numpy, for pictures also pillow, for texts also tokenizers. All else is in the model's file.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

FOLDER = Path(__file__).parent


def pixels(path: str, how: dict[str, Any]) -> np.ndarray[Any, Any]:
    """Model inputs of a picture [1, 3, height, width], decoded and resized as in training."""
    from PIL import Image
    from resizing import Resizing  # type: ignore[import-not-found]

    from levels import deep_picture, upright

    with Image.open(path) as picture:
        if how["decoded_side"]:
            picture.draft(None, (how["decoded_side"], how["decoded_side"]))
        deep = deep_picture(picture)
        whole = upright(picture).convert("RGB") if deep is None else deep.in_eight_bits(how["largest_pixel_value"])
    size = tuple(how["size"]) if isinstance(how["size"], list) else how["size"]
    small = Resizing(size, how["resample"], how["crop"], how["rounds_crop"])(whole)[None].astype(np.float32)
    scale, shift = (np.array(how[name], np.float32)[:, None, None] for name in ("scale", "shift"))
    return small * scale + shift  # type: ignore[no-any-return]


def tokens(texts: list[str], how: dict[str, Any]) -> dict[str, Any]:
    """Model inputs of a text, or of two [1, tokens]."""
    from tokenizers import Tokenizer

    text = Tokenizer.from_file(str(FOLDER / "tokenizer.json")).encode(texts[0], texts[1] if texts[1:] else None)
    columns = {"input_ids": text.ids, "attention_mask": text.attention_mask, "token_type_ids": text.type_ids}
    empty = {"input_ids": [how["pad_token_id"]], "attention_mask": [1], "token_type_ids": [0]}
    return {name: np.array([column or empty[name]], np.int64) for name, column in columns.items()}


def answer(outputs: np.ndarray[Any, Any], about: dict[str, Any], top: int) -> dict[str, Any]:
    """Names with scores, the highest first; and labels that reach their thresholds, or intervals of numbers."""
    names, values = about["labels"], outputs.astype(np.float64)
    more: dict[str, Any] = {}
    if about["activation"] == "softmax":
        values = np.exp(values - values.max())
        values /= values.sum()
    elif about["activation"] == "sigmoid":
        values = 1 / (1 + np.exp(-values))
        limits = about.get("thresholds") or [0.5] * len(names)
        more["labels"] = [name for name, value, limit in zip(names, values, limits, strict=True) if value >= limit]
    elif interval := about.get("prediction_interval"):
        widths = zip(names, values, interval["half_widths"], strict=True)
        more["intervals"] = {name: [value - width, value + width] for name, value, width in widths}
    order = np.argsort(-values, kind="stable")[:top] if about["activation"] else range(len(names))
    return {**more, about["answered_as"]: {names[place]: float(values[place]) for place in order}}


def main() -> None:
    """Print the answer to one sample as a line of JSON."""
    parser = argparse.ArgumentParser(description="Answer one picture or text.")
    parser.add_argument("sample", nargs="+", help="A picture, a text, two texts, or a picture and a text.")
    parser.add_argument("--top", type=int, default=3, help="Number of labels to print (default: 3).")
    parser.add_argument("--model", default="model.onnx", help="The file in this folder (default: model.onnx).")
    arguments = parser.parse_args()
    session = onnxruntime.InferenceSession(FOLDER / arguments.model, providers=["CPUExecutionProvider"])
    about = json.loads(session.get_modelmeta().custom_metadata_map["hf_transfer"])
    parts, how = list(arguments.sample), about["preprocessing"]
    if len(parts) != (count := len(how) + bool(how.get("tokens", {}).get("pair"))):
        parser.error(f"this model takes {count} parts of a sample, not {len(parts)}")
    inputs: dict[str, Any] = {}
    if "pixels" in how:
        path = parts.pop(0)
        shape = [1, *next(one.shape for one in session.get_inputs() if one.name == "pixel_values")[1:]]
        inputs["pixel_values"] = pixels(path, how["pixels"]) if path else np.zeros(shape, np.float32)
        inputs["image_present"] = np.array([bool(path)])
    if "tokens" in how:
        inputs |= tokens(parts, how["tokens"])
        inputs["text_present"] = np.array([bool(parts[0].strip())])
    taken = {one.name: inputs[one.name] for one in session.get_inputs()}
    print(json.dumps(answer(session.run(None, taken)[0][0], about, arguments.top), ensure_ascii=False))


if __name__ == "__main__":
    main()
