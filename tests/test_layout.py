"""The layout of the package: imports run one way, files stay short, and importing it is quick."""

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import hf_transfer
from hf_transfer.modalities.table import MODALITIES
from hf_transfer.settings.parsing import load_settings
from tests.conftest import REPOSITORY

# In this order: a module imports rooms before its own, and modules of its own room. Some rooms are one file.
ROOMS: tuple[tuple[str, ...], ...] = (
    ("errors",),
    ("garbage", "host_memory", "installation", "interruption", "progress_bars", "versions"),
    ("settings",),
    ("targets",),
    ("data",),
    ("models",),
    ("modalities",),
    ("strategies",),
    ("checkpoints",),
    ("frozen",),
    ("training",),
    ("evaluation",),
    ("hub",),
    ("export",),
    ("run",),
    ("look_ahead",),
    ("advice",),
    ("whole_run",),
    ("advice_commands",),
    ("command_line", "recipes", "benchmarks"),
)
RANK = {room: rank for rank, rooms in enumerate(ROOMS) for room in rooms}
STANDS_ALONE = (
    "space", "hf_transfer/models/fusion.py", "hf_transfer/models/modeling_pair.py",
    "hf_transfer/models/modeling_pooled.py", "hf_transfer/models/modeling_pooled_image.py",
    "hf_transfer/models/modeling_deep_probe.py", "hf_transfer/models/modeling_pooled_probe.py",
    "hf_transfer/data/resizing.py", "hf_transfer/data/levels.py", "hf_transfer/export/serve.py",
)  # fmt: skip
FORBIDDEN_ROOMS = {"utils", "core", "common", "base", "helpers"}
LONGEST_FILE, LONGEST_FUNCTION, LONGEST_RECIPE = 400, 60, 45


def ours(root: Path) -> list[Path]:
    """The Python files that the rules of imports are for."""
    folders = [root / name for name in ("hf_transfer", "recipes", "benchmarks", "space")]
    return sorted(path for folder in folders for path in folder.rglob("*.py"))


def imported(path: Path) -> Iterator[tuple[int, str]]:
    """Line and absolute name of everything that a file imports, at any depth; `from a import b` gives `a.b`."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            origin = "." * node.level + (node.module or "")
            yield from ((node.lineno, f"{origin}.{alias.name}") for alias in node.names)
        elif isinstance(node, ast.Call) and "import" in ast.unparse(node.func):
            name = node.args[0].value if node.args and isinstance(node.args[0], ast.Constant) else ""
            yield node.lineno, str(name)


def module_of(root: Path, name: str) -> str | None:
    """The module of ours that an imported name lies in, or None for the package itself or somebody else's."""
    parts = name.split(".")
    for length in range(len(parts), 1, -1):
        path = root.joinpath(*parts[:length])
        if path.with_suffix(".py").is_file() or (path / "__init__.py").is_file():
            return ".".join(parts[:length])
    return None


def room_of(name: str) -> str:
    parts = name.split(".")
    return parts[1] if parts[0] == "hf_transfer" and len(parts) > 1 else parts[0]


def is_saved_beside(path: Path, name: str) -> bool:
    """Whether a file that is saved with a model imports another such file: transformers then copies both."""
    saved = ("fusion", "modeling_")
    return (
        path.parent.name == "models"
        and path.stem.startswith(saved)
        and name.startswith(tuple(f".{one}" for one in saved))
    )


def broken_imports(root: Path) -> tuple[int, list[str]]:
    """How many files were read, and each import that breaks the rules."""
    files, wrong = ours(root), []
    edges: dict[str, set[str]] = {}
    for path in files:
        where = path.relative_to(root).as_posix()
        importer = where.removesuffix(".py").removesuffix("/__init__").replace("/", ".")
        for line, name in imported(path):
            if name.startswith(".") and not is_saved_beside(path, name):
                wrong.append(f"{where}:{line} imports {name}: spell the module out")
            if name.split(".")[0] not in ("hf_transfer", "recipes", "benchmarks", "space"):
                continue
            module = module_of(root, name)
            edges.setdefault(importer, set()).add(module or name)
            if why := broken_rule(where, importer, name, module):
                wrong.append(f"{where}:{line} imports {name}: {why}")
    wrong += [f"cycle: {' -> '.join(cycle)}" for cycle in cycles(edges)]
    return len(files), wrong


def broken_rule(where: str, importer: str, name: str, module: str | None) -> str | None:
    if any(where == alone or where.startswith(f"{alone}/") for alone in STANDS_ALONE):
        return "it stands alone"
    if name.startswith("recipes"):
        return "nobody imports a recipe"
    if module is None or module == "hf_transfer":
        return "nobody imports the package itself"
    here, there = room_of(importer), room_of(module)
    if here not in RANK or there not in RANK:
        return f"no such room: {there if here in RANK else here}"
    if here != there and RANK[there] >= RANK[here]:
        return "that room does not come before its own"
    return None


def cycles(edges: dict[str, set[str]]) -> list[list[str]]:
    """Each module from which a walk along imports comes back to it, with the walk."""
    walks_back = []
    for start in sorted(edges):
        walks, seen = [[start]], set[str]()
        while walks:
            walk = walks.pop()
            for step in edges.get(walk[-1], set()):
                if step == start:
                    walks_back.append([*walk, start])
                    walks.clear()
                    break
                if step not in seen:
                    seen.add(step)
                    walks.append([*walk, step])
    return walks_back


def test_imports_run_one_way_in_every_file_of_ours() -> None:
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "*.py"],
        cwd=REPOSITORY, capture_output=True, text=True, check=False,
    )  # fmt: skip
    rooms = ("hf_transfer/", "recipes/", "benchmarks/", "space/")
    names = [name for name in listed.stdout.splitlines() if name.startswith(rooms) and (REPOSITORY / name).is_file()]
    read, wrong = broken_imports(REPOSITORY)
    assert read >= 25
    assert listed.returncode != 0 or read == len(names)
    assert wrong == []


def package(root: Path, **files: str) -> Path:
    """A small package; `__` in a name stands for `/`."""
    for name in ("hf_transfer", "hf_transfer/data", "hf_transfer/models", "hf_transfer/training", "recipes"):
        (root / name).mkdir(parents=True, exist_ok=True)
        if name != "recipes":
            (root / name / "__init__.py").write_text("")
    for name in ("errors", "run", "data/a", "data/b", "models/m", "models/fusion", "training/loop"):
        (root / "hf_transfer" / f"{name}.py").write_text("")
    (root / "recipes/vision.py").write_text("from hf_transfer.training.loop import fit\n")
    for name, text in files.items():
        path = root / f"{name.replace('__', '/')}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


def test_a_package_without_wrong_imports_passes(tmp_path: Path) -> None:
    root = package(
        tmp_path,
        hf_transfer__models__m="from hf_transfer.data import a, b\nimport hf_transfer.errors\n",
        hf_transfer__run="from hf_transfer.training.loop import fit\n",
    )
    assert broken_imports(root) == (12, [])


@pytest.mark.parametrize(
    ("file", "text", "why"),
    [
        ("data__a", "from hf_transfer.models.m import x", "does not come before"),
        ("data__a", "def f():\n    from hf_transfer.models import m", "does not come before"),
        (
            "data__a",
            "def f():\n    import importlib\n    importlib.import_module('hf_transfer.models.m')",
            "does not come before",
        ),
        ("training__loop", "from hf_transfer.run import Run", "does not come before"),
        ("run", "from hf_transfer.whole_run import train", "the package itself"),
        ("errors", "if True:\n    import hf_transfer.data.a", "does not come before"),
        ("training__loop", "import recipes.vision", "nobody imports a recipe"),
        ("training__loop", "import hf_transfer", "the package itself"),
        ("training__loop", "from hf_transfer import fit", "the package itself"),
        ("training__loop", "from ..data import a", "spell the module out"),
        ("models__fusion", "from hf_transfer.errors import x", "it stands alone"),
        ("models__fusion", "from .m import x", "spell the module out"),
        ("utils__x", "from hf_transfer.errors import x", "no such room"),
        ("data__a", "from hf_transfer.data import a", "cycle: hf_transfer.data.a -> hf_transfer.data.a"),
    ],
)
def test_each_wrong_import_is_found_and_named(tmp_path: Path, file: str, text: str, why: str) -> None:
    _, wrong = broken_imports(package(tmp_path, **{f"hf_transfer__{file}": text}))
    assert any(why in line for line in wrong), wrong


def test_a_cycle_within_a_room_is_found(tmp_path: Path) -> None:
    root = package(
        tmp_path,
        hf_transfer__data__a="from hf_transfer.data.b import x",
        hf_transfer__data__b="from hf_transfer.data import a",
    )
    assert any("hf_transfer.data.a -> hf_transfer.data.b -> hf_transfer.data.a" in w for w in broken_imports(root)[1])


def test_a_space_that_imports_us_is_found(tmp_path: Path) -> None:
    assert "it stands alone" in broken_imports(package(tmp_path, space__app="import hf_transfer.errors"))[1][0]


def all_files(root: Path) -> list[Path]:
    return [*ours(root), *sorted((root / "tests").rglob("*.py"))]


def too_long(root: Path) -> list[str]:
    """Files and functions that are longer than they may be."""
    too_long_ones = []
    for path in all_files(root):
        where, text = path.relative_to(root).as_posix(), path.read_text(encoding="utf-8")
        longest = LONGEST_RECIPE if where.startswith("recipes/") else LONGEST_FILE
        if (lines := text.count("\n")) > longest:
            too_long_ones.append(f"{where}: {lines} lines, at most {longest}")
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                lines = (node.end_lineno or 0) - node.lineno + 1
                if lines > LONGEST_FUNCTION:
                    too_long_ones.append(f"{where}: {node.name} has {lines} lines, at most {LONGEST_FUNCTION}")
    return too_long_ones


def test_no_file_and_no_function_is_too_long() -> None:
    assert len(all_files(REPOSITORY)) >= 30
    assert too_long(REPOSITORY) == []


def test_files_and_functions_that_are_too_long_are_named(tmp_path: Path) -> None:
    body = "    x = 1\n" * 60
    root = package(
        tmp_path, hf_transfer__data__a=f"def f():\n{body}", recipes__long="x = 1\n" * 46, tests__t="\n" * 401
    )
    assert too_long(root) == [
        "hf_transfer/data/a.py: f has 61 lines, at most 60",
        "recipes/long.py: 46 lines, at most 45",
        "tests/t.py: 401 lines, at most 400",
    ]


def test_no_room_has_a_name_that_says_nothing() -> None:
    named = {part for path in all_files(REPOSITORY) for part in path.relative_to(REPOSITORY).with_suffix("").parts}
    assert {"data", "models", "settings"} <= named
    assert not named & FORBIDDEN_ROOMS


def test_importing_the_package_imports_no_heavy_library_and_is_quick() -> None:
    """In a new interpreter, and in its own time: the machine may do other work."""
    code = (
        "import sys, time; start = time.process_time(); import hf_transfer; "
        "print(time.process_time() - start, *{name.partition('.')[0] for name in sys.modules})"
    )
    seconds = []
    for _ in range(3):
        done = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, check=True)
        took, *modules = done.stdout.split()
        seconds.append(float(took))
        assert "hf_transfer" in modules
        assert not {"torch", "transformers", "datasets", "accelerate", "sklearn", "numpy", "PIL"} & set(modules)
    assert min(seconds) < 0.05


PUBLIC = {
    "advise", "train", "load", "Run", "open_run", "Results", "Predictor", "UserError",
    "VisionConfig", "TextConfig", "MultimodalConfig",
    "choose_strategy", "set_trainable", "trace_groups", "check_boundary", "prepare_for_trainer", "rank", "FusionModel",
    "PairProbeModel",
}  # fmt: skip


def test_every_public_name_resolves_and_no_other_does() -> None:
    """The names that users import; the changelog says what becomes of one that is taken away."""
    assert set(hf_transfer.__all__) == PUBLIC
    assert set(hf_transfer.__all__) < set(dir(hf_transfer))
    for name in hf_transfer.__all__:
        value = getattr(hf_transfer, name)
        assert value.__name__ == name
        assert value.__module__.startswith("hf_transfer.")
    with pytest.raises(AttributeError, match=r"no attribute 'trian'; it offers .*choose_strategy, .*train$"):
        _ = hf_transfer.trian


def test_every_recipe_is_that_of_a_modality() -> None:
    assert {path.stem for path in (REPOSITORY / "recipes").glob("*.py")} == set(MODALITIES)


def test_every_shipped_settings_file_suits_its_recipe(capsys: pytest.CaptureFixture[str]) -> None:
    """It is parsed with the settings of the recipe that it names, and all of its settings have an effect."""
    files = sorted((REPOSITORY / "recipes/configs").glob("*.y*ml"))
    assert len(files) >= 3
    for path in files:
        lines = path.read_text(encoding="utf-8").splitlines()
        recipe = next(line.removeprefix("recipe: ") for line in lines if line.startswith("recipe: "))
        config = load_settings(MODALITIES[recipe].config, path)
        assert config.output.output_dir.startswith("runs/")
    assert capsys.readouterr().out == ""


def test_recipes_and_the_doctor_share_only_steps_of_a_run() -> None:
    """What a step does is in the library, once."""

    def code(path: str) -> set[str]:
        return {line.strip() for line in (REPOSITORY / path).read_text(encoding="utf-8").splitlines()}

    doctor = code("hf_transfer/look_ahead.py") - {"", '"""'}
    for recipe in MODALITIES:
        shared = doctor & code(f"recipes/{recipe}.py")
        assert shared
        assert not [line for line in shared if not re.fullmatch(r"run\.[a-z_]+\(\)", line)]
