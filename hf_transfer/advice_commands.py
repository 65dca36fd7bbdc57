"""The commands `hf-transfer rank` and `hf-transfer advise`: what to start from, and what to try with it."""

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from hf_transfer.errors import user_error
from hf_transfer.interruption import Interrupted, ending_at_once
from hf_transfer.settings.parsing import exit_interrupted, names_in
from hf_transfer.settings.run import TOWERS, RunConfig
from hf_transfer.settings.strategy import AUTO, TOWER_STRATEGIES, Strategy, TowerStrategy

if TYPE_CHECKING:
    from hf_transfer.advice.model_race import Race
    from hf_transfer.advice.ranking import ModelRanking


def add_rank(commands: Any) -> argparse.ArgumentParser:
    """Add the command `rank` with its flags; it also takes settings of the recipe.

    Args:
        commands: the subparsers of the program.
    """
    rank: argparse.ArgumentParser = commands.add_parser(
        "rank", allow_abbrev=False, help="Rank pretrained models by how well their frozen features suit your data.",
        usage="hf-transfer rank --dataset_name DATA (--models MODEL [MODEL ...] | --image_models MODEL [MODEL ...] "
        "--text_models MODEL [MODEL ...]) [options] [settings of the recipe]",
        epilog="All settings of data, samples and batches are those of the recipe, such as --text_column_name or "
        "--per_device_eval_batch_size: `python recipes/text.py --help` lists them.",
    )  # fmt: skip
    add = rank.add_argument
    add("--models", nargs="+", default=[], metavar="MODEL",
        help="Pretrained models: Hub ids, local folders, or sample:NAME; of equal ones the first is preferred. For "
        "images with texts: dual encoders (CLIP, SigLIP).",
    )  # fmt: skip
    add("--image_models", nargs="+", default=[], metavar="MODEL",
        help="For images with texts: models for the images, each of which is combined with each of --text_models.",
    )  # fmt: skip
    add("--text_models", nargs="+", default=[], metavar="MODEL",
        help="For images with texts: models for the texts.")  # fmt: skip
    add("--dataset_name", metavar="DATA", help="The data, as for a recipe; only training rows are used.")
    add("--config", type=Path, metavar="FILE.yaml", help="Settings in a file, as for a recipe.")
    add("--recipe", choices=("vision", "text", "multimodal"),
        help="What samples are (default: as models and data show).")  # fmt: skip
    add("--top", type=int, default=2, help="For how many of the best models to print the next command (default: 2).")
    add("--race", type=int, nargs="?", const=2, metavar="N",
        help="Also fine-tune N models on the training rows, and judge them on the validation rows: the best ones, and "
        "the one that is named first (N: 2, if it is left out).")  # fmt: skip
    add("--race_strategy", choices=[name for name in get_args(Strategy) if name != AUTO], metavar="STRATEGY",
        help="With which --strategy models of --race are trained (default: full).")  # fmt: skip
    add("--output", type=Path, metavar="FILE.json",
        help="Write the ranking into this file, and a picture of score against cost beside it (PNG).")  # fmt: skip
    return rank


def add_advise(commands: Any) -> argparse.ArgumentParser:
    """Add the command `advise`: see `add_rank`."""
    advice: argparse.ArgumentParser = commands.add_parser(
        "advise", allow_abbrev=False, help="Say what to try with a model and your data, before anything is trained.",
        usage="hf-transfer advise [--config FILE.yaml] [--dataset_name DATA] [--model_name_or_path MODEL] [options] "
        "[settings of the recipe]",
        epilog="All settings of model, data, samples and training are those of the recipe, but --strategy and what "
        "belongs to one: `python recipes/text.py --help` lists them.",
    )  # fmt: skip
    add = advice.add_argument
    add(
        "--config", type=Path, metavar="FILE.yaml", help="Settings in a file, as for a recipe; its strategy is ignored."
    )
    add("--dataset_name", metavar="DATA", help="The data, as for a recipe; only training rows are used.")
    add("--model_name_or_path", metavar="MODEL", help="The pretrained model: a Hub id, a local folder, or sample:NAME.")
    add("--recipe", choices=("vision", "text", "multimodal"), help="What samples are (default: as the file, or model "
        "and data show).")  # fmt: skip
    add("--no_fresh_weights", action="store_true",
        help="Leave out the comparison with random weights, which takes another pass over up to 1,000 rows.",
    )  # fmt: skip
    add("--output", type=Path, metavar="FILE.json",
        help="Write the advice into this file, and a picture of the evidence beside it (PNG).")  # fmt: skip
    return advice


def run_rank(arguments: argparse.Namespace) -> None:
    """Print a ranking of models; with `--race` fine-tune some of them, too."""
    _check_rank(arguments)
    from hf_transfer.advice.candidates import Candidates, configs_of
    from hf_transfer.advice.model_race import chosen_for_race
    from hf_transfer.advice.ranking import rank
    from hf_transfer.advice.shown import commands_for, draw_ranking, ranking_table, write_json
    from hf_transfer.modalities.table import modality_named
    from hf_transfer.settings.files import read_yaml
    from hf_transfer.whole_run import recipe_for

    path = arguments.config
    saved = {} if path is None else read_yaml(path)
    data = arguments.dataset_name or saved.get("dataset_name")
    if data is None:
        raise user_error(expected="--dataset_name", found="no value", do="name the data")
    candidates = Candidates(arguments.models, arguments.image_models, arguments.text_models)
    recipe = arguments.recipe or saved.get("recipe") or ("multimodal" if candidates.has_towers else "")
    recipe = recipe or recipe_for(candidates.models, data, setting="--recipe ")
    flags = ["--dataset_name", data, *([] if path is None else ["--config", str(path)]), *arguments.others]
    strategy, output = arguments.race_strategy or "full", arguments.output
    trained_with = "" if arguments.race is None else strategy
    for_strategy = _flags_for(trained_with, saved, path)
    configs = configs_of(modality_named(recipe).config, candidates, flags, trained_with)
    ranking, raced = rank(configs), None
    print(ranking_table(ranking), end="")
    if output is not None:
        # Before anything is trained: an interruption of the race leaves the ranking.
        write_json(output, ranking, None)
        draw_ranking(output.with_suffix(".png"), ranking)
    names = [place.model.name for place in ranking.places]
    if arguments.race is not None:
        flags += for_strategy
        chosen = chosen_for_race(ranking, list(configs), arguments.race)
        raced = _race({name: configs[name] for name in chosen}, ranking, output)
        names = [place.model.name for place in raced.places] or names
    if arguments.top:
        best = {name: configs[name].named_models for name in names[: arguments.top]}
        print("\nTo fine-tune:", *commands_for(best, recipe, flags), sep="\n  ")
    if output is not None:
        write_json(output, ranking, raced)
        print(f"\nWritten: {output} and {output.with_suffix('.png')}")


def _flags_for(strategy: str, saved: Mapping[str, Any], path: Path | None) -> list[str]:
    """The flags that train with a strategy, also where a file names one for each of two towers; "": none.

    Raises:
        UserError: the file does, and this one is only for both together.
    """
    towers = [name for name in TOWER_STRATEGIES if saved.get(name)]
    if towers and strategy and strategy not in get_args(TowerStrategy):
        raise user_error(
            expected=f"for --race_strategy {strategy}, which is for both towers together, no strategy of one of them",
            found=f"{towers[0]} in {path}",
            do=f"leave {' and '.join(towers)} out of {path}, or name another --race_strategy",
        )
    names = towers if len(towers) == len(TOWER_STRATEGIES) else ["strategy", *towers]
    return [word for name in names for word in (f"--{name}", strategy)] if strategy else []


def _race(configs: dict[str, RunConfig], ranking: "ModelRanking", output: Path | None) -> "Race":
    """Fine-tune models and print how good they are; an interrupted race can resume if there is a file for it."""
    from hf_transfer.advice.model_race import folder_of_race, race
    from hf_transfer.advice.shown import race_table

    with folder_of_race(output) as folder:
        if output is None:
            configs = {name: config.replaced(save_steps=0) for name, config in configs.items()}
        try:
            with ending_at_once():
                raced = race(configs, ranking, folder)
        except Interrupted as interrupted:
            if output is None:
                raise
            exit_interrupted(interrupted, type(next(iter(configs.values()))), has_work=True)
    print(race_table(raced), end="")
    return raced


def _check_rank(arguments: argparse.Namespace) -> None:
    """Refuse what can be seen before anything is loaded."""
    if arguments.top < 0:
        raise user_error(expected="--top of at least 0", found=str(arguments.top), do="change --top")
    if arguments.race is not None and arguments.race < 2:
        raise user_error(expected="--race of at least 2 models", found=str(arguments.race), do="change --race")
    if arguments.race_strategy is not None and arguments.race is None:
        raise user_error(
            expected="--race_strategy with --race", found="--race_strategy alone", do="add --race, or leave it out"
        )
    _check_json(arguments.output)


def run_advise(arguments: argparse.Namespace) -> None:
    """Print what to try with a model and some data."""
    _check_json(arguments.output)
    from hf_transfer.advice.advising import advise, config_of
    from hf_transfer.advice.shown_advice import advice_text, draw_evidence
    from hf_transfer.modalities.table import modality_named
    from hf_transfer.settings.files import read_yaml
    from hf_transfer.whole_run import recipe_for

    path = arguments.config
    saved = {} if path is None else read_yaml(path)
    data, model = (getattr(arguments, name) or saved.get(name) for name in ("dataset_name", "model_name_or_path"))
    if data is None:
        raise user_error(expected="--dataset_name, or --config with it", found="no value", do="name the data")
    names_towers = {*names_in(arguments.others)} & {*TOWERS} or any(saved.get(name) for name in TOWERS)
    if model is None and not names_towers:
        raise user_error(
            expected="a model: --model_name_or_path, or for images with texts also "
            + " and ".join(f"--{name}" for name in TOWERS),
            found="no value",
            do="name the model",
        )
    recipe = arguments.recipe or saved.get("recipe")
    if recipe is None:
        recipe = "multimodal" if model is None else recipe_for([model], data, setting="--recipe ")
    given = {"config": path, "dataset_name": arguments.dataset_name, "model_name_or_path": arguments.model_name_or_path}
    flags = [word for name, value in given.items() if value is not None for word in (f"--{name}", str(value))]
    flags += arguments.others
    advice = advise(config_of(modality_named(recipe).config, flags), with_fresh_weights=not arguments.no_fresh_weights)
    print(advice_text(advice, flags), end="")
    if arguments.output is not None:
        advice.write(arguments.output)
        written = [str(arguments.output)]
        if advice.evidence.probes:
            picture = arguments.output.with_suffix(".png")
            draw_evidence(picture, advice.evidence)
            written.append(str(picture))
        print(f"\nWritten: {' and '.join(written)}")


def _check_json(output: Path | None) -> None:
    """Refuse a file that could not be written in the end."""
    if output is not None and (output.suffix != ".json" or not output.absolute().parent.is_dir()):
        raise user_error(
            expected="for --output a file NAME.json in a folder that exists", found=str(output), do="change --output"
        )
