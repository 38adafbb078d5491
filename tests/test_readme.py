"""The README's programs run as printed, with the output printed beside them."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import ziggurat

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
PROGRAMS = re.findall(r"```python\n(.*?)```", README, re.S)


SHOWN = [program for program in PROGRAMS if "print(" in program]


@pytest.mark.parametrize("program", SHOWN, ids=range(len(SHOWN)))
def test_programs_print_what_is_shown(program, capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    exec(compile(program, "README", "exec"), {"__name__": "__main__"})
    printed = capsys.readouterr().out.strip().splitlines()
    assert printed == [line.strip().removeprefix("# ") for line in program.splitlines() if line.strip().startswith("# ")]


def test_timm_program():
    (program,) = [program for program in PROGRAMS if "as timm" in program]
    exec(compile(program, "README", "exec"), {})


def test_own_architecture(tmp_path):
    (program,) = [program for program in PROGRAMS if "class MyNet" in program]
    script = tmp_path / "my_net.py"
    script.write_text("import torch, ziggurat\n" + program)
    subprocess.run([sys.executable, "-W", "error", str(script)], check=True, capture_output=True)


def test_number_of_architectures():
    (count,) = re.findall(r"(\d+) architectures", README)
    assert len(ziggurat.list_models()) == int(count)


BLOCKS = re.findall(r"^```\n(\$ .*?)^```$", README, re.S | re.M)
assert len(BLOCKS) == 2


@pytest.mark.parametrize("block", BLOCKS, ids=range(len(BLOCKS)))
def test_commands_print_what_is_shown(block, tmp_path):
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    for lines in block.removeprefix("$ ").split("\n$ "):
        command, _, shown = lines.partition("\n")
        program, *arguments = command.split()
        assert program == "ziggurat"
        done = subprocess.run([sys.executable, "-m", program, *arguments], cwd=tmp_path, capture_output=True, text=True,
                              env={**os.environ, "COLUMNS": "100"}, check=True)
        assert [line.rstrip() for line in done.stdout.strip().splitlines()] == shown.strip().splitlines(), command
