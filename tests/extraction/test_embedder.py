"""The callable for engines that bring their own images: kinds of columns, bad images, processes, Hugging Face datasets."""

import io
import pickle
import subprocess
import sys

import datasets
import numpy as np
import pytest
import torch
from PIL import Image
from running import MODEL, picture, run

import ziggurat
from ziggurat.errors import BadArgument
from ziggurat.extraction import image_transform, unit

SMALL = dict(size=64, batch_size=4, threads=1, device="cpu")
GOOD = [picture(seed) for seed in range(6)]


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return ziggurat.create_model(MODEL).eval()


@pytest.fixture(scope="module")
def checkpoint(model, tmp_path_factory):
    path = tmp_path_factory.mktemp("weights") / "model.pt"
    torch.save(model.state_dict(), path)
    return str(path)


def opened(data: bytes) -> Image.Image:
    return Image.open(io.BytesIO(data))


def test_vectors_are_the_models_own(model):
    embed = ziggurat.Embedder(model, decode="reference", batch_size=4, threads=1, device="cpu")
    transform = image_transform(model)
    with torch.inference_mode():
        expected = model.embed(torch.stack([transform(opened(data)) for data in GOOD[:2]])).numpy()
    found = embed({"image": GOOD[:2]})["embedding"]
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_every_kind_of_image_gives_the_same(model, tmp_path):
    path = tmp_path / "a.png"
    path.write_bytes(picture(0, format="PNG"))
    data = path.read_bytes()
    kinds = [data, str(path), path, opened(data), np.array(opened(data)), {"bytes": data, "path": None},
             {"bytes": None, "path": str(path)}]
    found = ziggurat.Embedder(model, **SMALL)({"image": kinds})
    assert found["failure"] == [""] * len(kinds)
    assert (np.ptp(found["embedding"], axis=0) == 0).all()
    stacked = np.stack([np.array(opened(data))] * 2)  # as Ray Data has images of one size
    assert np.array_equal(ziggurat.Embedder(model, **SMALL)({"image": stacked})["embedding"], found["embedding"][:2])


def test_a_bad_image_costs_itself(model, tmp_path):
    embed = ziggurat.Embedder(model, **SMALL, workers=2)
    cut = tmp_path / "cut.png"
    cut.write_bytes(picture(9, format="PNG")[:-40])
    with Image.open(cut) as half:
        batch = {"image": [GOOD[0], b"", GOOD[1], None, b"hello", tmp_path / "gone.jpg", GOOD[3], half], "key": list(range(8))}
        found = embed(batch)
    assert found["failure"] == ["", "empty", "", "missing", "not_an_image", "missing", "", "truncated"]
    assert found["key"] == batch["key"]
    assert np.isnan(found["embedding"]).all(1).tolist() == [cause != "" for cause in found["failure"]]
    # whatever its neighbours are, an image of the same place has the same bits
    others = [GOOD[0], GOOD[5], GOOD[1], GOOD[5], GOOD[5], GOOD[5], GOOD[3], GOOD[5]]
    beside = embed({"image": others})["embedding"]
    assert np.array_equal(beside[[0, 2, 6]], found["embedding"][[0, 2, 6]])


def test_numbers_that_are_not_finite_are_a_failure(model):
    broken = ziggurat.create_model(MODEL).eval()
    with torch.no_grad():
        broken.conv1[0].weight.fill_(float("inf"))
    found = ziggurat.Embedder(broken, **SMALL, outputs="embedding")({"image": GOOD[:1]})
    assert found["failure"] == ["nan"]
    assert np.isnan(found["embedding"]).all()


def test_outputs_of_one_pass(model):
    embed = ziggurat.Embedder(model, outputs=("embedding", "logits", "pyramid/stride_8", "taps/layer1"), **SMALL)
    found = embed({"image": GOOD[:5]})
    assert {name: value.shape for name, value in found.items() if isinstance(value, np.ndarray)} == {
        "embedding": (5, 512), "logits": (5, 1000), "pyramid/stride_8": (5, 128, 8, 8), "taps/layer1": (5, 64)}
    assert pickle.loads(pickle.dumps(embed)).outputs == embed.outputs  # what it made for this process stays behind
    assert embed({"image": []})["embedding"].shape == (0, 512)


def test_numbers_are_those_of_extract(model, checkpoint, tmp_path):
    (tmp_path / "in").mkdir()
    for number, data in enumerate(GOOD):
        (tmp_path / "in" / f"{number}.jpg").write_bytes(data)
    run(tmp_path / "in", tmp_path / "out", random=False, checkpoint=checkpoint, dtype="f32")
    found = ziggurat.Embedder(MODEL, checkpoint=checkpoint, **SMALL)({"image": GOOD})["embedding"]
    assert np.array_equal(ziggurat.open(tmp_path / "out").embedding.numpy(), found)


def test_a_process_makes_the_network_once(checkpoint, monkeypatch):
    made = []
    load = unit.load_model
    monkeypatch.setattr(unit, "load_model", lambda *arguments, **options: made.append(1) or load(*arguments, **options))
    embed = ziggurat.Embedder(MODEL, checkpoint=checkpoint, **{**SMALL, "batch_size": 3})
    assert not made  # nothing is loaded where it is only described, as on the driver of a cluster
    assert len(pickle.dumps(embed)) < 1000
    found = [pickle.loads(pickle.dumps(embed))({"image": GOOD[:2]})["embedding"] for _ in range(3)]
    assert len(made) == 1
    assert np.array_equal(found[0], found[2])


def test_datasets_map(checkpoint, tmp_path):
    images = [*GOOD[:3], b"no image", *GOOD[3:]]
    table = datasets.Dataset.from_dict({"image": [{"bytes": data, "path": None} for data in images]})
    table = table.cast_column("image", datasets.Image(decode=False))
    embed = ziggurat.Embedder(MODEL, checkpoint=checkpoint, **SMALL)
    with_vectors = table.map(embed, batched=True, batch_size=4, cache_file_name=str(tmp_path / "cache.arrow"))
    assert with_vectors["failure"][:] == ["", "", "", "not_an_image", "", "", ""]
    expected = [embed({"image": images[first : first + 4]})["embedding"] for first in (0, 4)]
    assert np.array_equal(with_vectors.with_format("numpy")["embedding"][:], np.concatenate(expected), equal_nan=True)
    decoded = table.select([0, 1]).cast_column("image", datasets.Image()).map(embed, batched=True)
    np.testing.assert_allclose(decoded.with_format("numpy")["embedding"][:], expected[0][:2], atol=1e-6)


def test_what_cannot_work_is_told(model):
    with pytest.raises(BadArgument, match="'embeddings' is none; give some of 'embedding'"):
        ziggurat.Embedder(model, outputs="embeddings")
    with pytest.raises(BadArgument, match="no output is asked for"):
        ziggurat.Embedder(model, outputs=())
    with pytest.raises(BadArgument, match="column='image': the batch has 'jpg', 'key'"):
        ziggurat.Embedder(model)({"jpg": GOOD, "key": [0]})
    with pytest.raises(BadArgument, match="cannot take an array float64"):
        ziggurat.Embedder(model, **SMALL)({"image": [np.zeros((4, 4, 3))]})
    with pytest.raises(BadArgument, match=r"call model.eval\(\) first"):
        ziggurat.Embedder(ziggurat.create_model(MODEL))
    with pytest.raises(BadArgument, match="workers=0"):
        ziggurat.Embedder(model, workers=0)


def test_describing_one_does_not_load_the_model():
    """Nor any package that is not used: a driver needs no Ray, no datasets, no Parquet for it."""
    code = ("import sys, ziggurat; ziggurat.Embedder('resnet50'); "
            "print(sorted({'ray', 'datasets', 'pyarrow', 'openvino'} & set(sys.modules)))")
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
