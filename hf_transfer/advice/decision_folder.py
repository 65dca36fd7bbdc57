"""The folder of a run whose strategy is decided on: which decision it has, and the settings of the runs in it."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

from hf_transfer.errors import UserError, user_error
from hf_transfer.evaluation import run_folder
from hf_transfer.evaluation.auto_record import FOLDER, AutoRecord, settings_as_given
from hf_transfer.settings.run import RunConfig
from hf_transfer.settings.strategy import ADAPTERS

Config = TypeVar("Config", bound=RunConfig)


def record_before(config: RunConfig) -> AutoRecord | None:
    """What an earlier process of this run has decided, or how far it has come; None: the decision starts.

    Raises:
        UserError: the folder has other files or another run, or a strategy that is named does not exist.
    """
    out = Path(config.output.output_dir)
    record = AutoRecord.read(out)
    again = config.output.overwrite_output_dir or (
        config.checkpoints.no_resume and record is not None and not record.is_finished(out)
    )
    if record is not None and (differences := record.differences(config)) and not config.output.overwrite_output_dir:
        raise run_folder.other_settings(out, differences)
    if record is not None and not again:
        return record
    check_named(config)
    if record is None or config.output.overwrite_output_dir:
        run_folder.results_or_refusal(config)
    return None


@contextmanager
def locked_if_used(out: Path) -> Iterator[None]:
    """Make the folder of a run, and lock it; a new one into which nothing is written is removed at the end.

    Raises:
        UserError: another run holds the lock.
    """
    made = [folder for folder in (out, *out.parents) if not folder.exists()]
    out.mkdir(parents=True, exist_ok=True)
    with run_folder.locked(out):
        try:
            yield
        finally:
            if made and {path.name for path in out.iterdir()} <= {run_folder.LOCK_FILE}:
                # A parent may have got other files meanwhile.
                with suppress(OSError):
                    (out / run_folder.LOCK_FILE).unlink(missing_ok=True)
                    for folder in made:
                        folder.rmdir()


def new_record(config: RunConfig) -> AutoRecord:
    """The record of a decision that starts; nothing is written."""
    return AutoRecord(
        began=datetime.now(UTC).isoformat(),
        settings=settings_as_given(config),
        replaces=bool(run_folder.earlier_run(Path(config.output.output_dir)).present()),
    )


def begin(config: RunConfig, record: AutoRecord) -> None:
    """Write the record of a decision whose plan is made, in the folder of the run, which is locked."""
    out = Path(config.output.output_dir)
    shutil.rmtree(out / FOLDER, ignore_errors=True)
    record.write(out)
    if not record.replaces:
        run_folder.save_settings(out, config)


def check_named(config: RunConfig) -> None:
    """Refuse names of `--auto_arms` that are no strategies for these samples, before anything is read.

    Raises:
        UserError: there is such a name.
    """
    for name in config.strategy.auto_arms:
        try:
            settings_of_arm(config, {"strategy": name})
        except UserError as error:
            raise user_error(
                expected=f"in --auto_arms strategies for the {config.recipe} recipe",
                found=name,
                do=f"leave it out; recipes/{config.recipe}.py --help lists those of --strategy",
            ) from error


def settings_of_arm(config: Config, settings: dict[str, Any], **others: Any) -> Config:
    """The settings of a run that trains in one way.

    Args:
        config: as they were given, with the strategy `auto`.
        settings: those of the arm.
        **others: further ones.

    Returns:
        Those given without what has no effect beside them.
    """
    merged = {"merge_adapter": True} if settings["strategy"] in ADAPTERS and _needs_merging(config) else {}
    values: dict[str, Any] = {"auto_seconds": None, "auto_arms": [], **merged, **settings, **others}
    return config.replaced(**values).without_ineffective()


def _needs_merging(config: RunConfig) -> bool:
    """Whether an adapter that is saved alone would have no place for the pooling, or could not be published."""
    from hf_transfer.data.hub_access import is_hub_id

    pooling, base = config.flat().get("pooling", "own"), config.model.model_name_or_path
    published = config.output.push_to_hub and base is not None and not is_hub_id(base)
    return published or pooling not in ("own", "auto")
