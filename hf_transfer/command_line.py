"""The console command `hf-transfer`: what one does with a finished model, and a look at the machine."""

import argparse
import json
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
    predict = commands.add_parser("predict", help="Classify pictures with a finished model.")
    predict.add_argument("model", help="The folder OUT/model of a run, a Hub id, or sample:NAME.")
    predict.add_argument("images", nargs="+", type=Path, help="Picture files.")
    predict.add_argument("--top", type=int, default=3, help="How many labels to print of each (default: 3).")
    predict.add_argument("--json", action="store_true", help="One JSON object for each picture.")
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
            _predict(arguments.model, arguments.images, arguments.top, arguments.json)
        else:
            _doctor(arguments.config)
    except UserError as error:
        exit_with(error)


def _predict(model: str, images: Sequence[Path], top: int, as_json: bool) -> None:
    if top < 1:
        raise mistake(expected="--top of at least 1", found=str(top), do="change --top")
    from hf_transfer.evaluation.predict import classify_images

    for answer in classify_images(model, images, top=top):
        if as_json:
            print(json.dumps({"path": str(answer.path), "scores": dict(answer.scores)}, ensure_ascii=False))
        else:
            print(f"{answer.path}\t" + "\t".join(f"{name} {share:.4f}" for name, share in answer.scores))


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
