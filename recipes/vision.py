"""Teach a pretrained image model a new task.

accelerate launch recipes/vision.py --config recipes/configs/digits.yaml

accelerate launch recipes/vision.py --dataset_name path/to/folder --model_name_or_path google/vit-base-patch16-224 \
    --strategy partial --trainable_layers 2 --output_dir runs/first

A flag wins over the file; `--help` lists all settings. On a finished run the same command prints its result again.
"""

import time

from hf_transfer.config import VisionConfig, run


def main(config: VisionConfig) -> None:
    """Data -> model -> strategy -> training -> evaluation -> files in `--output_dir`."""
    # Here and not above: torch and transformers take seconds to import, and a wrong setting is answered at once.
    from hf_transfer.data.inputs import PixelPipeline, image_loaders
    from hf_transfer.data.sources import load_image_splits
    from hf_transfer.evaluation.report import results_table, write_report
    from hf_transfer.evaluation.run_folder import finished_results, open_run_folder, save_model
    from hf_transfer.models.groups import describe_frozen
    from hf_transfer.models.pretrained import Checkpoint, load_image_classifier
    from hf_transfer.strategies.freezing import choose_strategy, frozen_prefix
    from hf_transfer.training.loop import Fit, fit, predict_split, start_accelerator

    started = time.perf_counter()
    with start_accelerator(config) as accelerator:
        if finished := finished_results(config):
            accelerator.print(results_table(finished, config.output_dir))
            return

        # Whatever can be wrong is found before weights are read: first the checkpoint's small files, then the data.
        checkpoint = Checkpoint(config.model_name_or_path, config.model_revision)
        pipeline = PixelPipeline(checkpoint.processor())
        with accelerator.main_process_first():
            splits = load_image_splits(config)
        notes = splits.describe()
        accelerator.print(*notes, sep="\n")

        if config.evaluate_only:
            fitted = Fit(checkpoint.finished_classifier(splits.label_names))
            loaders = image_loaders(splits, pipeline, config, accelerator, frozen_prefix=False)
            folder = open_run_folder(config, accelerator)
        else:
            # A pretrained backbone and a new head. The strategy says which of its groups learn, and when.
            strategy = choose_strategy(config)
            example = pipeline.example()
            model, groups = load_image_classifier(
                checkpoint, splits.label_names, config, example, fresh_weights=strategy.fresh_weights
            )
            frozen = frozen_prefix(groups, strategy.stages(groups, config.num_train_epochs))
            about_model = [describe_frozen(model, groups, frozen, example), *checkpoint.describe_fresh(groups)]
            accelerator.print(*about_model, sep="\n")
            notes += about_model

            loaders = image_loaders(splits, pipeline, config, accelerator, frozen_prefix=frozen > 0)
            folder = open_run_folder(config, accelerator)
            fitted = fit(model, strategy, groups, loaders, config, accelerator)

            # From here on only what was saved counts: the figures are those of the files.
            if accelerator.is_main_process:
                save_model(fitted.model, checkpoint.processor(), folder)
            accelerator.wait_for_everyone()
            fitted.model = Checkpoint(str(folder / "model")).finished_classifier(splits.label_names)

        predictions = {name: predict_split(fitted.model, loaders, name, accelerator) for name in ("validation", "test")}
        if accelerator.is_main_process:
            seconds = time.perf_counter() - started
            results = write_report(folder, config, splits, fitted, predictions, notes=notes, total_seconds=seconds)
            print(results_table(results, config.output_dir))


if __name__ == "__main__":
    run(main, VisionConfig)
