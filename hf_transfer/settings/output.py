"""What a run writes: its folder, its checkpoints, and what it publishes."""

from dataclasses import dataclass

from hf_transfer.settings.fields import REQUIRED, TRAINS, Need, Topic, setting
from hf_transfer.settings.ranges import NAME, at_least

# In the folder of a run: the answers to samples without labels, and the checkpoints.
PREDICTIONS_FILE, CHECKPOINTS_FOLDER = "predictions.csv", "checkpoints"
SAVED = Need("checkpoints", lambda config: config.checkpoints.save_steps != 0, "--save_steps 0")
GIVEN = Need(
    "a strategy that you choose",
    lambda config: not config.chooses_strategy(),
    "--strategy auto, which resumes by itself",
    "name the --strategy that made this checkpoint; auto resumes if you leave --resume_from_checkpoint out",
)
PUSHED = Need("--push_to_hub", lambda config: config.output.push_to_hub, "a run that is not published")


@dataclass(frozen=True)
class CheckpointSettings(Topic):
    """How often the state of a run is saved, and how an interrupted run resumes."""

    save_steps: int | None = setting(
        "Save after this many optimizer steps (default: about once a minute); 0: never.",
        None, at_least(0), "speed", TRAINS,
    )  # fmt: skip
    save_total_limit: int = setting(
        "How many checkpoints are kept; at least 2.", 2, at_least(2), "speed", TRAINS, SAVED
    )
    resume_from_checkpoint: str | None = setting(
        "Resume from this checkpoint (default: the newest that is intact).", None, "command", GIVEN
    )
    no_resume: bool = setting(
        "Start again, although --output_dir has an interrupted run with these settings.", False, "command", TRAINS
    )
    allow_mismatch: bool = setting(
        "Resume although versions, threads or device differ from those of the checkpoint.", False, "command", TRAINS
    )


@dataclass(frozen=True)
class OutputSettings(Topic):
    """The folder of the run, and what is published."""

    output_dir: str = setting("Folder for the model, the report and the results.", REQUIRED, NAME, "output")
    overwrite_output_dir: bool = setting("Replace an earlier run in --output_dir.", False, "command")
    evaluate_only: bool = setting("Train nothing: evaluate --model_name_or_path with its own head.", False)
    push_to_hub: bool = setting(
        "Publish the finished model as --hub_model_id; checked before training.", False, "publication"
    )
    push_space: bool = setting("Also publish a demo: the Space of the same name.", False, "publication")
    hub_model_id: str | None = setting("Where to publish it on the Hub: OWNER/NAME.", None, "publication")
    hub_private_repo: bool = setting("Publish privately; false: everybody can see it.", True, "publication", PUSHED)
    metrics: list[str] = setting(
        "Further metrics of the report: names or scripts that the package evaluate can load.", []
    )
    report_to: list[str] = setting(
        "Experiment trackers (tensorboard, wandb, trackio, ...), 'all', or 'none'.", ["none"], "output"
    )
    debug: bool = setting("Show the traceback of an error.", False, "output")
