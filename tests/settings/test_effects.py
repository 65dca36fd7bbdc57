"""Settings that have no effect on a run are refused by name, on the command line, in Python and in a file."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from hf_transfer.errors import UserError
from hf_transfer.settings.fields import default_of, is_required
from hf_transfer.settings.parsing import load_settings, parse
from hf_transfer.settings.run import MultimodalConfig, RunConfig, TextConfig, VisionConfig
from tests.settings.command_lines import CONFIGS, REQUIRED, parsed, parts_of

PROBE = ("--strategy=linear_probe",)
EVALUATED = ("--evaluate_only",)
SOLVED = "--strategy linear_probe, whose head is solved"
STEPWISE = "a strategy that trains step by step"
WITHOUT_EFFECT: list[tuple[type[RunConfig], tuple[str, ...], str, str, str]] = [
    *(
        (VisionConfig, PROBE, flag, STEPWISE, SOLVED)
        for flag in (
            "--num_train_epochs=99", "--learning_rate=1e-3", "--head_learning_rate=1e-3", "--layer_lr_decay=0.9",
            "--lr_scheduler_type=linear", "--warmup_steps=7", "--weight_decay=0.1", "--label_smoothing_factor=0.1",
            "--ema_decay=0.9", "--soup_size=3", "--max_grad_norm=2", "--per_device_train_batch_size=8",
            "--gradient_accumulation_steps=2", "--auto_batch_size=true", "--gradient_checkpointing=true",
            "--early_stopping_patience=2", "--mixup_alpha=0.2", "--cutmix_alpha=1", "--multi_label_loss=asymmetric",
            "--regression_loss=huber", "--torch_compile=true", "--torch_compile_backend=aot_eager",
        )
    ),
    (TextConfig, PROBE, "--rdrop_alpha=1", STEPWISE, SOLVED),
    (VisionConfig, PROBE, "--batch_norm_statistics=updated", "--strategy partial or", "--strategy linear_probe"),
    (TextConfig, PROBE, "--train_sampling_strategy=random", STEPWISE, SOLVED),
    *(
        (VisionConfig, EVALUATED, flag, "training", "--evaluate_only")
        for flag in (
            "--strategy=partial", "--trainable_layers=2", "--probe=svm", "--merge_adapter=true", "--l2_sp=0.1",
            "--class_weights=balanced", "--metric_for_best_model=loss", "--seed=1", "--augmentation=none",
            "--horizontal_flip=false", "--cache_views=2", "--max_train_samples_per_class=3", "--cache_frozen=off",
            "--cache_dtype=float16", "--save_steps=3", "--save_total_limit=3", "--no_resume=true",
            "--allow_mismatch=true", "--validation_fraction=0.2", "--test_fraction=0.2",
        )
    ),
    (VisionConfig, EVALUATED, "--num_train_epochs=3", STEPWISE, "--evaluate_only"),
    (TextConfig, EVALUATED, "--pooling=mean", "training", "--evaluate_only"),
    (TextConfig, EVALUATED, "--text_prefix=query: ", "training", "--evaluate_only"),
    (MultimodalConfig, EVALUATED, "--fusion=gated", "training", "--evaluate_only"),
    (MultimodalConfig, EVALUATED, "--image_strategy=lora", "training", "--evaluate_only"),
    (MultimodalConfig, EVALUATED, "--text_strategy=lora", "training", "--evaluate_only"),
    (MultimodalConfig, EVALUATED, "--modality_dropout=0.1", STEPWISE, "--evaluate_only"),
    (MultimodalConfig, EVALUATED, "--auxiliary_weight=0.2", STEPWISE, "--evaluate_only"),
    (MultimodalConfig, EVALUATED, "--train_sampling_strategy=group_by_length", STEPWISE, "--evaluate_only"),
    *(
        (VisionConfig, (f"--strategy={strategy}",), flag, f"--strategy {wanted}", f"--strategy {strategy}")
        for strategy, flag, wanted in (
            ("full", "--adapter_layers=2", "lora or dora or ia3 or lokr or adapter"),
            ("ia3", "--adapter_rank=4", "lora or dora or lokr or adapter"),
            ("ia3", "--adapter_alpha=4", "lora or dora or lokr or adapter"),
            ("ia3", "--adapter_dropout=0.5", "lora or dora or lokr or adapter"),
            ("full", "--merge_adapter=true", "lora or dora or ia3 or lokr or adapter"),
            ("lora", "--peft_type=HRA", "adapter"),
            ("full", "--trainable_layers=3", "partial"),
            ("full", "--auto_seconds=60", "auto"),
            ("full", "--auto_arms=lora", "auto"),
            ("full", "--probe=svm", "linear_probe or deep_probe or lp_ft"),
            ("full", "--taps=head", "deep_probe"),
            ("full", "--feature_layers=2", "linear_probe or lp_ft"),
            ("scratch", "--l2_sp=0.1", "partial or gradual or lp_ft or full or bitfit or lora or dora or ia3"),
            ("linear_probe", "--l2_sp=0.1", "partial or gradual or lp_ft or full or bitfit or lora or dora or ia3"),
        )
    ),
    (MultimodalConfig, PROBE, "--probe=svm", "a head of one layer, which can be solved", "images with texts"),
    (MultimodalConfig, (), "--feature_layers=2", "a head of one layer, which can be solved", "images with texts"),
    (VisionConfig, ("--augmentation=none",), "--cache_views=2", "augmented training images", "--augmentation none"),
    (VisionConfig, ("--augmentation=none",), "--horizontal_flip=true", "augmented training images", "--augmentation"),
    (VisionConfig, ("--save_steps=0",), "--save_total_limit=3", "checkpoints", "--save_steps 0"),
    (
        VisionConfig, ("--strategy=full", "--cache_frozen=off"), "--cache_dtype=float16", "--cache_frozen auto or on",
        "--cache_frozen off",
    ),
    (VisionConfig, (), "--torch_compile_backend=aot_eager", "--torch_compile", "a run that compiles nothing"),
    (
        VisionConfig, (), "--resume_from_checkpoint=c", "a strategy that you choose",
        "--strategy auto, which resumes by itself",
    ),
    (VisionConfig, (), "--hub_private_repo=false", "--push_to_hub", "a run that is not published"),
    *(
        (VisionConfig, (f"--{name}={value}",), flag, wanted, f"--{name} {value}")
        for name, value, flag, wanted in (
            ("model_name_or_path", "sample:vit-glyphs", "--model_revision=v2", "a --model_name_or_path on the Hub"),
            ("model_name_or_path", "/", "--model_revision=v2", "a --model_name_or_path on the Hub"),
            ("dataset_name", "sample:digits", "--dataset_revision=v2", "a --dataset_name on the Hub"),
            ("dataset_name", "/", "--dataset_config_name=de", "a --dataset_name on the Hub"),
            ("dataset_name", "memory:0123", "--dataset_revision=v2", "a --dataset_name on the Hub"),
            ("dataset_name", "sample:digits", "--encoding=latin-1", "data in local files"),
            ("dataset_name", "sample:digits", "--delimiter=tab", "data in local files"),
            ("dataset_name", "stanfordnlp/imdb", "--encoding=latin-1", "data in local files"),
        )
    ),
]  # fmt: skip


@pytest.mark.parametrize(
    ("config", "run", "flag", "wanted", "instead"),
    WITHOUT_EFFECT,
    ids=["".join(row[1]) + row[2] for row in WITHOUT_EFFECT],
)
def test_a_setting_without_effect_is_refused_by_name(
    config: type[RunConfig], run: tuple[str, ...], flag: str, wanted: str, instead: str
) -> None:
    """It would be ignored, and still be in the settings of the run."""
    name = flag.removeprefix("--").partition("=")[0]
    with pytest.raises(UserError) as error:
        parse(config, [*REQUIRED, *run, flag])
    expected, found, do = parts_of(error)
    assert expected.startswith(f"--{name} with {wanted}")
    assert found.startswith(instead)
    assert found.endswith(f", with which --{name} has no effect")
    named = "name the --strategy that made this checkpoint; auto resumes if you leave --resume_from_checkpoint out"
    assert do == (named if name == "resume_from_checkpoint" else f"leave --{name} out")
    assert parse(config, [*REQUIRED, *run]).ineffective() == {}


def test_every_setting_that_needs_something_is_among_these() -> None:
    needy = {
        one.name
        for config in CONFIGS
        for topic in config.topic_types().values()
        for one in dataclasses.fields(topic)
        if topic.needs or one.metadata["needs"]
    }
    tested = {row[2].removeprefix("--").partition("=")[0] for row in WITHOUT_EFFECT}
    # See test_multimodal.py.
    assert needy - tested == {"image_model_revision", "text_model_revision"}


def test_a_program_is_refused_what_a_command_line_is() -> None:
    with pytest.raises(UserError) as error:
        VisionConfig.of(
            model_name_or_path="m", dataset_name="d", output_dir="o", strategy="linear_probe", num_train_epochs=99
        )
    assert parts_of(error) == (
        f"--num_train_epochs with {STEPWISE}",
        f"{SOLVED}, with which --num_train_epochs has no effect",
        "leave --num_train_epochs out",
    )


@pytest.mark.parametrize(
    "flags",
    [
        ("--strategy=linear_probe", "--class_weights=balanced", "--metric_for_best_model=loss", "--seed=3", "--bf16"),
        ("--strategy=linear_probe", "--cache_frozen=off", "--cache_dtype=float16", "--cache_views=2"),
        ("--strategy=lp_ft", "--num_train_epochs=3", "--probe=svm", "--l2_sp=0.1"),
        ("--strategy=linear_probe", "--image_strategy=lora", "--adapter_rank=2", "--num_train_epochs=3"),
        ("--evaluate_only", "--bf16", "--per_device_eval_batch_size=3", "--max_seq_length=9", "--split_seed=3"),
        ("--dataset_name=no-such-table.csv", "--encoding=latin-1"),
        ("--dataset_name=./no-such-folder", "--encoding=latin-1"),
        ("--model_revision=v2", "--dataset_revision=v3", "--dataset_config_name=de"),
    ],
)
def test_a_setting_that_has_an_effect_is_taken(flags: tuple[str, ...]) -> None:
    """A path that does not exist is named by whoever reads it: the other setting is not what is wrong."""
    assert parsed(*flags).ineffective() == {}


def test_a_default_is_no_error_where_it_has_no_effect() -> None:
    """A saved file of settings holds all of them."""
    assert parsed("--strategy=linear_probe", "--num_train_epochs=20", "--mixup_alpha=0").training.num_train_epochs == 20


def from_file(tmp_path: Path, text: str, *flags: str, config: type[RunConfig] = VisionConfig) -> RunConfig:
    path = tmp_path / "settings.yaml"
    path.write_text(text)
    return parse(config, [*REQUIRED, "--config", str(path), *flags])


def test_a_file_that_contradicts_itself_is_refused_and_named(tmp_path: Path) -> None:
    text = "strategy: linear_probe\nlearning_rate: 1e-3\n"
    for flags in ((), ("--seed=1",), ("--augmentation=none",)):
        with pytest.raises(UserError) as error:
            from_file(tmp_path, text, *flags)
        assert parts_of(error) == (
            f"--learning_rate with {STEPWISE}",
            f"{SOLVED}, with which --learning_rate has no effect",
            f"leave --learning_rate out of {tmp_path / 'settings.yaml'}",
        )


@pytest.mark.parametrize(
    ("text", "flags", "ignored"),
    [
        ("strategy: partial\ntrainable_layers: 2\nlearning_rate: 1e-3\n", PROBE, "trainable_layers, learning_rate"),
        ("num_train_epochs: 3\nmixup_alpha: 0.2\n", EVALUATED, "num_train_epochs, mixup_alpha"),
        ("cache_views: 2\n", ("--augmentation=none",), "cache_views"),
        ("model_revision: v2\n", ("--model_name_or_path=sample:vit-glyphs",), "model_revision"),
        ("dataset_revision: v2\ndataset_name: me/pets\n", ("--dataset_name=sample:digits",), "dataset_revision"),
    ],
)
def test_a_setting_of_a_file_that_loses_its_effect_by_a_flag_is_ignored_with_a_note(
    text: str, flags: tuple[str, ...], ignored: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The flag wins, also over what belongs to the setting that it changes."""
    config = from_file(tmp_path, text, *flags)
    file = tmp_path / "settings.yaml"
    assert capsys.readouterr().out == f"Ignored, as they have no effect on this run: {ignored} in {file}.\n"
    known, values = config.settings(), config.flat()
    assert all(values[name] == default_of(known[name]) for name in ignored.split(", "))


def test_only_the_main_process_prints_what_is_ignored(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("RANK", "1")
    from_file(tmp_path, "cache_views: 2\n", "--augmentation=none")
    assert capsys.readouterr().out == ""


def test_a_flag_without_effect_is_refused_also_beside_a_file(tmp_path: Path) -> None:
    with pytest.raises(UserError) as error:
        from_file(tmp_path, "strategy: linear_probe\n", "--learning-rate=1e-3")
    assert parts_of(error)[2] == "leave --learning_rate out"


def test_a_flag_can_give_a_setting_of_a_file_its_effect(tmp_path: Path) -> None:
    config = from_file(tmp_path, "strategy: linear_probe\nlearning_rate: 1e-3\n", "--strategy=full")
    assert config.training.learning_rate == 1e-3


def test_flags_complete_a_file_that_names_one_of_two_models(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Alone, the file is no run."""
    (tmp_path / "half.yaml").write_text("image_model_name_or_path: vit\nnum_train_epochs: 3\ncache_views: 2\n")
    flags = ["--config", str(tmp_path / "half.yaml"), "--text_model_name_or_path=bert", "--augmentation=none"]
    config = parse(MultimodalConfig, [*REQUIRED[1:], *flags])
    assert config.training.num_train_epochs == 3
    assert "Ignored, as they have no effect on this run: cache_views" in capsys.readouterr().out


def test_a_file_of_a_finished_run_is_read_although_it_contradicts_itself(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Earlier versions accepted such settings."""
    (tmp_path / "results.json").write_text("{}")
    config = from_file(tmp_path, "strategy: linear_probe\nnum_train_epochs: 99\n")
    assert config.training.num_train_epochs == 20
    assert "Ignored, as they have no effect on this run: num_train_epochs in" in capsys.readouterr().out


def test_what_is_ignored_is_not_saved_and_the_saved_file_needs_no_note(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = from_file(tmp_path, "num_train_epochs: 3\ncache_views: 2\n", *PROBE, "--augmentation=none")
    capsys.readouterr()
    config.save(tmp_path / "saved.yaml")
    assert load_settings(VisionConfig, tmp_path / "saved.yaml") == config
    assert capsys.readouterr().out == ""


def test_required_settings_never_lack_an_effect() -> None:
    values: dict[str, Any] = {"model_name_or_path": "m", "dataset_name": "d", "output_dir": "o"}
    config = VisionConfig.of(**values)
    assert {name for name, one in config.settings().items() if is_required(one)} == values.keys()
    assert not [one.name for topic in vars(config).values() for one in topic.given()]


@pytest.mark.parametrize(
    "flags",
    [
        ("--learning_rate=1e-3", "--num_train_epochs=3"), ("--trainable_layers=2",), ("--adapter_rank=4",),
        ("--probe=svm",), ("--auto_seconds=60",), ("--auto_arms", "full", "lora"),
        ("--cache_frozen=off", "--cache_dtype=float16"),
    ],
)  # fmt: skip
def test_auto_takes_the_settings_of_every_strategy_and_its_own(flags: tuple[str, ...]) -> None:
    assert parsed("--strategy=auto", *flags).ineffective() == {}


@pytest.mark.parametrize(
    ("flags", "expected", "found"),
    [
        (("--auto_arms", "full", "magic"), "--auto_arms: strategies, each once: linear_probe, deep_probe, ", "magic"),
        (("--auto_arms", "full", "auto"), "--auto_arms: strategies, each once: linear_probe, ", "auto"),
        (("--auto_arms", "full", "full"), "--auto_arms: strategies, each once: linear_probe, ", "['full', 'full']"),
        (("--auto_seconds=0",), "--auto_seconds: a number above 0", "0.0"),
        (("--image_strategy=full",), "--strategy auto for both towers together", "--image_strategy full beside it"),
        (("--image_strategy=auto",), "settings as --help lists them", "invalid choice: 'auto'"),
    ],
)  # fmt: skip
def test_auto_refuses_what_it_cannot_use(flags: tuple[str, ...], expected: str, found: str) -> None:
    config = MultimodalConfig if "image" in flags[0] else VisionConfig
    with pytest.raises(UserError) as error:
        parse(config, [*REQUIRED, "--strategy=auto", *flags])
    assert parts_of(error)[0].startswith(expected)
    assert found in parts_of(error)[1]


def test_a_checkpoint_outside_the_folder_of_checkpoints_may_replace_an_earlier_run() -> None:
    """What --overwrite_output_dir removes is not there."""
    given = {"model_name_or_path": "m", "dataset_name": "d", "output_dir": "o", "overwrite_output_dir": True}
    given["strategy"] = "full"
    assert VisionConfig.of(**given, resume_from_checkpoint="o/other/checkpoint-2").output.overwrite_output_dir
    with pytest.raises(UserError, match="--overwrite_output_dir, which removes checkpoints"):
        VisionConfig.of(**given, resume_from_checkpoint="o/checkpoints/checkpoint-2")
