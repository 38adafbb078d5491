"""A run as its user sees it: begun, gone on with, refused, extended, retried, verified."""

import errno
import json
import os
import re
import shutil
import sys
from contextlib import contextmanager

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

import ziggurat
from commanding import ziggurat_
from extraction.running import FLAGS, MODEL, SMALL, picture, pictures, run, written
from ziggurat.errors import BadArgument, ChangedRun, IncompleteRun
from ziggurat.extraction import job, retry, status, verify


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """20 images, 4 of them bad, in two folders."""
    folder = pictures(tmp_path_factory.mktemp("photos") / "a", 16)
    (folder / "00003.jpg").write_bytes(picture(3)[:400])
    (folder / "00004.jpg").write_bytes(b"")
    (folder / "00005.png").write_bytes(b"<html>404</html>")
    (folder / "gone.jpg").symlink_to("nowhere.jpg")
    pictures(folder.parent / "b", 2)
    return folder.parent


@pytest.fixture(scope="module")
def finished(photos, tmp_path_factory):
    out = tmp_path_factory.mktemp("finished") / "run"
    summary = run(photos, out, embed=True, logits=True, strides=(8, 32), taps=("layer1",), dtype="f32")
    return out, summary


def test_every_input_is_a_row_or_a_failure(photos, finished):
    out, summary = finished
    assert summary.state == "quarantined"
    assert summary.exit_code == 3
    assert (summary.images, summary.rows, summary.units, summary.units_done) == (20, 16, 3, 3)
    assert summary.failures == {"decode/empty": 1, "decode/not_an_image": 1, "decode/truncated": 1, "read/missing": 1}
    bad = {line["key"]: line for line in pq.read_table(out / "failures.parquet").to_pylist()}
    assert list(bad) == ["a/00003.jpg", "a/00004.jpg", "a/00005.png", "a/gone.jpg"]
    assert (bad["a/00003.jpg"]["stage"], bad["a/00003.jpg"]["bytes"]) == ("decode", 400)
    table = pq.read_table(out / "embedding")
    assert sorted(table["key"].to_pylist() + list(bad)) == sorted(
        f"{folder}/{path.name}" for folder in "ab" for path in (photos / folder).iterdir())
    assert table["row"].to_pylist() == [row for row in range(20) if row not in [line["row"] for line in bad.values()]]
    success = json.loads((out / "_SUCCESS").read_text())
    assert (success["images"], success["rows"], success["failures"]) == (20, 16, 4)


def test_the_numbers_are_the_models(photos, finished):
    out, _ = finished
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = ziggurat.create_model(MODEL).eval()
    prepare = ziggurat.data.create_transform(**ziggurat.data.resolve_model_data_config(model, {"input_size": (3, 64, 64)}))
    found = ziggurat.open(out)
    for key in ("a/00000.jpg", "a/00015.jpg", "b/00001.jpg"):
        x = prepare(ziggurat.data.open_image(photos / key))[None]
        with torch.inference_mode():
            expected = model.extract(x, ("scores", "embedding", "pyramid"), strides=(8, 32))
            tap = model.layer1(model.maxpool(model.act1(model.bn1(model.conv1(x))))).mean((2, 3))
        pairs = [(found.embedding[key], expected["embedding"]), (found.logits[key], expected["scores"]),
                 (found.taps["layer1"][key], tap), *((found.pyramid[key][s], expected["pyramid"][s]) for s in (8, 32))]
        for ours, theirs in pairs:
            # the resize differs by two grey levels at most
            theirs = theirs[0].numpy()
            assert ours.shape == theirs.shape
            assert np.abs(ours - theirs).max() <= 0.02 * np.abs(theirs).max()


def test_a_finished_run_is_left_alone(photos, finished):
    out, before = finished
    times = {path: path.stat().st_mtime_ns for path in out.rglob("*.parquet") if path.name != "failures.parquet"}
    again = run(photos, out, embed=True, logits=True, strides=(8, 32), taps=("layer1",), dtype="f32")
    assert again[:7] == before[:7]
    assert times == {path: path.stat().st_mtime_ns for path in times}


def test_bytes_depend_neither_on_workers_nor_on_other_images(photos, finished, tmp_path):
    out, _ = finished
    asked = dict(embed=True, logits=True, strides=(8, 32), taps=("layer1",), dtype="f32")
    run(photos, tmp_path / "none", workers=0, **asked)
    assert written(tmp_path / "none") == written(out)
    healthy = tmp_path / "healthy"
    shutil.copytree(photos, healthy, symlinks=True)
    (healthy / "a" / "00003.jpg").write_bytes(picture(3))
    run(healthy, tmp_path / "two", workers=2, **asked)
    ours, theirs = ziggurat.open(tmp_path / "two"), ziggurat.open(out)
    for key in theirs.keys:
        assert np.array_equal(ours.embedding[key], theirs.embedding[key]), key


@pytest.mark.parametrize("change, named", [
    (dict(dtype="f32"), "--dtype: f16 in this run, f32 now"),
    (dict(logits=True, embed=True), "--logits: no in this run, yes now"),
    (dict(size=96), "--size: 64,64 in this run, 96,96 now"),
    (dict(decode="reference"), "--decode: exact in this run, reference now"),
    (dict(batch_size=2), "--batch (batch_size): 4 in this run, 2 now"),
    (dict(model="resnet18"), "--model: resnet10t in this run, resnet18 now"),
    (dict(precision="bf16"), "--precision: fp32 in this run, bf16 now"),
])
def test_another_fingerprint_is_refused(photos, one_run, change, named):
    with pytest.raises(ChangedRun, match=re.escape(named)):
        run(photos, one_run, **change)
    assert status(one_run).exit_code == 3


@pytest.fixture(scope="module")
def one_run(photos, tmp_path_factory):
    out = tmp_path_factory.mktemp("one") / "run"
    run(photos, out)
    return out


def test_other_inputs_are_refused_or_added(tmp_path):
    folder, out = pictures(tmp_path / "in", 10), tmp_path / "out"
    assert run(folder, out).state == "complete"
    before = written(out)
    pictures(folder, 3, first=100)
    with pytest.raises(ChangedRun, match=r"3 new, as '00100.jpg'\. --extend adds"):
        run(folder, out)
    assert written(out) == before
    summary = run(folder, out, extend=True)
    assert (summary.images, summary.rows, summary.units) == (13, 13, 3)
    after = written(out)
    assert all(after[path] == before[path] for path in before if path.startswith(("embedding", "_ziggurat/units")))
    run(folder, tmp_path / "whole")
    both = [dict(zip((found := ziggurat.open(each)).keys, found.embedding.numpy())) for each in (out, tmp_path / "whole")]
    assert both[0].keys() == both[1].keys()
    for key in both[0]:
        np.testing.assert_allclose(both[0][key], both[1][key], rtol=2e-3, atol=2e-3)
    os.utime(folder / "00001.jpg", (1, 1))
    (folder / "00002.jpg").unlink()
    with pytest.raises(ChangedRun, match=r"1 gone, as '00002.jpg'; 1 changed, as '00001.jpg'\. --fresh"):
        run(folder, out, extend=True)
    assert run(folder, out, fresh=True).rows == 12
    with pytest.raises(BadArgument, match="exclude each other"):
        run(folder, out, fresh=True, extend=True)


def test_retry_gives_what_an_undisturbed_run_gives(tmp_path):
    folder, out = pictures(tmp_path / "in", 20), tmp_path / "out"
    for name in ("00001.jpg", "00009.jpg", "00010.jpg"):
        (folder / name).write_bytes(picture(int(name[:5]))[:300])
    run(folder, out, embed=True, strides=(16,))
    assert sum(status(out).failures.values()) == 3
    (folder / "00009.jpg").write_bytes(picture(9))
    (folder / "00010.jpg").write_bytes(picture(10))
    times = {path: path.stat().st_mtime_ns for path in (out / "embedding").iterdir()}
    summary = retry(out, workers=1)
    assert (summary.state, summary.rows, summary.failures) == ("quarantined", 19, {"decode/truncated": 1})
    changed = {path.name for path, time in times.items() if path.stat().st_mtime_ns != time}
    assert changed == {"000000.parquet", "000001.parquet"}
    run(folder, tmp_path / "whole", embed=True, strides=(16,))
    assert written(out) == written(tmp_path / "whole")
    assert run(folder, out, embed=True, strides=(16,)).state == "quarantined"
    (folder / "00001.jpg").write_bytes(picture(1))
    assert retry(out, workers=1).state == "complete"
    assert retry(out, workers=1).exit_code == 0
    assert pq.read_table(out / "failures.parquet").num_rows == 0


def test_a_file_that_changes_meanwhile_is_a_failure_until_it_is_taken_anew(tmp_path):
    folder, out = pictures(tmp_path / "in", 6), tmp_path / "out"
    run(folder, out, plan_only=True)
    with pytest.MonkeyPatch.context() as patch:
        # after the inputs have been compared with the plan, before they are read
        plan = ziggurat.extraction.job._Session.work
        patch.setattr(ziggurat.extraction.job._Session, "work", lambda self, *rest: (
            (folder / "00002.jpg").write_bytes(picture(77)), os.utime(folder / "00002.jpg", (1, 1)), plan(self, *rest))[-1])
        assert run(folder, out).failures == {"read/changed": 1}
    assert retry(out, workers=0).state == "complete"
    run(folder, tmp_path / "whole")
    assert written(out) == written(tmp_path / "whole")


def _damage(out, how):
    path = out / "embedding" / "000001.parquet"
    if how == "gone":
        path.unlink()
    elif how == "cut":
        path.write_bytes(path.read_bytes()[:-9])
    else:
        data = bytearray(path.read_bytes())
        data[len(data) // 3] ^= 1
        path.write_bytes(bytes(data))


@pytest.mark.parametrize("how", ["gone", "cut", "bit"])
def test_verify_finds_damage_and_the_same_command_mends_it(how, tmp_path):
    folder, out = pictures(tmp_path / "in", 12), tmp_path / "out"
    run(folder, out)
    before = written(out)
    _damage(out, how)
    found = verify(out)
    assert (found.state, found.exit_code, found.units_done) == ("resumable", 4, 1)
    assert "embedding/000001.parquet" in found.reason
    assert not (out / "_SUCCESS").exists()
    assert run(folder, out).state == "complete"
    assert written(out) == before


def test_verify_finds_values_that_are_not_finite(tmp_path):
    from ziggurat.extraction.manifest import Manifest
    from ziggurat.extraction.stores import read_unit, write_unit

    folder, out = pictures(tmp_path / "in", 4), tmp_path / "out"
    run(folder, out)
    outputs = Manifest.load(out).outputs
    rows, keys, values = read_unit(out, outputs, 0)
    values = {name: value.copy() for name, value in values.items()}
    values["embedding"][2, 5] = np.nan
    files = write_unit(out, outputs, 0, rows, list(keys), values)
    path = out / "_ziggurat" / "units" / "000000.json"
    facts = json.loads(path.read_text())
    path.write_text(json.dumps({**facts, "files": [file._asdict() for file in files]}))
    assert "embedding has values that are not finite" in verify(out).reason


def test_numbers_that_the_file_cannot_hold_are_failures(tmp_path):
    folder = pictures(tmp_path / "in", 4)
    model = ziggurat.create_model(MODEL, num_classes=0).eval()
    with torch.no_grad():
        model.layer4[-1].bn2.weight.fill_(1e9)
    narrow = run(folder, tmp_path / "f16", model=model, random=False)
    assert narrow.failures == {"nonfinite/overflow": 4}
    assert "embedding reaches" in pq.read_table(tmp_path / "f16" / "failures.parquet")["message"][0].as_py()
    wide = run(folder, tmp_path / "f32", model=model, random=False, dtype="f32")
    assert wide.state == "complete"
    with torch.no_grad():
        model.layer4[-1].bn2.weight.fill_(float("nan"))
    assert run(folder, tmp_path / "nan", model=model, random=False, dtype="f32").failures == {"nonfinite/nan": 4}


def test_a_systematic_failure_stops_the_run(tmp_path):
    folder = pictures(tmp_path / "in", 12)
    for number in range(6):
        (folder / f"{number:05d}.jpg").write_bytes(b"x")
    assert run(folder, tmp_path / "patient").state == "quarantined"
    stopped = run(folder, tmp_path / "strict", max_error_rate=0.3)
    assert (stopped.state, stopped.exit_code) == ("stopped", 1)
    assert "6 of 12 images failed" in stopped.reason
    assert not (tmp_path / "strict" / "_SUCCESS").exists()
    assert run(folder, tmp_path / "strict", max_error_rate=0.5).state == "quarantined"
    assert written(tmp_path / "strict") == written(tmp_path / "patient")


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """A folder of 12 images, two of them bad, in two units; a run of it; and what that has written."""
    folder = pictures(tmp_path_factory.mktemp("small") / "in", 12)
    for number in (2, 9):
        (folder / f"{number:05d}.jpg").write_bytes(picture(number)[:300])
    out = folder.parent / "out"
    assert run(folder, out, workers=0).state == "quarantined"
    return folder, out, written(out)


DAMAGE = {
    "a sidecar without a word": lambda out: (out / "_ziggurat/units/000001.json").write_bytes(b""),
    "a sidecar of another kind": lambda out: (out / "_ziggurat/units/000001.json").write_bytes(b"[1]"),
    "a sidecar gone": lambda out: (out / "_ziggurat/units/000001.json").unlink(),
    "failures gone": lambda out: (out / "_ziggurat/failures/000001.parquet").unlink(),
    "failures cut": lambda out: (out / "_ziggurat/failures/000001.parquet").write_bytes(b"PAR1"),
    "all failures gone": lambda out: (out / "failures.parquet").unlink(),
    "numbers cut": lambda out: (out / "embedding/000001.parquet").write_bytes(b"PAR1"),
}


@pytest.mark.parametrize("damage", DAMAGE)
@pytest.mark.parametrize("first", [verify, retry, None])
def test_what_a_crash_of_the_file_system_leaves_is_found_and_made_anew(damage, first, small, tmp_path):
    """Whichever command comes first; a retry must not keep numbers that are not those that were written."""
    folder, finished, expected = small
    out = tmp_path / "out"
    shutil.copytree(finished, out)
    DAMAGE[damage](out)
    status(out)
    if first is not None:
        found = first(out, **({"workers": 0} if first is retry else {}))
        assert found.exit_code == (3 if damage == "all failures gone" else 4)
        if found.exit_code == 4:
            with pytest.raises(IncompleteRun):
                ziggurat.open(out)
    elif run(folder, out, workers=0).exit_code == 4:
        assert damage in ("failures gone", "failures cut", "numbers cut")  # told by the proof at the end
    assert run(folder, out, workers=0).exit_code == 3
    assert written(out) == expected


def test_a_run_without_its_plan_or_manifest_is_told(small, tmp_path):
    folder, finished, expected = small
    out = tmp_path / "out"
    shutil.copytree(finished, out)
    (out / "failures.parquet").unlink()
    with pytest.raises(IncompleteRun):
        ziggurat.open(out)
    for name, said in (("plan.parquet", "cannot be read as a plan"), ("manifest.json", "is damaged")):
        path = out / "_ziggurat" / name
        path.write_bytes(path.read_bytes()[:40])
        (out / "failures.parquet").touch()
        for command in (ziggurat.open, verify, retry, lambda out: run(folder, out)):
            with pytest.raises(BadArgument, match=said):
                command(out)
    assert run(folder, out, workers=0, fresh=True).exit_code == 3
    assert written(out) == expected


class Killed(BaseException):
    """As good as a kill: nothing catches it."""


class Steps:
    """Counts what this process changes on the disk below a folder, and ends it there at the n-th change."""

    def __init__(self):
        self.folder, self.left = None, 0
        sys.addaudithook(self)

    def __call__(self, event, arguments):
        if not self.folder or event not in ("os.remove", "os.rename", "os.rmdir", "os.mkdir", "shutil.rmtree"):
            return
        paths = [os.fsdecode(each) for each in arguments if isinstance(each, (str, bytes, os.PathLike))]
        if not os.path.isabs(paths[0]) or any(str(self.folder) in path for path in paths):  # rmtree names them relatively
            self.left -= 1
            if self.left < 0:
                self.folder = None
                raise Killed

    @contextmanager
    def at(self, folder, number):
        self.folder, self.left = folder, number
        try:
            yield
        finally:
            self.folder = None


@pytest.fixture(scope="session")
def steps():
    return Steps()


def test_starting_over_may_be_killed_at_any_step(small, tmp_path, steps):
    """What is left is the old run, of which less is done, or the new one; never the files of the one in the other."""
    folder, finished, old = small
    new = tmp_path / "new"
    pictures(new, 3, first=50)
    assert run(new, tmp_path / "whole", logits=True, workers=0).state == "complete"
    expected = written(tmp_path / "whole")
    seen = set()
    for number in range(100):
        out = tmp_path / f"out-{number}"
        shutil.copytree(finished, out)
        killed = False
        try:
            with steps.at(out, number):
                run(new, out, logits=True, workers=0, fresh=True, plan_only=True)
        except Killed:
            killed = True
        is_old = killed and number % 2 and (out / "_ziggurat/manifest.json").exists() and "embedding" in json.loads(
            (out / "_ziggurat/manifest.json").read_text())["shapes"]
        if is_old:
            assert run(folder, out, workers=0).exit_code == 3
            assert written(out) == old
        else:
            assert run(new, out, logits=True, workers=0, fresh=killed).exit_code == 0
            assert written(out) == expected
        seen.add(is_old)
        if not killed:
            break
    assert seen == {False, True}
    assert number > 8


def test_an_extension_may_be_killed_at_any_step(small, tmp_path, steps):
    folder, out = pictures(tmp_path / "in", 5), tmp_path / "out"
    run(folder, out, workers=0)
    pictures(folder, 4, first=20)
    shutil.copytree(out, tmp_path / "whole")
    run(folder, tmp_path / "whole", workers=0, extend=True)
    for number in range(100):
        try:
            with steps.at(out, number):
                run(folder, out, workers=0, extend=True, plan_only=True)
            break
        except Killed:
            with pytest.raises(ChangedRun, match="4 new, as '00020.jpg'"):
                run(folder, out, workers=0)
    assert number > 3
    assert run(folder, out, workers=0).state == "complete"
    assert run(folder, out, workers=0, extend=True).images == 9
    assert written(out) == written(tmp_path / "whole")


def test_a_retry_may_be_killed_at_any_step(small, tmp_path, steps):
    folder, begun = tmp_path / "in", tmp_path / "begun"
    shutil.copytree(small[0], folder)
    run(folder, begun, workers=0)
    (folder / "00002.jpg").write_bytes(picture(2))
    run(folder, tmp_path / "whole", workers=0)
    expected = written(tmp_path / "whole")
    for number in range(0, 100, 2):
        out = tmp_path / f"out-{number}"
        shutil.copytree(begun, out)
        try:
            with steps.at(out, number):
                retry(out, workers=0)
            break
        except Killed:
            retry(out, workers=0)
            assert run(folder, out, workers=0).exit_code == 3
            assert written(out) == expected
    assert number > 10


def test_a_retry_by_other_versions_is_refused(small, tmp_path, monkeypatch):
    _, finished, expected = small
    out = tmp_path / "out"
    shutil.copytree(finished, out)
    monkeypatch.setattr("ziggurat.extraction.unit.versions_of", lambda backend: {"ziggurat": "9", "torch": "99"})
    with pytest.raises(ChangedRun, match="version of torch: .* in this run, 99 now"):
        retry(out, workers=0)
    assert written(out) == expected


def test_a_plan_that_another_process_made_meanwhile_stands(small, tmp_path, monkeypatch):
    folder, _, expected = small
    out = tmp_path / "out"
    real = job.model_of

    def slowly(*arguments):
        monkeypatch.setattr(job, "model_of", real)
        run(folder, out, workers=0)
        return real(*arguments)

    monkeypatch.setattr(job, "model_of", slowly)
    with pytest.raises(BadArgument, match="another process has begun"):
        run(folder, out, workers=0, logits=True)
    assert written(out) == expected


@pytest.mark.parametrize("where", ["plan.parquet", "manifest.json", "units/000001.json", "failures/000000.parquet",
                                   "out/failures.parquet", "_SUCCESS"])
def test_no_room_for_any_of_the_files(where, small, tmp_path, monkeypatch):
    folder, _, expected = small
    out, real = tmp_path / "out", os.replace

    def full(source, target):
        if os.fspath(target).endswith(where):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(source, target)

    with monkeypatch.context() as patched:
        patched.setattr(os, "replace", full)
        if where in ("plan.parquet", "manifest.json"):
            with pytest.raises(BadArgument, match="cannot be written: No space left on device; make room"):
                run(folder, out, workers=0)
        else:
            found = run(folder, out, workers=0)
            assert (found.state, found.exit_code) == ("resumable", 4)
            assert "No space left on device" in found.reason
    assert run(folder, out, workers=0).exit_code == 3
    assert written(out) == expected


def test_an_error_of_a_listener_is_its_own(small, tmp_path):
    def listen(event):
        raise OSError(errno.ENOSPC, "my own log is full")

    with pytest.raises(OSError, match="my own log"):
        run(small[0], tmp_path / "out", workers=0, on_event=listen)


def test_a_model_object(tmp_path):
    folder = pictures(tmp_path / "in", 4)
    model = ziggurat.create_model("test_vit", num_classes=0).eval()
    asked = dict(model=model, random=False, tokens=True, size=None)
    assert run(folder, tmp_path / "out", **asked).state == "complete"
    tokens = ziggurat.open(tmp_path / "out").tokens["00000.jpg"]
    assert tokens["patches"].shape == (64, 10, 10)
    with pytest.raises(ChangedRun, match="the weights' SHA-256"):
        run(folder, tmp_path / "out", **asked | dict(model=ziggurat.create_model("test_vit", num_classes=0).eval()))
    with pytest.raises(BadArgument, match="training mode"):
        run(folder, tmp_path / "other", **asked | dict(model=ziggurat.create_model("test_vit")))
    (folder / "00001.jpg").write_bytes(b"")
    run(folder, tmp_path / "out", fresh=True, **asked)
    with pytest.raises(ChangedRun, match="model="):
        retry(tmp_path / "out")
    (folder / "00001.jpg").write_bytes(picture(1))
    assert retry(tmp_path / "out", model=model, workers=1).state == "complete"


@pytest.mark.parametrize("change, sentence", [
    (dict(engine="spark"), "engine='spark': give one of auto, local, rank, ray"),
    (dict(max_error_rate=2), "max_error_rate=2"),
    (dict(batch_size=0), "batch_size=0: give 1 or more"),
    (dict(workers=-1), "workers=-1: give 0"),
    (dict(timeout=0), "timeout=0: give seconds, above 0"),
    (dict(timeout=float("nan")), "timeout=nan"),
    (dict(retries=-1), "retries=-1: give 0 or more"),
    (dict(checkpoint="x.safetensors"), "checkpoint and random exclude each other"),
    (dict(classes=5), "classes=5"),
    (dict(tokens=True), "has no tokens"),
    (dict(strides=(3,)), "3"),
    (dict(taps="layer9"), "layer9"),
    (dict(dtype="f64"), "f64"),
    (dict(format="hdf5"), "hdf5"),
    (dict(source="nowhere"), "nowhere"),
    (dict(out="s3://bucket/x"), "out='s3://bucket/x'"),
    (dict(model="resnet10"), "resnet10"),
])
def test_what_cannot_work_is_said_before_anything_is_written(change, sentence, photos, tmp_path):
    asked = {**SMALL, "source": photos, "out": tmp_path / "out", **change}
    with pytest.raises(ziggurat.errors.ZigguratError, match=sentence):
        ziggurat.extract(**asked)
    assert not (tmp_path / "out").exists()


def test_a_folder_with_other_things_is_not_written_to(photos, tmp_path):
    (tmp_path / "letter.txt").write_text("dear")
    for fresh in (False, True):
        with pytest.raises(BadArgument, match="other things"):
            run(photos, tmp_path, fresh=fresh)
    with pytest.raises(BadArgument, match="is a file"):
        run(photos, tmp_path / "letter.txt")
    with pytest.raises(BadArgument, match="holds no extraction"):
        status(tmp_path)


def test_results_inside_the_source_are_not_taken_for_inputs(tmp_path):
    folder = pictures(tmp_path / "in", 3)
    out = folder / "features"
    assert run(folder, out).images == 3
    pictures(out / "embedding", 1)
    assert run(folder, out).state == "complete"


def test_the_command(photos, tmp_path):
    out = tmp_path / "out"
    stdout, stderr = ziggurat_("extract", photos, "--out", out, *FLAGS, "--dry-run")
    assert "20 images in 3 units" in stderr
    assert not out.exists()
    ziggurat_("status", out, status=1)
    stdout, stderr = ziggurat_("extract", photos, "--out", out, *FLAGS, status=3)
    assert stdout == ""
    assert "quarantined: 16 rows, 4 failures" in stderr
    assert "about 20.5 kB on disk" in stderr
    stdout, _ = ziggurat_("status", out, status=3)
    assert "3 of 3 units; 16 rows and 4 failures of 20 images" in stdout
    assert json.loads(ziggurat_("status", out, "--json", status=3)[0])["failures"]["decode/empty"] == 1
    stdout, _ = ziggurat_("verify", out, "--json", status=3)
    events = [json.loads(line) for line in stdout.splitlines()]
    assert [event["event"] for event in events] == ["verified", "finished"]
    assert events[-1]["state"] == "quarantined"
    _, stderr = ziggurat_("extract", photos, "--out", out, *FLAGS, "--logits", status=1)
    assert "--embed: yes in this run, no now" in stderr
    stdout, _ = ziggurat_("extract", photos, "--out", out, *FLAGS, "--fresh", "--json", status=3)
    kinds = [json.loads(line)["event"] for line in stdout.splitlines()]
    assert kinds[0] == "planned" and kinds[-1] == "finished" and "unit" in kinds
    ziggurat_("retry", out, "--workers", "0", status=3)
    ziggurat_("extract", photos, "--out", tmp_path / "x", "-m", "resnet5O", status=1)
    ziggurat_("extract", photos, "--out", tmp_path / "x", "-m", "resnet10t", "--random", "--strides", "a", status=1)
    _, stderr = ziggurat_("extract", photos, "--out", tmp_path / "x", *FLAGS, "--taps", "", status=1)
    assert "'' is no name of a module" in stderr
    _, stderr = ziggurat_("extract", photos, "--out", tmp_path / "x", *FLAGS, "--taps", "layer1, layer2", "--dry-run")
    assert "20 images in 3 units" in stderr
    stdout, _ = ziggurat_("extract", photos, "--out", tmp_path / "x", *FLAGS, "--plan-only", "--json")
    assert [json.loads(line)["event"] for line in stdout.splitlines()] == ["planned"]
    _, stderr = ziggurat_("extract", photos, "--out", tmp_path / "x", *FLAGS, "--dtype", "f32", "--dry-run", status=1)
    assert "--dtype: f16 in this run, f32 now" in stderr
