"""How a finished model is used where hf_transfer is not installed, as a few lines of Python for its card."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hf_transfer.strategies.adapter_files import is_adapter_folder

# Stands in a card for the name that the model has on the Hub, until it has one.
NOWHERE = "OWNER/NAME"
EXAMPLES = {"image-classification": '"picture.png"', "text-classification": '"a text"'}
PAIR = '{"text": "a text", "text_pair": "another"}'

WHOLE = """from transformers import pipeline

classify = pipeline("{task}", "{name}"{trust})
print(classify({example}))
"""
PAIRS = """from transformers import AutoModel

# The 40 digits of the commit whose code you have read. With hf_transfer installed nothing of it is run:
# from hf_transfer import FusionModel; model = FusionModel.from_pretrained("{name}")
model = AutoModel.from_pretrained("{name}", revision="COMMIT", trust_remote_code=True)
print(model.predict(image="picture.png", text="a text"))
print(model.predict(text="a text"), model.predict(image="picture.png"))
"""
ADAPTED_IMAGES = """from peft import AutoPeftModel
from PIL import Image
from transformers import AutoConfig, AutoImageProcessor

labels = AutoConfig.from_pretrained("{name}").id2label
model = AutoPeftModel.from_pretrained("{name}", num_labels=len(labels), ignore_mismatched_sizes=True).eval()
inputs = AutoImageProcessor.from_pretrained("{name}")(Image.open({example}).convert("RGB"), return_tensors="pt")
print(labels[model(**inputs).logits.argmax().item()])
"""
ADAPTED_TEXTS = """from peft import AutoPeftModelForSequenceClassification as AutoPeftModel
from transformers import AutoConfig, AutoTokenizer

labels = AutoConfig.from_pretrained("{name}").id2label
model = AutoPeftModel.from_pretrained("{name}", num_labels=len(labels), ignore_mismatched_sizes=True).eval()
inputs = AutoTokenizer.from_pretrained("{name}")({example}, return_tensors="pt")
print(labels[model(**inputs).logits.argmax().item()])
"""


def lines_of_python(model: Path, task: str, settings: Mapping[str, Any], name: str = NOWHERE) -> str:
    """A program that classifies one example with the model, from the Hub.

    Args:
        model: its folder.
        task: image-classification, text-classification or image-text-classification.
        settings: of the run.
        name: what it is called on the Hub.
    """
    if task == "image-text-classification":
        return PAIRS.format(name=name)
    pairs = settings.get("text_pair_column_name")
    if is_adapter_folder(model):
        program = ADAPTED_IMAGES if task == "image-classification" else ADAPTED_TEXTS
        return program.format(name=name, example='"a text", "another"' if pairs else EXAMPLES[task])
    trust = ", trust_remote_code=True" if needs_own_code(model) else ""
    return WHOLE.format(name=name, task=task, trust=trust, example=PAIR if pairs else EXAMPLES[task])


def code_file(model: Path) -> str:
    """The file with the code that a model brings along."""
    told = json.loads((model / "config.json").read_text(encoding="utf-8"))["auto_map"]
    return str(next(iter(told.values()), "modeling_*")).split(".")[0] + ".py"


def needs_own_code(model: Path) -> bool:
    """Whether the model is of a class that transformers does not have, and brings its code along."""
    return "auto_map" in json.loads((model / "config.json").read_text(encoding="utf-8"))
