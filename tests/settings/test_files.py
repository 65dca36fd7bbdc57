"""Settings in a YAML file: types, precedence, what is refused, and the way back from a saved file."""

import dataclasses
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from hf_transfer.errors import UserError
from hf_transfer.settings.fields import choices_of, default_of, types_of
from hf_transfer.settings.parsing import load_settings, parse
from hf_transfer.settings.ranges import TAPS
from hf_transfer.settings.run import MultimodalConfig, RunConfig, VisionConfig
from hf_transfer.settings.strategy import ARMS
from tests.settings.command_lines import CONFIGS, REQUIRED, parsed, parts_of


def from_yaml(tmp_path: Path, text: str | bytes, *flags: str) -> VisionConfig:
    path = tmp_path / "settings.yaml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return parse(VisionConfig, [*REQUIRED, "--config", str(path), *flags])


def test_an_unknown_setting_in_a_file_is_named_with_the_nearest_one_and_the_file(tmp_path: Path) -> None:
    """The same for files."""
    with pytest.raises(UserError) as error:
        from_yaml(tmp_path, "seed: 1\nlearning_rat: 1\n")
    assert parts_of(error)[1] == f"learning_rat (nearest: learning_rate) in {tmp_path / 'settings.yaml'}"


@pytest.mark.parametrize("key", ["config", "help", "h", "no_seed", "model-name-or-path", "3", "<<"])
def test_a_file_cannot_name_what_is_no_setting(tmp_path: Path, key: str) -> None:
    with pytest.raises(UserError) as error:
        from_yaml(tmp_path, f"{key}: 1\n")
    assert parts_of(error)[1].startswith(key)


@pytest.mark.parametrize(
    ("text", "name", "value"),
    [
        ("learning_rate: 1e-4", "learning_rate", 1e-4),
        ("warmup_steps: 500", "warmup_steps", 500.0),
        ("num_train_epochs: 3", "num_train_epochs", 3),
        ("bf16: true", "bf16", True),
        ("fp16: no", "fp16", False),
        ("horizontal_flip: false", "horizontal_flip", False),
        ("report_to: [tensorboard, wandb]", "report_to", ["tensorboard", "wandb"]),
        ("report_to: tensorboard", "report_to", ["tensorboard"]),
        ("learning_rate: null", "learning_rate", None),
        ("learning_rate: ~", "learning_rate", None),
        ("label_column_name: no", "label_column_name", "no"),
        ("label_column_name: 'null'", "label_column_name", "null"),
        ("label_column_name: --seed", "label_column_name", "--seed"),
        ("model_revision: 0123456", "model_revision", "0123456"),
        ("model_revision: 12_3", "model_revision", "12_3"),
        ("model_revision: 2020-01-01", "model_revision", "2020-01-01"),
        ("model_revision: 10:30", "model_revision", "10:30"),
        ("image_column_name: 'a: b # c'", "image_column_name", "a: b # c"),
        ("recipe: vision", "seed", 0),
        ("", "seed", 0),
    ],
)
def test_a_value_in_a_file_has_the_type_of_its_setting(tmp_path: Path, text: str, name: str, value: object) -> None:
    """YAML's own guesses would make 1e-4 a text, a revision 0123456 a number, and a column `no` False."""
    read = from_yaml(tmp_path, text).flat()[name]
    assert read == value
    assert type(read) is type(value)


def test_the_last_one_wins_flag_over_file_over_default(tmp_path: Path) -> None:
    """The order of precedence."""
    text = "seed: 3\nweight_decay: 0.3\nreport_to: [wandb, trackio]\nbf16: true\n"
    config = from_yaml(tmp_path, text, "--seed=5", "--seed", "6", "--report_to", "tensorboard", "--bf16", "false")
    assert (config.training.seed, config.training.weight_decay, config.training.max_grad_norm) == (6, 0.3, 1.0)
    assert (config.output.report_to, config.training.bf16) == (["tensorboard"], False)


def test_a_flag_wins_over_the_file_wherever_it_stands_and_of_two_files_the_last_counts(tmp_path: Path) -> None:
    """As for every other flag."""
    (tmp_path / "a.yaml").write_text("seed: 3\nsplit_seed: 3\n")
    (tmp_path / "b.yaml").write_text("seed: 4\n")
    both = ["--config", str(tmp_path / "a.yaml"), "--config", str(tmp_path / "b.yaml")]
    assert parsed("--seed=5", *both[:2]).training.seed == 5
    assert (parsed(*both).training.seed, parsed(*both).data.split_seed) == (4, 0)
    assert parsed(f"--config={tmp_path / 'a.yaml'}").training.seed == 3


UNREADABLE = [
    ("seed: &s 1\nsplit_seed: *s\n", "aliases (*name) are not allowed"),
    ("seed: 1\nbf16: true\nseed: 2\n", "seed: given more than once"),
    ("? [a]\n: 1\n? [a]\n: 2\n", "given more than once"),
    ("seed: !!python/object/apply:os.system [id]\n", "tags (tag:yaml.org,2002:python/object/apply:os.system)"),
    ("seed: !!int 3\n", "tags (tag:yaml.org,2002:int) are not allowed"),
    ("seed: [1\n", "line 2"),
    ("a: 1\n b: 2\n", "line 2"),
    ("seed: \x00", "special characters are not allowed"),
    ("seed: " + "[" * 5000, "recursion"),
    ('label_column_name: "\\U00110000"\n', "chr() arg not in range"),
    (b"seed: \xff", "'utf-8' codec can't decode byte 0xff"),
]


@pytest.mark.parametrize(("text", "found"), UNREADABLE, ids=range(len(UNREADABLE)))
def test_yaml_that_is_broken_or_not_plain_is_refused(tmp_path: Path, text: str | bytes, found: str) -> None:
    """Aliases expand without bound, tags run code, of two equal keys one is lost."""
    with pytest.raises(UserError) as error:
        from_yaml(tmp_path, text)
    assert parts_of(error)[0] == f"readable YAML in {tmp_path / 'settings.yaml'}"
    assert found in parts_of(error)[1]


def test_a_key_given_twice_is_refused(tmp_path: Path) -> None:
    """Of two equal keys one would be lost."""
    with pytest.raises(UserError, match="seed: given more than once"):
        from_yaml(tmp_path, "seed: 1\nseed: 2\n")


@pytest.mark.parametrize(
    ("text", "expected", "found"),
    [
        ("- seed\n", "'name: value' lines in ", "list"),
        ("seed\n", "'name: value' lines in ", "str"),
        ("seed: {a: 1}\n", "one value for seed in ", "a mapping"),
        ("seed: [1, 2]\n", "one value for seed in ", "the list ['1', '2']"),
        ("report_to: [[a], b]\n", "one value for report_to in ", "the list [['a'], 'b']"),
        ("recipe: text\n", "settings of the vision recipe", "with 'recipe: text'"),
    ],
)
def test_a_file_of_another_form_is_refused(tmp_path: Path, text: str, expected: str, found: str) -> None:
    """A list for a single setting would be read as stray words."""
    with pytest.raises(UserError) as error:
        from_yaml(tmp_path, text)
    assert parts_of(error)[0].startswith(expected)
    assert found in parts_of(error)[1]


def test_settings_of_another_recipe_are_sent_to_that_recipe(tmp_path: Path) -> None:
    """The recipe's name is in the file."""
    with pytest.raises(UserError) as error:
        from_yaml(tmp_path, "recipe: text\n")
    assert parts_of(error)[2] == "run recipes/text.py with it"


def test_a_file_that_is_missing_or_a_folder_or_too_large_is_refused(tmp_path: Path) -> None:
    """The file is looked at before it is read."""
    for path in (tmp_path / "none.yaml", tmp_path):
        with pytest.raises(UserError) as error:
            parsed("--config", str(path))
        assert parts_of(error)[:2] == ("a YAML file for --config", f"no file {path}")
    with pytest.raises(UserError) as error:
        from_yaml(tmp_path, "# " + "x" * 1_000_000)
    assert parts_of(error)[:2] == ("a short YAML file", f"1000002 bytes in {tmp_path / 'settings.yaml'}")


def test_a_required_setting_may_come_from_the_file(tmp_path: Path) -> None:
    (tmp_path / "all.yaml").write_text("model_name_or_path: m\ndataset_name: d\noutput_dir: -o\n")
    config = load_settings(VisionConfig, tmp_path / "all.yaml")
    assert (config.model.model_name_or_path, config.data.dataset_name, config.output.output_dir) == ("m", "d", "-o")


# Any text that a command line can hold, except the sign that ends its flags.
NAMES = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=12).filter(lambda name: name != "--")
# By the words of a range: values in it.
VALUES_WITHIN: dict[str, Any] = {
    "a name or a path": NAMES.filter(lambda name: bool(name.strip()) and not name.startswith("~")),
    "one sign, such as ; or ^, or comma, semicolon, tab or pipe": st.sampled_from([";", "^", "\t", "tab", "pipe"]),
    "the name of an encoding, such as utf-8 or latin-1": st.sampled_from(["utf-8", "latin-1"]),
    "a share above 0 and at most 0.5": st.floats(0.01, 0.5),
    "a number above 0 and at most 10": st.floats(1e-9, 10),
    "a number from 0 to below 1": st.floats(0, 0.99),
    "a number above 0 and at most 1": st.floats(0.01, 1),
    "a number above 0": st.floats(0.01, 100),
    "a number of at least 0": st.floats(0, 1e9),
    "signs that are no letters, digits or spaces": st.sampled_from([";", "|", "//"]),
    TAPS.words: st.lists(st.sampled_from(["head", "mean_1", "first_12", "image_mean_2"]), max_size=3, unique=True),
    ARMS.words: st.lists(st.sampled_from(["full", "lora", "partial"]), max_size=3, unique=True),
    "numbers of at least 1": st.lists(st.integers(1, 99), max_size=3),
}
VALUES_OF_TYPE: dict[Any, Any] = {
    str: NAMES,
    bool: st.booleans(),
    # In every range of whole numbers.
    int: st.integers(3, 2**31),
    list[str]: st.lists(NAMES.filter(lambda name: not name.startswith("-")), min_size=1, max_size=3),
}


def values_of(one: "dataclasses.Field[Any]") -> Any:
    """Values that a setting may have."""
    within, kinds = one.metadata["within"], types_of(one)
    if choices := choices_of(one):
        drawn: Any = st.sampled_from(choices)
    elif within is not None and within.words in VALUES_WITHIN:
        drawn = VALUES_WITHIN[within.words]
    else:
        drawn = VALUES_OF_TYPE[kinds[0]]
    return st.none() | drawn if type(None) in kinds else drawn


def drawn_settings(config: type[RunConfig]) -> st.SearchStrategy[RunConfig]:
    """Settings of a recipe that pass its checks."""

    def consistent(values: dict[str, Any]) -> RunConfig:
        values["label_column_names"] = [] if values["label_column_name"] is not None else values["label_column_names"]
        values["fp16"] = values["fp16"] and not values["bf16"]
        values |= {"merge_adapter": True, "evaluate_only": False}
        values["push_to_hub"] = values["hub_model_id"] is not None
        values["push_space"] = values["push_space"] and values["push_to_hub"]
        resumed = values["resume_from_checkpoint"] is not None
        values |= {name: values[name] and not resumed for name in ("no_resume", "overwrite_output_dir")}
        if config is MultimodalConfig:
            of_towers = (values["image_strategy"], values["text_strategy"])
            values["strategy"] = "full" if any(of_towers) else values["strategy"]
            one, two = ("model_name_or_path",), ("image_model_name_or_path", "text_model_name_or_path")
            unused, used = (two, one) if values["model_name_or_path"] else (one, two)
            values |= dict.fromkeys(unused) | {name: values[name] or "m" for name in used}
        topics: dict[str, Any] = {
            name: topic(**{one.name: values[one.name] for one in dataclasses.fields(topic)})
            for name, topic in config.topic_types().items()
        }
        complete = config(**topics).without_ineffective()
        assert complete.ineffective() == {}
        return complete

    return st.fixed_dictionaries({name: values_of(one) for name, one in config.settings().items()}).map(consistent)


@given(st.one_of(*map(drawn_settings, CONFIGS)))
@hypothesis_settings(max_examples=60, suppress_health_check=list(HealthCheck))
@example(VisionConfig.of(model_name_or_path="a\x85b", dataset_name="\x85d", output_dir="\u2028o"))
@example(VisionConfig.of(model_name_or_path="-m", dataset_name="--seed", output_dir="o"))
def test_settings_that_are_saved_are_read_back_equal(
    tmp_path_factory: pytest.TempPathFactory, config: RunConfig
) -> None:
    """For any text, however much it looks like something else in YAML or in argparse."""
    path = tmp_path_factory.mktemp("saved") / "config.yaml"
    config.save(path)
    # Permission to replace an earlier run, or what is on the Hub, is for one command, and is not saved.
    known = config.settings()
    unsaved = {name: default_of(known[name]) for name in config.affecting("publication", "command")}
    assert len(unsaved) == 8
    assert load_settings(type(config), path) == config.replaced(**unsaved)


KEYS = st.sampled_from(list(VisionConfig.settings())) | st.text(max_size=3)
VALUES = NAMES | st.sampled_from([
    "--", "-", "nan", "-inf", "1e400", "9" * 5000, "0x1", "1_0", "[a, b]", "'", '"\\', "&a *a", "!!binary aGk=",
    "<<", "|", "%YAML 9", "---", "...", "\udcff", "true", "null",
])  # fmt: skip


@given(st.lists(st.tuples(KEYS, VALUES), max_size=3), st.binary(max_size=20), st.booleans())
@example([("seed", "--")], b"", True)
def test_settings_of_any_form_are_read_or_refused_in_words(
    tmp_path_factory: pytest.TempPathFactory, pairs: list[tuple[str, str]], content: bytes, one_word: bool
) -> None:
    path = tmp_path_factory.mktemp("drawn") / "settings.yaml"
    lines = "".join(f"{key}: {value}\n" for key, value in pairs)
    path.write_bytes(content + lines.encode("utf-8", "surrogateescape"))
    flags = [[f"--{key}={value}"] if one_word else [f"--{key}", value] for key, value in pairs]
    for argv in (["--config", str(path)], [word for flag in flags for word in flag]):
        with suppress(UserError):
            parse(VisionConfig, [*REQUIRED, *argv])


@pytest.mark.parametrize("name", ["a\udcff", "a\0"])
def test_a_name_that_is_no_text_is_refused_before_it_is_written_anywhere(name: str) -> None:
    """A folder with such a name would be noticed when the report is written, after training."""
    with pytest.raises(UserError) as error:
        parsed(f"--output_dir={name}")
    assert parts_of(error)[:2] == ("--output_dir: text in UTF-8 without a zero byte", ascii(name))


@pytest.mark.parametrize("flags", [("--seed", "--"), ("--seed=--",)])
def test_the_sign_for_the_end_of_flags_is_no_value(flags: tuple[str, ...]) -> None:
    """argparse takes it away, and leaves an empty list."""
    with pytest.raises(UserError) as error:
        parsed(*flags)
    assert parts_of(error)[:2] == ("settings with their values", flags[-1])


def test_permission_to_replace_an_earlier_run_is_not_saved_with_the_settings(tmp_path: Path) -> None:
    """`--config OUT/config.yaml --output_dir OTHER` must not replace what is in OTHER."""
    parsed("--overwrite_output_dir").save(tmp_path / "c.yaml")
    assert load_settings(VisionConfig, tmp_path / "c.yaml").output.overwrite_output_dir is False
    assert (tmp_path / "c.yaml").read_text().startswith("recipe: vision\nmodel_name_or_path: m\n")
