"""Advice before training: the evidence, a shortlist of ways to train, and the commands for them."""

import json
import shlex
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import datasets

from hf_transfer.advice.arms import Arm, Shortlist
from hf_transfer.advice.candidates import NOT_ASKED
from hf_transfer.advice.evidence import Evidence, gather_evidence
from hf_transfer.advice.shortlist import shortlist_of
from hf_transfer.data.complete_files import put
from hf_transfer.errors import user_error
from hf_transfer.settings.parsing import parse
from hf_transfer.settings.run import MODEL, TOWERS, RunConfig
from hf_transfer.settings.strategy import TOWER_STRATEGIES
from hf_transfer.versions import versions

SCHEMA = 1
# What advice says, or what writes a result.
ADVISED = ("taps", *(name for name in NOT_ASKED if name not in (MODEL, *TOWERS)))


@dataclass(frozen=True)
class Advice:
    """What is known before training, and what follows from it.

    Attributes:
        config: the settings of a run.
        evidence: of its model and data.
        shortlist: what is worth trying.
    """

    config: RunConfig
    evidence: Evidence
    shortlist: Shortlist

    def as_json(self) -> dict[str, Any]:
        """Everything that a program may want to know, as JSON."""
        return {
            "schema": SCHEMA,
            "dataset_name": self.config.data.dataset_name,
            "evidence": self.evidence.as_json(),
            "shortlist": [asdict(arm) for arm in self.shortlist.arms],
            "rejected": [asdict(one) for one in self.shortlist.rejected],
            "enough": self.shortlist.enough,
            "versions": versions(),
        }

    def write(self, path: Path) -> None:
        """Write it as JSON."""
        put(path, (json.dumps(self.as_json(), indent=2, ensure_ascii=False) + "\n").encode())


def advise(config: RunConfig, data: datasets.DatasetDict | None = None, *, with_fresh_weights: bool = True) -> Advice:
    """Say what to try with a model and data. The test split is not read, and nothing is trained.

    Args:
        config: the settings of a run with any strategy.
        data: a data set in memory; None: what the settings name.
        with_fresh_weights: see `gather_evidence`.

    Raises:
        UserError: see `gather_evidence`.
    """
    evidence = gather_evidence(config, data, with_fresh_weights=with_fresh_weights)
    return Advice(config, evidence, shortlist_of(evidence, config))


def config_of(config_class: type[RunConfig], flags: Sequence[str]) -> RunConfig:
    """The settings of a run that trains all layers, from the flags of a recipe without a strategy.

    Raises:
        UserError: a setting is wrong, or advice is what says it.
    """
    if refused := [name for name, _ in _settings_in(flags) if name in ADVISED]:
        raise user_error(
            expected="settings of model, data, samples and training: what learns is what you are advised on",
            found=f"--{refused[0]}",
            do=f"leave --{refused[0]} out",
        )
    # Of two towers, a file may give each its own strategy, beside which a third has no effect.
    strategy = [] if "image_strategy" in config_class.settings() else ["--strategy", "full"]
    return parse(config_class, [*flags, "--output_dir", "none", *strategy, "--report_to", "none"])


def command_for(arm: Arm, config: RunConfig, flags: Sequence[str]) -> str:
    """The command that trains so.

    Args:
        arm: a way to train.
        config: the settings.
        flags: the same, as they were given; those that have no effect on this way are left out.
    """
    towers = {name: None for name in TOWER_STRATEGIES if name in config.settings()}
    without_effect = config.replaced(**towers, **arm.settings).ineffective()
    kept = [words for name, words in _settings_in(flags) if name not in without_effect and name not in arm.settings]
    chosen = [f"--{name} {_shown(value)}" for name, value in arm.settings.items()]
    given = [shlex.join(words) for words in kept]
    return " ".join([f"python recipes/{config.recipe}.py", *given, *chosen, f"--output_dir runs/{arm.name}"])


def _settings_in(flags: Sequence[str]) -> Iterator[tuple[str, list[str]]]:
    """The name of each setting on a command line, and its words."""
    starts = [place for place, word in enumerate(flags) if word.startswith("--")]
    for start, end in zip(starts, [*starts[1:], len(flags)], strict=True):
        yield flags[start].partition("=")[0].removeprefix("--").replace("-", "_"), list(flags[start:end])


def _shown(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return shlex.join(map(str, value)) if isinstance(value, list) else shlex.quote(str(value))
