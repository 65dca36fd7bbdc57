"""Settings: from the command line and from YAML, their checks, and the words of every mistake."""

import dataclasses
import re
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import pytest

from hf_transfer.config import SERVES, RunConfig, TextConfig, UserError, VisionConfig, mistake
from hf_transfer.config_multimodal import MultimodalConfig
from hf_transfer.parsing import parse, run
from tests.conftest import REPOSITORY

REQUIRED = ("--model_name_or_path=m", "--dataset_name=d", "--output_dir=o")
RECIPES: list[type[RunConfig]] = [VisionConfig, TextConfig, MultimodalConfig]
FIELDS = {field.name: field for recipe in RECIPES for field in dataclasses.fields(recipe)}
# Flags in README that belong to other programs.
FOREIGN_FLAGS = {
    "--config", "--help", "--top", "--json", "--num_processes", "--num_machines", "--nproc_per_node", "--nnodes",
    "--no-deps", "--force-reinstall", "--editable", "--extra-index-url", "--index-url", "--upgrade", "--only", "--jobs",
    "--mixed_precision", "--multi_gpu", "--cpu", "--config_file", "--machine_rank", "--main_process_ip", "--nodes",
    "--signals-to-handle", "--image", "--text", "--mutants",
}  # fmt: skip


def settings(*flags: str) -> RunConfig:
    """Of the recipe that has the settings."""
    names = {flag.partition("=")[0].removeprefix("--") for flag in flags if flag.startswith("--")}
    known = [(recipe, {field.name for field in dataclasses.fields(recipe)}) for recipe in RECIPES]
    recipe = next((recipe for recipe, own in known if names & FIELDS.keys() <= own), VisionConfig)
    fitting = [f"--strategy={SERVES[name][0]}" for name in names & SERVES.keys()]
    return parse(recipe, [*REQUIRED, *fitting, *flags])


def words(error: pytest.ExceptionInfo[UserError]) -> tuple[str, str, str]:
    """The three parts of a message: expected, found, do this."""
    parts = re.fullmatch(r"Expected: (.+)\nFound:    (.+)\nDo this:  (.+)", str(error.value), re.DOTALL)
    assert parts is not None, str(error.value)
    return parts[1], parts[2], parts[3]


def test_a_mistake_says_what_was_expected_what_was_found_and_what_to_do() -> None:
    """Every error of the project is made here."""
    error = mistake(expected="a cat", found="a dog", do="feed it")
    assert str(error) == "Expected: a cat\nFound:    a dog\nDo this:  feed it"


def test_help_lists_every_setting_with_its_explanation(capsys: pytest.CaptureFixture[str]) -> None:
    """No setting without a line of help, and nothing that is not in --help."""
    text = ""
    for recipe in RECIPES:
        with pytest.raises(SystemExit) as end:
            parse(recipe, ["--help"])
        assert end.value.code == 0
        text += " ".join(capsys.readouterr().out.split())
    assert len(FIELDS) >= 55
    for name, field in FIELDS.items():
        assert len(field.metadata["help"]) > 15, name
        assert re.search(rf"--{name}[ ,].*{re.escape(field.metadata['help'].replace('%%', '%'))}", text), name


def test_no_setting_takes_a_secret() -> None:
    """It would be in a saved config.yaml, and in the list of processes that everybody on the machine sees."""
    assert len(FIELDS) >= 55
    assert not [name for name in FIELDS if re.search("token|secret|password|key", name)]


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
        settings(flag)
    assert words(error)[:2] == ("settings that exist, spelled out in full", found)


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
    """No word on the command line is passed over in silence."""
    with pytest.raises(UserError) as error:
        settings(*flags)
    assert words(error)[1] == found


@pytest.mark.parametrize(
    ("flags", "found"),
    [
        (["--num_train_epochs", "1.5"], "invalid int value: '1.5'"),
        (["--learning_rate", "fast"], "invalid float value: 'fast'"),
        (["--bf16", "maybe"], "Truthy value expected: got maybe"),
        (["--strategy", "magic"], "invalid choice: 'magic' (choose from 'linear_probe', 'partial', 'gradual', "),
        (["--report_to"], "expected at least one argument"),
        (["--seed"], "expected one argument"),
    ],
)
def test_a_value_of_the_wrong_type_is_named_with_its_setting(flags: list[str], found: str) -> None:
    """Instead of argparse's own exit."""
    with pytest.raises(UserError) as error:
        settings(*flags)
    assert words(error)[1].startswith(f"argument {flags[0]}")
    assert found in words(error)[1]


BELOW_ONE, RATE = "a number from 0 to below 1", "a number above 0 and at most 10"
COUNT, NUMBER, SHARE = "a whole number of at least 1", "a number of at least 0", "a share above 0 and at most 0.5"
WHOLE, SEED = "a whole number of at least 0", "a whole number from 0 to 4294967295"
RANGES = [
    ("num_train_epochs", COUNT, ["1"], ["0", "-1"]),
    ("per_device_train_batch_size", COUNT, ["1"], ["0"]),
    ("per_device_eval_batch_size", COUNT, ["1"], ["0"]),
    ("gradient_accumulation_steps", COUNT, ["1"], ["0"]),
    ("trainable_layers", COUNT, ["1"], ["0"]),
    ("save_total_limit", "a whole number of at least 2", ["2"], ["1", "0", "-1"]),
    ("save_steps", "at least 0", ["0"], ["-1"]),
    ("early_stopping_patience", WHOLE, ["0"], ["-1"]),
    ("verify_samples", WHOLE, ["0"], ["-1"]),
    ("seed", SEED, ["0", "4294967295"], ["-1", "4294967296"]),
    ("split_seed", SEED, ["0", "4294967295"], ["-1", "4294967296"]),
    ("weight_decay", NUMBER, ["0"], ["-0.1", "nan", "inf"]),
    ("max_grad_norm", NUMBER, ["0"], ["-0.1", "nan", "inf"]),
    ("warmup_steps", NUMBER, ["0", "0.5", "7"], ["-0.1", "nan", "inf"]),
    ("validation_fraction", SHARE, ["0.5", "0.01"], ["0", "0.51", "nan", "-1"]),
    ("test_fraction", SHARE, ["0.5", "0.01"], ["0", "0.51", "nan", "-1"]),
    ("adapter_rank", COUNT, ["1"], ["0"]),
    ("soup_size", COUNT, ["1"], ["0"]),
    ("l2_sp", NUMBER, ["0"], ["-0.1", "nan", "inf"]),
    ("mixup_alpha", NUMBER, ["0"], ["-0.1", "nan", "inf"]),
    ("cutmix_alpha", NUMBER, ["0"], ["-0.1", "nan", "inf"]),
    ("label_smoothing_factor", BELOW_ONE, ["0", "0.9"], ["1", "-0.1", "nan"]),
    ("adapter_dropout", BELOW_ONE, ["0", "0.9"], ["1", "-0.1", "nan"]),
    ("ema_decay", BELOW_ONE, ["0", "0.9999"], ["1", "-0.1", "nan"]),
    ("layer_lr_decay", "a number above 0 and at most 1", ["1", "0.01"], ["0", "1.1", "nan"]),
    ("adapter_alpha", "a number above 0", ["0.1"], ["0", "nan", "inf"]),
    ("adapter_layers", "at least 1", ["1"], ["0"]),
    ("head_learning_rate", RATE, ["10", "1e-9"], ["0", "-1", "10.1", "nan", "inf"]),
    ("learning_rate", RATE, ["10", "1e-9"], ["0", "-1", "10.1", "nan", "inf"]),
    ("max_train_samples_per_class", "at least 1", ["1"], ["0", "-3"]),
    ("dataloader_num_workers", "at least 0", ["0"], ["-1"]),
    ("cache_views", "at least 0", ["0"], ["-1"]),
    ("max_seq_length", "at least 3", ["3"], ["2", "-1"]),
    ("rdrop_alpha", "a number of at least 0", ["0", "5"], ["-0.1", "nan", "inf"]),
    ("modality_dropout", BELOW_ONE, ["0", "0.9"], ["1", "-0.1", "nan"]),
    ("auxiliary_weight", NUMBER, ["0"], ["-0.1", "nan", "inf"]),
]


@pytest.mark.parametrize(("name", "expected", "good", "bad"), RANGES, ids=[row[0] for row in RANGES])
def test_each_range_is_checked_at_its_borders(name: str, expected: str, good: list[str], bad: list[str]) -> None:
    """Every number has a range."""
    for value in good:
        assert getattr(settings(f"--{name}={value}"), name) == float(value)
    for value in bad:
        with pytest.raises(UserError) as error:
            settings(f"--{name}={value}")
        assert words(error)[0] == f"--{name}: {expected}"
        assert float(words(error)[1]) == pytest.approx(float(value), nan_ok=True)
        assert words(error)[2] == f"change --{name}"


@pytest.mark.parametrize("name", ["model_name_or_path", "dataset_name", "output_dir"])
def test_an_empty_name_is_no_name(name: str) -> None:
    """An empty path would be the current folder."""
    named: dict[str, Any] = {"model_name_or_path": "m", "dataset_name": "d", "output_dir": "o"} | {name: " "}
    with pytest.raises(UserError, match=f"Expected: --{name}: a name or a path"):
        VisionConfig(**named)


def test_every_number_has_a_range() -> None:
    numbers = {
        name
        for name, field in FIELDS.items()
        if field.type in (int, float)
        or (set(get_args(field.type)) & {int, float} and get_origin(field.type) != Literal)
    }
    assert numbers == {row[0] for row in RANGES} | {"feature_layers"}


def test_feature_layers_count_from_one() -> None:
    layers = ["--strategy=linear_probe", "--feature_layers"]
    assert parse(VisionConfig, [*REQUIRED, *layers, "1", "3"]).feature_layers == [1, 3]
    with pytest.raises(UserError, match="Expected: --feature_layers: numbers of at least 1"):
        parse(VisionConfig, [*REQUIRED, *layers, "0", "3"])
    with pytest.raises(UserError, match="Expected: --feature_layers with --strategy linear_probe or lp_ft"):
        parse(VisionConfig, [*REQUIRED, "--strategy=full", "--feature_layers", "2"])


@pytest.mark.parametrize("name", ["klingon", "hex", "rot13", "undefined"])
def test_an_encoding_is_one_of_text(name: str) -> None:
    """Python has codecs that are none, too."""
    with pytest.raises(UserError) as error:
        settings(f"--encoding={name}")
    assert words(error)[0] == "--encoding: the name of an encoding, such as utf-8 or latin-1"
    assert settings("--encoding=latin-1").encoding == "latin-1"


def test_a_pooling_for_a_model_that_is_only_judged_is_refused() -> None:
    """It would be ignored, and still stand in the settings of the run."""
    required: dict[str, Any] = {"model_name_or_path": "m", "dataset_name": "d", "output_dir": "o"}
    with pytest.raises(UserError, match="Found:    --pooling mean"):
        TextConfig(**required, pooling="mean", evaluate_only=True)
    assert TextConfig(**required, pooling="own", evaluate_only=True).evaluate_only


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        (["--strategy=full", "--adapter_layers=2"], "--adapter_layers with --strategy lora or dora or ia3"),
        (["--strategy=linear_probe", "--l2_sp=0.1"], "--l2_sp with --strategy partial or gradual"),
        (["--strategy=scratch", "--l2_sp=0.1"], "--l2_sp with --strategy partial or gradual"),
        (["--strategy=ia3", "--adapter_rank=4"], "--adapter_rank with --strategy lora or dora or lokr"),
        (["--strategy=full", "--merge_adapter"], "--merge_adapter with --strategy lora"),
        (["--strategy=lora", "--peft_type=HRA"], "--peft_type with --strategy adapter"),
        (["--strategy=full", "--trainable_layers=3"], "--trainable_layers with --strategy partial"),
    ],
)
def test_a_setting_without_effect_on_the_strategy_is_refused(flags: list[str], expected: str) -> None:
    """It would be passed over in silence, and still stand in the settings of the run."""
    with pytest.raises(UserError) as error:
        parse(VisionConfig, [*REQUIRED, *flags])
    assert words(error)[0].startswith(expected)
    assert words(error)[1] == f"{flags[0].replace('=', ' ')}, on which it has no effect"


def test_two_kinds_of_mixed_precision_are_refused() -> None:
    """One of them would be ignored."""
    with pytest.raises(UserError) as error:
        settings("--bf16", "--fp16")
    assert words(error)[:2] == ("one kind of mixed precision", "both --bf16 and --fp16")


def test_missing_settings_are_all_named() -> None:
    with pytest.raises(UserError) as error:
        parse(VisionConfig, ["--dataset_name=d"])
    assert "required: --model_name_or_path" in words(error)[1]
    assert "--output_dir" in words(error)[1]
    assert "--dataset_name" not in words(error)[1]


def test_differences_count_only_what_changes_the_result() -> None:
    """Speed and talk are free to change."""
    free = ["--output_dir=x", "--overwrite_output_dir", "--debug", "--report_to=a", "--dataloader_num_workers=2"]
    assert settings().differences(settings(*free, "--cache_dir=y")) == []
    assert settings("--seed=1").differences(settings("--learning_rate=0.5")) == [
        "learning_rate: None -> 0.5",
        "seed: 1 -> 0",
    ]
    assert VisionConfig.without_effect < FIELDS.keys()


def test_a_users_mistake_ends_with_code_2_and_without_a_traceback(capsys: pytest.CaptureFixture[str]) -> None:
    """The command's last word is the message."""
    with pytest.raises(SystemExit) as end:
        run(lambda config: None, VisionConfig, [*REQUIRED, "--seed=-1"])
    assert end.value.code == 2
    captured = capsys.readouterr()
    assert captured.err == f"\nerror:\nExpected: --seed: {SEED}\nFound:    -1\nDo this:  change --seed\n\n"
    assert captured.out == ""


def fails(config: VisionConfig) -> None:
    raise mistake(expected="x", found="y", do="z")


def test_debug_raises_with_the_traceback(tmp_path: Path) -> None:
    """Wherever the setting is given."""
    (tmp_path / "debug.yaml").write_text("debug: true\n")
    for flags in (["--debug"], ["--debug=true"], ["--config", str(tmp_path / "debug.yaml")]):
        with pytest.raises(UserError, match="Found:    y"):
            run(fails, VisionConfig, [*REQUIRED, *flags])
    with pytest.raises(UserError, match="settings that exist"):
        run(fails, VisionConfig, [*REQUIRED, "--debug", "--sed=1"])
    with pytest.raises(SystemExit):
        run(fails, VisionConfig, [*REQUIRED, "--debug=false"])


def test_errors_of_our_own_are_not_dressed_up_as_a_users_mistake() -> None:
    def broken(config: VisionConfig) -> None:
        raise ValueError("a bug")

    with pytest.raises(ValueError, match="a bug"):
        run(broken, VisionConfig, list(REQUIRED))


@pytest.mark.parametrize(("rank", "first_line"), [("1", "error on rank 1:"), ("0", "error:")])
def test_a_message_names_its_process(
    rank: str, first_line: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of several processes each prints."""
    monkeypatch.setenv("RANK", rank)
    with pytest.raises(SystemExit):
        run(fails, VisionConfig, list(REQUIRED))
    assert capsys.readouterr().err.split("\n")[1] == first_line


def test_readme_names_every_setting_and_only_settings_that_exist() -> None:
    """README and config.py agree, in both directions."""
    readme = (REPOSITORY / "README.md").read_text(encoding="utf-8")
    in_backticks = set(re.findall(r"`--([a-z0-9_]+)[`= ]", readme))
    assert FIELDS.keys() - in_backticks == set()
    everywhere = set(re.findall(r"(?<![\w-])--[a-z][a-z0-9_-]+", readme))
    assert everywhere - {f"--{name}" for name in FIELDS} - FOREIGN_FLAGS == set()
