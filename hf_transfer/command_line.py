"""The console command `hf-transfer`: what one does with a finished model, and a look at the machine."""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from hf_transfer.config import UserError, mistake
from hf_transfer.installation import check_installation
from hf_transfer.parsing import exit_with, load, recipe_of


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise mistake(expected=self.format_usage().strip(), found=message, do="see hf-transfer --help")


def main(argv: Sequence[str] | None = None) -> None:
    """Run `hf-transfer`; a user's mistake ends it with a message and code 2."""
    parser = _Parser(prog="hf-transfer", description="Use a finished model, or look at this machine.")
    commands = parser.add_subparsers(dest="command", required=True, parser_class=_Parser)
    _add_predict(commands.add_parser("predict", help="Classify pictures, texts or pairs with a finished model."))
    push = commands.add_parser("push", help="Publish the model of a finished run on the Hub, with its card.")
    push.add_argument("run", type=Path, help="The --output_dir of the run.")
    push.add_argument("repository", metavar="OWNER/NAME", help="Where to; it is made if there is none.")
    push.add_argument(
        "--hub_private_repo", choices=("true", "false"), default="true",
        help="Hide it from others (default: true); false shows it to everybody.",
    )  # fmt: skip
    demo = commands.add_parser("demo", help="Open a demo of a finished run on this machine.")
    demo.add_argument("run", type=Path, help="The --output_dir of the run.")
    demo.add_argument("--port", type=int, default=7860, help="Where on this machine (default: 7860).")
    space = commands.add_parser("space", help="Publish a demo of a finished run as a Space on the Hub.")
    space.add_argument("run", type=Path, help="The --output_dir of the run.")
    space.add_argument("repository", metavar="OWNER/NAME", help="Where to; it is made if there is none.")
    space.add_argument(
        "--hub_model_id", metavar="OWNER/NAME",
        help="The model on the Hub: a public one is named, with its commit (default: it goes into the Space).",
    )  # fmt: skip
    space.add_argument(
        "--hub_private_repo", choices=("true", "false"), default="true",
        help="Hide it from others (default: true); false shows it to everybody.",
    )  # fmt: skip
    for command in (demo, space):
        command.add_argument(
            "--examples",
            type=int,
            default=6,
            help="How many samples of the test split to show, 3 to 6, or 0 (default: 6).",
        )
    doctor = commands.add_parser(
        "doctor", help="Print versions, devices and caches, whether the installation is sound, and what a run takes."
    )
    doctor.add_argument(
        "--config", type=Path, help="Settings of a run: its data, and its time, memory and disk; nothing is trained."
    )
    try:
        check_installation()
        arguments = parser.parse_args(argv)
        if arguments.command == "predict":
            _predict(arguments)
        elif arguments.command == "push":
            _push(arguments.run, arguments.repository, private=arguments.hub_private_repo == "true")
        elif arguments.command == "demo":
            sys.exit(_demo(arguments.run, arguments.port, arguments.examples))
        elif arguments.command == "space":
            _space(arguments)
        else:
            _doctor(arguments.config)
    except UserError as error:
        exit_with(error)


def _add_predict(predict: argparse.ArgumentParser) -> None:
    predict.add_argument("model", help="The folder OUT/model of a run, a Hub id, or sample:NAME.")
    predict.add_argument("files", nargs="*", type=Path, help="Pictures, or tables of texts or of pairs (CSV, TSV).")
    predict.add_argument(
        "--image", type=Path, help="For a model of images with texts: a picture; --text may go with it."
    )
    predict.add_argument("--text", help="For a model of images with texts: a text, alone or with --image.")
    predict.add_argument("--top", type=int, default=3, help="How many labels to print of each (default: 3).")
    predict.add_argument("--text_column_name", help="Column of a table with the texts (default: found by its name).")
    predict.add_argument("--text_pair_column_name", help="Column with a second text, for pairs.")
    predict.add_argument("--image_column_name", help="Column with paths of images (default: found by its name).")


def _predict(arguments: argparse.Namespace) -> None:
    top, pair = arguments.top, (arguments.image, arguments.text)
    if top < 1:
        raise mistake(expected="--top of at least 1", found=str(top), do="change --top")
    if (pair == (None, None)) == (not arguments.files):
        raise mistake(
            expected="files, or one sample by --image, --text or both",
            found="both" if arguments.files else "neither",
            do="see hf-transfer predict --help",
        )
    if arguments.image_column_name and arguments.text_pair_column_name:
        raise mistake(
            expected="texts with images, or with second texts",
            found="both --image_column_name and --text_pair_column_name",
            do="leave one of them out",
        )
    from hf_transfer.evaluation.predict import classify_files, classify_pairs

    if not arguments.files:
        (scores,) = classify_pairs(arguments.model, [pair], top=top)
        place = {} if arguments.image is None else {"path": str(arguments.image)}
        print(json.dumps({**place, "scores": dict(scores)}, ensure_ascii=False))
        return
    columns = (arguments.text_column_name, arguments.text_pair_column_name or arguments.image_column_name)
    for answer in classify_files(arguments.model, arguments.files, top=top, columns=columns):
        print(json.dumps(answer.as_json(), ensure_ascii=False))


def _push(run: Path, repository: str, *, private: bool) -> None:
    from hf_transfer.hub.runs import push_run

    done = push_run(run, repository, private=private)
    print(f"{done.url} at commit {done.revision}")


def _demo(run: Path, port: int, examples: int) -> int:
    if not 0 < port < 65536:
        raise mistake(expected="--port from 1 to 65535", found=str(port), do="change --port")
    _check_examples(examples)
    from hf_transfer.hub.space import serve_demo

    return serve_demo(run, port=port, examples=examples)


def _space(arguments: argparse.Namespace) -> None:
    _check_examples(arguments.examples)
    from hf_transfer.hub.space import publish_space

    done = publish_space(
        arguments.run, arguments.repository, private=arguments.hub_private_repo == "true",
        model=arguments.hub_model_id, examples=arguments.examples,
    )  # fmt: skip
    print(f"{done.url} at commit {done.revision}")


def _check_examples(count: int) -> None:
    if count != 0 and not 3 <= count <= 6:
        raise mistake(expected="--examples from 3 to 6, or 0 for none", found=str(count), do="change --examples")


def _doctor(settings: Path | None) -> None:
    from hf_transfer.evaluation.doctor import machine, run_ahead

    # First: a mistake in a file of settings is answered without a look at the machine.
    config = None if settings is None else load(recipe_of(settings), settings)
    for name, value in machine():
        print(f"{name:22} {value}")
    if config is not None:
        print(f"\n{settings}: the {config.recipe} recipe, --strategy {config.strategy}")
        for sentence in run_ahead(config):
            print(sentence)


if __name__ == "__main__":
    main()
