"""Real processes that hang, crash, are killed and run out of memory: every image ends as what it is, in its place."""

from __future__ import annotations

import hashlib
import io
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import decoder_hooks as hooks
import numpy as np
import pytest
from PIL import Image

from ziggurat.errors import BadArgument
from ziggurat.extraction import workers
from ziggurat.extraction.decoding import Preprocessing, decode
from ziggurat.extraction.failures import CAUSES, Failure
from ziggurat.extraction.sources import Item
from ziggurat.extraction.workers import Decoders

SMALL = Preprocessing((8, 8))
PHOTOS = sorted((Path(__file__).parents[2] / "examples" / "photos").glob("*.jpg"))

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="looks at processes in /proc")


def items_of(texts):
    return [Item(f"{number:04}", text, "", -1, -1, "") for number, text in enumerate(texts)]


def told(found):
    """A grey level, or the failure."""
    return found if isinstance(found, Failure) else int(found[0, 0, 0])


def run(count, texts, **settings):
    with Decoders(count, SMALL, read=hooks.read, decode=hooks.decode, **settings) as decoders:
        return [told(found) for found in decoders.map(items_of(texts))]


def pids(decoders):
    return [worker.process.pid for worker in decoders._workers]


def is_alive(pid):
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except OSError:
        return False
    return state != "Z"


def wait_for(condition, seconds=15.0):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it has not come to be"
        time.sleep(0.02)


@pytest.mark.parametrize("count", [0, 2])
def test_results_come_in_order_and_items_are_taken_as_needed(count):
    taken = given = 0

    def items():
        nonlocal taken
        for item in items_of(f"grey {number % 250}" for number in range(300)):
            taken += 1
            yield item

    with Decoders(count, SMALL, ahead=24, read=hooks.read, decode=hooks.decode) as decoders:
        for found in decoders.map(items()):
            assert found.shape == (8, 8, 3) and (found == given % 250).all()
            given += 1
            assert taken <= given + 24
        assert given == 300 and all(seconds > 0 for seconds in decoders.seconds().values())
        assert not any(decoders.map([]))

        first = decoders.map(items_of([f"slow {n}" for n in range(100)]))  # left in the middle
        assert [told(next(first)) for _ in range(3)] == [0, 1, 2]
        with pytest.raises(RuntimeError, match="under way"):
            next(decoders.map([]))
        first.close()
        assert [told(found) for found in decoders.map(items_of(["grey 5"] * 90))] == [5] * 90

        def failing():
            yield from items_of(["grey 1"] * 30)
            raise OSError("the list ends here")

        with pytest.raises(OSError, match="the list ends here"):
            list(decoders.map(failing()))
        assert [told(found) for found in decoders.map(items_of(["grey 6"] * 40))] == [6] * 40
    with pytest.raises(RuntimeError, match="closed"):
        next(decoders.map([]))


def expected(stage, cause, message, text=None):
    facts = () if text is None else (len(text), hashlib.sha256(text.encode()).hexdigest())
    return Failure(stage, cause, message, *facts)


def test_every_mishap_costs_its_own_image_alone():
    """In whatever number of processes, and word for word the same."""
    mishaps = {
        "hang": expected("decode", "timeout", "decoding it took longer than 0.8 s, twice", "hang"),
        "SIGSEGV": expected("decode", "signal", "its process died of SIGSEGV, twice", "SIGSEGV"),
        "SIGKILL": expected("decode", "signal", "its process died of SIGKILL, four times", "SIGKILL"),
        "exit": expected("decode", "signal", "its process ended with exit code 7, twice", "exit"),
        "read-segv": expected("read", "signal", "its process died of SIGSEGV, twice"),
        "memory": expected("decode", "memory", "there is not enough memory to decode it", "memory"),
        "corrupt": expected("decode", "corrupt", "broken data stream", "corrupt"),
        "missing": expected("read", "missing", "there is no such file"),
        "down": expected("read", "unavailable", "503 Slow Down"),
    }
    assert {failure.cause for failure in mishaps.values()} <= set(CAUSES)
    wanted, texts = [], []
    for number, (text, failure) in enumerate(mishaps.items()):
        texts += [f"grey {number}", text, f"slow {number + 100}"]
        wanted += [number, failure, number + 100]
    for count in (1, 2):
        assert run(count, texts, timeout=0.8, retries=1) == wanted
    tame = [index for index, text in enumerate(texts) if text.split()[0] in ("grey", "slow", "memory", "corrupt", "missing", "down")]
    assert run(0, [texts[index] for index in tame], retries=0) == [wanted[index] for index in tame]


def test_what_happens_once_is_not_the_images_doing(tmp_path):
    texts = [f"once-{mishap} {tmp_path / mishap}" for mishap in ("hang", "SIGSEGV", "SIGKILL", "SIGSTOP", "memory", "exit")]
    assert run(2, [text for one in texts for text in (one, "slow 5", "grey 6")], timeout=0.8) == [77, 5, 6] * len(texts)
    assert run(1, [f"flaky {tmp_path / 'attempts'}"]) == [1]
    assert (tmp_path / "attempts").read_text() == "..."
    assert run(1, [f"flaky {tmp_path / 'fewer'}"], retries=1)[0][:2] == ("read", "unavailable")


def test_decoders_killed_from_outside_cost_no_image():
    """kill -9 of one process after another, at moments of no choosing."""
    with Decoders(2, SMALL, ahead=16, read=hooks.read, decode=hooks.decode) as decoders:
        done = threading.Event()
        killed = set()

        def kill():
            random = np.random.default_rng(0)
            while not done.wait(random.uniform(0.05, 0.25)):
                for pid in random.permutation(pids(decoders))[:1]:
                    os.kill(int(pid), signal.SIGKILL)
                    killed.add(int(pid))

        killer = threading.Thread(target=kill)
        killer.start()
        try:
            found = [told(found) for found in decoders.map(items_of(f"slow {number % 250}" for number in range(160)))]
        finally:
            done.set()
            killer.join()
        assert found == [number % 250 for number in range(160)] and len(killed) >= 4


def test_processes_that_die_at_their_start_are_not_started_for_ever():
    with Decoders(2, SMALL, decode=hooks.Unloadable()) as decoders, pytest.raises(RuntimeError, match="exit code 7"):
        list(decoders.map(items_of(["grey 1"] * 20)))


def test_a_process_that_dies_between_two_images_costs_none():
    """The image that is to blame is done when its process dies, so nothing is to be filed; and it does not go on for ever."""
    texts = [text for number in range(8) for text in ("later 7", f"slow {number}", *["grey 3"] * 4)]
    found = run(2, texts, ahead=64)
    assert found == [int(text.split()[1]) for text in texts]


def test_an_error_that_is_ours_is_raised_and_says_where():
    with Decoders(2, SMALL, read=hooks.read, decode=hooks.decode) as decoders:
        with pytest.raises(RuntimeError, match=r"(?s)at '0003'.*KeyError: 'a bug'"):
            list(decoders.map(items_of(["grey 1", "grey 2", "grey 3", "bug", "grey 4"])))
        assert [told(found) for found in decoders.map(items_of(["grey 1"] * 20))] == [1] * 20


def test_closing_does_not_wait_for_what_hangs():
    with Decoders(2, SMALL, ahead=16, read=hooks.read, decode=hooks.decode) as decoders:
        running = pids(decoders)
        results = decoders.map(items_of(["grey 1", *["hang"] * 30]))
        assert told(next(results)) == 1
        wait_for(lambda: 2 in list(decoders._board.stages))
        os.kill(running[0], signal.SIGSTOP)  # and it does not even hear
        began = time.monotonic()
    assert time.monotonic() - began < 10 and not any(map(is_alive, running))
    decoders.close()


def test_what_only_this_process_sees_is_read_here():
    import fsspec

    sizes = [10, 3_000_000, 50_000] * 12
    for number, size in enumerate(sizes):
        hooks.ONLY_HERE[f"{number:04}"] = bytes([number]) * size
    with Decoders(2, SMALL, read_here=True, read=hooks.read_only_here, decode=hooks.decode_large) as decoders:
        assert [told(found) for found in decoders.map(items_of([""] * len(sizes)))] == list(range(len(sizes)))
        assert decoders.seconds()["read"] > 0
    memory = fsspec.filesystem("memory")
    memory.pipe("/shots/one.jpg", PHOTOS[0].read_bytes())
    items = [Item(name, f"memory://shots/{name}") for name in ("one.jpg", "two.jpg")]
    with Decoders(1, SMALL, read_here=True) as decoders:
        good, bad = decoders.map(items)
    np.testing.assert_array_equal(good, decode(PHOTOS[0].read_bytes(), SMALL))
    assert bad[:2] == ("read", "missing")


def test_files_are_decoded_as_here_and_under_the_same_limit(tmp_path, monkeypatch):
    files = {"cut.jpg": PHOTOS[0].read_bytes()[:5000], "empty.jpg": b"", "page.jpg": b"<html>"}
    for name, data in files.items():
        (tmp_path / name).write_bytes(data)
    Image.new("RGB", (70, 50)).save(tmp_path / "large.png")
    small = io.BytesIO()
    Image.new("RGB", (40, 20), "red").save(small, "PNG")
    (tmp_path / "small.png").write_bytes(small.getvalue())
    items = [Item(path.name, str(path)) for path in (*PHOTOS, *sorted(tmp_path.iterdir()), tmp_path / "gone.jpg")]
    preprocessing = Preprocessing((64, 64))
    with Decoders(0, preprocessing) as here:
        by_hand = list(here.map(items))
    with Decoders(2, preprocessing) as decoders:
        by_processes = list(decoders.map(items))
    for one, other in zip(by_hand, by_processes, strict=True):
        np.testing.assert_array_equal(one, other)
    assert [found.cause for found in by_hand if isinstance(found, Failure)] == ["truncated", "empty", "not_an_image", "missing"]
    assert by_hand[5][3:] == (5000, hashlib.sha256(files["cut.jpg"]).hexdigest())
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    with Decoders(1, preprocessing) as decoders:
        large, small = decoders.map([item for item in items if item.key in ("large.png", "small.png")])
    assert large.cause == "too_large" and isinstance(small, np.ndarray)


def test_an_image_that_is_done_does_not_wait_for_one_that_hangs():
    with Decoders(1, SMALL, timeout=1000, read=hooks.read, decode=hooks.decode) as decoders:
        assert told(next(decoders.map(items_of(["grey 9", "hang"])))) == 9


def test_without_a_fork_server_processes_are_spawned(monkeypatch):
    monkeypatch.setattr(multiprocessing, "get_all_start_methods", lambda: ["spawn"])
    assert run(1, ["grey 1", "corrupt", "grey 2"])[::2] == [1, 2]


def test_arguments_that_cannot_work_are_refused():
    for wrong in ({"count": -1}, {"timeout": 0}, {"retries": -1}, {"ahead": 0}):
        with pytest.raises(BadArgument, match=f"{next(iter(wrong))}={next(iter(wrong.values()))}"):
            Decoders(**{"count": 0, "preprocessing": SMALL, **wrong})


def test_a_script_needs_no_guard(tmp_path):
    (tmp_path / "script.py").write_text(
        "from ziggurat.extraction.decoding import Preprocessing\n"
        "from ziggurat.extraction.sources import Item\n"
        "from ziggurat.extraction.workers import Decoders\n"
        "print('begins')\n"
        "with Decoders(2, Preprocessing((8, 8))) as decoders:\n"
        "    print([found.cause for found in decoders.map([Item('a', 'nowhere.jpg'), Item('b', 'nor here.jpg')])])\n")
    done = subprocess.run([sys.executable, "script.py"], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == ["begins", "['missing', 'missing']"]


PROGRAM = """
import os, signal, sys, time
sys.path.insert(0, {folder!r})
import decoder_hooks as hooks
from multiprocessing import forkserver
from ziggurat.extraction.decoding import Preprocessing
from ziggurat.extraction.sources import Item
from ziggurat.extraction.workers import Decoders

if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.default_int_handler)  # whatever started the tests
    decoders = Decoders(2, Preprocessing((224, 224)), read=hooks.read, decode=hooks.decode)
    results = decoders.map([Item(str(n), text) for n, text in enumerate(["grey 1", *["{text}"] * 2000])])
    next(results)
    server, tracker = forkserver._forkserver._forkserver_pid, forkserver.resource_tracker._resource_tracker._pid
    try:
        print(*(worker.process.pid for worker in decoders._workers), server, tracker, flush=True)
        for _ in results:
            pass
    except KeyboardInterrupt:
        decoders.close()
        sys.exit(130)
"""


def start(text, folder):
    """The program, and the process ids of its two decoders, of the server that started them, and of Python's tracker."""
    program = folder / "program.py"
    program.write_text(PROGRAM.format(folder=str(Path(__file__).parent), text=text))
    process = subprocess.Popen(
        [sys.executable, str(program)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
        env={**os.environ, "PYTHONPATH": str(Path(workers.__file__).parents[2]), "OMP_NUM_THREADS": "1"},
    )
    return process, [int(pid) for pid in process.stdout.readline().split()]


@pytest.mark.parametrize("text", ["slow 1", "hang"])
def test_nothing_is_left_when_the_program_is_killed(text, tmp_path):
    process, family = start(text, tmp_path)
    assert len(family) == 4 and all(map(is_alive, family))
    process.kill()
    _, errors = process.communicate(timeout=20)
    wait_for(lambda: not any(map(is_alive, family)))
    assert not errors and not [name for name in os.listdir("/dev/shm") if name.startswith(f"pym-{process.pid}-")]


def test_an_interrupt_from_the_terminal_ends_it_without_a_word(tmp_path):
    process, family = start("slow 1", tmp_path)
    os.killpg(process.pid, signal.SIGINT)
    _, errors = process.communicate(timeout=20)
    assert process.returncode == 130 and not errors
    wait_for(lambda: not any(map(is_alive, family)))


def test_an_interrupt_reaches_what_the_program_starts_in_the_same_way_for_itself(tmp_path):
    """It shares the server that starts decoders, from which the signal is kept off while it imports."""
    (tmp_path / "mine.py").write_text(
        "import signal\n"
        "def mine(pipe):\n"
        "    pipe.send((signal.pthread_sigmask(signal.SIG_BLOCK, []), signal.getsignal(signal.SIGINT) is signal.default_int_handler))\n")
    (tmp_path / "program.py").write_text(
        "import multiprocessing, signal\n"
        "from mine import mine\n"
        "from ziggurat.extraction.decoding import Preprocessing\n"
        "from ziggurat.extraction.workers import Decoders\n"
        "if __name__ == '__main__':\n"
        "    signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # whatever started the tests
        "    with Decoders(1, Preprocessing((8, 8))) as decoders:\n"
        "        context = multiprocessing.get_context('forkserver')\n"
        "        ours, theirs = context.Pipe()\n"
        "        process = context.Process(target=mine, args=(theirs,))\n"
        "        process.start()\n"
        "        print(ours.recv())\n"
        "        process.join()\n")
    done = subprocess.run([sys.executable, "program.py"], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout == "(set(), True)\n"


def test_the_death_of_the_server_that_starts_processes_is_survived():
    with Decoders(2, SMALL, timeout=0.8, read=hooks.read, decode=hooks.decode) as decoders:
        running = pids(decoders)
        results = decoders.map(items_of(["grey 1", *["slow 2"] * 40, "hang", "SIGSEGV", *["slow 3"] * 40]))
        assert told(next(results)) == 1
        os.kill(multiprocessing.forkserver._forkserver._forkserver_pid, signal.SIGKILL)
        found = [told(one) for one in results]
    assert found[:40] == [2] * 40 and found[42:] == [3] * 40
    assert [failure.cause for failure in found[40:42]] == ["timeout", "signal"]
    wait_for(lambda: not any(map(is_alive, running)))
