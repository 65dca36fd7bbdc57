"""How many of all small changes to a module do the tests notice? Drawn ones, in checkpoints and in checks of data.

    python -m tests.mutation_score --mutants 200 --seed 0

Each mutant changes one place of one module: a comparison, a connective, a number, a branch, a statement. The operators
are those that Offutt, Lee, Rothermel, Untch and Zapf found sufficient ("An experimental determination of sufficient
mutant operators", ACM TOSEM 1996, https://doi.org/10.1145/227607.227610), with the removal of statements. Some of the
survivors behave as the original does, so that 100 % cannot be reached.
"""

import argparse
import ast
import copy
import importlib
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).parents[1]
COPIED = ("hf_transfer", "recipes", "benchmarks", "space", "docs", "tests", "pyproject.toml", "README.md", "LICENSE")
# What is changed, and the tests that should notice, those that know it best first.
MODULES: dict[str, tuple[str, ...]] = {
    "hf_transfer/checkpoints/checkpoint.py": (
        "tests/checkpoints/test_checkpoint.py", "tests/checkpoints/test_checkpoint_synced.py",
        "tests/training/test_resuming.py",
    ),
    "hf_transfer/training/resuming.py": (
        "tests/training/test_resuming.py", "tests/training/test_resumed_state.py",
        "tests/training/test_killed_processes.py", "tests/training/test_guard.py", "tests/training/test_sharding.py",
    ),
    "hf_transfer/targets/classes.py": ("tests/targets/test_labels.py", "tests/data"),
    "hf_transfer/data/splits.py": ("tests/data/test_splits.py", "tests/data"),
    "hf_transfer/data/verification.py": ("tests/data/test_verification.py", "tests/data"),
    "hf_transfer/data/pictures.py": ("tests/data/test_pictures.py", "tests/data"),
    "hf_transfer/data/sources.py": ("tests/data/test_sources.py", "tests/data"),
}  # fmt: skip
# Children share what takes long to import, and import the library and its tests anew.
SHARED_MODULES = ("pytest", "torch", "transformers", "datasets", "accelerate", "sklearn.linear_model", "kornia", "PIL")
OWN = ("hf_transfer", "tests")
# A test that takes so many times what it takes without a change, and some seconds, hangs.
PATIENCE, SECONDS_MORE = 5.0, 30.0
LONGEST_UNCHANGED = 1_800.0
SWAPPED: dict[type[ast.AST], type[ast.AST]] = {
    ast.Eq: ast.NotEq, ast.NotEq: ast.Eq, ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt,
    ast.In: ast.NotIn, ast.NotIn: ast.In, ast.Is: ast.IsNot, ast.IsNot: ast.Is, ast.And: ast.Or, ast.Or: ast.And,
    ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.FloorDiv, ast.FloorDiv: ast.Mult, ast.Div: ast.Mult,
}  # fmt: skip
# In words, and what makes it.
Change = tuple[str, Callable[[], None]]


@dataclass(frozen=True)
class Mutant:
    """A module with one change.

    Attributes:
        file: which module.
        line: where.
        change: what, in words.
        source: all of it.
        tests: those that should notice.
    """

    file: str
    line: int
    change: str
    source: str
    tests: tuple[str, ...]


def mutants_of(file: str, source: str, tests: tuple[str, ...]) -> list[Mutant]:
    """Every mutant of a module."""
    tree = ast.parse(source)
    # An assertion, in the form of an argument: without it everything behaves as before.
    asserted = {id(part.value) for part in ast.walk(tree) if isinstance(part, ast.keyword) and part.arg == "strict"}
    found = []
    for place, node in enumerate(ast.walk(tree)):
        if id(node) in asserted:
            continue
        for number, (words, _) in enumerate(_changes(node)):
            mutated = copy.deepcopy(tree)
            twin = next(other for at, other in enumerate(ast.walk(mutated)) if at == place)
            _, make = _changes(twin)[number]
            make()
            text = ast.unparse(ast.fix_missing_locations(mutated))
            found.append(Mutant(file, getattr(node, "lineno", 0), words, text, tests))
    return found


def _changes(node: ast.AST) -> list[Change]:
    """The changes that a node allows, in words, and what makes them."""
    if isinstance(node, ast.Compare):
        own = _swaps(node.ops[0], lambda other: node.ops.__setitem__(0, other))
    elif isinstance(node, ast.BoolOp | ast.BinOp):
        own = _swaps(node.op, lambda other: setattr(node, "op", other))
    else:
        own = _other_values(node)
    return own + _removals(node)


def _swaps(operator: ast.AST, put: Callable[[Any], None]) -> list[Change]:
    # A union of types is no arithmetic.
    if type(operator) not in SWAPPED:
        return []
    other = SWAPPED[type(operator)]
    return [(f"{type(operator).__name__} -> {other.__name__}", lambda: put(other()))]


def _other_values(node: ast.AST) -> list[Change]:
    if isinstance(node, ast.Constant) and isinstance(node.value, bool | int):
        before = node.value
        after = not before if isinstance(before, bool) else before + 1
        return [(f"{before} -> {after}", lambda: setattr(node, "value", after))]
    if isinstance(node, ast.If | ast.IfExp | ast.While):
        turned = ast.UnaryOp(ast.Not(), node.test)
        return [("the other branch", lambda: setattr(node, "test", turned))]
    if isinstance(node, ast.Return) and node.value is not None:
        return [("returns None", lambda: setattr(node, "value", ast.Constant(None)))]
    return []


def _removals(node: ast.AST) -> list[Change]:
    blocks = [getattr(node, name, None) for name in ("body", "orelse", "finalbody")]
    return [
        (f"without `{ast.unparse(statement).splitlines()[0][:60]}`", partial(block.__setitem__, place, ast.Pass()))
        for block in blocks
        if isinstance(block, list)
        for place, statement in enumerate(block)
        if _can_go(statement)
    ]


def _can_go(statement: ast.AST) -> bool:
    """Calls, raised errors and assignments to what is there already; no docstrings, no definitions."""
    if isinstance(statement, ast.Expr):
        return isinstance(statement.value, ast.Call)
    return isinstance(statement, ast.Raise | ast.AugAssign | ast.Continue | ast.Break)


def is_noticed(mutant: Mutant, room: Path, seconds: Mapping[str, float]) -> bool:
    """Whether a test fails, or hangs, in a copy of the repository that has this change.

    Args:
        mutant: the change.
        room: the copy.
        seconds: what each test takes without it.
    """
    path = room / mutant.file
    original = path.read_text(encoding="utf-8")
    path.write_text(mutant.source, encoding="utf-8")
    try:
        return any(_fails(test, room, PATIENCE * seconds[test] + SECONDS_MORE) for test in mutant.tests)
    finally:
        path.write_text(original, encoding="utf-8")


def _fails(test: str, room: Path, longest: float) -> bool:
    """Run tests in a child that has the slow imports behind it; what it started ends with it."""
    child = os.fork()
    if child == 0:
        os.setsid()
        code = 1
        try:
            code = _run(test, room)
        finally:
            os._exit(code)
    deadline = time.monotonic() + longest
    while True:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return status != 0
        if time.monotonic() > deadline:
            os.killpg(child, signal.SIGKILL)
            os.waitpid(child, 0)
            return True
        time.sleep(0.02)


def _run(test: str, room: Path) -> int:
    import pytest

    os.chdir(room)
    os.environ |= {"PYTHONPATH": str(room), "PYTHONDONTWRITEBYTECODE": "1"}
    sys.dont_write_bytecode = True
    for name in [name for name in sys.modules if name.split(".")[0] in OWN]:
        del sys.modules[name]
    sys.path[:] = [str(room), *(entry for entry in sys.path if Path(entry or ".").resolve() != REPOSITORY)]
    with (room / "log").open("w") as log:
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
    # This process may be a test's own.
    sys.stdout, sys.stderr = sys.__stdout__, sys.__stderr__
    flags = ["-x", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", f"--basetemp={room / 'temporary'}"]
    code = int(pytest.main([*flags, test]))
    print(end="", flush=True)
    return code


def score(drawn: Sequence[Mutant], room: Path) -> float:
    """Try mutants in a copy of the repository, say which survive; the share that is noticed."""
    seconds = {}
    for test in sorted({test for mutant in drawn for test in mutant.tests}):
        started = time.monotonic()
        if _fails(test, room, LONGEST_UNCHANGED):
            raise SystemExit(f"Expected: tests that pass without a change. Found: {(room / 'log').read_text()}")
        seconds[test] = time.monotonic() - started
    noticed, tried = Counter[str](), Counter[str]()
    for mutant in drawn:
        tried[mutant.file] += 1
        if is_noticed(mutant, room, seconds):
            noticed[mutant.file] += 1
        else:
            print(f"survived  {mutant.file}:{mutant.line}  {mutant.change}", flush=True)
    for file in sorted(tried):
        print(f"{noticed[file]:4} of {tried[file]:4}  {file}")
    return noticed.total() / tried.total()


def copy_repository(root: Path, copy: Path) -> None:
    """Copy what tests need of the repository into a new folder."""
    copy.mkdir()
    for name in COPIED:
        if (root / name).is_dir():
            shutil.copytree(root / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
        elif (root / name).is_file():
            shutil.copy2(root / name, copy / name)


def main(
    argv: Sequence[str] | None = None, root: Path = REPOSITORY, modules: Mapping[str, tuple[str, ...]] = MODULES
) -> int:
    """Draw mutants, try them, print the score; 0 if it is at least what was asked for."""
    parser = argparse.ArgumentParser(prog="python -m tests.mutation_score", description=__doc__.splitlines()[0])
    parser.add_argument("--mutants", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--at_least", type=float, default=0.85, help="The score below which this ends with 1.")
    parser.add_argument("--only", default="", help="Only modules whose name contains this.")
    arguments = parser.parse_args(argv)
    for name in SHARED_MODULES:
        importlib.import_module(name)
    every = [
        mutant
        for file, tests in modules.items()
        if arguments.only in file
        for mutant in mutants_of(file, (root / file).read_text(encoding="utf-8"), tests)
    ]
    drawn = random.Random(arguments.seed).sample(every, min(arguments.mutants, len(every)))
    print(f"{len(drawn)} of {len(every)} mutants drawn with seed {arguments.seed}", flush=True)
    with tempfile.TemporaryDirectory(prefix="mutants-") as folder:
        copy_repository(root, Path(folder) / "repository")
        found = score(drawn, Path(folder) / "repository")
    print(f"{found:.1%} of the mutants noticed")
    return 0 if found >= arguments.at_least else 1


if __name__ == "__main__":
    sys.exit(main())
