"""The console command `hf-transfer`: what one does with a finished model, and a look at the machine."""

import argparse
import importlib.metadata
import json
import os
import platform
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from hf_transfer.config import UserError, check_installation, mistake
from hf_transfer.parsing import exit_with


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
    commands.add_parser("doctor", help="Print versions, devices and caches, and whether the installation is sound.")
    try:
        check_installation()
        arguments = parser.parse_args(argv)
        if arguments.command == "predict":
            _predict(arguments.model, arguments.images, arguments.top, arguments.json)
        else:
            _doctor()
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


def _doctor() -> None:
    import huggingface_hub.constants
    import torch

    from hf_transfer.versions import versions

    for name, version in {
        "hf-transfer-learning": importlib.metadata.version("hf-transfer-learning"),
        **versions(),
    }.items():
        print(f"{name:22} {version}")
    devices = [torch.cuda.get_device_name(number) for number in range(torch.cuda.device_count())]
    print(f"{'machine':22} {platform.platform()}")
    print(f"{'processors':22} {os.cpu_count()}, torch uses {torch.get_num_threads()} threads")
    print(f"{'accelerators':22} {', '.join(devices) or 'none'}")
    print(f"{'cache':22} {huggingface_hub.constants.HF_HOME}")
    print(f"{'import name':22} ours alone")


if __name__ == "__main__":
    main()
