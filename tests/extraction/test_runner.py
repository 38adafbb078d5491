"""Images to classes and embeddings, with real weights and with bad files among the good."""

import shutil
from pathlib import Path

import pytest
import torch
from PIL import Image

import ziggurat
from ziggurat.errors import BadArgument, UnreadableImage
from ziggurat.extraction import class_labels, classify_images, embed_images, extract_images, image_transform

PHOTOS = Path(__file__).parents[2] / "examples" / "photos"


@pytest.fixture(scope="module")
def lite0():
    return ziggurat.create_model("tf_efficientnet_lite0.pip_in1k", pretrained=True).eval()


@pytest.fixture(scope="module")
def small():
    torch.manual_seed(0)
    return ziggurat.create_model("resnet10t", num_classes=7).eval()


def test_real_photos(lite0):
    scores = {path.stem: found for path, found in classify_images(lite0, PHOTOS)}
    assert sorted(scores) == ["astronaut", "camera", "chelsea", "coffee", "rocket"]
    assert {s.name.split(",")[0] for s in scores["chelsea"][:3]} == {"tiger cat", "Egyptian cat", "tabby"}
    assert scores["coffee"][0].name == "espresso"
    assert scores["coffee"][0].probability == pytest.approx(0.95, abs=0.02)
    assert scores["camera"][0].name == "tripod"
    assert scores["camera"][0].probability == pytest.approx(0.94, abs=0.02)
    assert scores["rocket"][0].label == "n04008634" or scores["rocket"][0].name.startswith("missile")
    for found in scores.values():
        assert len(found) == 5
        assert [s.probability for s in found] == sorted((s.probability for s in found), reverse=True)


@pytest.mark.parametrize("name", ["tf_efficientnet_lite1.pip_in1k", "tf_efficientnet_lite2.pip_in1k"])
def test_other_packaged_weights(name):
    model = ziggurat.create_model(name, pretrained=True).eval()
    ((_, (best, *_)),) = classify_images(model, PHOTOS / "coffee.jpg")
    assert best.name == "espresso"
    assert best.probability > 0.5


def test_order_batches_and_bad_files(small, tmp_path):
    for name in ("b.jpg", "d.jpg", "e.jpg"):
        shutil.copy(PHOTOS / "chelsea.jpg", tmp_path / name)
    (tmp_path / "a.png").write_text("no picture")
    (tmp_path / "c.jpg").write_bytes((PHOTOS / "coffee.jpg").read_bytes()[:4000])
    found = list(embed_images(small, [tmp_path, tmp_path / "f.jpg"], batch_size=2, workers=2))
    assert [path.name for path, _ in found] == ["a.png", "b.jpg", "c.jpg", "d.jpg", "e.jpg", "f.jpg"]
    bad = [path.name for path, result in found if isinstance(result, UnreadableImage)]
    assert bad == ["a.png", "c.jpg", "f.jpg"]
    x = image_transform(small)(Image.open(PHOTOS / "chelsea.jpg"))
    with torch.inference_mode():
        alone = small.embed(x[None])[0]
    for _, result in found:
        if not isinstance(result, UnreadableImage):
            torch.testing.assert_close(result, alone)


def test_images_are_not_held(small, tmp_path):
    held = []
    alive = 0

    class Counted:
        def __call__(self, image):
            nonlocal alive
            alive += 1
            held.append(alive)
            return torch.zeros(3, 32, 32)

    for index in range(40):
        Image.new("RGB", (8, 8)).save(tmp_path / f"{index:02d}.png")
    for _ in extract_images(small, tmp_path, batch_size=4, transform=Counted()):
        alive -= 1
    assert len(held) == 40
    assert max(held) <= 2 * 4


def test_stopping_early_leaves_no_thread(small):
    images = extract_images(small, PHOTOS, batch_size=1, workers=2)
    path, views = next(images)
    images.close()
    assert path.name == "astronaut.jpg"
    assert views["embedding"].shape == (512,)


def test_views_of_one_pass(small):
    (_, views), = extract_images(small, PHOTOS / "coffee.jpg", ("scores", "pyramid"), strides=(8, 16))
    assert views["scores"].shape == (7,)
    assert {s: tuple(m.shape) for s, m in views["pyramid"].items()} == {8: (128, 22, 22), 16: (256, 11, 11)}


def test_labels(small):
    assert class_labels(small)[6] == ("6", "class 6")
    named = ziggurat.create_model("resnet10t", num_classes=2).eval()
    named.pretrained_cfg.update(label_names=("cat", "dog"), label_descriptions={"dog": "a good dog"})
    assert class_labels(named) == [("cat", "cat"), ("dog", "a good dog")]
    with pytest.raises(BadArgument, match="no classifier"):
        next(classify_images(ziggurat.create_model("resnet10t", num_classes=0).eval(), PHOTOS))
    with pytest.raises(BadArgument, match="no classifier"):
        class_labels(ziggurat.create_model("resnet10t", features_only=True))


def test_refusals(small):
    for options in (dict(batch_size=0), dict(workers=0)):
        with pytest.raises(BadArgument, match="give 1 or more"):
            next(extract_images(small, PHOTOS, **options))
    with pytest.raises(BadArgument, match="give 1 or more"):
        next(classify_images(small, PHOTOS, top=0))
    with pytest.raises(BadArgument, match=r"model\.eval"):
        next(extract_images(ziggurat.create_model("resnet10t"), PHOTOS))


def test_top_is_cut_at_the_number_of_classes(small):
    (_, scores), = classify_images(small, PHOTOS / "coffee.jpg", top=50)
    assert len(scores) == 7
    assert sum(s.probability for s in scores) == pytest.approx(1, abs=1e-5)
