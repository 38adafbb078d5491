"""`optimize` as its users meet it: the same numbers from any view, size and batch; a choice that is checked and kept."""

import copy
import json
import pickle
import sys
import threading
import types
import warnings

import pytest
import torch
from torch.utils._pytree import tree_leaves, tree_structure

import ziggurat
from ziggurat import packages
from ziggurat.errors import BadArgument, MissingExtra
from ziggurat.optimization import choices, fused, optimizing
from ziggurat.optimization.program import Program, Recipe, Unavailable
from ziggurat.view import largest_error


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("ZIGGURAT_CACHE", str(tmp_path))
    return tmp_path / "choices"


def made(name="test_resnet", **arguments):
    torch.manual_seed(0)
    return ziggurat.create_model(name, **arguments).eval()


def images(count=3, size=64, seed=1):
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(seed))


def fake_backend(monkeypatch, name, offset=0.0, fails=""):
    """A backend that computes eagerly and is `offset` off, or cannot."""

    class Off(Program):
        def __init__(self, view, recipe):
            super().__init__(recipe)
            self.view = view

        def __call__(self, x):
            with torch.no_grad():
                return tuple(output + offset * output.abs().max() for output in self.view(x))

    def recipes(*asked):
        return [Recipe(name, asked[-2])]

    def build(view, x, recipe, threads, calibration):
        if fails:
            raise Unavailable(fails)
        return Off(view, recipe)

    module = types.ModuleType(f"ziggurat.optimization.{name}_module")
    module.recipes, module.build = recipes, build
    monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setitem(optimizing.BACKENDS, name, f"{name}_module")


@pytest.mark.parametrize("backend", ["openvino", "onnxruntime"])
def test_other_runtimes_agree(backend):
    model = made()
    fast = ziggurat.optimize(model, images(4), backend=backend, view="pyramid", strides=(4, 8), verbose=False)
    x = images(5)
    found, expected = fast.pyramid(x, (4, 8)), model.pyramid(x, (4, 8))
    assert list(found) == [4, 8]
    assert largest_error(list(found.values()), [level.detach() for level in expected.values()]) < 1e-3


def test_any_view_size_and_batch():
    model = made("test_vit")
    fast = ziggurat.optimize(model, images(4), backend="eager", verbose=False)
    with torch.no_grad():
        for x in (images(4, seed=2), images(1), images(9), images(2, size=96)):
            assert largest_error([fast(x)], [model(x)]) < 1e-3
        x = images(2)
        assert largest_error([fast.embed(x)], [model.embed(x)]) < 1e-3
        ours, theirs = fast.pyramid(x, 16), model.pyramid(x, 16)
        assert list(ours) == list(theirs)
        assert largest_error(list(ours.values()), list(theirs.values())) < 1e-3
        ours, theirs = fast.tokens(x), model.tokens(x)
        assert list(ours) == list(theirs)
        assert largest_error(list(ours.values()), list(theirs.values())) < 1e-3
    assert not any(tensor.requires_grad for tensor in (fast(x), fast.embed(x)))


@pytest.mark.parametrize("name, outputs, backend", [
    ("test_vit", ("tokens", "pyramid", "scores"), "onnxruntime"), ("test_resnet", ("features", "embedding"), "eager"),
])
def test_several_views_from_one_pass(name, outputs, backend):
    model = made(name)
    fast = ziggurat.optimize(model, images(2), backend=backend, verbose=False)
    x = images(3)
    with torch.no_grad():
        found, expected = fast.extract(x, outputs), model.extract(x, outputs)
        assert tree_structure(found) == tree_structure(expected)
        assert largest_error(*map(tree_leaves, (found, expected))) < 1e-3
        levels = fast.extract(x, ["pyramid"], strides=16)["pyramid"]
        assert list(levels) == [16]
        assert largest_error(levels.values(), model.pyramid(x, 16).values()) < 1e-3
    with pytest.raises(BadArgument, match="no view 'boxes'; give some of scores, embedding"):
        fast.extract(x, ("boxes",))
    with pytest.raises(BadArgument, match="name one at least"):
        fast.extract(x, ())


def test_features_only_gives_its_list_and_bytes_are_normalised():
    model = made(features_only=True, out_strides=(8, 4))
    pixels = torch.randint(0, 256, (2, 64, 64, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    fast = ziggurat.optimize(model, pixels, backend="eager", verbose=False)
    mean, std = (torch.tensor(model.pretrained_cfg[name]).reshape(3, 1, 1) for name in ("mean", "std"))
    with torch.no_grad():
        expected = model((pixels.permute(0, 3, 1, 2) / 255 - mean) / std)
    found = fast(pixels)
    assert isinstance(found, list)
    assert largest_error(found, expected) < 1e-5
    assert largest_error(fast(pixels.permute(0, 3, 1, 2)), expected) < 1e-5
    assert fast.feature_info.reduction() == [8, 4]


def test_a_module_that_is_no_backbone():
    net = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.BatchNorm2d(8), torch.nn.ReLU()).eval()
    fast = ziggurat.optimize(net, (2, 3, 32, 32), backend="eager", verbose=False)
    x = images(3, 32)
    assert largest_error([fast(x)], [net(x).detach()]) < 1e-5
    with pytest.raises(BadArgument, match="gives 'forward'"):
        fast.embed(x)


def test_the_model_is_left_as_it_was():
    model = made()
    model.train()
    model.bn1.eval()
    modes = {name: module.training for name, module in model.named_modules()}
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    ziggurat.optimize(model, images(2), backend="eager", verbose=False)
    assert modes == {name: module.training for name, module in model.named_modules()}
    after = model.state_dict()
    assert list(before) == list(after)
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_auto_shows_what_it_tried_and_keeps_the_choice(own_cache, monkeypatch, capsys):
    fake_backend(monkeypatch, "wrong", offset=0.25)
    fake_backend(monkeypatch, "broken", fails="backend='broken' cannot take this network; take another")
    monkeypatch.setitem(optimizing.TRIED, "cpu", ("eager", "wrong", "broken", "openvino"))
    model, x = made(), images(2)
    fast = ziggurat.optimize(model, x)
    shown = " ".join(capsys.readouterr().out.split())
    assert "test_resnet: classify of 2 x 3 x 64 x 64 in fp32" in shown
    by_backend = {trial.recipe.backend: trial for trial in fast.trials}
    assert set(by_backend) == {"eager", "wrong", "broken", "openvino"}
    assert by_backend["wrong"].error == pytest.approx(0.25, rel=1e-3)
    assert "0.25" in by_backend["wrong"].dropped
    assert "cannot take this network" in by_backend["broken"].dropped
    assert fast.recipe.backend in ("eager", "openvino")
    timed = [trial for trial in fast.trials if not trial.dropped]
    assert all(trial.images_per_second > 0 and trial.ratio > 0 and trial.error < 1e-3 for trial in timed)
    assert str(fast.recipe) in fast.table().replace("\n", " ") or "chosen" in fast.table()

    def again(*asked):
        raise AssertionError("tried anew, though the choice was kept")

    monkeypatch.setattr(optimizing, "_tuned", again)
    kept = ziggurat.optimize(model, x, verbose=False)
    assert (kept.recipe, kept.trials) == (fast.recipe, fast.trials)
    for changed in (dict(example=images(3)), dict(precision="bf16"), dict(tolerance=1e-2), dict(view="embed"), dict(threads=3)):
        with pytest.raises(AssertionError, match="tried anew"):
            ziggurat.optimize(model, **{"example": x, "verbose": False, **changed})
    with pytest.raises(AssertionError, match="tried anew"):
        ziggurat.optimize(made("test_vit"), x, verbose=False)
    monkeypatch.setattr(choices, "versions", lambda: {"torch": "another"})
    with pytest.raises(AssertionError, match="tried anew"):
        ziggurat.optimize(model, x, verbose=False)


@pytest.mark.parametrize("damage", [
    lambda text: b"",
    lambda text: b"\xff\xfe not json",
    lambda text: text[: len(text) // 2].encode(),
    lambda text: b"[]",
    lambda text: json.dumps({**json.loads(text), "chosen": 99}).encode(),
    lambda text: json.dumps({**json.loads(text), "chosen": True}).encode(),
    lambda text: json.dumps({**json.loads(text), "asked": {}}).encode(),
    lambda text: text.replace('"part": 0', '"part": "all"').encode(),
    lambda text: text.replace('"recipe"', '"receipt"').encode(),
    lambda text: text.replace('"backend": "eager"', '"backend": "gone"').encode(),
], ids=["empty", "binary", "cut", "list", "chosen", "bool", "asked", "type", "field", "backend"])
def test_a_corrupt_entry_is_dropped_and_rebuilt(own_cache, damage):
    model, x = made(), images(2)
    ziggurat.optimize(model, x, backend="eager", verbose=False)
    entry, = own_cache.iterdir()
    whole = entry.read_text()
    entry.write_bytes(damage(whole))
    with pytest.warns(UserWarning, match="made anew"):
        fast = ziggurat.optimize(model, x, backend="eager", verbose=False)
    assert largest_error([fast(x)], [model(x).detach()]) < 1e-3
    assert list(own_cache.iterdir()) == [entry]
    assert json.loads(entry.read_text())["asked"] == json.loads(whole)["asked"]


def test_a_kept_choice_that_no_longer_agrees_is_made_anew(own_cache, monkeypatch):
    fake_backend(monkeypatch, "once")
    monkeypatch.setitem(optimizing.TRIED, "cpu", ("once",))
    model, x = made(), images(2)
    assert ziggurat.optimize(model, x, verbose=False).recipe.backend == "once"
    fake_backend(monkeypatch, "once", offset=0.5)
    with pytest.raises(Unavailable, match="its largest error is 0.5"):
        ziggurat.optimize(model, x, verbose=False)
    assert not list(own_cache.iterdir())


def test_a_cache_that_cannot_be_written_is_said(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("ZIGGURAT_CACHE", str(tmp_path / "file"))
    with pytest.warns(UserWarning, match="ZIGGURAT_CACHE"):
        ziggurat.optimize(made(), images(1), backend="eager", verbose=False)


def test_a_view_beyond_tolerance_falls_back_and_says_so(monkeypatch):
    fake_backend(monkeypatch, "drifting")
    model, x = made(), images(2)
    fast = ziggurat.optimize(model, x, backend="drifting", verbose=False)
    fake_backend(monkeypatch, "drifting", offset=0.5)
    with pytest.warns(UserWarning, match=r"drifting, fp32 cannot be used \(its largest error is 0.5"):
        found = fast.embed(x)
    assert largest_error([found], [model.embed(x).detach()]) < 1e-5


def test_threads_share_it():
    model, x = made(), images(2)
    fast = ziggurat.optimize(model, x, backend="eager", verbose=False)
    expected, found = fast(x), []
    threads = [threading.Thread(target=lambda: found.append(fast(x))) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 6
    assert all(torch.equal(one, expected) for one in found)
    before = torch.get_num_threads()
    fast(x)
    assert torch.get_num_threads() == before


@pytest.mark.parametrize("arguments, sentence", [
    (dict(backend="tensorrt"), "'auto', or some of 'eager', 'onednn', 'winograd', 'compile'"),
    (dict(backend=()), "'auto', or some of"),
    (dict(precision="fp8"), "'fp32', 'bf16', 'fp16', 'int8'"),
    (dict(view="boxes"), "test_resnet gives 'classify', 'embed', 'pyramid', 'forward'"),
    (dict(view="tokens"), "test_resnet gives 'classify', 'embed', 'pyramid', 'forward'"),
    (dict(view="pyramid", strides=5), "5"),
    (dict(strides=8), r"strides=\(8,\) is for view='pyramid'"),
    (dict(norm=True), "norm=True is for view='pyramid'"),
    (dict(strides=8.0, view="pyramid"), "strides=8.0: give a stride"),
    (dict(model="resnet18"), "model='resnet18': give a module"),
    (dict(backend=None), "backend=None: give 'auto'"),
    (dict(threads=1.5), "threads=1.5"),
    (dict(tolerance="x"), "tolerance='x'"),
    (dict(precision="int8", calibration=[]), r"calibration=\[\]: give a tensor of images"),
    (dict(precision="int8", calibration="photos"), "calibration='photos': give a tensor of images"),
    (dict(precision="int8", calibration=[torch.zeros(3, 8, 8)]), r"calibration has an image of shape \(3, 8, 8\)"),
    (dict(tolerance=0), "tolerance=0"),
    (dict(tolerance=float("nan")), "tolerance=nan"),
    (dict(threads=0), "threads=0"),
    (dict(calibration=torch.zeros(1, 3, 64, 64)), "precision='int8'"),
    (dict(example=torch.zeros(3, 64, 64)), r"\(B C H W\), not \(3, 64, 64\)"),
    (dict(example=torch.zeros(0, 3, 64, 64)), "one image at least"),
    (dict(example=torch.zeros(2, 4, 64, 64)), "takes 3 channels"),
    (dict(example=torch.zeros(2, 3, 64, 64, device="meta")), "images are on meta and the network on cpu"),
    (dict(example=torch.zeros(2, 3, 64, 64, dtype=torch.int32)), "uint8"),
    (dict(example=(3, 64, 64)), "the four numbers of its shape"),
    (dict(example="cat.jpg"), "the four numbers of its shape"),
])
def test_bad_arguments_say_what_works(arguments, sentence):
    with pytest.raises(BadArgument, match=sentence):
        ziggurat.optimize(**{"model": made(), "example": images(2), "verbose": False, **arguments})


@pytest.mark.parametrize("backend", ["eager", "onednn", "onnxruntime", "openvino"])
def test_images_come_in_any_precision_from_the_networks_device(backend):
    fast, x = ziggurat.optimize(made(), images(2).double(), backend=backend, verbose=False), images(2)
    for other in (x.half(), x.double()):
        assert largest_error([fast(other)], [fast(x)]) < 1e-2
    with pytest.raises(BadArgument, match="images are on meta and the network on cpu"):
        fast(x.to("meta"))


def test_a_network_in_bf16_is_compared_in_fp32():
    model, x = made().bfloat16(), images(2)
    fast = ziggurat.optimize(model, x, backend="eager", verbose=False)
    assert largest_error([fast(x)], [model.float()(x).detach()]) < 1e-5


def test_a_network_without_pooling_gives_its_map():
    model, x = made(num_classes=0, global_pool=""), images(2)
    fast = ziggurat.optimize(model, x, backend="eager", verbose=False)
    assert fast.view == "forward"
    assert largest_error([fast(x)], [model(x).detach()]) < 1e-5


def test_bytes_want_a_mean():
    module = torch.nn.Sequential(torch.nn.Conv2d(3, 2, 3))
    x = torch.zeros(2, 3, 8, 8, dtype=torch.uint8)
    with pytest.raises(BadArgument, match="Sequential states no mean and std"):
        ziggurat.optimize(module, x, backend="eager", verbose=False)


def test_two_at_once_do_not_see_each_other():
    failed, models = [], [made(), made("test_efficientnet")]

    def run(model):
        try:
            fast = ziggurat.optimize(model, images(1), backend="eager", verbose=False, cache=False)
            assert not any(isinstance(module, torch.nn.BatchNorm2d) for module in fast.model.modules())
        except Exception as error:
            failed.append(error)

    threads = [threading.Thread(target=run, args=(model,)) for model in models]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed


def test_another_threads_network_is_not_watched():
    """Folding sees what its own thread computes, though torch's hooks are of the whole process."""
    model, other, done = made(), made("test_efficientnet"), threading.Event()

    def serve():
        while not done.is_set():
            other(images(1))

    server = threading.Thread(target=serve)
    server.start()
    try:
        found = [fused(model) for _ in range(5)]
    finally:
        done.set()
        server.join()
    for network in found:
        assert not any(isinstance(module, torch.nn.BatchNorm2d) for module in network.modules())


def test_what_is_optimized_is_not_copied():
    fast = ziggurat.optimize(made(), images(1), backend="eager", verbose=False)
    for copied in (copy.deepcopy, pickle.dumps):
        with pytest.raises(TypeError, match="pickle the model, and optimize it there"):
            copied(fast)


def test_a_corrupt_entry_that_cannot_be_removed(own_cache, monkeypatch):
    ziggurat.optimize(made(), images(1), backend="eager", verbose=False)
    [entry] = own_cache.iterdir()
    entry.write_text("{")

    def refused(*_, **__):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(choices.Path, "unlink", refused)
    monkeypatch.setattr(choices.os, "replace", refused)
    with pytest.warns(UserWarning, match="cannot be used"), pytest.warns(UserWarning, match="could not be kept"):
        fast = ziggurat.optimize(made(), images(1), backend="eager", verbose=False)
    assert fast.recipe.backend == "eager"
    assert [path.name for path in own_cache.iterdir()] == [entry.name]


@pytest.mark.parametrize("backend, package, extra", [("openvino", "openvino", "openvino"), ("onnxruntime", "onnxruntime", "onnx")])
def test_a_missing_extra_names_its_command(backend, package, extra, monkeypatch):
    import importlib.util

    real = importlib.util.find_spec

    def without(name, *more):
        return None if name.partition(".")[0] == package else real(name, *more)

    monkeypatch.setattr(packages, "find_spec", without)
    with pytest.raises(MissingExtra, match=rf"pip install 'ziggurat\[{extra}\]'"):
        ziggurat.optimize(made(), images(1), backend=backend, verbose=False)
    fast = ziggurat.optimize(made(), images(1), backend=("eager", backend), verbose=False)
    assert fast.recipe.backend == "eager"
    assert any("pip install" in trial.dropped for trial in fast.trials)


def test_int8_is_fitted_to_images(tmp_path):
    model = made("test_resnet")
    few = images(4)
    with pytest.warns(UserWarning, match="calibration: the 4 images"):
        ziggurat.optimize(model, few, backend="openvino", precision="int8", tolerance=0.9, verbose=False)
    photos = sorted(__import__("pathlib").Path("examples/photos").glob("*.jpg"))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fast = ziggurat.optimize(model, few, backend="openvino", precision="int8", tolerance=0.9, calibration=photos, verbose=False)
    assert fast.recipe.precision == "int8"
    with pytest.raises(BadArgument, match="give images like the example"):
        ziggurat.optimize(model, few, precision="int8", calibration=images(2, 32), verbose=False)
