"""The command as a process of its own: what it imports, and what a terminal or a pipe sees of it."""

import json
import os
import pty
import subprocess
import sys
from pathlib import Path

import pytest

PHOTOS = Path(__file__).parents[2] / "examples" / "photos"

WITHOUT_TORCH = """
import sys
sys.argv = ["ziggurat", *sys.argv[1:]]
from ziggurat.cli import main
try:
    main()
finally:
    heavy = {"torch", "torchvision", "numpy", "PIL", "huggingface_hub"} & sys.modules.keys()
    models = [name for name in sys.modules if name.startswith("ziggurat.models.")]
    print(sorted(heavy) + models, file=sys.stderr)
"""


@pytest.mark.parametrize("arguments", [["list", "*resnet*", "--pretrained"], ["info", "resnet50"], ["--help"],
                                       ["info", "resnet50", "--json"], ["info", "no_such_model"], ["embed", "--help"],
                                       ["search", "--help"], ["duplicates", "--help"],
                                       ["search", "--license", "mit", "--stride", "4"]])
def test_answers_without_torch(arguments):
    done = subprocess.run([sys.executable, "-c", WITHOUT_TORCH, *arguments], capture_output=True, text=True)
    assert done.stderr.splitlines()[-1] == "[]"
    assert done.returncode == (2 if "no_such_model" in arguments else 0)


def test_python_m_ziggurat():
    command = [sys.executable, "-m", "ziggurat", "classify", "-m", "tf_efficientnet_lite0.pip_in1k", "--json"]
    done = subprocess.run([*command, str(PHOTOS / "coffee.jpg"), "gone.jpg"], capture_output=True, text=True)
    assert done.returncode == 1
    good, bad = json.loads(done.stdout)
    assert good["classes"][0]["name"] == "espresso"
    assert bad == {"path": "gone.jpg", "error": "there is no such file"}
    assert done.stderr == ("skipped: cannot read an image from 'gone.jpg': there is no such file\n"
                           "1 of 2 files could not be read\n")
    done = subprocess.run([*command[:4], "resnet5O", "x.jpg"], capture_output=True, text=True)
    assert done.returncode == 2


def test_the_bar_is_on_a_terminal_and_not_in_the_output(tmp_path):
    primary, secondary = pty.openpty()
    command = [sys.executable, "-m", "ziggurat", "embed", str(PHOTOS), "gone.jpg", "-m", "resnet10t", "--random",
               "--out", str(tmp_path / "x.npy")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=secondary, env={**os.environ, "TERM": "xterm"}) as process:
        os.close(secondary)
        shown = b""
        while True:
            try:
                part = os.read(primary, 4096)
            except OSError:  # how a terminal says that the other end is closed
                break
            if not part:
                break
            shown += part
        assert process.stdout is not None
        out = process.stdout.read().decode()
    os.close(primary)
    assert process.returncode == 1
    assert b"embedding" in shown
    assert b"6/6" in shown
    assert b"there is no such file" in shown
    assert out == f"{tmp_path / 'x.npy'}: 5 embeddings of 512 numbers (f32)\n"
