"""Teach a pretrained image model a new task.

accelerate launch recipes/vision.py --config recipes/configs/digits.yaml

accelerate launch recipes/vision.py --dataset_name path/to/folder \
    --model_name_or_path google/vit-base-patch16-224 --output_dir runs/first

A flag wins over the file; `--help` lists all settings. On a finished run the same command prints its result again.
"""

from hf_transfer.advice.auto import decided
from hf_transfer.run import open_run
from hf_transfer.settings.parsing import run_recipe
from hf_transfer.settings.run import VisionConfig


def main(config: VisionConfig) -> None:
    """Data -> model -> training -> evaluation -> files in `--output_dir` -> Hub."""
    # Without a --strategy several are tried, and the best is taken.
    with open_run(decided(config)) as run:
        if not run.is_finished:
            # Samples in three splits; unreadable ones, missing labels and copies of training samples are found here.
            run.load_data()
            # A pretrained backbone, and a head for what is predicted.
            run.load_model()
            # Which layers learn, and when: --strategy. The others are frozen, in evaluation mode, without gradients.
            run.choose_what_learns()
            # Epochs on Accelerate; frozen layers run once, checkpoints are written, an interrupted run resumes.
            run.train()
            # The model is read from its files again, and judged on validation and test.
            run.evaluate()
            # results.json, report.md and its pictures.
            run.write_report()
        # The table on the screen, the model card and, with --push_to_hub, model and demo on the Hub.
        run.publish()


if __name__ == "__main__":
    run_recipe(main, VisionConfig)
