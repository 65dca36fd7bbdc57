"""The gradient of a step whose samples are divided among batches and processes; also a script for two processes.

The script writes the gradients of all cases, and the losses of their epochs, into the file that it is given.
"""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import save_file
from torch import Tensor

from hf_transfer.settings.run import VisionConfig
from hf_transfer.strategies.freezing import FullFineTuning
from hf_transfer.training.devices import start_accelerator
from tests.training.toy_task import TARGET, Rows, as_label_sets, as_numbers, fit_loaders, loaders_of, settings, tiny

SAMPLES = 100
# More of them are in the last batches than in the others.
MASKED = (1, 17, 18, 50, 51, 52, *range(91, 99))
TARGETS = {"classes": lambda _: TARGET, "labels": as_label_sets, "numbers": as_numbers}


class Case(NamedTuple):
    """What a step is of.

    Attributes:
        target: a name in `TARGETS`.
        masked: rows that do not count.
        more: settings.
    """

    target: str
    masked: tuple[int, ...] = ()
    more: dict[str, Any] = {}  # noqa: RUF012


CASES = {
    "classes": Case("classes"),
    "masked": Case("classes", MASKED),
    "weighted": Case("classes", MASKED, {"class_weights": "balanced", "label_smoothing_factor": 0.1}),
    "labels": Case("labels"),
    "weighted labels": Case("labels", MASKED, {"class_weights": "balanced"}),
    "asymmetric": Case("labels", MASKED, {"multi_label_loss": "asymmetric"}),
    "numbers": Case("numbers"),
    "masked numbers": Case("numbers", MASKED, {"regression_loss": "huber"}),
}
# Samples in a batch, and batches of each process in a step.
ON_ONE_PROCESS = ((100, 1), (25, 4), (32, 4), (8, 13))
ON_TWO_PROCESSES = ((50, 1), (25, 2), (32, 2), (16, 4))


@contextmanager
def noted_gradients() -> Iterator[list[dict[int, Tensor]]]:
    """The gradients with which the optimizer takes its steps, by the places of the parameters."""
    noted: list[dict[int, Tensor]] = []
    take_step = torch.optim.AdamW.step

    def step(self: Any, *arguments: Any, **more: Any) -> Any:
        parameters = [parameter for group in self.param_groups for parameter in group["params"]]
        noted.append({place: one.grad.clone() for place, one in enumerate(parameters) if one.grad is not None})
        return take_step(self, *arguments, **more)

    torch.optim.AdamW.step = step  # type: ignore[method-assign]
    try:
        yield noted
    finally:
        torch.optim.AdamW.step = take_step  # type: ignore[method-assign]


def trained(case: Case, batch_size: int, batches: int, samples: int = SAMPLES, **more: Any) -> tuple[list[Any], float]:
    """The gradients of the steps of an epoch, in which the weights hardly change, and its loss."""
    config: VisionConfig = settings(
        per_device_train_batch_size=batch_size, gradient_accumulation_steps=batches, num_train_epochs=1,
        learning_rate=1e-12, max_grad_norm=0.0, weight_decay=0.0, **(case.more | more),
    )  # fmt: skip
    model, groups, _ = tiny("vit")
    rows = Rows(samples, masked=tuple(row for row in case.masked if row < samples))
    validation = Rows(10, seed=1)
    target = TARGETS[case.target](rows)
    TARGETS[case.target](validation)
    with start_accelerator(config) as accelerator, noted_gradients() as noted:
        loaders = loaders_of(accelerator, rows, validation, batch_size, target=target)
        fitted = fit_loaders(model, FullFineTuning(), groups, loaders, config, accelerator)
    return noted, fitted.history[0]["train_loss"]


def flat(gradients: dict[int, Tensor]) -> Tensor:
    """All gradients in one vector."""
    return torch.cat([gradient.flatten() for _, gradient in sorted(gradients.items())])


def main(file: Path) -> None:
    """All cases in one start, which takes most of the time."""
    results = {}
    with start_accelerator(settings()) as accelerator:
        assert accelerator.num_processes == 2
        for name, case in CASES.items():
            for division in ON_TWO_PROCESSES:
                (gradients,), loss = trained(case, *division)
                results[f"{name} {division}"] = torch.cat([flat(gradients), torch.tensor([loss])])
        if accelerator.is_main_process:
            save_file(results, file)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
