"""What learns, and when."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal, get_args

from hf_transfer.errors import user_error
from hf_transfer.settings.fields import TRAINS, Need, Topic, setting
from hf_transfer.settings.ranges import BELOW_ONE, COUNTED_FROM_ONE, POSITIVE, TAPS, Range, at_least

# It stands for the strategy that is best on held-out samples: see `advice/auto.py`.
AUTO = "auto"
# What to do in a program of one's own where a choice is left open.
HOW_TO_DECIDE = (
    "add `from hf_transfer.advice.auto import decided`, and write open_run(decided(config)) as the recipes do; of data "
    "in memory open_run(decided(config, data), data)"
)

ADAPTERS = ("lora", "dora", "ia3", "lokr", "adapter")
WITH_RANK = ("lora", "dora", "lokr", "adapter")
# Nothing but a head on a frozen backbone.
PROBES = ("linear_probe", "deep_probe")
SOLVED = (*PROBES, "lp_ft")
# In which layers of the backbone learn as a whole.
FINE_TUNING = ("partial", "gradual", "lp_ft", "full")
Trained = Literal["partial", "gradual", "lp_ft", "full", "scratch", "bitfit", "lora", "dora", "ia3", "lokr", "adapter"]
Strategy = Literal["linear_probe", "deep_probe", Trained]
# What one of two towers can have alone: a head on both is then trained.
TowerStrategy = Literal["linear_probe", Trained]
# The settings that give each of two towers its own.
TOWER_STRATEGIES = ("image_strategy", "text_strategy")
ARMS = Range(
    f"strategies, each once: {', '.join(get_args(Strategy))}",
    lambda names: len({*names}) == len(names) and {*names} <= {*get_args(Strategy)},
)


def one_of(*strategies: str) -> Need:
    """The need of a setting that only some strategies read; `auto` may try each of them."""
    return Need(
        f"--strategy {' or '.join(strategies)}",
        lambda config: bool({*config.strategy.names()} & {*strategies, AUTO}),
        lambda config: config.strategy.flag(),
    )


OPEN_TOWER = Need(
    "a tower that has no strategy of its own",
    lambda config: None in (config.strategy.image_strategy, config.strategy.text_strategy),
    "--image_strategy and --text_strategy",
)
ONE_LAYER = Need(
    "a head of one layer, which can be solved",
    lambda config: config.has_simple_head,
    "images with texts, whose head is trained",
)
SOLVED_HEAD = Need(
    "a head of one layer, which can be solved",
    lambda config: config.has_simple_head or bool({*config.strategy.names()} & {"deep_probe", AUTO}),
    "images with texts, whose head is trained unless --strategy is deep_probe",
)


@dataclass(frozen=True)
class StrategySettings(Topic):
    """The strategy, and what only some strategies read."""

    needs: ClassVar[tuple[Need, ...]] = (TRAINS,)

    strategy: Literal[Strategy, "auto"] = setting(
        "What learns, and when: see docs/strategies.md; auto: what is best on held-out samples, see docs/auto.md.",
        AUTO,
    )
    auto_seconds: float | None = setting(
        "Within so many seconds auto decides (default: it trains at most one strategy beside the solved head).",
        None, POSITIVE, one_of(AUTO),
    )  # fmt: skip
    auto_arms: list[str] = setting(
        "Strategies that auto trains, in this order, beside the best solved head (default: by evidence).",
        [], ARMS, one_of(AUTO),
    )  # fmt: skip
    trainable_layers: int = setting("How many blocks learn, counted from the head.", 1, at_least(1), one_of("partial"))
    batch_norm_statistics: Literal["pretrained", "updated"] = setting(
        "Statistics with which BatchNorm layers normalise: those of the pretrained model, or those of the batches.",
        "pretrained", one_of(*FINE_TUNING),
    )  # fmt: skip
    adapter_layers: int | None = setting(
        "Adapters in this many top blocks only (default: in all).", None, at_least(1), one_of(*ADAPTERS)
    )
    adapter_rank: int = setting("Rank of an adapter's matrices.", 8, at_least(1), one_of(*WITH_RANK))
    adapter_alpha: float | None = setting(
        "Scale of an adapter, over its rank (default: 2 x rank).", None, POSITIVE, one_of(*WITH_RANK)
    )
    adapter_dropout: float = setting("Dropout before an adapter.", 0.05, BELOW_ONE, one_of(*WITH_RANK))
    peft_type: str = setting("Any method of peft that can attach to the model.", "LOHA", one_of("adapter"))
    merge_adapter: bool = setting(
        "Save a plain transformers model, with the adapter merged into its weights.", False, one_of(*ADAPTERS)
    )
    probe: Literal["logistic", "svm", "knn"] = setting(
        "How a head on frozen features is solved: logistic regression or a support vector machine; knn: the "
        "first, and the report also gives the accuracy of nearest neighbours.", "logistic",
        SOLVED_HEAD, one_of(*SOLVED),
    )  # fmt: skip
    feature_layers: list[int] = setting(
        "Blocks, counted from 1 at the input, whose features the report evaluates by a probe.",
        [], COUNTED_FROM_ONE, ONE_LAYER, one_of("linear_probe", "lp_ft"),
    )  # fmt: skip
    taps: list[str] = setting(
        "Where deep_probe reads the backbone: head (what enters its head), mean_N (the mean behind block N, counted "
        "from 1 at the input), first_N (the first token behind it); of images with texts each with image_ or text_ "
        "before it. Default: what is best on held-out samples.",
        [], TAPS, SOLVED_HEAD, one_of("deep_probe"),
    )  # fmt: skip

    def names(self) -> Sequence[str]:
        """The strategies of the run, each once: that of the image tower is the first."""
        return list(dict.fromkeys(self.by_tower().values()))

    def by_tower(self) -> dict[str, str]:
        """The strategy of each tower; a single tower has no name."""
        return {"": self.strategy}

    def refuse_auto(self) -> None:
        """Refuse `auto` where a strategy must have been chosen.

        Raises:
            UserError: none has been; a recipe that was copied before there was auto lacks the call that chooses one.
        """
        if AUTO in self.names():
            raise user_error(
                expected="a strategy that has been chosen, before open_run",
                found="--strategy auto",
                do=f"name a --strategy; or {HOW_TO_DECIDE}",
            )

    def flag(self) -> str:
        """The strategies of the run, for messages."""
        return f"--strategy {' and '.join(self.names())}"


@dataclass(frozen=True)
class PairStrategySettings(StrategySettings):
    """A strategy for each of two towers."""

    strategy: Literal[Strategy, "auto"] = setting(
        "What learns, and when, beside the head: see docs/strategies.md; auto: what is best on held-out samples, see "
        "docs/auto.md.", AUTO, OPEN_TOWER,
    )  # fmt: skip
    # Two towers have no common base beside which peft could load an adapter.
    merge_adapter: bool = setting("Adapters are always merged into the weights of a model of pairs.", True)
    image_strategy: TowerStrategy | None = setting("What learns in the image tower (default: as --strategy).", None)
    text_strategy: TowerStrategy | None = setting("What learns in the text tower (default: as --strategy).", None)

    def by_tower(self) -> dict[str, str]:
        """See `StrategySettings.by_tower`; a head on taps is one strategy for both."""
        if self.strategy == "deep_probe" and self.image_strategy is self.text_strategy is None:
            return {"": self.strategy}
        return {"image": self.image_strategy or self.strategy, "text": self.text_strategy or self.strategy}
