"""Settings from the command line: their types and ranges, and the words of every error."""

import re
from pathlib import Path
from typing import Any, get_args

import pytest

from hf_transfer.errors import UserError, user_error
from hf_transfer.settings.fields import Effect, choices_of, types_of
from hf_transfer.settings.parsing import parse, run_recipe
from hf_transfer.settings.ranges import Range
from hf_transfer.settings.run import VisionConfig
from tests.settings.command_lines import CONFIGS, REQUIRED, SETTINGS, parsed, parts_of

# Flags in the documentation that belong to other programs, or to commands of `hf-transfer`.


def test_an_error_says_what_was_expected_what_was_found_and_what_to_do() -> None:
    """Every error of the project is made by this function."""
    error = user_error(expected="a cat", found="a dog", do="feed it")
    assert str(error) == "Expected: a cat\nFound:    a dog\nDo this:  feed it"
    assert error.found == "a dog"


def test_help_lists_every_setting_with_its_explanation(capsys: pytest.CaptureFixture[str]) -> None:
    """No setting without a line of help, and nothing that is not in --help."""
    assert len(SETTINGS) >= 60
    for config in CONFIGS:
        with pytest.raises(SystemExit) as end:
            parse(config, ["--help"])
        assert end.value.code == 0
        text = " ".join(capsys.readouterr().out.split())
        for name, one in config.settings().items():
            assert len(one.metadata["help"]) > 15, name
            assert re.search(rf"--{name}[ ,].*{re.escape(one.metadata['help'].replace('%%', '%'))}", text), name


def test_every_setting_says_what_it_affects_and_every_number_has_a_range() -> None:
    for config in CONFIGS:
        for name, one in config.settings().items():
            assert one.metadata["affects"] in get_args(Effect), name
            numeric = {int, float, list[int]} & set(types_of(one))
            assert not numeric or isinstance(one.metadata["within"], Range), name


def test_no_setting_takes_a_secret() -> None:
    """It would be in a saved config.yaml, and in the list of processes that everybody on the machine sees."""
    assert not [name for name in SETTINGS if re.search("token|secret|password|key", name)]


@pytest.mark.parametrize(
    ("flag", "found"),
    [
        ("--learning_rat=1", "learning_rat (nearest: learning_rate)"),
        ("--num_train=1", "num_train (nearest: num_train_epochs)"),
        ("--see=1", "see (nearest: seed)"),
        ("--max_train_samples=1", "max_train_samples (nearest: max_train_samples_per_class)"),
    ],
)
def test_an_abbreviation_is_refused_and_the_full_name_given(flag: str, found: str) -> None:
    """An abbreviation would change its meaning when a setting is added."""
    with pytest.raises(UserError) as error:
        parsed(flag)
    assert parts_of(error)[:2] == ("settings that exist, spelled out in full", found)


@pytest.mark.parametrize(
    ("flags", "found"),
    [
        (["--trainable_layer", "2"], "trainable_layer (nearest: trainable_layers)"),
        (
            ["--agumentation=none", "--stratgy=full"],
            "agumentation (nearest: augmentation), stratgy (nearest: strategy)",
        ),
        (["7"], "7"),
    ],
)
def test_an_unknown_setting_is_named_with_the_nearest_one(flags: list[str], found: str) -> None:
    """No word on the command line is ignored."""
    with pytest.raises(UserError) as error:
        parsed(*flags)
    assert parts_of(error)[1] == found


@pytest.mark.parametrize(
    ("flags", "found"),
    [
        (["--num_train_epochs", "1.5"], "invalid int value: '1.5'"),
        (["--learning_rate", "fast"], "invalid float value: 'fast'"),
        (["--bf16", "maybe"], "Truthy value expected: got maybe"),
        (["--strategy", "magic"], "invalid choice: 'magic' (choose from 'linear_probe', 'deep_probe', 'partial', "),
        (["--report_to"], "expected at least one argument"),
        (["--seed"], "expected one argument"),
    ],
)
def test_a_value_of_the_wrong_type_is_named_with_its_setting(flags: list[str], found: str) -> None:
    """Instead of argparse's own exit."""
    with pytest.raises(UserError) as error:
        parsed(*flags)
    assert parts_of(error)[1].startswith(f"argument {flags[0]}")
    assert found in parts_of(error)[1]


# Values at the borders of each range: inside and outside.
BORDERS: dict[str, tuple[list[str], list[str]]] = {
    "a whole number of at least 0": (["0"], ["-1"]),
    "a whole number of at least 1": (["1"], ["0", "-1"]),
    "a whole number of at least 2": (["2"], ["1", "0", "-1"]),
    "a whole number of at least 3": (["3"], ["2", "-1"]),
    "a whole number from 0 to 4294967295": (["0", "4294967295"], ["-1", "4294967296"]),
    "a number of at least 0": (["0", "0.5", "7"], ["-0.1", "nan", "inf"]),
    "a number above 0": (["0.1"], ["0", "nan", "inf"]),
    "a number from 0 to below 1": (["0", "0.9999"], ["1", "-0.1", "nan"]),
    "a number above 0 and at most 1": (["1", "0.01"], ["0", "1.1", "nan"]),
    "a number above 0 and at most 10": (["10", "1e-9"], ["0", "-1", "10.1", "nan", "inf"]),
    "a share above 0 and at most 0.5": (["0.5", "0.01"], ["0", "0.51", "nan", "-1"]),
}
NUMBERS = sorted(name for name, one in SETTINGS.items() if {int, float} & set(types_of(one)))


@pytest.mark.parametrize("name", NUMBERS)
def test_each_range_is_checked_at_its_borders(name: str) -> None:
    expected = SETTINGS[name].metadata["within"].words
    inside, outside = BORDERS[expected]
    for value in inside:
        assert parsed(f"--{name}={value}").flat()[name] == float(value)
    for value in outside:
        with pytest.raises(UserError) as error:
            parsed(f"--{name}={value}")
        assert parts_of(error)[0] == f"--{name}: {expected}"
        assert float(parts_of(error)[1]) == pytest.approx(float(value), nan_ok=True)
        assert parts_of(error)[2] == f"change --{name}"


RANGES_OF_NUMBERS = {
    **dict.fromkeys(("verify_samples", "save_steps", "early_stopping_patience", "cache_views"), "at least 0"),
    **dict.fromkeys(("dataloader_num_workers",), "at least 0"),
    **dict.fromkeys(("num_train_epochs", "trainable_layers", "adapter_layers", "adapter_rank"), "at least 1"),
    **dict.fromkeys(("per_device_train_batch_size", "per_device_eval_batch_size", "soup_size"), "at least 1"),
    **dict.fromkeys(("gradient_accumulation_steps", "max_train_samples_per_class"), "at least 1"),
    **dict.fromkeys(("seed", "split_seed"), "from 0 to 4294967295"),
    **dict.fromkeys(("weight_decay", "max_grad_norm", "warmup_steps", "l2_sp"), "a number of at least 0"),
    **dict.fromkeys(("mixup_alpha", "cutmix_alpha", "rdrop_alpha", "auxiliary_weight"), "a number of at least 0"),
    **dict.fromkeys(("label_smoothing_factor", "adapter_dropout", "ema_decay"), "from 0 to below 1"),
    **dict.fromkeys(("learning_rate", "head_learning_rate"), "above 0 and at most 10"),
    **dict.fromkeys(("validation_fraction", "test_fraction"), "above 0 and at most 0.5"),
    "cache_pixels_gb": "a number of at least 0",
    "save_total_limit": "at least 2",
    "max_seq_length": "at least 3",
    "modality_dropout": "from 0 to below 1",
    "adapter_alpha": "a number above 0",
    "auto_seconds": "a number above 0",
    "largest_pixel_value": "a number above 0",
    "layer_lr_decay": "above 0 and at most 1",
}


def test_the_range_of_each_number_is_the_one_that_is_meant() -> None:
    assert RANGES_OF_NUMBERS.keys() == set(NUMBERS)
    for name, words in RANGES_OF_NUMBERS.items():
        assert SETTINGS[name].metadata["within"].words.endswith(words), name


@pytest.mark.parametrize("name", ["model_name_or_path", "dataset_name", "output_dir"])
def test_an_empty_name_is_no_name(name: str) -> None:
    """An empty path would be the current folder."""
    named: dict[str, Any] = {"model_name_or_path": "m", "dataset_name": "d", "output_dir": "o"} | {name: " "}
    with pytest.raises(UserError, match=f"Expected: --{name}: a name or a path"):
        VisionConfig.of(**named)


@pytest.mark.parametrize("name", ["model_name_or_path", "dataset_name", "output_dir"])
def test_the_home_of_a_user_who_does_not_exist_is_no_path(name: str) -> None:
    with pytest.raises(UserError) as error:
        parsed(f"--{name}=~nobody-of-that-name/x")
    assert parts_of(error)[0] == f"--{name}: a name or a path"
    assert parsed(f"--{name}=~/x").flat()[name] == "~/x"


def test_a_name_may_be_longer_than_a_path_can_be() -> None:
    """It is refused where it is looked for."""
    assert parsed(f"--dataset_name={'x' * 5000}", "--dataset_revision=v2").data.dataset_revision == "v2"


def test_feature_layers_count_from_one() -> None:
    assert parsed("--feature_layers", "1", "3").strategy.feature_layers == [1, 3]
    with pytest.raises(UserError, match="Expected: --feature_layers: numbers of at least 1"):
        parsed("--feature_layers", "0", "3")


@pytest.mark.parametrize("name", ["klingon", "hex", "rot13", "undefined"])
def test_an_encoding_is_one_of_text(name: str) -> None:
    """Python also has codecs that do not encode text."""
    with pytest.raises(UserError) as error:
        parsed(f"--encoding={name}")
    assert parts_of(error)[0] == "--encoding: the name of an encoding, such as utf-8 or latin-1"
    assert parsed("--encoding=latin-1").data.encoding == "latin-1"


def test_two_kinds_of_mixed_precision_are_refused() -> None:
    """One of them would be ignored."""
    with pytest.raises(UserError) as error:
        parsed("--bf16", "--fp16")
    assert parts_of(error)[:2] == ("one kind of mixed precision", "both --bf16 and --fp16")


def test_missing_settings_are_all_named() -> None:
    with pytest.raises(UserError) as error:
        parse(VisionConfig, ["--dataset_name=d"])
    assert "required: --model_name_or_path" in parts_of(error)[1]
    assert "--output_dir" in parts_of(error)[1]
    assert "--dataset_name" not in parts_of(error)[1]


REQUIRED_VALUES: dict[str, Any] = {"model_name_or_path": "m", "dataset_name": "d", "output_dir": "o"}


def test_python_values_are_checked_as_flags_are() -> None:
    """A program has no argparse that would check types and choices."""
    for wrong, expected, found in (
        ({"num_train_epochs": "3"}, "--num_train_epochs: a whole number", "'3'"),
        ({"num_train_epochs": True}, "--num_train_epochs: a whole number", "True"),
        ({"num_train_epochs": None}, "--num_train_epochs: a whole number", "None"),
        ({"learning_rate": "1e-3"}, "--learning_rate: a number", "'1e-3'"),
        ({"bf16": 1}, "--bf16: true or false", "1"),
        ({"label_column_name": 3}, "--label_column_name: text", "3"),
        ({"report_to": "wandb"}, "--report_to: a list of texts", "'wandb'"),
        ({"feature_layers": ["1"], "strategy": "linear_probe"}, "--feature_layers: a list of whole numbers", "['1']"),
        ({"augmentation": "heavy"}, "--augmentation: one of none, light, standard, trivial", "heavy"),
        ({"learning_rat": 1e-3}, "settings that exist, spelled out in full", "learning_rat (nearest: learning_rate)"),
    ):
        with pytest.raises(UserError) as error:
            VisionConfig.of(**REQUIRED_VALUES, **wrong)
        assert parts_of(error)[:2] == (expected, found)
    with pytest.raises(UserError) as error:
        VisionConfig.of(dataset_name="d")
    assert parts_of(error) == ("--model_name_or_path, --output_dir", "no value", "add what is missing")


def test_python_values_become_what_flags_would_be(tmp_path: Path) -> None:
    """Otherwise the same run would have other settings in its files than on the command line."""
    config = VisionConfig.of(**REQUIRED_VALUES | {"output_dir": tmp_path}, learning_rate=1, seed=3, cache_dir=None)
    assert config == parse(VisionConfig, [*REQUIRED[:2], f"--output_dir={tmp_path}", "--learning_rate=1", "--seed=3"])
    assert (type(config.training.learning_rate), type(config.output.output_dir)) == (float, str)


def test_every_choice_can_be_made() -> None:
    fixed = [(name, choice) for name, one in SETTINGS.items() for choice in choices_of(one)]
    assert len(fixed) > 40
    for name, choice in fixed:
        assert parsed(f"--{name}={choice}").flat()[name] == choice


def test_differences_count_only_what_changes_the_result() -> None:
    """Settings of speed and output may change."""
    free = ["--output_dir=x", "--overwrite_output_dir", "--debug", "--report_to=a", "--dataloader_num_workers=2"]
    assert parsed().differences(parsed(*free, "--cache_dir=y", "--cache_frozen=off", "--save_steps=3")) == []
    assert parsed("--seed=1").differences(parsed("--learning_rate=0.5")) == [
        "learning_rate: None -> 0.5",
        "seed: 1 -> 0",
    ]


def test_a_default_that_version_0_1_wrote_down_is_no_difference() -> None:
    assert parsed("--metric_for_best_model=accuracy").differences(parsed()) == []
    assert parsed().differences(parsed("--metric_for_best_model=accuracy")) == []
    assert parsed("--metric_for_best_model=loss").differences(parsed()) == ["metric_for_best_model: loss -> None"]


UNCOUNTED = {
    "speed": {
        "cache_frozen",
        "cache_dir",
        "cache_pixels_gb",
        "dataloader_num_workers",
        "save_steps",
        "save_total_limit",
    },
    "output": {"output_dir", "report_to", "debug"},
    "publication": {"push_to_hub", "push_space", "hub_model_id", "hub_private_repo"},
    "command": {"overwrite_output_dir", "no_resume", "resume_from_checkpoint", "allow_mismatch"},
}


def test_only_these_settings_do_not_affect_the_result() -> None:
    for effect, names in UNCOUNTED.items():
        assert {name for name, one in SETTINGS.items() if one.metadata["affects"] == effect} == names
    assert not set.union(*UNCOUNTED.values()) & parsed().affecting("result").keys()


def test_a_users_error_ends_with_code_2_and_without_a_traceback(capsys: pytest.CaptureFixture[str]) -> None:
    """The message is the last output of the command."""
    with pytest.raises(SystemExit) as end:
        run_recipe(lambda config: None, VisionConfig, [*REQUIRED, "--seed=-1"])
    assert end.value.code == 2
    captured = capsys.readouterr()
    expected = "--seed: a whole number from 0 to 4294967295"
    assert captured.err == f"\nerror:\nExpected: {expected}\nFound:    -1\nDo this:  change --seed\n\n"
    assert captured.out == ""


def fails(config: VisionConfig) -> None:
    raise user_error(expected="x", found="y", do="z")


def test_debug_raises_with_the_traceback(tmp_path: Path) -> None:
    """Wherever the setting is given."""
    (tmp_path / "debug.yaml").write_text("debug: true\n")
    for flags in (["--debug"], ["--debug=true"], ["--config", str(tmp_path / "debug.yaml")]):
        with pytest.raises(UserError, match="Found:    y"):
            run_recipe(fails, VisionConfig, [*REQUIRED, *flags])
    with pytest.raises(UserError, match="settings that exist"):
        run_recipe(fails, VisionConfig, [*REQUIRED, "--debug", "--sed=1"])
    with pytest.raises(SystemExit):
        run_recipe(fails, VisionConfig, [*REQUIRED, "--debug=false"])


def test_our_own_bugs_are_not_shown_as_a_users_error() -> None:
    def broken(config: VisionConfig) -> None:
        raise ValueError("a bug")

    with pytest.raises(ValueError, match="a bug"):
        run_recipe(broken, VisionConfig, list(REQUIRED))


@pytest.mark.parametrize(("rank", "first_line"), [("1", "error on rank 1:"), ("0", "error:")])
def test_a_message_names_its_process(
    rank: str, first_line: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each of several processes prints its own."""
    monkeypatch.setenv("RANK", rank)
    with pytest.raises(SystemExit):
        run_recipe(fails, VisionConfig, list(REQUIRED))
    assert capsys.readouterr().err.split("\n")[1] == first_line
