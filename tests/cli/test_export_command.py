"""`ziggurat export`."""

import json

import pytest
from safetensors.torch import save_file

import ziggurat
from commanding import ziggurat_
from ziggurat.exporting.export import SIDE_STEP


def test_a_file_is_written_and_told(tmp_path):
    out, _ = ziggurat_("export", "test_resnet", tmp_path / "net.pt2", "--random", "--view", "pyramid", "--strides", "4,8",
                       "--size", "96", "--pixels")
    least = "65 pixels and more" if SIDE_STEP == 1 else "96 pixels and more, multiples of 32"
    assert f"torch, images any x 3 x any x any of {least}" in out
    assert "gives stride_4, stride_8; within " in out
    assert ziggurat.exporting.open(tmp_path / "net.pt2").metadata["pixels"] is True


def test_a_checkpoint_with_names_for_its_classes(tmp_path):
    model = ziggurat.create_model("test_resnet", num_classes=3)
    save_file(model.state_dict(), tmp_path / "own.safetensors")
    (tmp_path / "names.txt").write_text("cat\ndog\nhen\n")
    out, _ = ziggurat_("export", "test_resnet", tmp_path / "net.xml", "--checkpoint", tmp_path / "own.safetensors", "--classes", 3,
                       "--class-names", tmp_path / "names.txt", "--static", "--batch", 2, "--size", "64x96", "--json")
    told = json.loads(out)
    assert told.pop("error") < 1e-4
    assert told == dict(path=str(tmp_path / "net.xml"), format="openvino", view="classify", names=["scores"], shape=[2, 3, 64, 96],
                        dynamic=[], min_size=64, side_step=told["side_step"])
    assert ziggurat.exporting.open(tmp_path / "net.xml").metadata["class_names"] == ["cat", "dog", "hen"]


@pytest.mark.parametrize(
    "arguments, said",
    [
        (["net.txt"], "PATH net.txt ends in none of .onnx, .xml, .mlpackage, .pt2: give another, or --format"),
        (["net.onnx", "--size", "big"], "--size big: give pixels, as in 224, or 224x320 (height x width)"),
        (["net.onnx", "--strides", "a"], "--strides a: give whole numbers"),
        (["net.onnx", "--class-names", "none.txt"], "--class-names none.txt: there is no such file"),
        (["net.onnx", "--format", "torch"], "files of format='torch' end in .pt2"),
        (["net.onnx", "--view", "tokens"], "view='tokens': test_resnet gives 'embed', 'pyramid', 'forward'"),
    ],
)
def test_sentences(arguments, said, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    _, err = ziggurat_("export", "test_resnet", *arguments, "--random", status=2)
    assert said in err
    assert not list(tmp_path.iterdir())
