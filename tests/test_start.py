"""A command imports no heavy library before it needs it; in processes of their own, which tell what they imported."""

import gc
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import datasets.data_files
import pytest
from PIL import Image

from hf_transfer.data.files import FILES_TO_IGNORE
from hf_transfer.garbage import none_collected
from tests.conftest import REPOSITORY
from tests.tiny_text_models import save_text_checkpoint

# Each takes from half a second to several seconds to import.
HEAVY = {
    "accelerate", "datasets", "evaluate", "gradio", "kornia", "matplotlib", "pandas", "peft", "scipy", "sklearn",
    "torch", "transformers",
}  # fmt: skip
TELL = """
import atexit, runpy, sys
atexit.register(lambda: print("imported:", *sorted({name.partition(".")[0] for name in sys.modules}), file=sys.stderr))
kind, name, *arguments = sys.argv[1:]
sys.argv = [name, *arguments]
if kind == "recipe":
    runpy.run_path(f"recipes/{name}.py", run_name="__main__")
else:
    runpy.run_module(f"hf_transfer.{name}", run_name="__main__", alter_sys=True)
"""


# What loading a model imports in any case: of transformers, and the processor or tokenizer of the model.
LOAD = """
import sys
from pathlib import Path
from transformers import AutoImageProcessor, AutoTokenizer, {model}

folder = Path(sys.argv[1])
{model}.from_pretrained(folder)
if (folder / "tokenizer.json").is_file():
    AutoTokenizer.from_pretrained(folder)
else:
    AutoImageProcessor.from_pretrained(folder, backend="pil")
print(*{{name.partition(".")[0] for name in sys.modules}})
"""
# What predicting needs beside that: our rooms read pictures and tables.
NEEDED = {"PIL", "cloudpickle", "hf_transfer", "pillow_heif", "pyarrow"}


class Ended(NamedTuple):
    """How a command ended, which packages it has imported, and the heavy ones among them."""

    code: int
    out: str
    err: str
    packages: set[str]

    @property
    def heavy(self) -> set[str]:
        return HEAVY & self.packages


def run(*command: object, **environment: str) -> Ended:
    done = subprocess.run(
        [sys.executable, "-c", TELL, *map(str, command)],
        cwd=REPOSITORY, env=os.environ | environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    *err, imported = done.stderr.strip().splitlines()
    assert imported.startswith("imported: ")
    return Ended(done.returncode, done.stdout, "\n".join(err), set(imported.split()[1:]))


def vision(dataset_name: object, out: Path, *flags: str, **environment: str) -> Ended:
    model = [] if any(flag.startswith("--model_name_or_path") for flag in flags) else ["sample:vit-glyphs"]
    named = [f"--model_name_or_path={name}" for name in model]
    return run(
        "recipe", "vision", f"--dataset_name={dataset_name}", f"--output_dir={out}", *named, *flags, **environment
    )


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pictures of three colours in folders."""
    root = tmp_path_factory.mktemp("start") / "pictures"
    for number, name in enumerate(("blue", "green", "red")):
        (root / name).mkdir(parents=True)
        for shade in range(12):
            colour = [20 * shade] * 3
            colour[number] = 250
            Image.new("RGB", (12, 12), tuple(colour)).save(root / name / f"{shade}.png")
    return root


@pytest.fixture(scope="module")
def finished(pictures: Path) -> Path:
    """The folder of a finished run."""
    out = pictures.parent / "out"
    assert vision(pictures, out, "--strategy=linear_probe", f"--cache_dir={pictures.parent / 'cache'}").code == 0
    return out


@pytest.mark.parametrize(
    "command", [("recipe", "vision"), ("recipe", "text"), ("recipe", "multimodal"), ("module", "command_line")]
)
def test_help_imports_no_heavy_library(command: Sequence[str]) -> None:
    ended = run(*command, "--help")
    assert ended.code == 0
    assert ended.out.startswith("usage: ")
    assert ended.heavy == set()


@pytest.mark.parametrize(
    "command",
    [
        ("recipe", "vision", "--seeed", "1", "--dataset_name", "d", "--model_name_or_path", "m", "--output_dir", "o"),
        ("recipe", "text", "--seed", "many", "--dataset_name", "d", "--model_name_or_path", "m", "--output_dir", "o"),
        ("recipe", "vision"),
        ("module", "command_line", "predict", "runs/none", "--top", "0", "a.jpg"),
    ],
)
def test_a_wrong_setting_is_reported_without_any_heavy_library(command: Sequence[str]) -> None:
    ended = run(*command)
    assert ended.code == 2
    assert "Do this:" in ended.err
    assert ended.heavy == set()


@pytest.mark.parametrize("name", ["./missing", "owner/missing"])
def test_a_wrong_name_of_data_is_reported_before_torch_is_imported(name: str, tmp_path: Path) -> None:
    ended = vision(name, tmp_path / "out")
    assert ended.code == 2
    assert "missing" in ended.err
    assert ended.heavy <= {"datasets", "pandas"}


@pytest.mark.parametrize(
    ("recipe", "header", "flags"),
    [
        ("text", "text,label", ["--text_column_name=words"]),
        ("text", "text,label", ["--label_column_name=kind"]),
        ("text", "a,b", []),
        ("vision", "file_name,label", ["--image_column_name=photo"]),
        ("multimodal", "image,text,label", ["--text_column_name=words"]),
    ],
)
def test_a_missing_column_is_reported_before_torch_is_imported(
    recipe: str, header: str, flags: list[str], tmp_path: Path
) -> None:
    table, picture = tmp_path / "rows.csv", tmp_path / "one.png"
    Image.new("RGB", (8, 8)).save(picture)
    cells = [str(picture) if name in ("file_name", "image") else name for name in header.split(",")]
    table.write_text(f"{header}\n{','.join(cells)}\n")
    towers = ("image_model_name_or_path", "text_model_name_or_path")
    models = {"vision": ["model_name_or_path"], "text": ["model_name_or_path"], "multimodal": towers}
    ended = run(
        "recipe", recipe, f"--dataset_name={table}", f"--output_dir={tmp_path / 'out'}",
        *(f"--{name}=sample:none" for name in models[recipe]), *flags,
    )  # fmt: skip
    assert ended.code == 2
    assert "column" in ended.err
    assert ended.heavy <= {"datasets", "pandas"}


def test_data_are_looked_at_before_devices_and_models(pictures: Path, tmp_path: Path) -> None:
    wrong = ("--model_name_or_path=sample:none", "--report_to=none", "--image_column_name=photo")
    assert "photo" in vision(pictures, tmp_path / "out", *wrong).err
    ended = vision(pictures, tmp_path / "out", "--model_name_or_path=sample:none")
    assert "for --model_name_or_path one of" in ended.err


def test_a_finished_run_is_shown_again_without_any_heavy_library(finished: Path, pictures: Path) -> None:
    flags = ("--strategy=linear_probe", f"--cache_dir={pictures.parent / 'cache'}")
    ended = vision(pictures, finished, *flags)
    assert ended.code == 0, ended.err
    assert "accuracy" in ended.out
    assert "nothing was trained now" in ended.out
    assert ended.heavy == set()
    # A card that was removed is written again.
    card = finished / "model/README.md"
    text = card.read_bytes()
    card.unlink()
    assert vision(pictures, finished, *flags).code == 0
    assert card.read_bytes() == text


@pytest.mark.slow
def test_a_finished_decision_is_shown_again_without_any_heavy_library(pictures: Path, tmp_path: Path) -> None:
    flags = ("--strategy=auto", "--auto_seconds=0.1", f"--cache_dir={tmp_path / 'cache'}")
    assert vision(pictures, tmp_path / "out", *flags).code == 0
    ended = vision(pictures, tmp_path / "out", *flags)
    assert (ended.code, ended.heavy) == (0, set()), ended.err
    assert "nothing was trained now" in ended.out
    other = vision(pictures, tmp_path / "out", "--strategy=auto")
    assert (other.code, other.heavy) == (2, set())
    assert "auto_seconds: 0.1 -> None" in other.err


def test_an_edited_card_stays_when_a_run_is_shown_again(finished: Path, pictures: Path) -> None:
    card = finished / "model/README.md"
    text = card.read_text()
    card.write_text(f"{text}\nMine.\n")
    assert vision(pictures, finished, "--strategy=linear_probe", f"--cache_dir={pictures.parent / 'cache'}").code == 0
    assert card.read_text().endswith("Mine.\n")
    card.write_text(text)


def test_a_run_with_other_settings_is_refused_without_any_heavy_library(finished: Path, pictures: Path) -> None:
    ended = vision(pictures, finished, "--strategy=full")
    assert ended.code == 2
    assert "other settings" in ended.err
    assert ended.heavy == set()


def test_a_picture_is_predicted_without_what_only_training_needs(finished: Path, pictures: Path) -> None:
    ended = run("module", "command_line", "predict", finished, pictures / "red/3.png")
    assert ended.code == 0, ended.err
    assert '"scores"' in ended.out
    assert not ended.heavy & {"datasets", "gradio", "kornia", "matplotlib", "pandas", "peft", "sklearn"}


def imported_by_transformers(model: Path, of: str) -> set[str]:
    """The packages that transformers alone imports to load a model with its processor or tokenizer."""
    done = subprocess.run(
        [sys.executable, "-c", LOAD.format(model=f"AutoModelFor{of}Classification"), str(model)],
        capture_output=True, text=True, check=True, env=os.environ,
    )  # fmt: skip
    return set(done.stdout.split()) | set(sys.stdlib_module_names)


@pytest.mark.slow
def test_predicting_imports_what_loading_a_model_imports_and_little_else(
    finished: Path, pictures: Path, tmp_path: Path
) -> None:
    texts = save_text_checkpoint(tmp_path / "texts")
    of_a_picture = run("module", "command_line", "predict", finished, pictures / "red/3.png")
    of_a_text = run("module", "command_line", "predict", texts, "--text", "one two")
    for ended, model, of in ((of_a_picture, finished / "model", "Image"), (of_a_text, texts, "Sequence")):
        assert ended.code == 0, ended.err
        more = ended.packages - imported_by_transformers(model, of) - NEEDED
        assert not {name for name in more if not name.startswith("_")}


@pytest.mark.parametrize("command", [("recipe", "vision", "--help"), ("module", "command_line", "--help")])
def test_a_command_ends_without_a_last_look_for_garbage(command: Sequence[str]) -> None:
    """A cycle with a finalizer that speaks: Python would find it as the process ends."""
    cycle = "class Cycle:\n    def __del__(self):\n        print('collected')\n"
    cycle += "one = Cycle()\none.itself = one\ndel one\n"
    done = {
        code: subprocess.run(
            [sys.executable, "-c", cycle + code, *command],
            cwd=REPOSITORY, env=os.environ, capture_output=True, text=True, check=True,
        ).stdout
        for code in ("", f"import gc; gc.disable()\n{TELL}")
    }  # fmt: skip
    assert done.pop("") == "collected\n"
    (ended,) = done.values()
    assert ended.startswith("usage: ")
    assert "collected" not in ended


def test_no_garbage_is_collected_while_libraries_are_imported() -> None:
    before = gc.get_freeze_count()
    with none_collected():
        assert not gc.isenabled()
    assert gc.isenabled()
    assert gc.get_freeze_count() > before


def test_a_run_that_trains_no_adapters_loads_and_saves_its_model_without_ours_of_peft(finished: Path) -> None:
    code = "import hf_transfer.evaluation.saved_model, hf_transfer.strategies.choice, sys; print('peft' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_left_over_variables_of_a_launcher_are_refused_before_data_are_read(pictures: Path, tmp_path: Path) -> None:
    ended = vision(pictures, tmp_path / "out", RANK="3", WORLD_SIZE="many")
    assert ended.code == 2
    assert "a launcher's variables" in ended.err
    assert ended.heavy == set()


def test_files_are_ignored_that_datasets_ignores() -> None:
    assert set(datasets.data_files.FILES_TO_IGNORE) == FILES_TO_IGNORE
