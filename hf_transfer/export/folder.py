"""The folder OUT/onnx: a model in ONNX format, a small program that serves it, and what was compared."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import torch

from hf_transfer.checkpoints.files import in_units
from hf_transfer.data.hub_access import is_hub_id
from hf_transfer.data.samples import is_sample
from hf_transfer.errors import user_error
from hf_transfer.evaluation.predictor import Predictor, load
from hf_transfer.evaluation.run_folder import MODEL_FOLDER, ONNX_FOLDER
from hf_transfer.export import parity
from hf_transfer.export.onnx_file import PACKAGES, OnnxModel, check_packages, write_onnx
from hf_transfer.export.quantisation import Gate, RunToJudge, write_int8
from hf_transfer.strategies.adapter_files import is_adapted, merged
from hf_transfer.versions import versions

MODEL_FILE, INT8_FILE, PARITY_FILE = "model.onnx", "model.int8.onnx", "parity.json"
SCHEMA = 1
# Not imported: it needs onnxruntime at once.
SERVER = Path(__file__).with_name("serve.py")


class Exported(NamedTuple):
    """What was written.

    Attributes:
        folder: with all files.
        sentences: on what was compared, for people.
    """

    folder: Path
    sentences: list[str]


def export_model(model: str, output: Path | None = None, *, int8: bool = False) -> Exported:
    """Write a finished model in ONNX format; the folder appears when all of it is written and compared.

    Args:
        model: the `--output_dir` of a run, a folder with a model, a Hub id, or sample:NAME.
        output: the folder to write; None: `onnx` in the folder of the run or model.
        int8: also write the model with weights of 8 bits, if it passes the gate.

    Raises:
        UserError: a package is missing, the folder has other files, the model cannot be exported, or its answers
            differ from those of torch.
    """
    check_packages()
    folder = _output_folder(model, output)
    run = RunToJudge(_run_folder(model)) if int8 else None
    predictor = load(model)
    splits = None if run is None else run.splits(predictor)
    finished = predictor.model.cpu().float()
    if any(map(is_adapted, finished.modules())):
        finished = merged(finished).eval()
    partial = folder.with_name(f".{folder.name}-partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        about = describe(predictor, predictor.preprocessing.portable(partial))
        write_onnx(finished, predictor.preprocessing, about, partial / MODEL_FILE)
        whole = OnnxModel(partial / MODEL_FILE)
        compared = parity.differences(finished, whole, predictor.preprocessing)
        models: dict[str, parity.Model] = {"torch": finished, "onnx": whole}
        gate = None
        if run is not None and splits is not None:
            write_int8(partial / MODEL_FILE, partial / INT8_FILE)
            models["int8"] = small = OnnxModel(partial / INT8_FILE)
            gate = run.judge(whole, small, predictor, splits)
        content = _parity(about, compared, parity.seconds_of(models, predictor.preprocessing), gate, partial)
        if gate is not None and gate.reason:
            for path in partial.glob(f"{INT8_FILE}*"):
                path.unlink()
        shutil.copyfile(SERVER, partial / SERVER.name)
        (partial / PARITY_FILE).write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        shutil.rmtree(folder, ignore_errors=True)
        partial.rename(folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return Exported(folder, _sentences(content))


def describe(predictor: Predictor, preprocessing: Mapping[str, Any]) -> dict[str, Any]:
    """What answers depend on beside the weights: the metadata of the file.

    Args:
        predictor: of the model.
        preprocessing: of `Preprocessing.portable`.
    """
    target = predictor.target
    return {
        "modality": predictor.modality.name,
        "problem_type": target.problem_type,
        "labels": target.names,
        "activation": target.activation,
        "answered_as": target.answered_as,
        **target.saved_settings(),
        "preprocessing": dict(preprocessing),
        "versions": versions() | {name: version(name) for name in PACKAGES},
    }


def _parity(
    about: Mapping[str, Any], compared: list[parity.Difference], seconds: Mapping[str, Mapping[str, float]],
    gate: Gate | None, folder: Path,
) -> dict[str, Any]:  # fmt: skip
    return {
        "schema": SCHEMA,
        "modality": about["modality"],
        "problem_type": about["problem_type"],
        "tolerance": parity.TOLERANCE,
        "rule": parity.RULE,
        "largest_difference": max(one.difference for one in compared),
        "compared": [one._asdict() for one in compared],
        "seconds": seconds,
        "threads": torch.get_num_threads(),
        "bytes": {path.name: path.stat().st_size for path in sorted(folder.glob("*.onnx*"))},
        "int8": None if gate is None else gate.as_json(),
        "versions": about["versions"],
    }


def _sentences(content: Mapping[str, Any]) -> list[str]:
    sizes = [f"{name} {in_units(size)}" for name, size in content["bytes"].items()]
    lines = [
        f"difference to torch  {content['largest_difference']:.2g} at most {content['tolerance']:g}, in "
        f"{len(content['compared'])} random batches of other sizes",
        *parity.shown_seconds(content["seconds"]),
        f"size                 {', '.join(sizes)}",
    ]
    if (gate := content["int8"]) is not None:
        lines.append(
            f"int8                 {gate['score']} {gate['float32']:.4g} -> {gate['int8']:.4g}, {gate['same']:.1%} of "
            f"{gate['samples']:,} answers the same"
        )
        lines.append(f"int8                 {'written' if gate['written'] else 'not written: ' + gate['reason']}")
    return lines


def _run_folder(model: str) -> Path:
    """The folder of the run of a model, or that of the model itself."""
    path = Path(model).expanduser()
    return path.resolve().parent if path.resolve().name == MODEL_FOLDER else path


def _output_folder(model: str, output: Path | None) -> Path:
    """The folder to write, which is new, empty, or that of an earlier export."""
    if output is None and (is_sample(model) or (is_hub_id(model) and not Path(model).is_dir())):
        raise user_error(
            expected="--output, the folder to write",
            found=f"{model}, which is no folder of this machine",
            do="correct the path, or add --output FOLDER for a model on the Hub",
        )
    folder = (output or _run_folder(model) / ONNX_FOLDER).expanduser()
    is_ours = not folder.exists() or (
        folder.is_dir() and (not any(folder.iterdir()) or (folder / PARITY_FILE).is_file())
    )
    if not is_ours:
        raise user_error(
            expected="a new or empty folder for --output, or one with an earlier export",
            found=f"{folder} with other files",
            do="name another folder in --output",
        )
    # `.` and `..` have no name beside which another folder could lie.
    return folder if folder.name.strip(".") else folder.resolve()
