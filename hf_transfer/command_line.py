"""The console command `hf-transfer`: choose a model, use or publish a finished one, and check this machine."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from hf_transfer.errors import UserError, user_error
from hf_transfer.garbage import none_collected, skip_last_collection
from hf_transfer.installation import check_installation
from hf_transfer.settings.parsing import exit_with, load_settings
from hf_transfer.settings.ranges import DELIMITER, ENCODING
from hf_transfer.settings.strategy import AUTO

# The exit code after Ctrl-C, as in a shell.
INTERRUPTED = 130


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise user_error(expected=self.format_usage().strip(), found=message, do="see hf-transfer --help")


def main(argv: Sequence[str] | None = None) -> None:
    """Run `hf-transfer`; a user's error ends it with a message and exit code 2, and Ctrl-C without a traceback."""
    skip_last_collection()
    try:
        check_installation()
        parser = _parser()
        arguments, others = parser.parse_known_args(argv)
        if others and arguments.run_command not in (_rank, _advise):
            parser.error(f"unrecognized arguments: {' '.join(others)}")
        arguments.others = others
        arguments.run_command(arguments)
    except UserError as error:
        exit_with(error)
    except KeyboardInterrupt:
        print("\nInterrupted.", file=sys.stderr)
        sys.exit(INTERRUPTED)


def _parser() -> _Parser:
    parser = _Parser(
        prog="hf-transfer", description="Choose a model, use or publish a finished one, or check this machine."
    )
    commands = parser.add_subparsers(dest="command", required=True, parser_class=_Parser)
    predict = commands.add_parser("predict", help="Predict pictures, texts or pairs with a finished model.")
    _add_samples(predict)
    push = commands.add_parser("push", help="Publish the model of a finished run on the Hub, with its card.")
    demo = commands.add_parser("demo", help="Open a demo of a finished run on this machine.")
    space = commands.add_parser("space", help="Publish a demo of a finished run as a Space on the Hub.")
    for command in (push, demo, space):
        command.add_argument("run", type=Path, help="The --output_dir of the run.")
    demo.add_argument("--port", type=int, default=7860, help="Port on this machine (default: 7860).")
    for command in (push, space):
        command.add_argument("repository", metavar="OWNER/NAME", help="The repository; it is created if necessary.")
        command.add_argument(
            "--hub_private_repo", choices=("true", "false"), default="true",
            help="Whether to hide it from others (default: true).",
        )  # fmt: skip
    space.add_argument(
        "--hub_model_id", metavar="OWNER/NAME",
        help="The model on the Hub: the Space loads a public model from there (default: the Space contains a copy).",
    )  # fmt: skip
    for command in (demo, space):
        command.add_argument(
            "--examples", type=int, default=6,
            help="Number of samples of the test split to show: 3 to 6, or 0 for none (default: 6).",
        )  # fmt: skip
    doctor = commands.add_parser(
        "doctor", help="Print versions, devices, caches and installation errors, and what a run would take."
    )
    doctor.add_argument(
        "--config", type=Path,
        help="Settings of a run: print its data, its time, memory and disk space, without training.",
    )  # fmt: skip
    rank = commands.add_parser(
        "rank", allow_abbrev=False, help="Rank pretrained models by how well their frozen features suit your data.",
        usage="hf-transfer rank --dataset_name DATA --models MODEL [MODEL ...] [options] [settings of the recipe]",
        epilog="All settings of data, samples and batches are those of the recipe, such as --text_column_name or "
        "--per_device_eval_batch_size: `python recipes/text.py --help` lists them.",
    )  # fmt: skip
    _add_candidates(rank)
    advice = commands.add_parser(
        "advise", allow_abbrev=False, help="Say what to try with a model and your data, before anything is trained.",
        usage="hf-transfer advise [--config FILE.yaml] [--dataset_name DATA] [--model_name_or_path MODEL] [options] "
        "[settings of the recipe]",
        epilog="All settings of model, data, samples and training are those of the recipe, but --strategy and what "
        "belongs to one: `python recipes/text.py --help` lists them.",
    )  # fmt: skip
    _add_advised(advice)
    cache = commands.add_parser("cache", help="List what earlier runs keep on disk for later ones, or delete it.")
    _add_choice_of_stores(cache)
    runs = {
        predict: _predict, push: _push, demo: _demo, space: _space, doctor: _doctor, rank: _rank, advice: _advise,
        cache: _cache,
    }  # fmt: skip
    for command, run in runs.items():
        command.set_defaults(run_command=run)
    return parser


def _add_candidates(rank: argparse.ArgumentParser) -> None:
    add = rank.add_argument
    add("--models", nargs="+", required=True, metavar="MODEL",
        help="Pretrained models: Hub ids, local folders, or sample:NAME; of equal ones the first is preferred.",
    )  # fmt: skip
    add("--dataset_name", metavar="DATA", help="The data, as for a recipe; only training rows are used.")
    add("--config", type=Path, metavar="FILE.yaml", help="Settings in a file, as for a recipe.")
    add("--recipe", choices=("vision", "text"), help="What samples are (default: as models and data show).")
    add("--top", type=int, default=2, help="For how many of the best models to print the next command (default: 2).")
    add("--output", type=Path, metavar="FILE.json",
        help="Write the ranking into this file, and a picture of score against cost beside it (PNG).")  # fmt: skip


def _add_advised(advice: argparse.ArgumentParser) -> None:
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


def _add_choice_of_stores(cache: argparse.ArgumentParser) -> None:
    cache.add_argument("--cache_dir", help="The folder, as in the settings of a run (default: HF_HOME/hf_transfer).")
    cache.add_argument(
        "--clear", nargs="*", metavar="NAME", help="Delete what is listed, or only what has these names."
    )
    cache.add_argument(
        "--older_than", type=float, default=0.0, metavar="DAYS", help="Only what has not been used for so many days."
    )


def _add_samples(predict: argparse.ArgumentParser) -> None:
    add = predict.add_argument
    add("model", help="The --output_dir of a run, a folder with a model, a Hub id, or sample:NAME.")
    add("files", nargs="*", type=Path,
        help="Pictures, files of text, tables (CSV, TSV, JSON, Parquet), folders of these, or - for lines of standard "
        "input.")  # fmt: skip
    add("--image", type=Path, help="For a model of images with texts: a picture, alone or with --text.")
    add("--text", nargs="+", action="extend", default=[], help="One or several texts instead of files.")
    add(
        "--text_pair", nargs="+", action="extend", default=[], help="For pairs of texts: a second text for each --text."
    )
    add("--top", type=int, default=3, help="Number of labels to print for a sample (default: 3).")
    add("--text_column_name", help="Column of a table with the texts (default: as in training, or found by its name).")
    add("--text_pair_column_name", help="Column with the second texts, for pairs of texts.")
    add("--image_column_name", help="Column with paths of images (default: as in training, or found by its name).")
    add("--encoding", help="Encoding of tables and files of text (default: UTF-8, or else as in training).")
    add("--delimiter", help="Separator of fields in CSV files: a sign, or tab, comma, semicolon, pipe (default: as in "
        "training, or as the first lines show).")  # fmt: skip
    add("--format", choices=("jsonl", "csv", "text"), help="How answers are written (default: jsonl, or as the name of "
        "--output says).")  # fmt: skip
    add("--output", type=Path, metavar="FILE", help="Write the answers into this file instead of on the screen.")


def _predict(arguments: argparse.Namespace) -> None:
    _check_predict(arguments)
    with none_collected():
        from hf_transfer.evaluation.answers import Report, write_answers
        from hf_transfer.evaluation.predictor import predictor_for
        from hf_transfer.host_memory import freed_memory_kept
        from hf_transfer.modalities.modality import Typed

        typed = Typed(arguments.image, arguments.text, arguments.text_pair)
        predictor = predictor_for(arguments.model, arguments.files, of_texts=bool(arguments.text))
    report = Report.of(arguments.output, arguments.format)
    top = len(predictor.target.names) if report.writer.takes_all else arguments.top
    in_files = bool(arguments.files)
    if in_files:
        names = ("text_column_name", "text_pair_column_name", "image_column_name", "encoding", "delimiter")
        wanted = {name: getattr(arguments, name) for name in names}
        answers = predictor.files(arguments.files, top, wanted)
    else:
        answers = predictor.typed(typed, top)
    with freed_memory_kept(scarce=False):
        write_answers(answers, predictor.target, report, in_files=in_files, usable=predictor.modality.usable)


def _check_predict(arguments: argparse.Namespace) -> None:
    """Refuse what no model can answer, before anything is loaded."""
    if arguments.top < 1:
        raise user_error(expected="--top of at least 1", found=str(arguments.top), do="change --top")
    is_typed = arguments.image is not None or bool(arguments.text)
    if is_typed == bool(arguments.files):
        raise user_error(
            expected="files, or samples by --text or --image",
            found="both" if arguments.files else "neither",
            do="see hf-transfer predict --help",
        )
    if arguments.image_column_name and arguments.text_pair_column_name:
        raise user_error(
            expected="texts with images, or with second texts",
            found="both --image_column_name and --text_pair_column_name",
            do="leave one of them out",
        )
    for name, values in (("encoding", ENCODING), ("delimiter", DELIMITER)):
        value = getattr(arguments, name)
        if value is not None and not values.holds(value):
            raise user_error(expected=f"--{name}: {values.words}", found=value, do=f"change --{name}")
    if arguments.text_pair and arguments.files:
        raise user_error(
            expected="--text_pair together with --text",
            found="files, with which --text_pair has no effect",
            do="leave --text_pair out; of tables, --text_pair_column_name names the column of second texts",
        )
    if arguments.output is not None:
        _check_output(arguments.output, arguments.files)


def _check_output(output: Path, files: Sequence[Path]) -> None:
    """Refuse a file of answers that would replace what is predicted, or be predicted by the next command."""
    if output.is_dir():
        raise user_error(expected="a file for --output", found=f"the folder {output}", do="name a file in it")
    if inputs := [file for file in files if output.resolve().is_relative_to(file.resolve())]:
        raise user_error(
            expected="an --output that is not, and does not lie in, what is predicted",
            found=f"{output}, with {inputs[0]} to predict",
            do="name a file in another folder",
        )


def _push(arguments: argparse.Namespace) -> None:
    from hf_transfer.hub.runs import push_run

    published = push_run(arguments.run, arguments.repository, private=arguments.hub_private_repo == "true")
    print(f"{published.url} at commit {published.revision}")


def _demo(arguments: argparse.Namespace) -> NoReturn:
    if not 0 < arguments.port < 65536:
        raise user_error(expected="--port from 1 to 65535", found=str(arguments.port), do="change --port")
    _check_examples(arguments.examples)
    from hf_transfer.hub.space import serve_demo

    sys.exit(serve_demo(arguments.run, port=arguments.port, examples=arguments.examples))


def _space(arguments: argparse.Namespace) -> None:
    _check_examples(arguments.examples)
    from hf_transfer.hub.space import publish_space

    published = publish_space(
        arguments.run, arguments.repository, private=arguments.hub_private_repo == "true",
        model=arguments.hub_model_id, examples=arguments.examples,
    )  # fmt: skip
    print(f"{published.url} at commit {published.revision}")


def _check_examples(count: int) -> None:
    if count != 0 and not 3 <= count <= 6:
        raise user_error(expected="--examples from 3 to 6, or 0 for none", found=str(count), do="change --examples")


def _doctor(arguments: argparse.Namespace) -> None:
    from hf_transfer.look_ahead import look_ahead, machine
    from hf_transfer.modalities.table import recipe_of

    # Before anything else: an error in the settings is reported at once.
    path = arguments.config
    config = None if path is None else load_settings(recipe_of(path), path)
    for name, value in machine():
        print(f"{name:22} {value}")
    if config is not None:
        print(f"\n{path}: the {config.recipe} recipe, {config.strategy.flag()}")
        if AUTO in config.strategy.names():
            from hf_transfer.advice.plan import describe_plan as look_ahead
        for sentence in look_ahead(config):
            print(sentence)


def _rank(arguments: argparse.Namespace) -> None:
    _check_rank(arguments)
    from hf_transfer.advice.ranking import rank
    from hf_transfer.advice.shown import commands_for, draw_ranking, ranking_table
    from hf_transfer.modalities.table import modality_named
    from hf_transfer.settings.files import read_yaml
    from hf_transfer.whole_run import recipe_for

    path = arguments.config
    saved = {} if path is None else read_yaml(path)
    data = arguments.dataset_name or saved.get("dataset_name")
    if data is None:
        raise user_error(expected="--dataset_name", found="no value", do="name the data")
    recipe = arguments.recipe or saved.get("recipe") or recipe_for(arguments.models, data, setting="--recipe ")
    flags = ["--dataset_name", data, *([] if path is None else ["--config", str(path)]), *arguments.others]
    ranking = rank(modality_named(recipe).config, arguments.models, flags)
    print(ranking_table(ranking, commands_for(ranking, recipe, flags, arguments.top)), end="")
    if arguments.output is not None:
        picture = arguments.output.with_suffix(".png")
        ranking.write(arguments.output)
        draw_ranking(picture, ranking)
        print(f"\nWritten: {arguments.output} and {picture}")


def _check_rank(arguments: argparse.Namespace) -> None:
    """Refuse what can be seen before anything is loaded."""
    if arguments.top < 0:
        raise user_error(expected="--top of at least 0", found=str(arguments.top), do="change --top")
    _check_json(arguments.output)


def _advise(arguments: argparse.Namespace) -> None:
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


def _cache(arguments: argparse.Namespace) -> None:
    if not 0 <= arguments.older_than < float("inf"):
        raise user_error(
            expected="--older_than of at least 0 days", found=str(arguments.older_than), do="change --older_than"
        )
    from hf_transfer.checkpoints.files import in_units
    from hf_transfer.checkpoints.kept import delete, kept_in, named, table_of
    from hf_transfer.data.hub_access import cache_folder

    folder = cache_folder(arguments.cache_dir)
    stores = kept_in(folder, arguments.older_than)
    if arguments.clear is not None:
        stores = named(stores, arguments.clear, folder)
        delete(stores)
    print(*table_of(stores), sep="\n", end="\n" if stores else "")
    total = in_units(sum(one.bytes for one in stores))
    print(f"{total} {'in' if arguments.clear is None else 'deleted from'} {folder}")


if __name__ == "__main__":
    main()
