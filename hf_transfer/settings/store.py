"""How the outputs of frozen layers are stored, and where caches are."""

from dataclasses import dataclass
from typing import Literal

from hf_transfer.settings.fields import TRAINS, Need, Topic, setting
from hf_transfer.settings.ranges import at_least
from hf_transfer.settings.strategy import AUTO, SOLVED

STORED = Need(
    "--cache_frozen auto or on, or a head that is solved",
    lambda config: config.store.cache_frozen != "off" or bool({*config.strategy.names()} & {*SOLVED, AUTO}),
    "--cache_frozen off",
)


@dataclass(frozen=True)
class StoreSettings(Topic):
    """Stored activations, caches and loader processes."""

    cache_frozen: Literal["auto", "on", "off"] = setting(
        "Run frozen layers once for each sample and store their outputs: if it saves time, always, or never.",
        "auto", "speed", TRAINS,
    )  # fmt: skip
    cache_dtype: Literal["auto", "float32", "bfloat16", "float16"] = setting(
        "Data type of stored activations (default: that in which each is computed).", "auto", TRAINS, STORED
    )
    cache_dir: str | None = setting(
        "Folder for results of checks, resized pictures, tokens and outputs of frozen layers (default: "
        "HF_HOME/hf_transfer).",
        None,
        "speed",
    )
    dataloader_num_workers: int | None = setting(
        "Processes that decode samples, for each process of the run; several together have at most one for each "
        "processor (default: 0 for small data, else up to 4).",
        None,
        at_least(0),
        "speed",
    )
