"""`--strategy auto`: the settings of the strategy that is best on held-out samples."""

from __future__ import annotations

import shutil
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from hf_transfer.advice.decision_folder import record_before, settings_of_arm
from hf_transfer.errors import UserError
from hf_transfer.evaluation.auto_record import FOLDER
from hf_transfer.evaluation.run_folder import locked
from hf_transfer.interruption import before_anything_is_kept
from hf_transfer.settings.run import RunConfig
from hf_transfer.settings.strategy import AUTO
from hf_transfer.training.launching import may_be_one_of_several

if TYPE_CHECKING:
    import datasets

Config = TypeVar("Config", bound=RunConfig)


def decided(config: Config, data: datasets.DatasetDict | None = None) -> Config:
    """The settings to run with: those given or, if they say `auto`, those of the strategy that is chosen.

    What is tried is kept in `OUT/auto` until the run is finished. The same settings again find the decision, or go on
    where an earlier process was interrupted.

    Args:
        config: the settings.
        data: a data set in memory; None: what the settings name.

    Raises:
        UserError: the folder belongs to another run, or nothing could be trained.
        Interrupted: a signal asked the run to end; the same command goes on.
    """
    if config.chooses_strategy() or config.flat().get("pooling") == AUTO:
        if not may_be_one_of_several():
            # A finished run is shown, and wrong data are found, before anything heavy is imported.
            record = record_before(config)
            if record is None:
                from hf_transfer.modalities.opening import open_inputs

                with before_anything_is_kept():
                    open_inputs(config, data)
            elif record.is_finished(Path(config.output.output_dir)):
                return settings_of_arm(config, record.chosen_arm.settings, no_resume=False)
        from hf_transfer.advice.race import decide

        return decide(config, data)
    folder = Path(config.output.output_dir) / FOLDER
    if (config.output.overwrite_output_dir or config.output.evaluate_only) and folder.is_dir():
        # It is not how this run was chosen. If another run holds the lock, this one is refused later.
        with suppress(UserError), locked(folder.parent):
            shutil.rmtree(folder, ignore_errors=True)
    return config
