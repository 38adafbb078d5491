"""Programs of torch.export, AOTInductor's packages and Core ML's: what is in the files, and what runs."""

import json
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch

import ziggurat
from ziggurat import exporting
from ziggurat.errors import BadArgument
from ziggurat.exporting import coreml
from ziggurat.exporting.export import export
from ziggurat.testing import settled
from ziggurat.view import largest_error


def network(name="test_resnet", **kwargs):
    return settled(lambda **more: ziggurat.create_model(name, **kwargs, **more)).requires_grad_(False)


def test_a_program_of_torch_opens_with_torch_alone(tmp_path):
    model = network()
    path = tmp_path / "net.pt2"
    done = export(model, path, "torch", view="pyramid", strides=(8, 32), size=96)
    assert done.error < 1e-5
    assert done.dynamic == ("batch", "height", "width")
    assert [file.name for file in tmp_path.iterdir()] == ["net.pt2"]
    extra = {"metadata.json": ""}
    program = torch.export.load(path, extra_files=extra)
    images = torch.randn(3, 3, 128, 160)
    with torch.no_grad():
        assert largest_error(program.module()(images), list(model.pyramid(images, (8, 32)).values())) < 1e-5
    facts = {key: json.loads(value) for key, value in json.loads(extra["metadata.json"]).items()}
    assert facts["outputs"] == ["stride_8", "stride_32"]
    assert facts["input_shape"] == [None, 3, None, None]
    loaded = exporting.open(path)
    assert (loaded.format, loaded.names) == ("torch", ("stride_8", "stride_32"))
    assert loaded.metadata == facts


def test_a_program_of_torch_takes_bytes(tmp_path):
    model = network("test_efficientnet", num_classes=3)
    path = tmp_path / "net.pt2"
    export(model, path, "torch", dynamic=False, size=64, pixels=True, class_names=["cat", "hund", "été"])
    loaded = exporting.open(path)
    assert loaded.metadata["class_names"] == ["cat", "hund", "été"]
    pixels = torch.randint(0, 256, (1, 3, 64, 64), dtype=torch.uint8)
    mean, std = (torch.tensor(model.pretrained_cfg[key]).reshape(3, 1, 1) for key in ("mean", "std"))
    with torch.no_grad():
        assert largest_error([loaded(pixels)["scores"]], [model((pixels / 255 - mean) / std)]) < 1e-5


def test_a_package_of_aotinductor_holds_code_and_metadata(tmp_path):
    model = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3, stride=2), torch.nn.ReLU())
    path = tmp_path / "net.pt2"
    done = export(model, path, "aoti", size=64, class_names=None)
    assert done.error < 1e-5
    assert any(name.endswith(".so") for name in zipfile.ZipFile(path).namelist())
    loaded = exporting.open(path)
    assert (loaded.format, loaded.names) == ("aoti", ("output",))
    assert loaded.metadata["input_shape"] == list(loaded.input_shape)
    images = np.random.default_rng(0).standard_normal((2, 3, 192, 96), np.float32)[:, :, ::2]  # rows apart in memory
    if "height" in done.dynamic:
        with torch.no_grad():
            assert largest_error(list(loaded(images).values()), [model(torch.from_numpy(images))]) < 1e-5
    with pytest.raises(BadArgument, match="float64: net.pt2 takes torch.float32"):
        loaded(images.astype(np.float64))


def test_decompositions_for_core_ml_change_no_number():
    class Rare(torch.nn.Module):
        def forward(self, images):
            x = torch.addcmul(images, images, images.flip(1), value=0.5)
            x = torch.nn.functional.channel_shuffle(x, 3)
            x = torch.nn.functional.avg_pool2d(x, (2, 3), 2, (1, 0), divisor_override=7)
            return (torch.nn.functional.interpolate(x, (9, 8), mode="bicubic", antialias=True),)

    images = torch.randn(2, 6, 12, 17)
    program = coreml.decomposed(torch.export.export(Rare(), (images,)))
    targets = {node.target for node in program.graph.nodes if node.op == "call_function"}
    assert not targets & coreml.DECOMPOSED.keys() - {torch.ops.aten.avg_pool2d.default, torch.ops.aten.constant_pad_nd.default}
    assert largest_error(program.module()(images), Rare()(images)) < 1e-6


def test_padding_by_the_size_of_the_images_is_cut_to_measure():
    class Ceil(torch.nn.Module):
        def forward(self, images):
            rows, columns = (-side % 8 for side in images.shape[2:])
            return (torch.nn.functional.pad(images, (columns, 0, 0, rows), value=2.0),)

    side = torch.export.Dim.DYNAMIC
    program = torch.export.export(Ceil(), (torch.zeros(1, 3, 70, 90),), dynamic_shapes=({2: side, 3: side},))
    changed = coreml.decomposed(program)
    pads = [node for node in changed.graph.nodes if node.target is torch.ops.aten.constant_pad_nd.default]
    assert [node.args[1] for node in pads] == [[7, 0, 0, 7]]
    for shape in ((1, 3, 70, 90), (1, 3, 67, 81), (1, 3, 72, 96), (1, 3, 73, 97)):
        images = torch.randn(shape)
        assert torch.equal(changed.module(check_guards=False)(images)[0], Ceil()(images)[0])


def test_padding_by_less_than_nothing_cuts():
    class Shifted(torch.nn.Module):
        def forward(self, images):
            rows = -(images.shape[2] % 4)
            images = torch.nn.functional.pad(images, (-1, 1, -1, 1), value=3.0)
            return (torch.nn.functional.pad(images, (2, -2, 0, rows)),)

    side = torch.export.Dim.DYNAMIC
    for sides in (None, {2: side, 3: side}):
        program = torch.export.export(Shifted(), (torch.zeros(1, 3, 14, 17),), dynamic_shapes=(sides,))
        changed = coreml.decomposed(program)
        for node in changed.graph.nodes:
            assert node.target is not torch.ops.aten.constant_pad_nd.default or min(node.args[1]) >= 0
        for shape in ((1, 3, 14, 17), (1, 3, 12, 9)) if sides else ((1, 3, 14, 17),):
            images = torch.randn(shape)
            assert torch.equal(changed.module(check_guards=False)(images)[0], Shifted()(images)[0])


@pytest.mark.parametrize("mode", ["nearest", "bilinear"])
def test_maps_are_made_as_large_as_others_of_free_sizes(mode):
    class Fused(torch.nn.Module):
        def forward(self, images):
            small = torch.nn.functional.avg_pool2d(images, 4, ceil_mode=True)
            return (images + torch.nn.functional.interpolate(small, images.shape[2:], mode=mode),)

    side = torch.export.Dim.DYNAMIC
    program = torch.export.export(Fused(), (torch.randn(1, 3, 70, 90),), dynamic_shapes=({2: side, 3: side},))
    changed = coreml.decomposed(program)
    assert not any("upsample" in str(node.target) for node in changed.graph.nodes)
    for shape in ((1, 3, 70, 90), (1, 3, 67, 81), (1, 3, 72, 96), (1, 3, 201, 13)):
        images = torch.randn(shape)
        assert largest_error(changed.module(check_guards=False)(images), Fused()(images)) < 1e-6


def test_the_mean_of_a_map_says_nothing_of_memory():
    class Pooled(torch.nn.Module):
        def forward(self, images):
            last = images.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2)
            return torch.nn.functional.adaptive_avg_pool2d(last, 1), torch.nn.functional.adaptive_avg_pool2d(last, (2, 3))

    images = torch.randn(2, 5, 8, 9)
    changed = coreml.decomposed(torch.export.export(Pooled(), (images,)))
    assert not any("as_strided" in str(node.target) for node in changed.graph.nodes)
    assert largest_error(changed.module()(images), Pooled()(images)) < 1e-6


@pytest.mark.skipif(sys.platform == "darwin", reason="Core ML runs here: test_export.py checks it")
def test_core_ml_is_written_unchecked_off_macos(tmp_path):
    import coremltools

    model = network()
    path = tmp_path / "net.mlpackage"
    with pytest.raises(BadArgument, match="check=False"):
        export(model, path, "coreml", size=64)
    with pytest.raises(BadArgument, match="takes no tensor of bytes; give pixels=False"):
        export(model, path, "coreml", dynamic=False, size=64, pixels=True, check=False)
    assert not list(tmp_path.iterdir())
    done = export(model, path, "coreml", dynamic=False, size=64, view="pyramid", check=False)
    assert done.error is None
    package = coremltools.models.MLModel(str(path), skip_model_load=True)
    described = package.get_spec().description
    assert [(each.name, list(each.type.multiArrayType.shape)) for each in described.input] == [("images", [1, 3, 64, 64])]
    assert tuple(each.name for each in described.output) == done.names
    assert json.loads(package.user_defined_metadata["outputs"]) == list(done.names)
    with pytest.raises(BadArgument, match="runs on macOS only"):
        exporting.open(path)
    assert Path(path, "Manifest.json").is_file()


def test_core_ml_pads_images_of_free_sizes(tmp_path):
    class Patches(torch.nn.Conv2d):
        """Of 16 x 16 pixels, the last ones padded: the length of each side depends on a quotient."""

        def forward(self, images):
            rows, columns = (((side - 1) // 16 + 1) * 16 - side for side in images.shape[2:])
            return super().forward(torch.nn.functional.pad(images, (0, columns, 0, rows)))

    done = export(Patches(3, 4, 16, 16), tmp_path / "net.mlpackage", "coreml", size=64, check=False)
    assert done.dynamic == ("batch", "height", "width")
