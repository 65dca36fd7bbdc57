"""The benchmark for GPUs runs on a CPU, with tiny models: all programs, and the table."""

import math

import pytest
import torch

from benchmarks import gpu


@pytest.mark.slow
def test_every_model_is_measured_with_every_strategy_next_to_trainer() -> None:
    rows = gpu.measure_all(gpu.TINY, "eager")
    arms = {(row.model, row.strategy, row.compiled) for row in rows}
    expected = {(name, *arm) for name in ("vit-base", "resnet-50", "bert-base") for arm in gpu.ARMS}
    assert arms == expected - {("resnet-50", "lora", False)}
    assert len(rows) == 2 * len(arms)
    for row in rows:
        assert row.seconds > 0
        assert row.samples_per_second == pytest.approx(gpu.TINY.samples / row.seconds)
        solved = row.strategy == "linear_probe" and row.program == "ours"
        assert row.training_seconds == pytest.approx(row.seconds * (1 if solved else gpu.TINY.epochs))
        assert (row.peak_bytes is None) == (not torch.cuda.is_available())
    lines = gpu.table(rows).splitlines()
    assert len(lines) == 2 + len(arms)
    assert len({line.count("|") for line in lines}) == 1


@pytest.mark.slow
def test_no_arm_begins_when_the_time_is_over(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(gpu, "LATEST_START", -math.inf)
    assert gpu.measure_all(gpu.TINY) == []
    assert "No time left for vit-base, full, ours." in capsys.readouterr().out


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
def test_without_a_gpu_it_says_how_to_try_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["gpu"])
    with pytest.raises(SystemExit) as ended:
        gpu.main()
    assert ended.value.code == 2
    assert capsys.readouterr().err.splitlines()[-1] == "Do this:  add --tiny to try the script on a CPU"
