"""Features at several depths: one pass over the samples, a store with a named column for each tap."""

from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn.functional import normalize

from hf_transfer.frozen.features import Features
from hf_transfer.frozen.taps import tap_features
from hf_transfer.models.taps import TapChoice, widths_of
from hf_transfer.training.devices import start_accelerator
from tests.frozen.solved_heads import passes_of
from tests.tapped_models import mean_by_hand, outputs_of, tapped
from tests.training.toy_task import Rows, loaders_of, rows_for, settings


def features_of(features: Features) -> Tensor:
    """The feature vectors of all training samples."""
    return torch.cat([block for block, _ in features.blocks()])


@pytest.mark.parametrize("name", ["vit", "bert"])
def test_one_pass_gives_all_taps_and_a_second_run_needs_none(name: str, tmp_path: Path) -> None:
    """30 training and 10 validation samples, in batches of 32."""
    rows, validation = rows_for(name, 30), rows_for(name, 10, seed=1)
    seen: list[int] = []
    columns: list[dict[str, Tensor]] = []
    for _ in range(2):
        one = tapped(name)
        choice: TapChoice = one.usual()
        backbone = one.without_head()
        widths = widths_of(backbone, choice.taps, one.inputs)
        samples: list[int] = []
        backbone.register_forward_pre_hook(
            lambda _module, _args, kwargs, samples=samples: samples.append(len(next(iter(kwargs.values())))),
            with_kwargs=True,
        )
        config = settings(cache_frozen="on", cache_dir=str(tmp_path))
        with start_accelerator(config) as accelerator:
            passes = passes_of(loaders_of(accelerator, rows, validation, 4), accelerator, config)
            with tap_features(backbone, choice.taps, widths, 0, passes) as features:
                columns.append({tap: features_of(features.of(tap)) for tap in features.names})
        seen.append(sum(samples))
    assert seen == [40, 0]
    assert all(torch.equal(columns[0][tap], columns[1][tap]) for tap in columns[0])
    one = tapped(name)
    outputs, _ = outputs_of(one.model, one.blocks, rows.inputs)
    for block, output in enumerate(outputs, 1):
        expected = mean_by_hand(output, rows.inputs)
        torch.testing.assert_close(columns[0][f"mean_{block}"], expected, rtol=1e-4, atol=1e-5)


def test_several_taps_have_unit_length_where_that_is_asked_for_and_one_stays_as_it_is() -> None:
    one, config = tapped("vit"), settings()
    choice, backbone = one.usual(), one.without_head()
    widths = widths_of(backbone, choice.taps, one.inputs)
    with start_accelerator(config) as accelerator:
        passes = passes_of(loaders_of(accelerator, Rows(20), Rows(10, seed=1), 4), accelerator, config)
        with tap_features(backbone, choice.taps, widths, 0, passes) as features:
            first, last, plain = (
                features_of(features.of(*names)) for names in (("mean_1",), ("head",), ("mean_1", "head"))
            )
            scaled = Features(
                features.train, features.validation, features.target, names=features.names, normalised=True
            )
            assert torch.equal(features_of(scaled.of("mean_1")), first)
            assert torch.equal(
                features_of(scaled.of("mean_1", "head")), torch.cat([normalize(first), normalize(last)], 1)
            )
            assert torch.equal(plain, torch.cat([first, last], 1))
