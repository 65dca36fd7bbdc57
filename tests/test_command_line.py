"""The flags of `hf-transfer` may be written as those of recipes."""

import re

import pytest

from hf_transfer import command_line
from tests.conftest import exit_code

COMMANDS = ("predict", "push", "demo", "space", "export", "doctor", "rank", "advise", "cache")


@pytest.mark.parametrize("command", COMMANDS)
def test_each_flag_may_have_hyphens_in_place_of_underscores(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_code(lambda: command_line.main([command, "--help"])) == 0
    listed = re.findall(r"^ +(--.*)$", capsys.readouterr().out, flags=re.MULTILINE)
    flags = {flag: line for line in listed for flag in re.findall(r"--\w+_\w+", line)}
    assert [flag for flag, line in flags.items() if flag.replace("_", "-") not in line] == []
    assert bool(flags) == (command not in ("demo", "export", "doctor"))


def test_every_command_is_looked_at(capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_code(lambda: command_line.main(["--help"])) == 0
    assert set(re.findall(r"^    (\w+)  ", capsys.readouterr().out, flags=re.MULTILINE)) == {*COMMANDS}
