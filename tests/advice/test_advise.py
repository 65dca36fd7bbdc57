"""`hf-transfer advise` as a user runs it: what to try with a model and data."""

import json
import shlex
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

import hf_transfer as ht
from hf_transfer import command_line
from hf_transfer.advice.advising import Advice, command_for, config_of
from hf_transfer.advice.evidence import Evidence
from hf_transfer.advice.missed import Missed
from hf_transfer.advice.probes import Difference
from hf_transfer.advice.sentences import sentences_on
from hf_transfer.advice.shortlist import shortlist_of
from hf_transfer.advice.shown_advice import advice_text, draw_evidence
from hf_transfer.settings.parsing import parse
from hf_transfer.settings.run import TextConfig
from hf_transfer.targets.classes import Classes
from tests.advice.known import CONSTANT, HELPS, LESS, MORE, NO_HELP, NO_PROBES, evidence, text_config, texts
from tests.conftest import Finished, exit_code
from tests.tiny_text_models import save_text_checkpoint

Advise = Callable[..., Finished]
NOT_BEATEN = replace(CONSTANT, score=0.69, gain=Difference(0.01, 0.01, (-0.01, 0.03)))


def misses(count: int, *, score: float = 0.7, rarest: int = 6) -> Evidence:
    """Evidence with so many classes that no head names, of 50 rows per class."""
    known, missed = evidence(rarest=rarest), tuple(Missed(f"c{number}", 6, 6) for number in range(count))
    return replace(known, probes=tuple(replace(one, missed=missed, score=score) for one in known.probes))


@pytest.fixture
def bert(tmp_path: Path) -> Path:
    """A tiny text model with random weights."""
    return save_text_checkpoint(tmp_path / "bert", "bert")


@pytest.fixture
def advise(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Advise:
    """`hf-transfer advise` with flags, in this process."""

    def run(*flags: str | Path) -> Finished:
        code = exit_code(
            lambda: command_line.main(
                [
                    "advise",
                    "--cache_dir",
                    str(tmp_path / "cache"),
                    "--output",
                    str(tmp_path / "advice.json"),
                    *map(str, flags),
                ]
            )
        )
        captured = capsys.readouterr()
        return Finished(code, captured.out, captured.err)

    return run


def advice(folder: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((folder / "advice.json").read_text(encoding="utf-8"))
    return content


def test_advice_has_what_is_known_what_to_try_and_what_not(advise: Advise, bert: Path, tmp_path: Path) -> None:
    done = advise("--dataset_name", texts(tmp_path / "data"), "--model_name_or_path", bert)
    assert done.code == 0, done.err
    content = advice(tmp_path)
    known = Evidence.from_json(content["evidence"])
    for probe in known.probes:
        assert f"  {probe.features:{max(len(one.features) for one in known.probes)}}  {probe.score:.3f} ± " in done.out
    for topic in ("Size", "Baseline", "Similarity", "Depth", "Its own head", "More data"):
        assert f"\n- {topic}: " in done.out
    for number, arm in enumerate(content["shortlist"], start=1):
        assert f"\n{number}. {arm['name']}, about " in done.out
        assert arm["reason"] in done.out
    for one in content["rejected"]:
        assert f"\n- {one['strategy']}, about " in done.out
        assert one["reason"] in done.out
    assert (tmp_path / "advice.png").read_bytes().startswith(b"\x89PNG")
    assert not (tmp_path / "none").exists()


def test_the_command_for_the_first_choice_is_one_of_the_recipe(advise: Advise, bert: Path, tmp_path: Path) -> None:
    data = texts(tmp_path / "data")
    done = advise("--dataset_name", data, "--model_name_or_path", bert, "--num_train_epochs", "3", "--no_fresh_weights")
    assert done.code == 0, done.err
    (line,) = (line for line in done.out.splitlines() if "recipes/text.py" in line and "--strategy auto" not in line)
    python, recipe, *flags = shlex.split(line)
    assert (python, recipe) == ("python", "recipes/text.py")
    config = parse(TextConfig, flags)
    assert config.strategy.strategy == advice(tmp_path)["shortlist"][0]["settings"]["strategy"]
    assert config.data.dataset_name == str(data)
    assert "--num_train_epochs" not in flags, "it has no effect on a solved head"


def test_flags_may_be_written_with_hyphens(advise: Advise, bert: Path, tmp_path: Path) -> None:
    """The commands that it names can be run, too."""
    done = advise("--dataset-name", texts(tmp_path / "data"), "--model-name-or-path", bert, "--no-fresh-weights")
    assert done.code == 0, done.err
    (line,) = (line for line in done.out.splitlines() if "--strategy auto" in line)
    assert parse(TextConfig, shlex.split(line)[2:]).model.model_name_or_path == str(bert)


def test_the_command_that_tries_the_first_is_one_of_the_recipe(advise: Advise, bert: Path, tmp_path: Path) -> None:
    """With the settings that `auto` hands on to what trains, and without those that only a named strategy has."""
    data = texts(tmp_path / "data")
    flags = ("--dataset_name", data, "--model_name_or_path", bert, "--num_train_epochs", "3", "--pooling", "auto")
    done = advise(*flags, "--no_fresh_weights")
    assert done.code == 0, done.err
    (line,) = (line for line in done.out.splitlines() if "--strategy auto" in line)
    python, recipe, *words = shlex.split(line)
    assert (python, recipe) == ("python", "recipes/text.py")
    config = parse(TextConfig, words)
    assert (config.strategy.strategy, config.text.pooling, config.training.num_train_epochs) == ("auto", "auto", 3)
    assert (config.data.dataset_name, config.model.model_name_or_path) == (str(data), str(bert))
    assert config.output.output_dir == "runs/auto"


def test_the_test_split_is_not_read(advise: Advise, bert: Path, tmp_path: Path) -> None:
    """A test split that would be an error in a run changes nothing: other labels, and rows without a text."""
    data = texts(tmp_path / "data")
    texts(data, 12, name="validation.csv", seed=1)
    texts(data, 12, name="test.csv", seed=2)
    flags = ("--dataset_name", data, "--model_name_or_path", bert, "--no_fresh_weights")
    assert advise(*flags).code == 0
    before = advice(tmp_path)["evidence"]
    (data / "test.csv").write_text("text,label\n,unknown class\n,a\nword1,another class\n", encoding="utf-8")
    done = advise(*flags)
    assert done.code == 0, done.err
    after = advice(tmp_path)["evidence"]
    assert {name: after[name] for name in ("probes", "judged", "curve")} == {
        name: before[name] for name in ("probes", "judged", "curve")
    }


def test_a_file_of_a_run_gives_the_settings(advise: Advise, bert: Path, tmp_path: Path) -> None:
    """Its strategy does not count, but the length of its training does."""
    settings = {
        "recipe": "text", "dataset_name": str(texts(tmp_path / "data")), "model_name_or_path": str(bert),
        "output_dir": str(tmp_path / "out"), "strategy": "linear_probe",
        "num_train_epochs": 7, "cache_dir": str(tmp_path / "cache"),
    }  # fmt: skip
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(settings), encoding="utf-8")
    done = advise("--config", tmp_path / "run.yaml", "--no_fresh_weights")
    assert done.code == 0, done.err
    assert advice(tmp_path)["evidence"]["costs"]["epochs"] == 7
    assert f"--config {tmp_path / 'run.yaml'}" in done.out
    assert not (tmp_path / "out").exists()


WRONG: dict[str, tuple[list[str], str]] = {
    "no data": (["--model_name_or_path", "MODEL"], "--dataset_name, or --config with it"),
    "no model": (["--dataset_name", "DATA", "--recipe", "text"], "model_name_or_path"),
    "no model and no recipe": (["--dataset_name", "DATA"], "a model: --model_name_or_path, or for images with texts"),
    "hyphens in the flag of one tower": (
        ["--dataset_name", "DATA", "--image-model-name-or-path", "MODEL"], "Found:    --image_model_name_or_path alone",
    ),
    "a strategy": (["--dataset_name", "DATA", "--model_name_or_path", "MODEL", "--strategy", "full"], "--strategy"),
    "taps": (["--dataset_name", "DATA", "--model_name_or_path", "MODEL", "--taps=head"], "Found:    --taps"),
    "a folder": (["--dataset_name", "DATA", "--model_name_or_path", "MODEL", "--output_dir", "x"], "--output_dir"),
    "a finished model": (
        ["--dataset_name", "DATA", "--model_name_or_path", "MODEL", "--evaluate_only"], "Found:    --evaluate_only",
    ),
    "an unknown setting": (
        ["--dataset_name", "DATA", "--model_name_or_path", "MODEL", "--max_len", "5"], "nearest: max_seq_length",
    ),
    "a setting without effect": (
        ["--dataset_name", "DATA", "--model_name_or_path", "MODEL", "--adapter_rank", "4"], "--adapter_rank",
    ),
    "another file": (["--dataset_name", "DATA", "--model_name_or_path", "MODEL", "--output", "x.txt"], "NAME.json"),
    "one class": (["--dataset_name", "ONE", "--model_name_or_path", "MODEL"], "at least 2 classes to tell apart"),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_mistakes_end_with_code_2_and_say_what_to_do(name: str, advise: Advise, bert: Path, tmp_path: Path) -> None:
    flags, words = WRONG[name]
    one = tmp_path / "one"
    one.mkdir()
    (one / "train.csv").write_text("text,label\nword1,a\nword2,a\nword3,a\n", encoding="utf-8")
    places = {"DATA": texts(tmp_path / "data"), "MODEL": bert, "ONE": one}
    done = advise(*(places.get(flag, flag) for flag in flags))
    assert done.code == 2
    assert words in done.err
    assert "Do this:" in done.err
    assert not (tmp_path / "advice.json").exists()


def test_of_a_target_without_a_solver_the_rows_alone_say_what_to_try(
    advise: Advise, bert: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Classes, "solver", None)
    done = advise("--dataset_name", texts(tmp_path / "data"), "--model_name_or_path", bert)
    assert done.code == 0, done.err
    assert "- Probes: None: there is no solver for 3 classes, so a head cannot be solved without training." in done.out
    assert "\n1. linear_probe, about " in done.out
    assert "\n- deep_probe: This model cannot be trained so: the place that it reads is chosen by solved" in done.out
    assert advice(tmp_path)["evidence"]["probes"] == []
    assert not (tmp_path / "advice.png").exists()


def test_fewer_rows_than_folds_are_enough(advise: Advise, bert: Path, tmp_path: Path) -> None:
    data = tmp_path / "data"
    data.mkdir()
    for split in ("train", "validation", "test"):
        lines = ["text,label", *(f"word{number},{'ab'[number % 2]}" for number in range(4))]
        (data / f"{split}.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    done = advise("--dataset_name", data, "--model_name_or_path", bert)
    assert done.code == 0, done.err
    assert "2 rows per class (4 in all)" in done.out


def test_python_gets_the_same(bert: Path, tmp_path: Path) -> None:
    known = ht.advise(texts(tmp_path / "data"), bert, with_fresh_weights=False, cache_dir=tmp_path / "cache")
    assert known.shortlist.arms[0].is_solved
    assert known.evidence.fresh_weights is None


def test_flags_without_effect_are_left_out_of_a_command() -> None:
    flags = ["--dataset_name=d", "--model_name_or_path", "a model", "--learning_rate", "1e-3", "--pooling", "auto"]
    config = config_of(TextConfig, flags)
    arms = {arm.name: arm for arm in shortlist_of(evidence(best="mean_6", over_head=MORE), config).arms}
    first = command_for(arms["deep_probe"], config, flags)
    assert first == (
        "python recipes/text.py --dataset_name=d --model_name_or_path 'a model' --strategy deep_probe --taps mean_6 "
        "--pooling own --output_dir runs/deep_probe"
    )
    lora = command_for(arms["lora"], config, flags)
    assert "--learning_rate 1e-3" in lora
    assert "--pooling mean --merge_adapter true" in lora
    for command in (first, lora):
        parse(TextConfig, shlex.split(command)[2:])


@pytest.mark.parametrize(
    ("known", "words"),
    [
        (evidence(8), "Size: 8 rows per class (32 in all). That is few"),
        (evidence(500), "Size: 500 rows per class (2,000 in all). That is many"),
        (evidence(500, rarest=3), "500 rows per class on average (2,000 in all), but only 3 of the rarest. The"),
        (evidence(), "Baseline: The same answer to all rows (always the most frequent class) has 0.250; the best"),
        (misses(1), "Missed: The best head misses too many rows of c0 (6 of 6), which its accuracy hides if they are"),
        (misses(5), "rows of c0 (6 of 6), c1 (6 of 6), c2 (6 of 6) and 2 more, which its accuracy hides if they"),
        (evidence(constant=NOT_BEATEN), "do not show that a head has learnt anything. Try another model"),
        (evidence(constant=NOT_BEATEN, rarest=3), "learnt anything. Try --class_weights balanced, and compare macro"),
        (evidence(fresh_weights=HELPS), "(difference 0.200, 95 % interval 0.100 to 0.300). What the model has learnt"),
        (evidence(fresh_weights=NO_HELP), "So there is no sign that what it has learnt before helps here"),
        (evidence(), "Depth: The best single place to read the model is what its own head reads (0.700 ± 0.030)."),
        (evidence(best="mean_6", over_head=MORE), "0.100 behind the best place (95 % interval 0.060 to 0.140). So"),
        (evidence(), "the last doubling brought +0.100 ± 0.020. Twice as many rows would probably help."),
        (evidence(curve=None), "There are too few rows to see what more of them would bring."),
        (evidence(**NO_PROBES), "Probes: None: the head of m has several layers, so a head cannot be solved without"),
    ],
)  # fmt: skip
def test_what_is_known_is_said_in_sentences(known: Evidence, words: str) -> None:
    assert words in "\n".join(f"{topic}: {sentence}" for topic, sentence in sentences_on(known))


@pytest.mark.parametrize(("score", "rarest", "is_said"), [(0.7, 6, True), (0.97, 50, True), (0.7, 50, False)])
def test_missed_classes_are_named_where_a_score_hides_them(score: float, rarest: int, is_said: bool) -> None:
    """A low score of classes with about as many rows each hides nothing."""
    assert ("Missed" in dict(sentences_on(misses(1, score=score, rarest=rarest)))) == is_said


@pytest.mark.parametrize(
    ("error", "words"), [(0.04, "would probably help"), (0.06, "too few to be sure"), (0.2, "show no sign")]
)
def test_what_more_rows_would_bring_is_said_as_surely_as_it_is_known(error: float, words: str) -> None:
    curve = evidence().curve
    assert curve is not None
    known = evidence(curve=replace(curve, last_doubling=replace(MORE, standard_error=error)))
    assert words in dict(sentences_on(known))["More data"]


@pytest.mark.parametrize("known", [evidence(fresh_weights=HELPS), evidence(curve=None)], ids=["all", "few rows"])
def test_evidence_is_drawn_and_shown(known: Evidence, tmp_path: Path) -> None:
    draw_evidence(tmp_path / "a.png", known)
    assert (tmp_path / "a.png").stat().st_size > 5_000
    config = text_config()
    text = advice_text(Advice(config, known, shortlist_of(known, config)), ["--dataset_name", "d"])
    assert "best\n" in text
    assert "The first may be enough" not in text
    assert LESS.mean < 0


def test_a_head_that_leaves_little_to_gain_is_said_to_be_enough() -> None:
    known = evidence()
    good = replace(known, probes=tuple(replace(one, score=0.99) for one in known.probes))
    config = text_config()
    shown = Advice(config, good, shortlist_of(good, config))
    words = "the solved head leaves training only about 1.0 points of accuracy to gain"
    assert f"The first may be enough: {words}.\n" in advice_text(shown, ["--dataset_name", "d"])
    assert shown.as_json()["enough"] == words


def test_rows_that_cannot_be_left_out_are_advised_on_by_their_number(
    advise: Advise, bert: Path, tmp_path: Path
) -> None:
    """They are all of one group, so no head can be judged on rows that it has not seen; the advice says so."""
    folder = tmp_path / "one group"
    folder.mkdir()
    for split in ("train", "validation", "test"):
        rows = [f"word{number},{'ab'[number % 2]},one" for number in range(12)]
        (folder / f"{split}.csv").write_text("\n".join(["text,label,author", *rows]) + "\n", encoding="utf-8")
    done = advise("--dataset_name", folder, "--model_name_or_path", bert, "--group_column_name", "author")
    assert done.code == 0
    assert "Probes: None: no training row can be left out" in done.out
    assert advice(tmp_path)["evidence"]["probes"] == []
