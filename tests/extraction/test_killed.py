"""Runs that are ended by others: killed at any moment, out of room on the disk, asked to stop."""

import os
import random
import shutil
import signal
import subprocess
import sys
import time

import pytest

import ziggurat
from extraction.running import FLAGS, Command, children, picture, pictures, run, written
from ziggurat.errors import BadArgument, IncompleteRun
from ziggurat.extraction import status

OUTPUTS = ["--embed", "--strides", "16", "--logits"]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """A folder of 60 images, three of them bad, and what an undisturbed run writes of it."""
    folder = pictures(tmp_path_factory.mktemp("in") / "photos", 60)
    for number in (7, 20, 59):
        (folder / f"{number:05d}.jpg").write_bytes(picture(number)[:200])
    out = tmp_path_factory.mktemp("undisturbed") / "out"
    assert run(folder, out, embed=True, strides=16, logits=True).state == "quarantined"
    return folder, written(out)


def units(out):
    return len(list((out / "_ziggurat" / "units").glob("*.json"))) if (out / "_ziggurat" / "units").exists() else 0


def test_kill_9_at_fifty_random_moments(undisturbed, tmp_path):
    """Anywhere between the start of the main process and its end."""
    folder, expected = undisturbed
    draw, kills, round_ = random.Random(5), 0, 0
    seen = set()
    while kills < 50:
        out = tmp_path / f"out-{round_}"
        round_ += 1
        while True:
            # decoding processes take seconds to start, so three in four go on without: the bytes are the same
            workers = ["--workers", "1" if draw.random() < 0.25 else "0"]
            command = Command(["extract", folder, "--out", out, *FLAGS, *OUTPUTS, *workers], tmp_path / "log")
            # the whole takes about a second; most of a run's life is its start, so half of the kills wait for a unit
            if draw.random() < 0.5 and kills < 50:
                before = units(out)
                while command.process.is_alive() and units(out) <= before:
                    time.sleep(0.002)
                time.sleep(draw.random() * 0.15)
            else:
                time.sleep(draw.random() * 1.5)
            if kills >= 50 or not command.process.is_alive():
                break
            command.kill()
            command.process.join()
            kills += 1
            done = units(out)
            seen.add(done)
            if done:
                assert {path.name for path in (out / "_ziggurat" / "units").glob("*.json")} <= {
                    name.rpartition("/")[2] for name in expected if "/units/" in name}
        assert command.wait() == 3, command.said()
        assert written(out) == expected
        shutil.rmtree(out)
    assert len(seen) > 2, "the kills came at one moment only"


def test_a_killed_decoder_costs_nothing(undisturbed, tmp_path):
    folder, expected = undisturbed
    out = tmp_path / "out"
    command = [sys.executable, "-m", "ziggurat", "extract", str(folder), "--out", str(out), *FLAGS, *OUTPUTS]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    killed = set()
    end = time.monotonic() + 60
    while process.poll() is None and len(killed) < 3 and time.monotonic() < end:
        # decoders are children of the fork server, which is a child of the command
        decoders = {pid for server in children(process.pid) for pid in children(server)} - killed
        for pid in decoders:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
            killed.add(pid)
        time.sleep(0.05)
    assert process.wait(timeout=100) == 3, process.stderr.read()
    process.stderr.close()
    assert killed
    assert written(out) == expected


def test_nothing_is_left_running_behind_a_killed_run(undisturbed, tmp_path):
    folder, _ = undisturbed
    out = tmp_path / "out"
    command = [sys.executable, "-m", "ziggurat", "extract", str(folder), "--out", str(out), *FLAGS, *OUTPUTS]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    while process.poll() is None and not units(out):
        time.sleep(0.01)
    family = [pid for server in children(process.pid) for pid in (server, *children(server))]
    process.kill()
    process.wait()
    end = time.monotonic() + 20
    while time.monotonic() < end and any(_alive(pid) for pid in family):
        time.sleep(0.05)
    assert family
    assert not [pid for pid in family if _alive(pid)]


def _alive(pid):
    try:
        with open(f"/proc/{pid}/stat") as stream:
            return stream.read().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_a_run_that_is_asked_to_end_can_be_gone_on_with(undisturbed, tmp_path):
    folder, expected = undisturbed
    out = tmp_path / "out"
    for number in (signal.SIGTERM, signal.SIGINT):
        command = Command(["extract", folder, "--out", out, *FLAGS, *OUTPUTS], tmp_path / "log")
        before = units(out)
        command.wait_for(lambda: units(out) > before)  # noqa: B023
        command.kill(number)
        assert command.wait() == 4, command.said()
        assert "the same command goes on" in command.said()
        assert "Traceback" not in command.said()
    assert status(out).exit_code == 4
    with pytest.raises(IncompleteRun):
        ziggurat.open(out)
    assert len(ziggurat.open(out, incomplete=True)) >= 8
    assert run(folder, out, embed=True, strides=16, logits=True).state == "quarantined"
    assert written(out) == expected


def test_two_at_a_time_are_one_too_many(undisturbed, tmp_path):
    folder, expected = undisturbed
    out = tmp_path / "out"
    command = Command(["extract", folder, "--out", out, *FLAGS, *OUTPUTS], tmp_path / "log")
    command.wait_for(lambda: units(out) > 0)
    with pytest.raises(BadArgument, match="another process"):
        run(folder, out, embed=True, strides=16, logits=True)
    assert command.wait() == 3
    assert written(out) == expected


FULL = """
set -e
mount -t tmpfs -o size={kib}k none {disk}
status=0
{command} || status=$?
du -sk {disk} >&2
test -z "$(find {disk}/out -name '*-*' -path '*partial*')" || exit 90
if [ $status = {expected} ]; then mount -o remount,size=64m {disk}; {command}; status=$?; fi
exit $status
"""


def test_a_full_disk(undisturbed, tmp_path):
    """A small tmpfs in a mount namespace of its own: the run ends as resumable, and goes on when there is room."""
    folder, expected = undisturbed
    disk = tmp_path / "disk"
    disk.mkdir()
    copy = tmp_path / "copy"
    arguments = ["-m", "ziggurat", "extract", str(folder), "--out", str(disk / "out"), *FLAGS, *OUTPUTS]
    command = " ".join([sys.executable, *arguments])
    script = FULL.format(kib=400, disk=disk, command=command, expected=4).replace("exit $status\n", f"cp -r {disk}/out {copy}; exit $status\n")
    namespace = ["unshare", "--mount"] if os.geteuid() == 0 else ["unshare", "--user", "--map-root-user", "--mount"]
    script = script.replace(f"{command}; status=$?; fi", f"status=0; {command} || status=$?; fi")
    if subprocess.run([*namespace, "true"], capture_output=True).returncode:
        pytest.skip("this machine allows no mount namespace, so no small disk")
    done = subprocess.run([*namespace, "sh", "-c", script], capture_output=True, text=True)
    assert done.returncode == 3, done.stderr
    assert "No space left on device" in done.stderr
    assert "the same command" in done.stderr
    assert "Traceback" not in done.stderr
    assert written(copy) == expected
