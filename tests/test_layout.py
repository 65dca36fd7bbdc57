"""The layout of the house: imports run one way, files stay short, and importing the package costs nothing."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import hf_transfer
from hf_transfer.config import RunConfig, TextConfig, VisionConfig
from hf_transfer.config_multimodal import MultimodalConfig
from hf_transfer.parsing import load
from tests.conftest import REPOSITORY

# From left to right: a room imports rooms to its left, and its own modules.
ROOMS: tuple[tuple[str, ...], ...] = (
    ("config", "metrics", "interruption", "versions"),
    ("config_multimodal", "installation"),
    ("parsing",),
    ("data",),
    ("models",),
    ("strategies",),
    ("training",),
    ("evaluation",),
    ("hub",),
    ("command_line", "recipes", "benchmarks"),
)
RANK = {room: rank for rank, rooms in enumerate(ROOMS) for room in rooms}
STANDS_ALONE = ("space", "hf_transfer/models/fusion.py", "hf_transfer/models/modeling_pooled.py")
FORBIDDEN_ROOMS = {"utils", "core", "common", "base", "helpers"}
RECIPE_SETTINGS: dict[str, type[RunConfig]] = {
    "vision": VisionConfig, "text": TextConfig, "multimodal": MultimodalConfig,
}  # fmt: skip
LONGEST_FILE, LONGEST_FUNCTION, LONGEST_RECIPE = 400, 60, 110


def ours(root: Path) -> list[Path]:
    """The Python files that the law of imports binds."""
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


def broken_imports(root: Path) -> tuple[int, list[str]]:
    """How many files were read, and each import that breaks the law."""
    files, wrong = ours(root), []
    edges: dict[str, set[str]] = {}
    for path in files:
        where = path.relative_to(root).as_posix()
        own = where.removesuffix(".py").removesuffix("/__init__").replace("/", ".")
        for line, name in imported(path):
            if name.startswith("."):
                wrong.append(f"{where}:{line} imports {name}: spell the module out")
            if name.split(".")[0] not in ("hf_transfer", "recipes", "benchmarks", "space"):
                continue
            module = module_of(root, name)
            edges.setdefault(own, set()).add(module or name)
            if why := broken_law(where, own, name, module):
                wrong.append(f"{where}:{line} imports {name}: {why}")
    wrong += [f"cycle: {' -> '.join(cycle)}" for cycle in cycles(edges)]
    return len(files), wrong


def broken_law(where: str, own: str, name: str, module: str | None) -> str | None:
    if any(where == alone or where.startswith(f"{alone}/") for alone in STANDS_ALONE):
        return "it stands alone"
    if name.startswith("recipes"):
        return "nobody imports a recipe"
    if module is None or module == "hf_transfer":
        return "nobody imports the package itself"
    here, there = room_of(own), room_of(module)
    if here not in RANK or there not in RANK:
        return f"no such room in the house: {there if here in RANK else here}"
    if here != there and RANK[there] >= RANK[here]:
        return "that room is not to its left"
    return None


def cycles(edges: dict[str, set[str]]) -> list[list[str]]:
    """Each module from which a walk along imports comes back to it, with the walk."""
    found = []
    for start in sorted(edges):
        walks, seen = [[start]], set[str]()
        while walks:
            walk = walks.pop()
            for step in edges.get(walk[-1], set()):
                if step == start:
                    found.append([*walk, start])
                    walks.clear()
                    break
                if step not in seen:
                    seen.add(step)
                    walks.append([*walk, step])
    return found


def test_imports_run_one_way_in_every_file_of_ours() -> None:
    """The law of the house."""
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


def house(root: Path, **files: str) -> Path:
    """A toy house; `__` in a name stands for `/`."""
    for name in ("hf_transfer", "hf_transfer/data", "hf_transfer/models", "hf_transfer/training", "recipes"):
        (root / name).mkdir(parents=True, exist_ok=True)
        if name != "recipes":
            (root / name / "__init__.py").write_text("")
    for name in ("config", "data/a", "data/b", "models/m", "models/fusion", "training/loop"):
        (root / "hf_transfer" / f"{name}.py").write_text("")
    (root / "recipes/vision.py").write_text("from hf_transfer.training.loop import fit\n")
    for name, text in files.items():
        path = root / f"{name.replace('__', '/')}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


def test_a_house_without_wrong_imports_passes(tmp_path: Path) -> None:
    root = house(tmp_path, hf_transfer__models__m="from hf_transfer.data import a, b\nimport hf_transfer.config\n")
    assert broken_imports(root) == (11, [])


@pytest.mark.parametrize(
    ("file", "text", "why"),
    [
        ("data__a", "from hf_transfer.models.m import x", "not to its left"),
        ("data__a", "def f():\n    from hf_transfer.models import m", "not to its left"),
        (
            "data__a",
            "def f():\n    import importlib\n    importlib.import_module('hf_transfer.models.m')",
            "to its left",
        ),
        ("config", "if True:\n    import hf_transfer.data.a", "not to its left"),
        ("training__loop", "import recipes.vision", "nobody imports a recipe"),
        ("training__loop", "import hf_transfer", "the package itself"),
        ("training__loop", "from hf_transfer import fit", "the package itself"),
        ("training__loop", "from ..data import a", "spell the module out"),
        ("models__fusion", "from hf_transfer.config import x", "it stands alone"),
        ("utils__x", "from hf_transfer.config import x", "no such room"),
        ("data__a", "from hf_transfer.data import a", "cycle: hf_transfer.data.a -> hf_transfer.data.a"),
    ],
)
def test_each_wrong_import_is_found_and_named(tmp_path: Path, file: str, text: str, why: str) -> None:
    _, wrong = broken_imports(house(tmp_path, **{f"hf_transfer__{file}": text}))
    assert any(why in line for line in wrong), wrong


def test_a_cycle_within_a_room_is_found(tmp_path: Path) -> None:
    root = house(
        tmp_path,
        hf_transfer__data__a="from hf_transfer.data.b import x",
        hf_transfer__data__b="from hf_transfer.data import a",
    )
    assert any("hf_transfer.data.a -> hf_transfer.data.b -> hf_transfer.data.a" in w for w in broken_imports(root)[1])


def test_a_space_that_imports_us_is_found(tmp_path: Path) -> None:
    assert "it stands alone" in broken_imports(house(tmp_path, space__app="import hf_transfer.config"))[1][0]


def all_files(root: Path) -> list[Path]:
    return [*ours(root), *sorted((root / "tests").rglob("*.py"))]


def too_long(root: Path) -> list[str]:
    """Files and functions over their ceilings."""
    found = []
    for path in all_files(root):
        where, text = path.relative_to(root).as_posix(), path.read_text(encoding="utf-8")
        ceiling = LONGEST_RECIPE if where.startswith("recipes/") else LONGEST_FILE
        if (lines := text.count("\n")) > ceiling:
            found.append(f"{where}: {lines} lines, at most {ceiling}")
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                lines = (node.end_lineno or 0) - node.lineno + 1
                if lines > LONGEST_FUNCTION:
                    found.append(f"{where}: {node.name} has {lines} lines, at most {LONGEST_FUNCTION}")
    return found


def test_no_file_and_no_function_is_too_long() -> None:
    assert len(all_files(REPOSITORY)) >= 30
    assert too_long(REPOSITORY) == []


def test_files_and_functions_that_are_too_long_are_named(tmp_path: Path) -> None:
    body = "    x = 1\n" * 60
    root = house(tmp_path, hf_transfer__data__a=f"def f():\n{body}", recipes__long="x = 1\n" * 111, tests__t="\n" * 401)
    assert too_long(root) == [
        "hf_transfer/data/a.py: f has 61 lines, at most 60",
        "recipes/long.py: 111 lines, at most 110",
        "tests/t.py: 401 lines, at most 400",
    ]


def test_no_room_has_a_name_that_says_nothing() -> None:
    named = {part for path in all_files(REPOSITORY) for part in path.relative_to(REPOSITORY).with_suffix("").parts}
    assert {"data", "models", "config"} <= named
    assert not named & FORBIDDEN_ROOMS


def test_importing_the_package_imports_no_heavy_library_and_is_quick() -> None:
    """A fresh interpreter says what came along; the fastest of three leaves out the machine's other work."""
    code = (
        "import sys, time; start = time.perf_counter(); import hf_transfer; "
        "print(time.perf_counter() - start, *{name.partition('.')[0] for name in sys.modules})"
    )
    seconds = []
    for _ in range(3):
        done = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, check=True)
        took, *modules = done.stdout.split()
        seconds.append(float(took))
        assert "hf_transfer" in modules
        assert not {"torch", "transformers", "datasets", "accelerate", "sklearn", "numpy", "PIL"} & set(modules)
    assert min(seconds) < 0.05


def test_every_public_name_resolves_and_no_other_does() -> None:
    """The names users import."""
    assert len(hf_transfer.__all__) >= 12
    assert set(hf_transfer.__all__) < set(dir(hf_transfer))
    for name in hf_transfer.__all__:
        thing = getattr(hf_transfer, name)
        assert thing.__name__ == name
        assert thing.__module__.startswith("hf_transfer.")
    with pytest.raises(AttributeError, match=r"no attribute 'fitt'; it offers .*choose_strategy, .*fit, "):
        _ = hf_transfer.fitt


def test_every_shipped_settings_file_suits_its_recipe() -> None:
    """A file in recipes/configs is parsed with the settings of the recipe that it names."""
    files = sorted((REPOSITORY / "recipes/configs").glob("*.y*ml"))
    assert len(files) >= 3
    for path in files:
        lines = path.read_text(encoding="utf-8").splitlines()
        recipe = next(line.removeprefix("recipe: ") for line in lines if line.startswith("recipe: "))
        config = load(RECIPE_SETTINGS[recipe], path)
        assert config.output_dir.startswith("runs/")
        assert (REPOSITORY / f"recipes/{recipe}.py").is_file()


def test_every_recipe_has_its_settings_in_this_test() -> None:
    assert {path.stem for path in (REPOSITORY / "recipes").glob("*.py")} == set(RECIPE_SETTINGS)
