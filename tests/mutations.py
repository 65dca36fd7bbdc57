"""The tests' own test: break the library by the line that a test's docstring names, and see that test fail.

A docstring names it as `Mutation: hf_transfer/config.py: "old text" -> "new text"`, in one line; the old text stands
exactly once in the file. `python -m tests.mutations` tries all of them, each in a temporary copy of the repository.
"""

import argparse
import ast
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

REPOSITORY = Path(__file__).parents[1]
COPIED = ("hf_transfer", "recipes", "benchmarks", "space", "docs", "tests", "pyproject.toml", "README.md", "LICENSE")
WORDS = "Mutation:"
FORM = re.compile(r'Mutation: (\S+): "(.+)" -> "(.*)"')
LONGEST_SECONDS = 300
# pytest's own exit codes: only 1 means that the test itself ran and failed.
FAILED, PASSED = 1, 0
# What a test says when the mutation broke the file instead of the behaviour.
BROKEN = (
    "SyntaxError",
    "IndentationError",
    "ImportError while",
    "ModuleNotFoundError while",
    "error during collection",
)


@dataclass(frozen=True)
class Mutation:
    """A change of one line, and the test that must notice it.

    Attributes:
        test: pytest's name of the test.
        file: what is changed, from the repository's root.
        old: text that stands exactly once in the file.
        new: what takes its place.
    """

    test: str
    file: str
    old: str
    new: str


def collect(root: Path, only: str = "") -> list[Mutation]:
    """All mutations that docstrings under `root/tests` name; `only` limits what is complained about.

    Raises:
        ValueError: a line of the wrong form, or a text that does not stand exactly once in its file.
    """
    found, problems = [], []
    for path in sorted((root / "tests").rglob("test_*.py")):
        where = path.relative_to(root).as_posix()
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.FunctionDef) or not node.name.startswith("test_"):
                continue
            for line in (ast.get_docstring(node) or "").splitlines():
                if not line.strip().startswith(WORDS):
                    continue
                match = FORM.fullmatch(line.strip())
                if match is None:
                    problems.append(f'{where}::{node.name}: not of the form FILE: "old" -> "new": {line.strip()}')
                    continue
                mutation = Mutation(f"{where}::{node.name}", *match.groups())
                found.append(mutation)
                if only in mutation.test and (problem := _misplaced(root, mutation)):
                    problems.append(problem)
    if problems:
        raise ValueError("\n".join(problems))
    return found


def _misplaced(root: Path, mutation: Mutation) -> str | None:
    path = root / mutation.file
    times = path.read_text(encoding="utf-8").count(mutation.old) if path.is_file() else 0
    return (
        None if times == 1 else f"{mutation.test}: {mutation.old!r} stands {times} times in {mutation.file}, not once"
    )


def named(root: Path) -> int:
    """How many lines under `root/tests` look like the naming of a mutation: an independent count."""
    texts = (path.read_text(encoding="utf-8") for path in (root / "tests").rglob("test_*.py"))
    return sum(line.strip(' "').startswith(f"{WORDS} ") for text in texts for line in text.splitlines())


def try_mutation(root: Path, mutation: Mutation) -> str | None:
    """Why the mutation is no proof for its test, or None if the test fails by it."""
    with tempfile.TemporaryDirectory(prefix="mutation-") as folder:
        copy = Path(folder) / "repository"
        copy_repository(root, copy)
        path = copy / mutation.file
        path.write_text(path.read_text(encoding="utf-8").replace(mutation.old, mutation.new), encoding="utf-8")
        if wrong := _imported_elsewhere(copy):
            return wrong
        code, said = _run_test(copy, mutation.test)
    if code == PASSED:
        return "the test passed all the same"
    if code != FAILED:
        return f"pytest ended with {code} instead of running the test: {_last_words(said)}"
    if broken := next((word for word in BROKEN if word in said), None):
        return f"it broke the file ({broken}), not the behaviour: {_last_words(said)}"
    return None


def copy_repository(root: Path, copy: Path) -> None:
    """What tests need of the repository, into a new folder."""
    copy.mkdir()
    for name in COPIED:
        if (root / name).is_dir():
            shutil.copytree(root / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
        elif (root / name).is_file():
            shutil.copy2(root / name, copy / name)


def _environment(copy: Path) -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(copy), "PYTHONDONTWRITEBYTECODE": "1", "OMP_NUM_THREADS": "1"}


def _imported_elsewhere(copy: Path) -> str | None:
    """The copy's library must be what the test imports, not the one that is installed."""
    code = "import importlib.util; print(importlib.util.find_spec('hf_transfer').origin)"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=copy, env=_environment(copy), capture_output=True, text=True, check=False
    )
    origin = done.stdout.strip()
    return None if origin.startswith(str(copy)) else f"hf_transfer is imported from {origin or done.stderr[-200:]}"


def _run_test(copy: Path, test: str) -> tuple[int, str]:
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", test]
    temporary = f"--basetemp={copy.parent / 'temporary'}"
    try:
        done = subprocess.run(
            [*command, temporary], cwd=copy, env=_environment(copy), capture_output=True, text=True, check=False,
            timeout=LONGEST_SECONDS,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return -1, f"longer than {LONGEST_SECONDS} s"
    return done.returncode, done.stdout + done.stderr


def _last_words(said: str) -> str:
    lines = [line for line in said.splitlines() if line.strip()]
    return lines[-1][:200] if lines else "nothing was said"


def main(argv: Sequence[str] | None = None, root: Path = REPOSITORY) -> int:
    """Try all mutations, or some; 0 if every one of them is noticed."""
    parser = argparse.ArgumentParser(prog="python -m tests.mutations", description=__doc__.splitlines()[0])
    parser.add_argument("--only", default="", help="Only tests whose name contains this.")
    parser.add_argument("--jobs", type=int, default=2, help="How many to try at a time (default: 2).")
    arguments = parser.parse_args(argv)
    mutations = collect(root, arguments.only)
    assert len(mutations) == named(root) > 0, f"{len(mutations)} mutations collected, {named(root)} named"
    chosen = [mutation for mutation in mutations if arguments.only in mutation.test]
    print(f"{len(mutations)} mutations, {len(chosen)} of them chosen", flush=True)
    survivors = 0
    with ThreadPoolExecutor(max(1, arguments.jobs)) as pool:
        answers = pool.map(lambda mutation: try_mutation(root, mutation), chosen)
        for mutation, problem in zip(chosen, answers, strict=True):
            survivors += problem is not None
            verdict = "killed  " if problem is None else "SURVIVED"
            change = f"{mutation.file}: {mutation.old!r} -> {mutation.new!r}"
            print(f"{verdict} {mutation.test}  [{change}]{f'  ({problem})' if problem else ''}", flush=True)
    print(f"{len(chosen) - survivors} killed, {survivors} survived")
    return 0 if chosen and not survivors else 1


if __name__ == "__main__":
    sys.exit(main())
