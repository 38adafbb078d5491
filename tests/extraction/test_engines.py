"""Units handed out by ranks of torchrun and SLURM, and by Ray: the files are those of one process, whoever dies."""

import json
import os
import pickle
import re
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch
from running import FLAGS, MODEL, pictures, run, written

import ziggurat
from ziggurat.errors import BadArgument, IncompleteRun, MissingExtra
from ziggurat.extraction import CAUSES, engines, status
from ziggurat.extraction.job import EXIT_CODES

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
PAGE = (ROOT / "docs" / "extraction.md").read_text(encoding="utf-8")
PROGRAMS = re.findall(r"```python\n(.*?)```", PAGE, re.S)
UNITS = 20


def shown(program: str) -> list[str]:
    """What the page says that a program prints."""
    return [line.removeprefix("# ") for line in program.splitlines() if line.startswith("# ")]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("weights") / "model.pt"
    torch.save(ziggurat.create_model(MODEL).state_dict(), path)
    return path


@pytest.fixture(scope="module")
def images(tmp_path_factory) -> Path:
    folder = pictures(tmp_path_factory.mktemp("images"), 8 * UNITS)
    (folder / "00040.jpg").write_bytes(b"broken")
    return folder


@pytest.fixture(scope="module")
def expected(images, checkpoint, tmp_path_factory) -> dict[str, str]:
    """What one process writes that nobody disturbs."""
    out = tmp_path_factory.mktemp("runs") / "one"
    assert run(images, out, random=False, checkpoint=checkpoint).state == "quarantined"
    return written(out)


@pytest.mark.parametrize("env, found", [
    ({}, (0, 1)),
    ({"RANK": "3", "WORLD_SIZE": "8", "SLURM_PROCID": "0", "SLURM_STEP_NUM_TASKS": "1"}, (3, 8)),
    ({"SLURM_PROCID": "5", "SLURM_STEP_NUM_TASKS": "16"}, (5, 16)),
    ({"SLURM_PROCID": "0", "SLURM_NTASKS": "16"}, (0, 1)),  # a batch script, which srun has not started
    ({"SLURM_ARRAY_TASK_ID": "7", "SLURM_ARRAY_TASK_MIN": "5", "SLURM_ARRAY_TASK_MAX": "8", "SLURM_ARRAY_TASK_COUNT": "4"}, (2, 4)),
    ({"SLURM_ARRAY_TASK_ID": "8", "SLURM_ARRAY_TASK_MIN": "0", "SLURM_ARRAY_TASK_MAX": "12", "SLURM_ARRAY_TASK_COUNT": "4",
      "SLURM_ARRAY_TASK_STEP": "4", "SLURM_PROCID": "1", "SLURM_STEP_NUM_TASKS": "2"}, (5, 8)),
])
def test_world(env, found):
    assert engines.world(env) == found


@pytest.mark.parametrize("env, words", [
    ({"RANK": "8", "WORLD_SIZE": "8"}, "this process is rank 8 of 8; ranks count from 0 to 7"),
    ({"RANK": "first", "WORLD_SIZE": "8"}, "RANK='first' in the environment should be a whole number"),
    ({"SLURM_STEP_NUM_TASKS": "8"}, "SLURM_PROCID=None in the environment"),
    ({"SLURM_ARRAY_TASK_ID": "7", "SLURM_ARRAY_TASK_MIN": "1", "SLURM_ARRAY_TASK_MAX": "7", "SLURM_ARRAY_TASK_COUNT": "3"},
     "a job array of 3 tasks from 1 to 7 has gaps; give one without, as --array=0-2"),
])
def test_an_environment_that_makes_no_sense_is_told(env, words):
    with pytest.raises(BadArgument, match=words):
        engines.world(env)


def test_ranks_of_a_machine_take_its_gpus_in_turn(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    assert engines.own_device({"LOCAL_RANK": "6"}) == "cuda:2"
    assert engines.own_device({"SLURM_LOCALID": "3"}) == "cuda:3"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert engines.own_device({"LOCAL_RANK": "6"}) == "auto"


def test_ranks_wait_for_the_plan(tmp_path):
    with pytest.raises(IncompleteRun, match=r"rank 0 has not planned a run at .* in 0.1 s. Does it see the same folder\?"):
        engines.await_plan(tmp_path, seconds=0.1, every=0.02)
    manifest = tmp_path / "_ziggurat" / "manifest.json"
    manifest.parent.mkdir()
    writer = threading.Timer(0.2, manifest.write_text, ["{}"])
    writer.start()
    engines.await_plan(tmp_path, seconds=30, every=0.02)
    writer.join()


def test_each_rank_does_its_share(images, checkpoint, expected, tmp_path, monkeypatch):
    out = tmp_path / "out"
    monkeypatch.setenv("WORLD_SIZE", "2")
    states = []
    for rank in (0, 1, 1):
        monkeypatch.setenv("RANK", str(rank))
        found = run(images, out, random=False, checkpoint=checkpoint)
        states.append((found.state, found.units_done, found.exit_code))
    # no rank may end with other than 0 while others are at work: torchrun would end those
    assert states == [("waiting", UNITS // 2, 0), ("quarantined", UNITS, 0), ("quarantined", UNITS, 0)]
    assert written(out) == expected
    with pytest.raises(BadArgument, match="fresh with 2 processes"):
        run(images, out, random=False, checkpoint=checkpoint, fresh=True)
    monkeypatch.delenv("RANK")
    assert status(out).exit_code == 3


def test_torchrun(images, checkpoint, expected, tmp_path):
    command = [sys.executable, "-W", "error", "-m", "torch.distributed.run", "--nproc-per-node", "2", "-m", "ziggurat", "extract",
               str(images), *(flag for flag in FLAGS if flag != "--random"), "--checkpoint", str(checkpoint), "--out", str(tmp_path / "out")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100, env={**os.environ, "PYTHONWARNINGS": "error"})
    assert done.returncode == 0, done.stdout + done.stderr
    assert written(tmp_path / "out") == expected


def test_ray_with_two_nodes_of_which_one_is_killed(images, checkpoint, expected, tmp_path):
    """And the program for Ray Data on the page about extraction, on the same cluster."""
    (program,) = [program for program in PROGRAMS if "map_batches" in program]
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    out = tmp_path / "out"
    # Ray warns of itself, and so its process has filters of its own
    done = subprocess.run([sys.executable, HERE / "on_ray.py", images, checkpoint, out], input=program, cwd=tmp_path,
                          capture_output=True, text=True, timeout=300,
                          env={**os.environ, "PYTHONPATH": os.pathsep.join([str(HERE), *sys.path])})
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(out.with_suffix(".json").read_text())
    assert 2 <= found["killed"] < UNITS - 2, "the node was to die while units were being computed"
    assert found["left"] == [], "processes of the node that was killed are still there"
    assert (found["state"], found["rows"], found["failures"]) == ("quarantined", 8 * UNITS - 1, {"decode/not_an_image": 1})
    assert written(out) == expected
    assert [line for line in found["printed"].splitlines() if "(raylet)" not in line] == shown(program)


def test_the_program_for_datasets(capsys, monkeypatch, tmp_path):
    (program,) = [program for program in PROGRAMS if "datasets" in program]
    monkeypatch.chdir(tmp_path)
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    exec(compile(program, "docs/extraction.md", "exec"), {"__name__": "docs"})
    assert capsys.readouterr().out.splitlines() == shown(program)


def test_the_page_about_extraction():
    """Its tables of causes and exit statuses are the program's, and no program on it is left out above."""
    assert dict(re.findall(r"^\| `(\w+)` \| ([^|]*) \|$", PAGE.split("## Failures")[1].split("\n## ")[0], re.M)) == CAUSES
    assert len(PROGRAMS) == 2
    told = re.search(r"exit status\*\*: (\d) complete, (\d) complete and some images failed, (\d) to be gone on with, (\d) an error", PAGE)
    assert [int(code) for code in told.groups()] == [EXIT_CODES[state] for state in ("complete", "quarantined", "resumable", "stopped")]


def test_ray_that_is_not_installed(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(MissingExtra, match=r"--engine ray needs the package 'ray': pip install 'ziggurat\[ray\]'"):
        next(engines.run_on_ray(tmp_path, [0], {}))


def test_a_unit_that_ends_its_workers_is_given_up(tmp_path):
    worker = engines._Worker(str(tmp_path))
    begun = tmp_path / "_ziggurat" / "log" / "begun" / "000003"
    begun.parent.mkdir(parents=True)
    begun.write_bytes(b"." * engines.ATTEMPTS)
    error = pickle.loads(worker({"item": 3})["found"])
    assert isinstance(error, IncompleteRun)
    assert "unit 3 ended its worker 5 times" in str(error)
    assert isinstance(pickle.loads(worker({"item": 2})["found"]), BadArgument)  # there is no run; told as it is


@pytest.mark.parametrize("nodes, options, cpus, gpus, room", [
    ([{"CPU": 8.0}, {"CPU": 3.0}], {}, 4, 0.0, 2),
    ([{"CPU": 64.0}, {"CPU": 96.0, "GPU": 8.0}, {"CPU": 96.0, "GPU": 8.0}], {}, 12, 1.0, 16),
    ([{"CPU": 0.0}, {"CPU": 96.0, "GPU": 8.0}], {"device": "cpu"}, 4, 0.0, 24),
])
def test_workers_that_a_cluster_has_room_for(monkeypatch, nodes, options, cpus, gpus, room):
    monkeypatch.setattr(engines, "_nodes", lambda: nodes)
    assert engines._gpus(options) == gpus
    assert engines._cores(4, gpus) == cpus
    assert sum(engines._room(node, cpus, gpus) for node in nodes) == room
