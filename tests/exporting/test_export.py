"""Files in the runtimes of their formats against the network, and what is refused."""

import copy
import json
import sys
import warnings
from contextlib import nullcontext

import numpy as np
import onnxruntime
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import ziggurat
from ziggurat import packages
from ziggurat.errors import BadArgument, ExportFailed, MissingExtra, UnsupportedStride
from ziggurat.exporting import export as module
from ziggurat.exporting import onnx, prepare
from ziggurat.exporting.export import SIDE_STEP, exported_program, format_module
from ziggurat.exporting.resampling import ANTIALIASED, CUBIC, interpolation_as_products
from ziggurat.layers.pos_embed import resize_grid
from ziggurat.testing import assert_same, settled

SIDE = 96
OTHER = (3, 3, SIDE + 2 * max(SIDE_STEP, 20), SIDE + max(SIDE_STEP, 13))  # images of another number and size


def network(name="test_resnet", **arguments):
    return settled(lambda **kwargs: ziggurat.create_model(name, **kwargs), **arguments)


class Fixed(nn.Module):
    """A network with a learned place for each position of a 4 x 4 grid: its size is fixed."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 16, 16)
        self.places = nn.Parameter(torch.randn(1, 4, 4, 4))

    def forward(self, x):
        x = self.conv(x) + self.places
        return x.mean((2, 3)), x.amax((2, 3))


@pytest.fixture(scope="module")
def pyramid():
    """A network and its pyramid of strides 4 and 16, with free axes, to be written."""
    model = network()
    return model, prepare(model, view="pyramid", strides=(4, 16), size=SIDE)


def test_onnx_is_read_by_its_runtime_alone(pyramid, tmp_path):
    model, prepared = pyramid
    made = prepared.write(tmp_path / "net.onnx", "onnx")
    assert made.names == ("stride_4", "stride_16")
    assert made.dynamic == ("batch", "height", "width")
    assert 0 < made.error < 1e-4

    session = onnxruntime.InferenceSession(made.path)
    (given,) = session.get_inputs()
    assert (given.name, given.shape) == ("images", ["batch", 3, "height", "width"])
    assert [output.name for output in session.get_outputs()] == ["stride_4", "stride_16"]
    facts = {key: json.loads(value) for key, value in session.get_modelmeta().custom_metadata_map.items()}
    assert facts["mean"] == [0.5, 0.5, 0.5]
    assert facts["strides"] == [4, 16]
    images = torch.randn(OTHER)
    with torch.no_grad():
        wanted = model.pyramid(images, (4, 16))
    found = session.run(["stride_16"], {"images": images.numpy()})
    assert_same(torch.from_numpy(found[0]), wanted[16], "stride 16", 1e-4)
    assert b"/src/ziggurat/" not in made.path.read_bytes()  # no paths of the machine that wrote it


@pytest.mark.parametrize("format, files", [("openvino", ["net.bin", "net.xml"]), ("torch", ["net.pt2"])])
def test_formats_are_opened_alike(pyramid, tmp_path, format, files):
    model, prepared = pyramid
    made = prepared.write(tmp_path / files[-1], format)
    assert sorted(path.name for path in tmp_path.iterdir()) == files
    loaded = ziggurat.exporting.open(made.path)
    assert (loaded.format, loaded.names, loaded.input_shape) == (format, ("stride_4", "stride_16"), (None, 3, None, None))
    assert loaded.metadata["architecture"] == "test_resnet"
    images = torch.randn(OTHER)
    with torch.no_grad():
        wanted = model.pyramid(images, (4, 16))
    for found in (loaded(images), loaded(images.numpy())):
        assert list(found) == ["stride_4", "stride_16"]
        assert_same(found["stride_4"], wanted[4], "stride 4", 1e-4)
    with pytest.raises(BadArgument, match=r"images of torch.uint8: net\.\w+ takes torch.float32, normalised by mean and std"):
        loaded(np.zeros((1, 3, SIDE, SIDE), np.uint8))
    with pytest.raises(BadArgument, match=r"images of shape \(1, 1, 96, 96\): net\.\w+ takes \(B, 3, H, W\)"):
        loaded(torch.zeros(1, 1, SIDE, SIDE))


def test_bytes_are_normalised_in_the_file(tmp_path):
    model = network(num_classes=7)
    names = [f"class {i}" for i in range(7)]
    made = ziggurat.export(model, tmp_path / "net.xml", "openvino", False, size=(64, 96), batch=2, pixels=True, class_names=names)
    assert (made.shape, made.dynamic, made.view) == ((2, 3, 64, 96), (), "classify")
    loaded = ziggurat.exporting.open(made.path)
    assert loaded.metadata["class_names"] == names
    images = torch.randint(0, 256, (2, 3, 64, 96), dtype=torch.uint8)
    with torch.no_grad():
        wanted = model((images / 255 - 0.5) / 0.5)
    assert_same(loaded(images)["scores"], wanted, "scores", 1e-4)
    with pytest.raises(BadArgument, match=r"images of shape \(1, 3, 64, 96\): net.xml takes \(2, 3, 64, 96\)"):
        loaded(images[:1])
    with pytest.raises(BadArgument, match="bytes of 0 to 255"):
        loaded(images.float())


def test_a_grid_of_places_is_resampled_to_other_sizes(tmp_path):
    class Resampled(Fixed):
        def forward(self, x):
            x = self.conv(x)
            return x + F.interpolate(self.places, size=x.shape[2:], mode="bicubic", antialias=True)

    model = Resampled()
    made = ziggurat.export(model, tmp_path / "net.xml", "openvino", size=SIDE)
    assert (made.names, made.dynamic) == (("output",), ("batch", "height", "width"))
    images = torch.randn(OTHER)
    with torch.no_grad():
        assert_same(ziggurat.exporting.open(made.path)(images)["output"], model(images), "maps", 1e-4)


def test_the_model_is_left_as_it_is(pyramid):
    model = network().train()
    model.layer1.eval()
    before = copy.deepcopy(model)
    prepare(model, False, size=64)
    assert [part.training for part in model.modules()] == [part.training for part in before.modules()]
    for (name, one), (_, other) in zip(model.named_parameters(), before.named_parameters(), strict=True):
        assert one.requires_grad == other.requires_grad
        assert torch.equal(one, other), name


def test_one_capture_serves_all_formats(pyramid):
    _, prepared = pyramid
    programs = [exported_program(prepared.view, prepared.example, prepared.dynamic) for _ in range(2)]
    assert programs[0] is programs[1]


def test_what_cannot_be_free_is_said(tmp_path):
    model = Fixed()
    with pytest.warns(UserWarning, match=r"^height and width stay 64 x 64: torch.export cannot leave batch, height, width free"):
        prepared = prepare(model, size=64)
    assert prepared.dynamic == ("batch",)
    made = prepared.write(tmp_path / "net.pt2", "torch")
    loaded = ziggurat.exporting.open(made.path)
    assert (loaded.names, loaded.input_shape) == (("output_0", "output_1"), (None, 3, 64, 64))
    assert loaded.metadata["mean"] is None
    assert loaded(torch.zeros(5, 3, 64, 64))["output_1"].shape == (5, 4)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert prepare(model, "batch", size=64).dynamic == ("batch",)  # what was asked for


def test_a_failed_check_leaves_the_older_file(pyramid, tmp_path):
    _, prepared = pyramid
    path = tmp_path / "net.xml"
    path.write_text("older")
    with pytest.raises(ExportFailed, match=r"stride_\d+ differs by .* for images 1 x 3 x 96 x 96, and tolerance=0; try dynamic=False"):
        prepared.write(path, "openvino", tolerance=0)
    assert path.read_text() == "older"
    assert list(tmp_path.iterdir()) == [path]


class Writer:
    """A format of two files, each of which holds the text given."""

    def __init__(self, text):
        self.text = text

    def write(self, view, example, path, dynamic, metadata):
        path.write_text(self.text)
        path.with_suffix(".bin").write_text(self.text)


@pytest.mark.parametrize("stop", [1, 2, 3, 4, 5])
def test_files_that_belong_together_are_replaced_together(pyramid, tmp_path, monkeypatch, stop):
    _, prepared = pyramid
    (tmp_path / "net.xml").write_text("older")
    (tmp_path / "net.bin").write_text("older")
    monkeypatch.setattr(module, "format_module", lambda format: Writer("newer"))
    replace, done = module.os.replace, []

    def interrupted(source, target):
        replace(source, target)
        done.append(target)
        if len(done) == stop:
            raise KeyboardInterrupt

    monkeypatch.setattr(module.os, "replace", interrupted)
    with pytest.raises(KeyboardInterrupt) if stop <= 4 else nullcontext():
        prepared.write(tmp_path / "net.xml", "openvino", check=False)
    found = "older" if stop <= 4 else "newer"
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {"net.xml": found, "net.bin": found}


def test_a_folder_in_the_way_is_kept(pyramid, tmp_path, monkeypatch):
    _, prepared = pyramid
    monkeypatch.setattr(module, "format_module", lambda format: Writer("newer"))
    for name in ("one.xml", "two.bin", "three.mlpackage"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "own").write_text("kept")
    for path, format in (("one.xml", "openvino"), ("two.xml", "openvino"), ("three.mlpackage", "coreml")):
        with pytest.raises(BadArgument, match="is a folder; move it away, or give another path"):
            prepared.write(tmp_path / path, format, check=False)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["one.xml", "three.mlpackage", "two.bin"]
    assert all((folder / "own").read_text() == "kept" for folder in tmp_path.iterdir())


def test_an_operator_that_the_format_lacks(tmp_path):
    class Odd(nn.Module):
        def forward(self, x):
            return torch.special.bessel_j0(x)

    with pytest.raises(ExportFailed, match=r"OpenVINO cannot convert this network .*special_bessel_j0"):
        ziggurat.export(Odd(), tmp_path / "net.xml", "openvino", False, size=32)
    assert not list(tmp_path.iterdir())


def test_a_branch_on_values_cannot_be_captured():
    class Branch(nn.Module):
        def forward(self, x):
            return x if x.sum() > 0 else -x

    with pytest.raises(ExportFailed, match=r"torch.export cannot capture 'forward' of this Branch \(GuardOnDataDependent"):
        prepare(Branch(), False, size=32)


def test_values_that_are_not_finite_are_not_exported():
    model = network()
    with torch.no_grad():
        model.fc.bias[0] = float("nan")
    with pytest.raises(BadArgument, match="not finite"):
        prepare(model, False, size=64)


def test_large_weights_lie_beside(tmp_path, monkeypatch):
    monkeypatch.setattr(onnx, "LARGEST", 0)
    made = ziggurat.export(nn.Conv2d(3, 64, 9), tmp_path / "net.onnx", "onnx", False, size=16)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["net.onnx", "net.onnx.data"]
    assert ziggurat.exporting.open(made.path)(torch.zeros(1, 3, 16, 16))["output"].shape == (1, 64, 8, 8)


@pytest.mark.parametrize(
    "arguments, error, said",
    [
        (dict(format="onx"), BadArgument, "formats are 'onnx', 'openvino', 'torch', 'aoti', 'coreml'; nearest is 'onnx'"),
        (dict(format="openvino"), BadArgument, "files of format='openvino' end in .xml"),
        (dict(path="nowhere/net.onnx"), BadArgument, "there is no folder nowhere; create it first"),
        (dict(view="tokens"), BadArgument, "test_resnet gives 'classify', 'embed', 'pyramid', 'forward'"),
        (dict(view="pyramid", strides=(3,)), UnsupportedStride, "there is no level of stride 3"),
        (dict(strides=(4,)), BadArgument, "strides=(4,) is for view='pyramid'"),
        (dict(dynamic="height"), BadArgument, "give True (batch, height and width are free), 'batch', or False"),
        (dict(size="64"), BadArgument, "size='64': give pixels, or (height, width)"),
        (dict(size=8), BadArgument, "this model takes"),
        (dict(size=64.0), BadArgument, "size=64.0: give pixels, or (height, width)"),
        (dict(size=True), BadArgument, "size=True: give pixels, or (height, width)"),
        (dict(batch=0), BadArgument, "batch=0: give the number of images"),
        (dict(batch=True), BadArgument, "batch=True: give the number of images"),
        (dict(model="resnet50"), BadArgument, "model='resnet50': give a network, as ziggurat.create_model makes them"),
        (dict(path=None), BadArgument, "path=None: give the path of the file to write"),
        (dict(format=["onnx"]), BadArgument, "format=['onnx']: formats are 'onnx', "),
        (dict(tolerance="x"), BadArgument, "tolerance='x': give a part of the largest value"),
        (dict(class_names=iter("ab")), BadArgument, "give a list of 1000 names, one for each class"),
        (dict(class_names=["one"]), BadArgument, "give a list of 1000 names, one for each class"),
        (dict(view="embed", class_names=["one"]), BadArgument, "view='embed' has no scores"),
        (dict(tolerance=-1), BadArgument, "tolerance=-1: give a part of the largest value"),
        (dict(format="coreml", path="net.mlpackage"), BadArgument, "its runtime exists on darwin only"),
        (dict(model=nn.MaxPool2d(99)), BadArgument, "size=64: images 1 x 3 x 64 x 64 were tried, and this MaxPool2d"),
    ],
)
def test_bad_arguments(arguments, error, said, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(module.sys, "platform", "linux")
    with pytest.raises(error) as caught:
        ziggurat.export(**dict(model=network(), path="net.onnx", size=64, dynamic=False) | arguments)
    assert said in str(caught.value)
    assert not list(tmp_path.iterdir())


def test_a_missing_package_names_the_command(monkeypatch, tmp_path):
    monkeypatch.setattr(packages, "find_spec", lambda name: None)
    with pytest.raises(MissingExtra, match=r"needs onnx, onnxscript, onnxruntime, not installed: pip install 'ziggurat\[onnx\]'"):
        ziggurat.export(network(), tmp_path / "net.onnx")


def test_models_without_weights_or_size(tmp_path):
    with pytest.raises(BadArgument, match="on the meta device"):
        ziggurat.export(ziggurat.create_model("test_resnet", device="meta"), tmp_path / "net.pt2", "torch")
    with pytest.raises(BadArgument, match="this Fixed states no size; give size=224, say"):
        ziggurat.export(Fixed(), tmp_path / "net.pt2", "torch")


def test_only_exported_files_are_opened(tmp_path):
    for name, said in (("a.onnx", "there is no"), ("a.txt", r"ends in none of \.mlpackage, \.onnx, \.pt2, \.xml")):
        (tmp_path / "a.txt").touch()
        with pytest.raises(BadArgument, match=said):
            ziggurat.exporting.open(tmp_path / name)


def test_damaged_files_and_those_of_others_are_said_to_be(tmp_path):
    (tmp_path / "folder.onnx").mkdir()
    for name in ("text.onnx", "text.xml", "text.pt2"):
        (tmp_path / name).write_text("something")
    for format, name in (("onnx", "cut.onnx"), ("openvino", "cut.xml")):
        ziggurat.export(nn.Conv2d(3, 4, 3), tmp_path / name, format, False, size=16, check=False)
    (tmp_path / "cut.onnx").write_bytes((tmp_path / "cut.onnx").read_bytes()[:200])
    (tmp_path / "cut.bin").unlink()
    program = torch.export.export(nn.Conv2d(3, 4, 3), (torch.zeros(1, 3, 16, 16),))
    torch.export.save(program, tmp_path / "others.pt2")
    torch.onnx.export(program, dynamo=True, verbose=False).save(tmp_path / "others.onnx")
    torch.save({}, tmp_path / "weights.pt2")
    for path in tmp_path.glob("*.[opx]*"):
        with pytest.raises(BadArgument, match=rf"{path.name} is damaged, or no file of ziggurat.export's"):
            ziggurat.exporting.open(path)


def test_free_sides_have_a_smallest_length(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    model = nn.Conv2d(5, 4, 3)  # the images' channels are those that it takes
    made = ziggurat.export(model, "~/net.pt2", "torch", size=160)
    assert (made.path, made.shape[1], made.min_size % SIDE_STEP) == (tmp_path / "net.pt2", 5, 0)
    loaded = ziggurat.exporting.open("~/net.pt2")
    assert (loaded.metadata["min_size"], loaded.metadata["side_step"]) == (made.min_size, SIDE_STEP)
    images = np.random.default_rng(0).standard_normal((1, 5, made.min_size, 160), np.float32)[..., ::-1]
    with torch.no_grad():
        assert_same(loaded(images)["output"], model(torch.from_numpy(images.copy())), "maps")
    with pytest.raises(BadArgument, match=rf"images of 64 x {made.min_size - 1} pixels: net.pt2 takes sides of {made.min_size} and"):
        loaded(torch.zeros(1, 5, 64, made.min_size - 1))


def test_a_package_that_must_not_be_imported_is_missing(tmp_path, monkeypatch):
    class Blocking:
        def find_spec(self, name, path=None, target=None):
            if name == "onnxscript":
                raise ModuleNotFoundError(f"{name} is blocked")

    monkeypatch.delitem(sys.modules, "onnxscript", raising=False)
    monkeypatch.setattr(sys, "meta_path", [Blocking(), *sys.meta_path])
    with pytest.raises(MissingExtra, match="needs onnxscript, not installed"):
        ziggurat.export(network(), tmp_path / "net.onnx")


@pytest.mark.parametrize("name, package", [("net.onnx", "onnxruntime"), ("net.xml", "openvino")])
def test_a_missing_runtime_is_named(tmp_path, monkeypatch, name, package):
    (tmp_path / name).touch()
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(MissingExtra, match=rf"needs {package}, not installed: pip install 'ziggurat\[\w+\]'"):
        ziggurat.exporting.open(tmp_path / name)


@pytest.mark.parametrize("mode, antialias, rules", [("bilinear", True, ANTIALIASED), ("bicubic", True, ANTIALIASED), ("bicubic", False, CUBIC)])
@pytest.mark.parametrize("size", [(6, 9), (23, 31), (14, 3), (1, 1)])
def test_interpolation_as_products(mode, antialias, rules, size):
    class Resized(nn.Module):
        def forward(self, x):
            return F.interpolate(x, size=size, mode=mode, antialias=antialias, align_corners=False)

    images = torch.randn(2, 3, 14, 17)
    program = torch.export.export(Resized(), (images,), strict=False)
    written = interpolation_as_products(program, rules)
    assert not any("upsample" in str(node.target) for node in written.graph.nodes)
    assert_same(written.module()(images), Resized()(images), mode)
    assert interpolation_as_products(written, rules) is written


@pytest.mark.skipif(SIDE_STEP > 1, reason="free sides are multiples of 32 before torch 2.15, and the table has 14")
def test_positions_that_shrink_are_taken_by_onnx_runtime(tmp_path):
    """Its own operator refuses to, bicubic, where it moves the permutations of two axes after another behind it."""

    class Positions(nn.Module):
        def __init__(self):
            super().__init__()
            self.table = nn.Parameter(torch.randn(1, 14, 14, 9))

        def forward(self, x):
            rows = resize_grid(self.table, x.shape[2:], "bicubic", antialias=False).flatten(1, 2)
            columns = rows.transpose(1, 2).unflatten(1, (3, 3))
            return resize_grid(columns, (2, 2), "bicubic", antialias=False).flatten(1, 2) * x.mean()

    model = Positions()
    ziggurat.export(model, tmp_path / "net.onnx", view="forward", size=8)
    images = torch.randn(2, 3, 9, 11)
    (found,) = ziggurat.exporting.open(tmp_path / "net.onnx")(images).values()
    assert_same(torch.as_tensor(found), model(images), "positions")


def test_every_format_has_its_module():
    for name in module.FORMATS:
        assert callable(format_module(name).write)
        assert callable(format_module(name).open)
