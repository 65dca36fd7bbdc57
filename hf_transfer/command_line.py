"""The console command `hf-transfer`: choose a model, use or publish a finished one, and check this machine."""

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

from hf_transfer.advice_commands import add_advise, add_rank, run_advise, run_rank
from hf_transfer.errors import UserError, user_error
from hf_transfer.garbage import none_collected, skip_last_collection
from hf_transfer.installation import check_installation, explaining_torchvision
from hf_transfer.settings.flags import spellings
from hf_transfer.settings.parsing import exit_with, load_settings
from hf_transfer.settings.ranges import DELIMITER, ENCODING

# The exit code after Ctrl-C, as in a shell.
INTERRUPTED = 130


class _Parser(argparse.ArgumentParser):
    """A parser whose flags may be written with hyphens in place of underscores, as those of recipes."""

    def add_argument(self, *names: str, **options: Any) -> argparse.Action:
        flags = [spelling for name in names for spelling in (spellings(name) if name.startswith("--") else [name])]
        return super().add_argument(*flags, **options)

    def error(self, message: str) -> NoReturn:
        raise user_error(expected=self.format_usage().strip(), found=message, do="see hf-transfer --help")


def main(argv: Sequence[str] | None = None) -> None:
    """Run `hf-transfer`; a user's error ends it with a message and exit code 2, and Ctrl-C without a traceback."""
    skip_last_collection()
    try:
        check_installation()
        parser = _parser()
        arguments, others = parser.parse_known_args(argv)
        if others and arguments.run_command not in (run_rank, run_advise):
            parser.error(f"unrecognized arguments: {' '.join(others)}")
        arguments.others = others
        with explaining_torchvision():
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
    export = commands.add_parser("export", help="Write a finished model for programs without torch, in ONNX format.")
    _add_export(export)
    doctor = commands.add_parser(
        "doctor", help="Print versions, devices, caches and installation errors, and what a run would take."
    )
    doctor.add_argument(
        "--config", type=Path,
        help="Settings of a run: print its data, its time, memory and disk space, without training.",
    )  # fmt: skip
    rank, advice = add_rank(commands), add_advise(commands)
    cache = commands.add_parser("cache", help="List what earlier runs keep on disk for later ones, or delete it.")
    _add_choice_of_stores(cache)
    runs: dict[argparse.ArgumentParser, Callable[[argparse.Namespace], None]] = {
        predict: _predict, push: _push, demo: _demo, space: _space, export: _export, doctor: _doctor, rank: run_rank,
        advice: run_advise, cache: _cache,
    }  # fmt: skip
    for subparser, run in runs.items():
        subparser.set_defaults(run_command=run)
    return parser


def _add_export(export: argparse.ArgumentParser) -> None:
    add = export.add_argument
    add("model", help="The --output_dir of a run, a folder with a model, a Hub id, or sample:NAME.")
    add("--format", choices=("onnx",), default="onnx", help="The format of the file (default: onnx).")
    add("--int8", action="store_true",
        help="Also write weights of 8 bits, if they change the answers to the test split of the run little enough.",
    )  # fmt: skip
    add("--output", type=Path, metavar="FOLDER",
        help="The folder to write (default: onnx in the folder of the run or of the model).")  # fmt: skip


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


def _export(arguments: argparse.Namespace) -> None:
    from hf_transfer.export.folder import export_model

    exported = export_model(arguments.model, arguments.output, int8=arguments.int8)
    print(*exported.sentences, sep="\n")
    print(f"Written: {exported.folder}; to answer one sample: python {exported.folder}/serve.py SAMPLE")


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
        if config.chooses_strategy():
            from hf_transfer.advice.plan import describe_plan as look_ahead
        for sentence in look_ahead(config):
            print(sentence)


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
