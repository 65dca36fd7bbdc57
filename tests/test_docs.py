"""README and the pages in docs/: links, flags, names and figures exist, and Python blocks run as printed."""

import ast
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import get_args
from urllib.parse import unquote

import pytest

import hf_transfer
from benchmarks import automl, strategies, transfer_or_scratch
from hf_transfer.data.sample_models import backbone_folder
from hf_transfer.modalities.table import MODALITIES
from hf_transfer.settings.strategy import Strategy
from tests.conftest import REPOSITORY

PAGES = [
    REPOSITORY / "README.md", REPOSITORY / "CONTRIBUTING.md", REPOSITORY / "CHANGELOG.md",
    *sorted((REPOSITORY / "docs").glob("*.md")),
]  # fmt: skip
LONGEST_README = 180
# Flags of other programs, and of our own commands that are no recipes.
OTHER_FLAGS = {
    "--architecture", "--autogluon", "--checkout", "--clear", "--config", "--config_file", "--cpu", "--data",
    "--format", "--help", "--image", "--image_models", "--int8", "--machine_rank", "--main_process_ip", "--model",
    "--models", "--mutants", "--no_fresh_weights", "--nodes", "--nproc_per_node", "--num_processes", "--older_than",
    "--only", "--output", "--prefixes", "--race", "--race_strategy", "--real", "--recipe", "--seeds",
    "--signals-to-handle", "--sizes", "--strategies", "--text", "--text_models", "--text_pair", "--tiny", "--top",
}  # fmt: skip
# Modules of benchmarks that measure nothing.
PARTS_OF_BENCHMARKS = (
    "__init__", "auto_cells", "intervals", "processes", "random_models", "text_classifiers", "trainer_epochs", "trials"
)  # fmt: skip
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")


def name_of(page: Path) -> str:
    return page.relative_to(REPOSITORY).as_posix()


def anchors(page: Path) -> set[str]:
    """The anchors that GitHub makes of the headings of a page."""
    text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    headings = re.findall(r"^#+ (.+)$", text, flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def broken_links(page: Path) -> Iterator[str]:
    for link in LINK.findall(re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)):
        if link.startswith(("http://", "https://")):
            continue
        file, _, anchor = unquote(link).partition("#")
        target = (page.parent / file).resolve() if file else page
        if not target.exists() or (anchor and anchor not in anchors(target)):
            yield link


def python_blocks(page: Path) -> list[str]:
    return re.findall(r"^```python\n(.*?)^```", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_resolve(page: Path) -> None:
    assert list(broken_links(page)) == []


def test_broken_links_are_found(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("# A heading\n[a](#a-heading) [b](#another) [c](page.md#a-heading) [d](none.md) `[e](x.md)`\n")
    assert list(broken_links(page)) == ["#another", "none.md", "x.md"]


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_flags_exist(page: Path) -> None:
    known = {f"--{name}" for modality in MODALITIES.values() for name in modality.config.settings()}
    named = set(re.findall(r"(?<![\w-])--[a-z][a-z0-9_-]+", page.read_text(encoding="utf-8")))
    assert named - known - OTHER_FLAGS == set()


def test_readme_is_short_and_links_every_page() -> None:
    text = (REPOSITORY / "README.md").read_text(encoding="utf-8")
    assert text.count("\n") <= LONGEST_README
    linked = {link.partition("#")[0] for link in LINK.findall(text)}
    assert {name_of(page) for page in PAGES} - {"README.md"} <= linked
    assert len(PAGES) >= 15
    # Continuous integration and people look for this command.
    assert "```bash\nmake test\n```" in text


@pytest.mark.parametrize(("page", "others"), [("README.md", ["auto"]), ("docs/strategies.md", [])])
def test_the_table_of_strategies_has_each_of_them_once(page: str, others: list[str]) -> None:
    rows = re.findall(r"^\| `(\w+)` \|", (REPOSITORY / page).read_text(encoding="utf-8"), flags=re.MULTILINE)
    assert rows == [*others, *get_args(Strategy)]


def test_the_table_of_public_names_has_all_of_them() -> None:
    text = (REPOSITORY / "docs/python.md").read_text(encoding="utf-8").partition("## Public names")[2]
    named = re.findall(r"`(\w+)`", "".join(re.findall(r"^\|([^|]*)\|", text, flags=re.MULTILINE)))
    assert sorted(named) == hf_transfer.__all__


def test_the_tree_in_architecture_names_every_module() -> None:
    text = (REPOSITORY / "docs/architecture.md").read_text(encoding="utf-8")
    folder, listed = "", set()
    for line in text.partition("```\nhf_transfer/\n")[2].partition("recipes/")[0].splitlines():
        depth, name = (len(line) - len(line.lstrip())) // 2, line.split()[0]
        if depth == 1:
            folder = name if name.endswith("/") else ""
        listed.add(name if depth == 1 else f"{folder}{name}")
    package = REPOSITORY / "hf_transfer"
    modules = {path.relative_to(package).as_posix() for path in package.rglob("*.py")}
    modules -= {name for name in modules if name.endswith("/__init__.py")}
    assert {name for name in listed if name.endswith(".py")} == modules
    assert {name for name in listed if name.endswith("/")} == {
        f"{path.relative_to(package).as_posix()}/"
        for path in package.rglob("*")
        if path.is_dir() and path.name != "__pycache__" and "sample_backbones/" not in path.as_posix()
        and "sample_texts/" not in path.as_posix()
    }  # fmt: skip


def test_contributing_and_architecture_state_the_same_import_order() -> None:
    orders = [
        re.search(r"```\n(errors .*?)```", (REPOSITORY / page).read_text(encoding="utf-8"), flags=re.DOTALL)
        for page in ("CONTRIBUTING.md", "docs/architecture.md")
    ]
    assert orders[0] is not None
    assert orders[1] is not None
    assert orders[0].group(1) == orders[1].group(1)


@pytest.mark.parametrize(
    ("table", "results"),
    [
        (transfer_or_scratch.table, transfer_or_scratch.RESULTS),
        (strategies.table, strategies.RESULTS),
        (lambda rows: "\n".join(automl.table(rows)), automl.RESULTS),
    ],
    ids=["transfer_or_scratch", "strategies", "automl"],
)
def test_figures_on_the_page_are_those_of_the_results(table: object, results: Path) -> None:
    rows = json.loads(results.read_text(encoding="utf-8"))["rows"]
    assert callable(table)
    assert table(rows) in (REPOSITORY / "docs/benchmarks.md").read_text(encoding="utf-8")


def test_every_benchmark_is_named_on_the_page() -> None:
    page, makefile = ((REPOSITORY / name).read_text(encoding="utf-8") for name in ("docs/benchmarks.md", "Makefile"))
    for path in (REPOSITORY / "benchmarks").glob("*.py"):
        if path.stem in {*PARTS_OF_BENCHMARKS}:
            continue
        targets = re.findall(rf"^([\w-]+): setup.*\n(?:\t.*\n)*?\t.*benchmarks\.{path.stem}\b", makefile, re.MULTILINE)
        commands = [f"python -m benchmarks.{path.stem}", *(f"make {target}" for target in targets)]
        assert any(command in page for command in commands), path.stem


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_python_blocks_compile(page: Path) -> None:
    for block in python_blocks(page):
        ast.parse(block)


def test_the_python_example_is_the_same_on_both_pages_and_short() -> None:
    readme, page = (python_blocks(REPOSITORY / name) for name in ("README.md", "docs/python.md"))
    assert len(readme) == 1
    assert readme[0] == page[0]
    assert len([line for line in readme[0].splitlines() if line.strip()]) <= 12


@pytest.mark.slow
def test_the_python_blocks_run_as_they_are_printed(picture_folder: Callable[..., Path], tmp_path: Path) -> None:
    """In a folder in which the paths of the page exist; only the push to the Hub is left out."""
    picture_folder(name="path/to/pictures", cat=8, dog=8)
    shutil.copytree(backbone_folder("sample:vit-glyphs"), tmp_path / "google/vit-base-patch16-224")
    shutil.copytree(backbone_folder("sample:minilm"), tmp_path / "google-bert/bert-base-uncased")
    for number, name in enumerate(("one.jpg", "two.png")):
        shutil.copy(sorted((tmp_path / "path/to/pictures/cat").iterdir())[number], tmp_path / name)
    rows = [f"{word} number {number},{label}" for number in range(8) for word, label in (("red", "a"), ("blue", "b"))]
    (tmp_path / "path/to/messages.csv").write_text("text,label\n" + "\n".join(rows) + "\n")
    blocks = python_blocks(REPOSITORY / "docs/python.md")
    assert len(blocks) == 5
    program = re.sub(r"^run\.push_to_hub.*\n", "", "\n".join(blocks), flags=re.MULTILINE)
    ended = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, timeout=600)
    assert ended.returncode == 0, ended.stderr[-3000:]
    assert {path.name for path in (tmp_path / "runs").iterdir()} == {"first", "messages", "steps"}
    assert (tmp_path / "out/model/config.json").is_file()
