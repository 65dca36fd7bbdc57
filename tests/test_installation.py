"""The wheel in clean environments, and beside the retired `hf_transfer` wheel, which has our import name."""

import base64
import hashlib
import importlib.metadata
import json
import os
import shutil
import signal
import subprocess
import sys
import sysconfig
import venv
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import pytest
from PIL import Image

from hf_transfer.errors import UserError
from hf_transfer.installation import check_installation
from tests.conftest import REPOSITORY
from tests.hub.clients import environment as hub_variables
from tests.hub.finished import finished_run
from tests.hub.stand_in import WRITER, with_accounts
from tests.hub.stand_in import served as stand_in
from tests.ports import held_port
from tests.space.conftest import wait_for
from tests.space.programs import Programs, file

EXPECTED = "Expected: the import name hf_transfer for the distribution hf-transfer-learning alone"
FIX = "pip uninstall -y hf_transfer && pip install --force-reinstall --no-deps hf-transfer-learning"
RETIRED = "Found:    the retired download accelerator hf_transfer 0.1.9"
# As a recipe starts, in the process of a user.
RUN = (
    "from hf_transfer.settings.run import VisionConfig; from hf_transfer.settings.parsing import run_recipe; "
    "run_recipe(print, VisionConfig, ['--help'])"
)

# `hf extensions install`, with GitHub's answers for a repository named hf-transfer that holds what this one does.
EXTENSION = """
import subprocess, sys, venv
from pathlib import Path

import httpx2
from huggingface_hub.cli import extensions
from huggingface_hub.cli.hf import main

wheel, repository = sys.argv[1:3]
install, build = subprocess.run, venv.EnvBuilder

def github(method, url, **_):
    name = url.partition("/HEAD/")[2]
    request = httpx2.Request(method, url)
    if name and not Path(repository, name).is_file():
        raise httpx2.HTTPStatusError("404", request=request, response=httpx2.Response(404, request=request))
    text = Path(repository, name).read_text() if name else "a" * 40 + " HEAD" + chr(0)
    return httpx2.Response(200, text=text, request=request)

def from_github(command, **more):
    if command[-1] == "https://github.com/somebody/hf-transfer/archive/HEAD.zip":
        # With the existing pip: a new one in each environment takes time.
        pip = [sys.executable, "-m", "pip", "--python", command[0], *command[3:-1]]
        command = [*pip, "--no-deps", "--no-index", wheel]
    return install(command, **more)

extensions._github_request = github
extensions.subprocess.run = from_github
extensions.venv.EnvBuilder = lambda with_pip, symlinks: build(with_pip=False, symlinks=symlinks)
sys.argv = ["hf", "extensions", "install", "somebody/hf-transfer"]
main()
"""
HF = "from huggingface_hub.cli.hf import main; main()"
COMMANDS = """
import json, sys
from hf_transfer import command_line

assert command_line.__file__.startswith(sys.prefix)
for command in json.loads(sys.argv[1]):
    command_line.main(command)
"""


@dataclass(frozen=True)
class Environment:
    """A virtual environment of its own; other packages come from the one the tests run in."""

    folder: Path

    def pip(self, *arguments: str) -> None:
        target = ["--python", str(self.folder / "bin/python")]
        command = [sys.executable, "-m", "pip", *target, *arguments, "--quiet", "--disable-pip-version-check"]
        done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=self.folder)
        assert done.returncode == 0, done.stderr

    def install(self, wheel: Path) -> None:
        self.pip("install", "--no-deps", "--no-index", "--force-reinstall", str(wheel))

    def python(self, *arguments: str, **variables: str) -> "subprocess.CompletedProcess[str]":
        return self._run(str(self.folder / "bin/python"), *arguments, **variables)

    def console(self, *arguments: str) -> "subprocess.CompletedProcess[str]":
        """The installed command `hf-transfer`."""
        return self._run(str(self.folder / "bin/hf-transfer"), *arguments)

    def variables(self) -> dict[str, str]:
        return {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}

    def _run(self, *command: str, **variables: str) -> "subprocess.CompletedProcess[str]":
        kept = self.variables() | variables
        return subprocess.run(command, capture_output=True, text=True, check=False, cwd=self.folder, env=kept)


@pytest.fixture(scope="module")
def our_wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from a copy, so that no build folder is left in the repository."""
    copy = tmp_path_factory.mktemp("sources") / "repository"
    copy.mkdir()
    for name in ("hf_transfer", "space"):
        shutil.copytree(REPOSITORY / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE", "MANIFEST.in"):
        if (REPOSITORY / name).is_file():
            shutil.copy2(REPOSITORY / name, copy / name)
    folder = tmp_path_factory.mktemp("wheels")
    command = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "--no-index", "--quiet"]
    done = subprocess.run([*command, "-w", str(folder), str(copy)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "BuildBackendWarning" not in done.stderr
    (wheel,) = folder.glob("*.whl")
    return wheel


@pytest.fixture(scope="module")
def retired_wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A stand-in for the wheel on PyPI: the same distribution name, the same `hf_transfer/__init__.py`."""
    path = tmp_path_factory.mktemp("retired") / "hf_transfer-0.1.9-py3-none-any.whl"
    information = "hf_transfer-0.1.9.dist-info"
    files = {
        "hf_transfer/__init__.py": "from .hf_transfer import *\n",
        "hf_transfer/hf_transfer.py": "def download() -> None: ...\n",
        f"{information}/METADATA": "Metadata-Version: 2.1\nName: hf_transfer\nVersion: 0.1.9\n",
        f"{information}/WHEEL": "Wheel-Version: 1.0\nGenerator: by-hand\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    rows = []
    for name, text in files.items():
        digest = base64.urlsafe_b64encode(hashlib.sha256(text.encode()).digest()).decode().rstrip("=")
        rows.append(f"{name},sha256={digest},{len(text)}\n")
    files[f"{information}/RECORD"] = "".join(rows) + f"{information}/RECORD,,\n"
    with zipfile.ZipFile(path, "w") as archive:
        for name, text in files.items():
            archive.writestr(name, text)
    return path


@pytest.fixture
def environment(tmp_path: Path) -> Environment:
    folder = tmp_path / "environment"
    venv.create(folder, with_pip=False, symlinks=True)
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    # Only a search path: its own .pth files, and with them our editable installation, are not followed.
    (folder / "lib" / version / "site-packages/zz_others.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return Environment(folder)


def assert_refused(done: "subprocess.CompletedProcess[str]", found: str) -> None:
    assert done.returncode == 2, done.stderr
    assert EXPECTED in done.stderr
    assert found in done.stderr
    assert f"Do this:  {FIX}" in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""


def test_the_retired_distribution_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """By its metadata, whichever of the two was installed last."""
    version = importlib.metadata.version
    monkeypatch.setattr(importlib.metadata, "version", lambda name: "0.1.9" if name == "hf-transfer" else version(name))
    with pytest.raises(UserError) as error:
        check_installation()
    assert str(error.value).splitlines() == [EXPECTED, RETIRED, f"Do this:  {FIX}"]


def test_another_package_in_the_place_of_ours_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Uninstalling the retired distribution removes our `__init__`."""
    check_installation()
    monkeypatch.setitem(sys.modules, "hf_transfer", ModuleType("hf_transfer"))
    with pytest.raises(UserError, match="a hf_transfer/__init__\\.py that is not ours"):
        check_installation()


@pytest.mark.slow
def test_the_wheel_has_all_its_files_and_nothing_else(our_wheel: Path) -> None:
    """Files of samples are read at run time, and those of the demo are copied."""
    with zipfile.ZipFile(our_wheel) as archive:
        packed = {name for name in archive.namelist() if not name.split("/")[0].endswith(".dist-info")}
    here = {
        str(Path(within) / path.relative_to(REPOSITORY))
        for within, folder in (("", "hf_transfer"), ("hf_transfer", "space"))
        for path in (REPOSITORY / folder).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert packed == here
    assert {"hf_transfer/py.typed", "hf_transfer/settings/run.py", "hf_transfer/space/style.css"} < packed
    assert {
        f"hf_transfer/data/sample_backbones/{name}/config.json"
        for name in ("vit-glyphs", "resnet-glyphs", "efficientnet-lite0")
    } < packed


@pytest.mark.slow
def test_in_a_clean_environment_the_installed_package_finds_its_samples_and_the_doctor_runs(
    environment: Environment, our_wheel: Path
) -> None:
    """Outside the repository, with the wheel's own files."""
    environment.install(our_wheel)
    code = (
        "import hf_transfer.installation as i, hf_transfer.data.sample_models as m; i.check_installation(); "
        "print(i.__file__, *sorted(p.name for p in m.backbone_folder('sample:vit-glyphs').iterdir()))"
    )
    done = environment.python("-c", code)
    assert done.returncode == 0, done.stderr
    origin, *files = done.stdout.split()
    assert origin.startswith(str(environment.folder))
    assert {"config.json", "preprocessor_config.json"} <= set(files)
    doctor = environment.console("doctor")
    assert doctor.returncode == 0, doctor.stderr
    lines = dict(line.split(maxsplit=1) for line in doctor.stdout.splitlines())
    assert {"hf-transfer-learning", "python", "torch", "transformers", "machine", "processors", "cache"} <= set(lines)
    assert our_wheel.name.startswith(f"hf_transfer_learning-{lines['hf-transfer-learning']}-")
    assert lines["python"] == ".".join(map(str, sys.version_info[:3]))
    assert doctor.stdout.splitlines()[-1].endswith("ours alone")


@pytest.mark.slow
def test_in_a_clean_environment_a_finished_run_predicts_is_published_and_has_a_demo(
    environment: Environment, our_wheel: Path, tmp_path: Path, picture_folder: Callable[..., Path]
) -> None:
    """`predict`, `push`, `space` and `demo`, with the demo's files from the wheel."""
    environment.install(our_wheel)
    out = finished_run(tmp_path, picture_folder)
    picture = sorted((tmp_path / "pets/test/dog").iterdir())[0]
    commands = [
        ["predict", str(out / "model"), str(picture), "--top", "5"],
        ["push", str(out), "alice/pets"],
        ["space", str(out), "alice/demo", "--hub_model_id", "alice/pets"],
    ]
    with stand_in(with_accounts()) as hub:
        asked = hub_variables(hub.endpoint, tmp_path / "home", WRITER).items()
        variables = {name: value for name, value in asked if name.startswith("HF_")}
        done = environment.python("-c", COMMANDS, json.dumps(commands), **variables)
    assert done.returncode == 0, done.stderr
    answer, model, space = done.stdout.splitlines()
    made = hub.repositories["spaces", "alice/demo"]
    assert model.endswith(f"/alice/pets at commit {hub.model('alice/pets').commit}")
    assert space.endswith(f"/spaces/alice/demo at commit {made.commit}")
    for path in (REPOSITORY / "space").glob("*.py"):
        assert made.texts()[path.name] == path.read_bytes()
    log = tmp_path / "log"
    with log.open("w") as written, held_port() as port:
        process = subprocess.Popen(
            [str(environment.folder / "bin/hf-transfer"), "demo", str(out), "--port", str(port)],
            cwd=environment.folder, env=environment.variables(), stdout=written, stderr=written,
            # A process in the background may ignore it.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )  # fmt: skip
        try:
            programs = Programs(f"http://127.0.0.1:{port}/")
            wait_for(programs.url, process, log)
            _, upload = programs.upload("dog.png", picture.read_bytes())
            assert programs.scores(file(upload), False) == pytest.approx(json.loads(answer)["scores"], abs=1e-6)
            process.send_signal(signal.SIGINT)
            assert process.wait(240) == 0
            with pytest.raises(ConnectionRefusedError):
                programs.request("GET", "/config")
        finally:
            process.kill()
    assert "Traceback" not in log.read_text()


@pytest.mark.slow
def test_installed_after_ours_the_retired_wheel_is_refused_until_ours_is_reinstalled(
    environment: Environment, our_wheel: Path, retired_wheel: Path
) -> None:
    """Its `__init__` runs then; once it is uninstalled there is none, and Python does without."""
    environment.install(our_wheel)
    environment.install(retired_wheel)
    assert_refused(environment.console("doctor"), RETIRED)
    assert_refused(environment.python("-c", RUN), RETIRED)
    assert_refused(environment.python("-c", RUN.replace("print", "exit")), RETIRED)

    environment.pip("uninstall", "-y", "hf_transfer")
    not_ours = "Found:    a hf_transfer/__init__.py that is not ours"
    assert_refused(environment.console("doctor"), not_ours)
    assert_refused(environment.python("-c", RUN), not_ours)

    environment.install(our_wheel)
    fixed = environment.python("-c", RUN)
    assert fixed.returncode == 0, fixed.stderr
    assert "--model_name_or_path" in fixed.stdout


@pytest.mark.slow
def test_installed_before_ours_the_retired_wheel_is_refused_too(
    environment: Environment, our_wheel: Path, retired_wheel: Path
) -> None:
    """Ours works, but uninstalling the other would remove our `__init__`."""
    environment.install(retired_wheel)
    environment.install(our_wheel)
    assert_refused(environment.console("doctor"), RETIRED)
    assert_refused(environment.python("-c", RUN), RETIRED)

    environment.pip("uninstall", "-y", "hf_transfer")
    environment.install(our_wheel)
    fixed = environment.python("-c", "import hf_transfer.installation as i; i.check_installation(); print('ours')")
    assert fixed.stdout == "ours\n", fixed.stderr


@pytest.mark.slow
def test_the_hf_command_line_installs_it_as_an_extension_and_runs_its_commands(our_wheel: Path, tmp_path: Path) -> None:
    """`hf transfer ...`: its installer looks for a console script named hf-transfer, and for no file."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    kept |= {"HOME": str(tmp_path), "HF_HUB_DISABLE_UPDATE_CHECK": "1", "HF_HUB_OFFLINE": "1"}

    def run(*command: str) -> "subprocess.CompletedProcess[str]":
        return subprocess.run(
            [sys.executable, "-c", *command], capture_output=True, text=True, check=False, cwd=tmp_path, env=kept
        )

    installed = run(EXTENSION, str(our_wheel), str(REPOSITORY))
    assert installed.returncode == 0, installed.stdout + installed.stderr
    home = tmp_path / ".local/share/hf/extensions/hf-transfer"
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    # What the wheel needs comes from the environment that the tests run in.
    (home / "venv/lib" / version / "site-packages/zz_others.pth").write_text(sysconfig.get_path("purelib") + "\n")
    listed = run(HF, "--help")
    assert "Transfer learning on the Hugging Face stack" in " ".join(listed.stdout.split())
    Image.new("RGB", (20, 20), "white").save(tmp_path / "white.png")
    done = run(HF, "transfer", "predict", "sample:vit-glyphs", "white.png", "--top", "2")
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout)
    assert (answer["path"], len(answer["scores"])) == ("white.png", 2)
    refused = run(HF, "transfer", "push", "no run", "alice/pets")
    assert refused.returncode == 2
    assert "Expected: a finished run in no run" in refused.stderr
