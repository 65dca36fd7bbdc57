"""Teach a pretrained text model a new task.

accelerate launch recipes/text.py --config recipes/configs/intents.yaml

accelerate launch recipes/text.py --dataset_name path/to/texts.csv --model_name_or_path google-bert/bert-base-uncased \
    --strategy lora --output_dir runs/first

A flag wins over the file; `--help` lists all settings. On a finished run the same command prints its result again.
"""

import time

from hf_transfer.config import TextConfig
from hf_transfer.parsing import run

TASK = "text-classification"


def main(config: TextConfig) -> None:
    """Data -> model -> strategy -> training -> evaluation -> files in `--output_dir`."""
    # Here and not above: torch and transformers take seconds to import, and a wrong setting is answered at once.
    from hf_transfer.data.sources import load_text_splits
    from hf_transfer.data.tokens import TokenPipeline, text_loaders
    from hf_transfer.evaluation.report import write_report
    from hf_transfer.evaluation.run_folder import finished_results, load_finished, open_run_folder, save_and_load
    from hf_transfer.hub.runs import finish_run, prepare_to_publish
    from hf_transfer.models.pretrained import Checkpoint
    from hf_transfer.strategies.choice import choose_strategy, prepare_model
    from hf_transfer.training.batch_size import find_batch_sizes
    from hf_transfer.training.loop import fit, start_accelerator
    from hf_transfer.training.predictions import predict_split
    from hf_transfer.training.progress import Fit

    started = time.perf_counter()
    with start_accelerator(config) as accelerator:
        if finished := finished_results(config):
            finish_run(finished, config, accelerator)
            return

        # Whatever can be wrong is found before weights are read: the way to the Hub, a checkpoint's small files, data.
        prepare_to_publish(config, accelerator)
        checkpoint = Checkpoint(config.model_name_or_path, config.model_revision, TASK, config.pooling)
        pipeline = TokenPipeline(
            checkpoint.tokenizer(), model_limit=checkpoint.longest_input, max_seq_length=config.max_seq_length
        )
        with accelerator.main_process_first():
            splits = load_text_splits(config)
        notes = splits.describe()
        accelerator.print(*notes, sep="\n")

        if config.evaluate_only:
            model = load_finished(checkpoint, splits.label_names)
            loaders, fitted = text_loaders(splits, pipeline, config, accelerator), Fit(model)
            folder = open_run_folder(config, accelerator)
        else:
            # A pretrained backbone and a new head. The strategy says which of its groups learn, and when.
            strategy = choose_strategy(config)
            prepared = prepare_model(checkpoint, strategy, splits.label_names, config, pipeline.example())
            loaders = text_loaders(splits, pipeline, config, accelerator)
            accelerator.print(*prepared.notes, *loaders.notes, sep="\n")
            notes += [*prepared.notes, *loaders.notes]

            folder = open_run_folder(config, accelerator)
            if config.auto_batch_size:
                config = find_batch_sizes(prepared, strategy, loaders, config, accelerator, notes)
                loaders = text_loaders(splits, pipeline, config, accelerator)
            fitted = fit(prepared.model, strategy, prepared.groups, loaders, config, accelerator)

            # From here on only what was saved counts: the figures are those of the files.
            fitted.model = save_and_load(
                fitted.model, pipeline.tokenizer, checkpoint, splits.label_names, config, accelerator
            )

        predictions = {name: predict_split(fitted.model, loaders, name, accelerator) for name in ("validation", "test")}
        if accelerator.is_main_process:
            seconds = time.perf_counter() - started + fitted.earlier_seconds
            results = write_report(folder, config, splits, fitted, predictions, checkpoint, notes, seconds)
            finish_run(results, config, accelerator)


if __name__ == "__main__":
    run(main, TextConfig)
