"""A run on its way to the Hub: what is asked before it is trained, and what is done when it is finished."""

import json
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from accelerate import Accelerator

from hf_transfer.config import ADAPTERS, RunConfig, UserError, mistake
from hf_transfer.data.hub_access import ask_hub, is_hub_id, is_valid_name
from hf_transfer.data.hub_account import Kind, find_destination
from hf_transfer.evaluation.report import results_table
from hf_transfer.evaluation.run_folder import RESULTS_FILE
from hf_transfer.hub.card import write_card
from hf_transfer.hub.publish import Published, make_ready, publish_folder
from hf_transfer.hub.space import publish_space
from hf_transfer.hub.usage import NOWHERE
from hf_transfer.strategies.adapter_files import ADAPTER_FILES, is_adapter_folder


def prepare_to_publish(config: RunConfig, accelerator: Accelerator) -> None:
    """Before anything slow: refuse what could not be published in the end. The repository is made now.

    Raises:
        UserError: an adapter that others could not load, no token, or one that may not write there.
    """
    if not config.push_to_hub or not accelerator.is_main_process:
        return
    refuse_unloadable_adapter(config)
    private = config.hub_private_repo
    for kind in published_kinds(config):
        make_ready(find_destination(str(config.hub_model_id), kind=kind, private=private), private=private)


def published_kinds(config: RunConfig) -> tuple[Kind, ...]:
    """What is to be published under the name `--hub_model_id`; a Space last, which the Hub may want money for."""
    return ("model", "space") if config.push_space else ("model",)


def refuse_unloadable_adapter(config: RunConfig) -> None:
    """An adapter is loaded beside its base, which must be where others find it."""
    if config.strategy in ADAPTERS and not config.merge_adapter and not is_hub_id(config.model_name_or_path):
        raise _base_is_here(config.model_name_or_path)


def _base_is_here(base: str) -> UserError:
    return mistake(
        expected="with an adapter to publish a base model on the Hub, beside which others load it",
        found=f"{base}, which is only here",
        do="publish the base first and train from its Hub id, or add --merge_adapter",
    )


def finish_run(results: Mapping[str, Any], config: RunConfig, accelerator: Accelerator) -> None:
    """Show what a run has come to, write its model's card and, if that is wanted, publish the model.

    Raises:
        UserError: the Hub did not take it; the run is complete all the same, and the command that is left is named.
    """
    if not accelerator.is_main_process:
        return
    out = Path(config.output_dir)
    print(results_table(results, config.output_dir))
    if not (out / "model").is_dir():
        return
    write_card(out, config.hub_model_id or NOWHERE)
    if config.push_to_hub:
        done = push_run(out, str(config.hub_model_id), private=config.hub_private_repo)
        print(f"published    {done.url} at commit {done.revision}")
        if config.push_space:
            shown = publish_space(
                out, str(config.hub_model_id), private=config.hub_private_repo,
                model=config.hub_model_id, revision=done.revision,
            )  # fmt: skip
            print(f"demo         {shown.url} at commit {shown.revision}")


def push_run(out: Path, repository: str, *, private: bool) -> Published:
    """Publish the model of a finished run with its card, in one commit; none if the Hub holds it already.

    Args:
        out: the run's folder, or the folder `model` in it.
        repository: OWNER/NAME.
        private: hide it from others.

    Raises:
        UserError: no finished run is there, others could not load its adapter, or the Hub does not take it; the
            command that completes it is named.
    """
    if out.name == "model" and not (out / RESULTS_FILE).is_file():
        out = out.parent
    model = out / "model"
    if not (out / RESULTS_FILE).is_file() or not model.is_dir():
        raise mistake(
            expected=f"a finished run in {out}: {RESULTS_FILE} and model/",
            found="no such folder" if not out.is_dir() else "a folder without them",
            do="name the --output_dir of a run, and finish the run first: the command that began it goes on",
        )
    _refuse_adapter_of_a_base_that_is_here(model)
    try:
        write_card(out, repository)
        results = json.loads((out / RESULTS_FILE).read_text(encoding="utf-8"))
        message = f"{results['strategy']}: {len(results['labels'])} classes, seed {results['seed']}"
        return publish_folder(model, repository, kind="model", private=private, message=message)
    except UserError as error:
        left = push_command(out, repository, private=private)
        raise UserError(f"{error}\nThe run is complete in {out}. What is left to do: {left}") from error


def push_command(out: Path, repository: str, *, private: bool) -> str:
    """The command that publishes a finished run."""
    openly = [] if private else ["--hub_private_repo", "false"]
    return shlex.join(["hf-transfer", "push", str(out), repository, *openly])


def _refuse_adapter_of_a_base_that_is_here(model: Path) -> None:
    if not is_adapter_folder(model):
        return
    settings = json.loads((model / ADAPTER_FILES[0]).read_text(encoding="utf-8"))
    base = str(settings["base_model_name_or_path"])
    if Path(base).expanduser().exists() or not is_valid_name(base):
        raise _base_is_here(base)
    ask_hub(base, kind="model", revision=settings.get("revision") or "main")
