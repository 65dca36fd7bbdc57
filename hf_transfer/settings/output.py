"""What a run writes: its folder, its checkpoints, and what it publishes."""

from dataclasses import dataclass

from hf_transfer.settings.fields import (
    COMMAND,
    NAME,
    OUTPUT,
    PUBLICATION,
    REQUIRED,
    SPEED,
    TRAINS,
    Need,
    Topic,
    at_least,
    setting,
)

SAVED = Need("checkpoints", lambda config: config.checkpoints.save_steps != 0, lambda _: "--save_steps 0")
PUSHED = Need("--push_to_hub", lambda config: config.output.push_to_hub, lambda _: "a run that is not published")


@dataclass(frozen=True)
class CheckpointSettings(Topic):
    """How often the state of a run is saved, and how an interrupted run resumes."""

    save_steps: int | None = setting(
        "Save after this many optimizer steps (default: about once a minute); 0: never.",
        None, at_least(0), SPEED, TRAINS,
    )  # fmt: skip
    save_total_limit: int = setting("How many checkpoints are kept; at least 2.", 2, at_least(2), SPEED, TRAINS, SAVED)
    resume_from_checkpoint: str | None = setting(
        "Resume from this checkpoint (default: the newest that is intact).", None, COMMAND
    )
    no_resume: bool = setting(
        "Start again, although --output_dir has an interrupted run with these settings.", False, COMMAND, TRAINS
    )
    allow_mismatch: bool = setting(
        "Resume although versions, threads or device differ from those of the checkpoint.", False, COMMAND, TRAINS
    )


@dataclass(frozen=True)
class OutputSettings(Topic):
    """The folder of the run, and what is published."""

    output_dir: str = setting("Folder for the model, the report and the results.", REQUIRED, NAME, OUTPUT)
    overwrite_output_dir: bool = setting("Replace an earlier run in --output_dir.", False, COMMAND)
    evaluate_only: bool = setting("Train nothing: evaluate --model_name_or_path with its own head.", False)
    push_to_hub: bool = setting(
        "Publish the finished model as --hub_model_id; checked before training.", False, PUBLICATION
    )
    push_space: bool = setting("Also publish a demo: the Space of the same name.", False, PUBLICATION)
    hub_model_id: str | None = setting("Where to publish it on the Hub: OWNER/NAME.", None, PUBLICATION)
    hub_private_repo: bool = setting("Publish privately; false: everybody can see it.", True, PUBLICATION, PUSHED)
    report_to: list[str] = setting(
        "Experiment trackers (tensorboard, wandb, trackio, ...), 'all', or 'none'.", ["none"], OUTPUT
    )
    debug: bool = setting("Show the traceback of an error.", False, OUTPUT)
