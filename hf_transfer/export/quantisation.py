"""Weights of 8 bits, and the gate that they must pass: answers to the test split of the run, before and after."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from hf_transfer.errors import user_error
from hf_transfer.evaluation.results import Results
from hf_transfer.evaluation.run_data import splits_of_run
from hf_transfer.evaluation.run_folder import CONFIG_FILE
from hf_transfer.export.onnx_file import LARGEST_FILE, OnnxModel, quiet
from hf_transfer.modalities.table import modality_named, recipe_of
from hf_transfer.settings.parsing import load_settings
from hf_transfer.targets.shown_scores import shown_score
from hf_transfer.training.devices import start_accelerator
from hf_transfer.training.predictions import predict_split

if TYPE_CHECKING:
    from hf_transfer.data.splits import Splits
    from hf_transfer.evaluation.predictor import Predictor
    from hf_transfer.settings.run import RunConfig
    from hf_transfer.targets.predictions import Predictions

# Products of matrices and tables of embeddings: convolutions in 8 bits are slower than in 32 on most CPUs.
QUANTISED = ["MatMul", "Gemm", "Gather"]
# The score of a sample is a share of 1; for numbers it is an error, in standard deviations of the true numbers.
LARGEST_LOSS = 0.005
LEAST_SAME = 0.98
# Two numbers are the same answer if they differ by at most this share of the standard deviation of the true ones.
SAME_NUMBER = 0.01


@dataclass(frozen=True)
class Gate:
    """What weights of 8 bits change in the answers to the test split.

    Attributes:
        samples: of the test split.
        score: what is compared, by the name that reports use.
        float32: the mean score of the samples, by the model in 32 bits; of errors, their mean.
        int8: the same in 8 bits.
        loss: by how much it falls; see `LARGEST_LOSS`.
        same: the share of samples with the same answer.
    """

    samples: int
    score: str
    float32: float
    int8: float
    loss: float
    same: float

    @property
    def reason(self) -> str:
        """Why the model in 8 bits is not written; empty: it is."""
        reasons = []
        if not self.loss < LARGEST_LOSS:
            reasons.append(f"the score falls by {self.loss:.4f}, and must by less than {LARGEST_LOSS}")
        if not self.same >= LEAST_SAME:
            reasons.append(f"{self.same:.1%} of the answers are the same, and at least {LEAST_SAME:.0%} must be")
        return "; ".join(reasons)

    def as_json(self) -> dict[str, Any]:
        """For `parity.json`."""
        return {**asdict(self), "written": not self.reason, "reason": self.reason}


class RunToJudge:
    """A finished run with its data, whose test split decides on the weights of 8 bits.

    Args:
        out: the folder of the run.

    Raises:
        UserError: there is no finished run, or its settings cannot be read.
    """

    def __init__(self, out: Path) -> None:
        if not (out / CONFIG_FILE).is_file():
            raise user_error(
                expected="for --int8 the --output_dir of a run, whose test split judges the answers in 8 bits",
                found=f"{out} without a {CONFIG_FILE}",
                do="name the --output_dir of a run, or leave --int8 out",
            )
        config = load_settings(recipe_of(out / CONFIG_FILE), out / CONFIG_FILE)
        self._config: RunConfig = config.replaced(bf16=False, fp16=False, torch_compile=False, report_to=[])
        self._results = Results.read(out)

    def splits(self, predictor: Predictor) -> Splits:
        """The splits of the run, with the target of its model.

        Raises:
            UserError: the data cannot be loaded any more, or have other labels now.
        """
        splits = splits_of_run(self._config, self._results, predictor.preprocessing.columns)
        if splits.target.names != predictor.target.names:
            raise user_error(
                expected=f"data with the {predictor.target.outputs} of the model: {', '.join(predictor.target.names)}",
                found=", ".join(splits.target.names),
                do="restore the data of the run, or leave --int8 out",
            )
        return replace(splits, target=predictor.target)

    def judge(self, whole: OnnxModel, small: OnnxModel, predictor: Predictor, splits: Splits) -> Gate:
        """Answer the test split with both.

        Args:
            whole: the model in 32 bits.
            small: the model in 8 bits.
            predictor: of the model.
            splits: see `splits`.
        """
        modality = modality_named(self._config.recipe)
        with start_accelerator(self._config) as accelerator:
            loaders = modality.loaders(splits, predictor.preprocessing, self._config, accelerator, frozen_prefix=False)
            try:
                before, after = (predict_split(one, loaders, "test", accelerator) for one in (whole, small))
            finally:
                loaders.close()
        return gate_of(before, after)


def gate_of(before: Predictions, after: Predictions) -> Gate:
    """Compare the answers of two models to the same samples."""
    target, truth = before.target, before.targets
    first, second = target.predicted(before.outputs), target.predicted(after.outputs)
    are_numbers = first.dtype.kind == "f"
    spread = np.maximum(np.nanstd(truth, axis=0), np.finfo(np.float64).tiny) if are_numbers else np.ones(())
    is_same = np.abs(first - second) <= (SAME_NUMBER * spread if are_numbers else 0)
    scores = [float(np.nanmean(one.sample_scores())) for one in (before, after)]
    return Gate(
        samples=len(truth),
        score=target.score_title,
        float32=shown_score(scores[0], are_errors=target.scores_are_errors),
        int8=shown_score(scores[1], are_errors=target.scores_are_errors),
        loss=(scores[0] - scores[1]) / float(spread.mean()),
        same=float(is_same.reshape(len(truth), -1).all(axis=1).mean()),
    )


def write_int8(source: Path, path: Path) -> None:
    """Write a model with weights of 8 bits; activations are quantised as they come.

    Reference: Jacob et al., "Quantization and training of neural networks for efficient integer-arithmetic-only
    inference", CVPR 2018, https://arxiv.org/abs/1712.05877.

    Args:
        source: the model in 32 bits.
        path: of the new file.
    """
    from onnxruntime.quantization import QuantType, quantize_dynamic

    # Weights beside the file are those of a large model.
    is_large = sum(one.stat().st_size for one in source.parent.glob(f"{source.name}*")) > LARGEST_FILE
    with quiet():
        quantize_dynamic(
            source, path, op_types_to_quantize=QUANTISED, per_channel=True, weight_type=QuantType.QInt8,
            use_external_data_format=is_large,
        )  # fmt: skip
