"""How a finished model is used: a few lines of Python for its card."""

import json
from pathlib import Path
from typing import Any

from hf_transfer.modalities.modality import Modality
from hf_transfer.strategies.adapter_files import is_adapter_folder

# Stands in a card for the model's name on the Hub, until it has one.
NOWHERE = "OWNER/NAME"
EXAMPLES = {"image-classification": '"picture.png"', "text-classification": '"a text"'}

WHOLE = """from transformers import pipeline

classify = pipeline("{task}", "{name}"{trust})
print(classify({example}))
"""
PAIRS = """from transformers import AutoModel

# The 40 digits of the commit whose code you have read. With hf_transfer installed no code of the model is run:
# from hf_transfer import FusionModel; model = FusionModel.from_pretrained("{name}")
model = AutoModel.from_pretrained("{name}", revision="COMMIT", trust_remote_code=True)
print(model.predict(image="picture.png", text="a text"))
print(model.predict(text="a text"), model.predict(image="picture.png"))
"""
ADAPTED_IMAGES = """from peft import AutoPeftModel
from PIL import Image, ImageOps
from transformers import AutoConfig, AutoImageProcessor

labels = AutoConfig.from_pretrained("{name}").id2label
model = AutoPeftModel.from_pretrained("{name}", num_labels=len(labels), ignore_mismatched_sizes=True).eval()
picture = ImageOps.exif_transpose(Image.open({example})).convert("RGB")
inputs = AutoImageProcessor.from_pretrained("{name}")(picture, return_tensors="pt")
print(labels[model(**inputs).logits.argmax().item()])
"""
ADAPTED_TEXTS = """from peft import AutoPeftModelForSequenceClassification as AutoPeftModel
from transformers import AutoConfig, AutoTokenizer

labels = AutoConfig.from_pretrained("{name}").id2label
model = AutoPeftModel.from_pretrained("{name}", num_labels=len(labels), ignore_mismatched_sizes=True).eval()
inputs = AutoTokenizer.from_pretrained("{name}")({example}, truncation=True, return_tensors="pt")
print(labels[model(**inputs).logits.argmax().item()])
"""
# A modality that transformers has no pipeline for.
WITH_THIS_PACKAGE = """import hf_transfer

predict = hf_transfer.load("{name}")
print(predict([sample]))
"""


def lines_of_python(model: Path, modality: Modality[Any], *, pairs: bool, name: str = NOWHERE) -> str:
    """A program that classifies one example with a model from the Hub.

    Args:
        model: its folder.
        modality: what a sample is.
        pairs: whether a sample is a pair of texts.
        name: of the model on the Hub.
    """
    task, trust = modality.task, ", trust_remote_code=True" if needs_own_code(model) else ""
    if task == "image-text-classification":
        return PAIRS.format(name=name)
    if not modality.has_pipeline:
        return WITH_THIS_PACKAGE.format(name=name)
    if is_adapter_folder(model):
        program = ADAPTED_IMAGES if task == "image-classification" else ADAPTED_TEXTS
        return program.format(name=name, example='"a text", "another"' if pairs else EXAMPLES[task])
    example = '{"text": "a text", "text_pair": "another"}' if pairs else EXAMPLES[task]
    # A pipeline truncates texts only if it is told to: to the length that is saved with the tokenizer.
    truncated = f"{example}, truncation=True" if task == "text-classification" else example
    return WHOLE.format(name=name, task=task, trust=trust, example=truncated)


def code_file(model: Path) -> str:
    """The file with the model's own code."""
    classes = json.loads((model / "config.json").read_text(encoding="utf-8"))["auto_map"]
    return str(next(iter(classes.values()), "modeling_*")).split(".")[0] + ".py"


def needs_own_code(model: Path) -> bool:
    """Whether transformers has no class for the model, which therefore has its own code."""
    return "auto_map" in json.loads((model / "config.json").read_text(encoding="utf-8"))
