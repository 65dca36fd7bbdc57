"""Teach a pretrained image model and a pretrained text model, or a dual encoder, a new task together.

accelerate launch recipes/multimodal.py --config recipes/configs/glyph_names.yaml

accelerate launch recipes/multimodal.py --dataset_name path/to/folder --strategy lp_ft --output_dir runs/first \
    --image_model_name_or_path google/vit-base-patch16-224 --text_model_name_or_path google-bert/bert-base-uncased

A flag wins over the file; `--help` lists all settings. On a finished run the same command prints its result again.
"""

import time

from hf_transfer.config_multimodal import MultimodalConfig
from hf_transfer.parsing import run


def main(config: MultimodalConfig) -> None:
    """Data -> model -> strategy -> training -> evaluation -> files in `--output_dir`."""
    # Here and not above: torch and transformers take seconds to import, and a wrong setting is answered at once.
    from hf_transfer.data.pair_batches import pair_example, pair_loaders
    from hf_transfer.data.pairs import load_pair_splits
    from hf_transfer.evaluation.modalities import predict_alone
    from hf_transfer.evaluation.report import write_report
    from hf_transfer.evaluation.run_folder import finished_results, load_finished, open_run_folder, save_and_load
    from hf_transfer.hub.runs import finish_run, prepare_to_publish
    from hf_transfer.models.pretrained_pair import PairCheckpoint, find_pair, pipelines_of
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

        # Whatever can be wrong is found before weights are read: the way to the Hub, checkpoints' small files, data.
        prepare_to_publish(config, accelerator)
        checkpoint = find_pair(config)
        pixels, tokens = pipelines_of(checkpoint, max_seq_length=config.max_seq_length)
        with accelerator.main_process_first():
            splits = load_pair_splits(config)
        notes = splits.describe()
        accelerator.print(*notes, sep="\n")

        if not isinstance(checkpoint, PairCheckpoint):
            model = load_finished(checkpoint, splits.label_names)
            loaders = pair_loaders(splits, pixels, tokens, config, accelerator, frozen_prefix=False)
            fitted, folder = Fit(model), open_run_folder(config, accelerator)
        else:
            # Two pretrained towers and a new head. The strategies say which of their groups learn, and when.
            strategy, example = choose_strategy(config), pair_example(pixels, tokens)
            prepared = prepare_model(checkpoint, strategy, splits.label_names, config, example)
            frozen = prepared.frozen_blocks
            loaders = pair_loaders(splits, pixels, tokens, config, accelerator, frozen_prefix=frozen)
            accelerator.print(*prepared.notes, *loaders.notes, sep="\n")
            notes += [*prepared.notes, *loaders.notes]

            folder = open_run_folder(config, accelerator)
            if config.auto_batch_size:
                config = find_batch_sizes(prepared, strategy, loaders, config, accelerator, notes)
                loaders = pair_loaders(splits, pixels, tokens, config, accelerator, frozen_prefix=frozen)
            fitted = fit(prepared.model, strategy, prepared.groups, loaders, config, accelerator)

            # From here on only what was saved counts: the figures are those of the files.
            both = (pixels.processor, tokens.tokenizer)
            fitted.model = save_and_load(fitted.model, both, checkpoint, splits.label_names, config, accelerator)

        predictions = {name: predict_split(fitted.model, loaders, name, accelerator) for name in ("validation", "test")}
        single = predict_alone(fitted.model, loaders, accelerator)
        if accelerator.is_main_process:
            seconds = time.perf_counter() - started + fitted.earlier_seconds
            results = write_report(folder, config, splits, fitted, predictions, checkpoint, notes, seconds, single)
            finish_run(results, config, accelerator)


if __name__ == "__main__":
    run(main, MultimodalConfig)
