"""Publish a run: what is checked before it is trained, and what is published when it is finished."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from hf_transfer.data.splits import Splits
from hf_transfer.errors import UserError, user_error
from hf_transfer.evaluation.results import RESULTS_FILE
from hf_transfer.evaluation.run_folder import MODEL_FOLDER, finished_run, has_card
from hf_transfer.settings.run import RunConfig
from hf_transfer.settings.strategy import ADAPTERS
from hf_transfer.training.launching import Processes, main_process_first

if TYPE_CHECKING:
    from hf_transfer.hub.publish import Published


def prepare_to_publish(config: RunConfig, processes: Processes) -> None:
    """Create the repositories, before anything slow: what could not be published at the end is refused now.

    Raises:
        UserError: an adapter that others could not load, no token, or a token that may not write there.
    """
    if config.output.push_to_hub:
        with main_process_first(processes):
            if processes.is_main_process:
                _create_repositories(config)


def _create_repositories(config: RunConfig) -> None:
    from hf_transfer.data.hub_access import is_hub_id
    from hf_transfer.hub.publish import create_repository

    output, base = config.output, config.model.model_name_or_path
    if config.strategy.strategy in ADAPTERS and not config.strategy.merge_adapter and not is_hub_id(base):
        raise _base_not_on_hub(base)
    create_repository(str(output.hub_model_id), kind="model", private=output.hub_private_repo)
    # Last, since the Hub may refuse it to those who do not pay.
    if output.push_space:
        create_repository(str(output.hub_model_id), kind="space", private=output.hub_private_repo)


def _base_not_on_hub(base: str) -> UserError:
    return user_error(
        expected="for an adapter a base model on the Hub, from where others can load it",
        found=f"{base}, which is only on this machine",
        do="publish the base first and train from its Hub id, or add --merge_adapter",
    )


def loaded_commits(
    config: RunConfig, splits: Splits, of_models: Mapping[str, str | None], *, in_memory: bool
) -> dict[str, str | None]:
    """By the settings that name something on the Hub: the commit that was loaded; None where it did not answer.

    Args:
        config: the settings of the run.
        splits: of its data.
        of_models: the commits of its checkpoints, by setting.
        in_memory: whether the data were passed by a program.
    """
    from hf_transfer.data.hub_access import is_hub_id

    loaded = dict(of_models) if in_memory else {**of_models, "dataset_name": splits.commit}
    return {name: commit for name, commit in loaded.items() if is_hub_id(str(config.flat()[name]))}


def publish_run(config: RunConfig) -> None:
    """Write the model card of a finished run, if it has none, and publish model and demo, if the settings say so.

    Raises:
        UserError: the Hub refused; the run is complete, and the message names the command that publishes it.
    """
    output = config.output
    out = Path(output.output_dir)
    if not (out / MODEL_FOLDER).is_dir() or (has_card(out) and not output.push_to_hub):
        return
    from hf_transfer.hub.card import NOWHERE, write_card

    write_card(out, output.hub_model_id or NOWHERE)
    if output.push_to_hub:
        published = push_run(out, str(output.hub_model_id), private=output.hub_private_repo)
        print(f"published    {published.url} at commit {published.revision}")
        if output.push_space:
            from hf_transfer.hub.space import publish_space

            demo = publish_space(
                out, str(output.hub_model_id), private=output.hub_private_repo,
                model=output.hub_model_id, revision=published.revision,
            )  # fmt: skip
            print(f"demo         {demo.url} at commit {demo.revision}")


def push_run(out: Path, repository: str, *, private: bool) -> Published:
    """Publish the model of a finished run with its card, in one commit; in none, if nothing has changed.

    Args:
        out: the run's folder, or the folder `model` in it.
        repository: OWNER/NAME.
        private: hide it from others.

    Raises:
        UserError: there is no finished run, others could not load its adapter, or the Hub refused; then the message
            names the command that publishes it.
    """
    from hf_transfer.data.hub_access import ask_hub, is_valid_name
    from hf_transfer.hub.card import write_card
    from hf_transfer.hub.publish import publish_folder, visibility
    from hf_transfer.strategies.adapter_files import adapter_settings, is_adapter_folder

    if out.name == MODEL_FOLDER and not (out / RESULTS_FILE).is_file():
        out = out.parent
    results, model = finished_run(out)
    if is_adapter_folder(model):
        settings = adapter_settings(model)
        base = str(settings["base_model_name_or_path"])
        if Path(base).expanduser().exists() or not is_valid_name(base):
            raise _base_not_on_hub(base)
        ask_hub(base, kind="model", revision=settings.get("revision") or "main")
    try:
        write_card(out, repository)
        message = f"{results.strategy}: {results.predicts}, seed {results.seed}"
        return publish_folder(model, repository, kind="model", private=private, message=message)
    except UserError as error:
        command = shlex.join(["hf-transfer", "push", str(out), repository, *visibility(private)])
        raise UserError(f"{error}\nThe run is complete in {out}. To publish it: {command}") from error
