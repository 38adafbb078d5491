"""Bytes to pixels: the files that are accepted are Pillow's, and the pixels are those of ziggurat's own transform."""

from __future__ import annotations

import base64
import io
import json
import pickle
import struct
import threading
import warnings
import zlib
from functools import lru_cache
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFile

import ziggurat
from ziggurat.data import create_transform
from ziggurat.data.config import resolve_model_data_config
from ziggurat.errors import BadArgument, MissingExtra
from ziggurat.extraction import decoding
from ziggurat.extraction.decoding import DecodeFailure, Preprocessing, decode
from ziggurat.extraction.failures import CAUSES, STAGES

PHOTOS = sorted((Path(__file__).parents[2] / "examples" / "photos").glob("*.jpg"))
EXACT = Preprocessing((48, 48))
REFERENCE = Preprocessing((48, 48), decode="reference")

# 24 x 16 pixels, arithmetic coding, which Pillow reads and does not write: made with libjpeg's arith_code
ARITHMETIC = base64.b64decode(
    "/9j/4AAQSkZJRgABAQAAAQABAAD/2wBDABALDA4MChAODQ4SERATGCgaGBYWGDEjJR0oOjM9PDkzODdASFxOQERXRTc4UG1RV19iZ2hnPk1xeXBkeFxl"
    "Z2P/2wBDARESEhgVGC8aGi9jQjhCY2NjY2NjY2NjY2NjY2NjY2NjY2NjY2NjY2NjY2NjY2NjY2NjY2NjY2NjY2NjY2NjY2NjY2P/yQARCAAQABgDASIA"
    "AhEBAxEB/8wACgAQEAUBEBEF/9oADAMBAAIRAxEAPwD/AHSSfbPyNHzJv+Pfse6KCXV+aOE3UO3L+2nhOAWAGlgkYxEJ1v8Aav/Z"
)


def picture(width: int = 90, height: int = 70, mode: str = "RGB") -> Image.Image:
    """Gradients with edges in them."""
    y, x = np.mgrid[:height, :width]
    rgb = np.stack([x * 255 // width, y * 255 // height, (x // 9 + y // 7) % 2 * 200], -1).astype(np.uint8)
    return Image.fromarray(rgb).convert(mode)


def saved(image: Image.Image, kind: str = "JPEG", **how: object) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **how)
    return file.getvalue()


def chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png_header(width: int, height: int) -> bytes:
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))


def changed(data: bytes, at: int, new: bytes) -> bytes:
    return data[:at] + new + data[at + len(new) :]


def without_adobe(data: bytes) -> bytes:
    at = data.index(b"\xff\xee")
    return data[:at] + data[at + 2 + int.from_bytes(data[at + 2 : at + 4], "big") :]


def oriented(orientation: int, kind: str = "JPEG", size: tuple[int, int] = (90, 70)) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return saved(picture(*size), kind, exif=exif)


@lru_cache(maxsize=1)
def zoo() -> dict[str, bytes]:
    """Files of every kind, sound and not; `CAUSE_OF` says what is wrong with those that are not."""
    rgb = picture()
    jpeg = saved(rgb, quality=90)
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (60, 80, 3), np.uint8))
    alpha = picture(mode="RGBA")
    alpha.putalpha(Image.fromarray((np.mgrid[:70, :90][1] * 2).astype(np.uint8)))
    palette = rgb.quantize(16)
    sixteen = Image.fromarray((np.mgrid[:70, :90][1] * 700).astype(np.uint16))
    other = picture(60, 50).rotate(90)
    cmyk = saved(rgb.convert("CMYK"))
    adobe = cmyk.index(b"Adobe")
    png = saved(rgb, "PNG")
    start = jpeg.index(b"\xff\xda")
    return {
        "jpeg": jpeg,
        "jpeg of one pixel": saved(picture(1, 1)),
        "jpeg 4:4:4": saved(rgb, quality=95, subsampling=0),
        "jpeg of noise": saved(noise, quality=95),
        "jpeg, progressive": saved(rgb, progressive=True),
        "jpeg, arithmetic": ARITHMETIC,
        "jpeg, grey": saved(picture(mode="L")),
        "jpeg, rgb stored": saved(rgb, keep_rgb=True),
        "jpeg, cmyk": cmyk,
        "jpeg, cmyk without adobe": without_adobe(cmyk),
        "jpeg, ycck": changed(cmyk, adobe + 11, b"\x02"),
        "jpeg, garbage behind": jpeg + b"garbage" * 9,
        "jpeg, broken exif": saved(rgb, exif=b"Exif\0\0II*\0\xff\xff\xff\xff nothing"),
        "jpeg, other data between": jpeg[:start] + b"\0\0\0" + jpeg[start:],
        "mpo": saved(rgb, "MPO", save_all=True, append_images=[other]),
        "png": png,
        "png of one pixel": saved(picture(1, 1), "PNG"),
        "png, palette": saved(palette, "PNG"),
        "png, palette with transparency": saved(palette, "PNG", transparency=3),
        "png, grey and alpha": saved(alpha.convert("LA"), "PNG"),
        "png, alpha": saved(alpha, "PNG"),
        "png, 16 bits": saved(sixteen, "PNG"),
        "png, 1 bit": saved(picture(mode="1"), "PNG"),
        "png, transparent colour": saved(rgb, "PNG", transparency=(0, 0, 0)),
        "png, bad exif": png[:33] + chunk(b"eXIf", b"nonsense") + png[33:],
        "tiff": saved(rgb, "TIFF"),
        "tiff, I": saved(picture(mode="L").convert("I"), "TIFF"),
        "tiff, F": saved(picture(mode="F"), "TIFF"),
        "tiff, lab": saved(Image.frombytes("LAB", (90, 70), rgb.tobytes()), "TIFF"),
        "bmp": saved(rgb, "BMP"),
        "gif": saved(palette, "GIF"),
        "gif, animated": saved(rgb, "GIF", save_all=True, append_images=[other.resize(rgb.size)]),
        "webp": saved(rgb, "WEBP"),
        "webp, animated": saved(rgb, "WEBP", save_all=True, append_images=[other.resize(rgb.size)]),
        "webp, alpha": saved(alpha, "WEBP", lossless=True),
        "ppm": saved(rgb, "PPM"),
        "a strip": saved(picture(400, 2), "PNG"),
        "nothing": b"",
        "html": b"<!DOCTYPE html><html><body>404</body></html>",
        "zeros": bytes(5000),
        "jpeg, cut": jpeg[: len(jpeg) * 6 // 10],
        "jpeg, cut in its header": jpeg[:100],
        "jpeg, three bytes": jpeg[:3],
        "jpeg, no end marker": jpeg[:-2],
        "jpeg, damaged": changed(jpeg, start + 400, bytes(range(200))),
        "jpeg, damaged to 0xff": changed(jpeg, start + 300, b"\xff\xc4\xff\xff\xff\x01" * 10),
        "jpeg, 12 bits": changed(jpeg, jpeg.index(b"\xff\xc0") + 4, b"\x0c"),
        "jpeg, height 0": changed(jpeg, jpeg.index(b"\xff\xc0") + 5, b"\0\0"),
        "jpeg, bomb": changed(jpeg, jpeg.index(b"\xff\xc0") + 5, b"\xff\xff\xff\xff"),
        "png, cut": png[: len(png) // 2],
        "png, damaged": changed(png, len(png) // 2, b"\0" * 40),
        "png, bomb": png_header(60000, 60000) + chunk(b"IDAT", zlib.compress(bytes(100))) + chunk(b"IEND", b""),
        "png, its header alone": png_header(50, 50),
        "gif, cut": saved(palette, "GIF")[:700],
        "tiff, cut": saved(rgb, "TIFF")[:600],
        "webp, cut": saved(rgb, "WEBP")[:300],
        "bmp, cut": saved(rgb, "BMP")[:900],
    }


CAUSE_OF = {
    "nothing": "empty", "html": "not_an_image", "zeros": "not_an_image", "jpeg, cut": "truncated",
    "jpeg, no end marker": "truncated", "jpeg, bomb": "too_large", "png, bomb": "too_large", "png, cut": "truncated",
    "jpeg, three bytes": "corrupt", "jpeg, cut in its header": "truncated", "jpeg, 12 bits": "corrupt",
    "gif, cut": "truncated", "bmp, cut": "truncated",
}


def by_pillow(data: bytes, preprocessing: Preprocessing) -> np.ndarray | None:
    """What ziggurat's evaluation transform makes of a file; None where Pillow does not read it."""
    transform = create_transform(
        (preprocessing.channels, *preprocessing.size), interpolation=preprocessing.interpolation, normalize=False,
        crop_pct=preprocessing.crop_pct, crop_mode=preprocessing.crop_mode, mean=preprocessing.mean,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            image = ziggurat.data.open_image(io.BytesIO(data), apply_exif=preprocessing.exif == "apply")
        except BadArgument:
            return None
        return transform(image).permute(1, 2, 0).numpy()


def difference(found: np.ndarray, reference: np.ndarray) -> tuple[int, float]:
    apart = np.abs(found.astype(int) - reference)
    return int(apart.max()), float(apart.mean())


def outcome(data: bytes, preprocessing: Preprocessing) -> np.ndarray | str:
    try:
        return decode(data, preprocessing)
    except DecodeFailure as error:
        failure = error
    assert failure.stage in STAGES and failure.cause in CAUSES and failure.message
    return f"{failure.cause}: {failure.message}"


@pytest.mark.parametrize("name", zoo())
def test_what_pillow_reads_is_read_and_nothing_else(name):
    data = zoo()[name]
    reference = by_pillow(data, EXACT)
    found = outcome(data, EXACT)
    if reference is None:
        assert isinstance(found, str), "Pillow does not read it"
        assert found == outcome(data, EXACT) == outcome(data, REFERENCE), "the words are the same each time"
        assert "0x" not in found and "BytesIO" not in found
        assert found.split(":")[0] == CAUSE_OF.get(name, found.split(":")[0])
        return
    assert name not in CAUSE_OF
    assert isinstance(found, np.ndarray), found
    assert found.shape == (48, 48, 3) and found.dtype == np.uint8 and found.flags.c_contiguous
    largest, _ = difference(found, reference)
    assert largest <= 2
    np.testing.assert_array_equal(decode(data, REFERENCE), reference)


def test_the_zoo_has_sound_and_unsound_animals():
    failing = {name for name, data in zoo().items() if isinstance(outcome(data, EXACT), str)}
    assert set(CAUSE_OF) <= failing and len(failing) >= 18 and len(zoo()) - len(failing) >= 35


def test_a_damaged_jpeg_is_judged_as_pillow_judges_it():
    """Single bytes changed anywhere: the same files pass, and what passes has the same pixels."""
    data, random = saved(picture(40, 30), quality=85), np.random.default_rng(1)
    passed = 0
    for at in random.integers(2, len(data), 150):
        damaged = changed(data, int(at), random.integers(0, 256, 1, np.uint8).tobytes())
        reference, found = outcome(damaged, REFERENCE), outcome(damaged, EXACT)
        assert isinstance(reference, str) == isinstance(found, str), at
        if isinstance(reference, str):
            assert reference == found
        else:
            passed += 1
            assert difference(found, reference)[0] <= 2
    assert 20 < passed < 150


@pytest.mark.parametrize("size", [(64, 64), (224, 224), (160, 224)], ids=str)
@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
def test_exact_is_the_reference_to_a_grey_level(interpolation, size):
    for path in PHOTOS:
        data = path.read_bytes()
        exact, reference = (decode(data, Preprocessing(size, interpolation=interpolation, decode=how)) for how in ("exact", "reference"))
        largest, mean = difference(exact, reference)
        assert largest <= 2 and mean <= 0.01


def test_fast_is_near_the_reference_and_states_by_how_much():
    """What the docstring of `Preprocessing` says: 48 to 54 dB, and 9 grey levels at most."""
    ratios = []
    for edge in (32, 64, 112):
        for path in PHOTOS:
            data = path.read_bytes()
            found, exact = (decode(data, Preprocessing((edge, edge), decode=how)) for how in ("fast", "exact"))
            if (found == exact).all():
                continue  # not twice as large as needed
            reference = decode(data, Preprocessing((edge, edge), decode="reference"))
            largest, mean = difference(found, reference)
            assert largest <= 9 and 0.2 <= mean <= 0.7
            ratios.append(10 * np.log10(255**2 / np.square(found.astype(int) - reference).mean()))
    assert len(ratios) >= 11 and min(ratios) >= 48 and max(ratios) <= 55


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_the_orientation_is_followed_or_left_aside(kind, orientation):
    data = oriented(orientation, kind)
    for exif in ("ignore", "apply"):
        exact, reference, fast = (
            decode(data, Preprocessing((40, 32), exif=exif, decode=how)) for how in ("exact", "reference", "fast")
        )
        np.testing.assert_array_equal(reference, by_pillow(data, Preprocessing((40, 32), exif=exif)))
        assert difference(exact, reference)[0] <= 2
        np.testing.assert_array_equal(fast, exact)
    ignored, applied = (decode(data, Preprocessing((40, 32), exif=exif)) for exif in ("ignore", "apply"))
    assert (ignored == applied).all() == (orientation == 1)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_fast_follows_the_orientation(orientation):
    for size in ((320, 240), (323, 241)):
        data = oriented(orientation, size=size)
        fast, exact = (decode(data, Preprocessing((40, 32), exif="apply", decode=how)) for how in ("fast", "exact"))
        assert np.abs(fast.astype(int) - exact).mean() < 2


@pytest.mark.parametrize("interpolation", ["bilinear", "lanczos"])
def test_fast_has_a_speed_for_every_interpolation(interpolation):
    data = saved(picture(400, 300))
    fast, exact = (decode(data, Preprocessing((40, 40), interpolation=interpolation, decode=how)) for how in ("fast", "exact"))
    assert (fast == exact).all() == (interpolation == "lanczos"), "which Pillow resizes, from the whole image"
    assert np.abs(fast.astype(int) - exact).mean() < 2


def test_the_order_of_rows_and_columns_is_pillows():
    """Where black and white alternate, bicubic weights overshoot, and the order of the passes shows."""
    random = np.random.default_rng(0)
    for _ in range(60):
        height, width, out_h, out_w = random.integers(8, 80, 4).tolist()
        image = Image.fromarray(random.integers(0, 2, (height, width, 3), np.uint8) * 255)
        settings = {"size": (out_h, out_w), "crop_mode": "squash", "crop_pct": 1.0}
        exact, reference = (decode(image, Preprocessing(decode=how, **settings)) for how in ("exact", "reference"))
        assert difference(exact, reference)[0] <= 2, (height, width, out_h, out_w)


def test_an_image_that_pillow_has_opened_is_taken_too():
    for name in ("png, palette with transparency", "png, 16 bits", "jpeg, cmyk", "gif"):
        image = Image.open(io.BytesIO(zoo()[name]))
        np.testing.assert_array_equal(decode(image, EXACT), decode(zoo()[name], EXACT))
    with pytest.raises(DecodeFailure, match="truncated"):
        decode(Image.open(io.BytesIO(zoo()["png, cut"])), EXACT)


def test_an_orientation_that_cannot_be_parsed_is_none():
    data = zoo()["jpeg, broken exif"]
    np.testing.assert_array_equal(decode(data, Preprocessing((48, 48), exif="apply")), decode(data, EXACT))


@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear", "nearest", "lanczos", "box", "hamming"])
@pytest.mark.parametrize("crop_mode", ["center", "squash", "border"])
@pytest.mark.parametrize("crop_pct", [0.7, 0.875, 1.0, 1.2])
def test_every_crop_and_interpolation_is_the_transforms(crop_pct, crop_mode, interpolation):
    files = [saved(picture(*size), kind, **how) for size, kind, how in [
        ((97, 61), "JPEG", {"quality": 95}), ((60, 101), "PNG", {}), ((45, 45), "PNG", {}), ((30, 20), "JPEG", {"quality": 95}),
    ]]
    for size in ((32, 32), (33, 47)):
        settings = {"size": size, "crop_pct": crop_pct, "crop_mode": crop_mode, "interpolation": interpolation}
        for data in files:
            exact, reference = (decode(data, Preprocessing(decode=how, **settings)) for how in ("exact", "reference"))
            np.testing.assert_array_equal(reference, by_pillow(data, Preprocessing(**settings)))
            assert exact.shape == (*size, 3)
            assert difference(exact, reference)[0] <= (2 if interpolation in ("bicubic", "bilinear") else 0)


@pytest.mark.parametrize("name", ["jpeg", "jpeg, grey", "png, alpha", "png, 16 bits", "jpeg, cmyk", "a strip"])
def test_grey_is_for_models_of_one_channel(name):
    data = zoo()[name]
    grey = {"channels": 1, "mean": (0.5,), "std": (0.5,)}
    exact, reference, fast = (decode(data, Preprocessing((24, 24), decode=how, **grey)) for how in ("exact", "reference", "fast"))
    np.testing.assert_array_equal(reference, by_pillow(data, Preprocessing((24, 24), **grey)))
    assert exact.shape == fast.shape == (24, 24, 1) and difference(exact, reference)[0] <= 2


def test_sixteen_bits_are_scaled_and_transparency_lies_over_white():
    ramp = decode(zoo()["png, 16 bits"], Preprocessing((70, 70), crop_pct=1.0))
    assert ramp.max() < 255 * 80 * 700 / 65535 + 2 and len(np.unique(ramp)) > 60
    clear = Image.new("RGBA", (50, 50), (10, 20, 30, 0))
    assert (decode(saved(clear, "PNG"), EXACT) == 255).all()


def test_a_strip_is_cut_before_it_is_resized():
    """Its short edge fits only where the long one would have 12 million pixels."""
    y = np.arange(50_000) % 251
    strip = saved(Image.fromarray(np.stack([y] * 3, -1).astype(np.uint8)[:, None]), "PNG")
    for how in ("exact", "reference"):
        for size, crop_pct in (((224, 224), 0.875), ((224, 112), 0.9), ((224, 224), 1.3)):
            pixels = decode(strip, Preprocessing(size, crop_pct=crop_pct, decode=how))
            assert pixels.shape == (*size, 3)
            assert set(np.unique(pixels)) <= {0, *y[24_995:25_005]}
    short = strip_of(3000)
    whole = decode(short, Preprocessing((64, 64)))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(decoding, "LARGEST_RESIZED", 10_000)
        for how in ("exact", "reference"):
            assert difference(decode(short, Preprocessing((64, 64), decode=how)), whole)[0] <= 2


def strip_of(length: int) -> bytes:
    return saved(picture(length, 30), "PNG")


def test_the_limit_on_pixels_is_pillows(monkeypatch):
    data = zoo()["jpeg"], zoo()["png"]
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 90 * 70 - 1)  # Pillow warns up to twice of it
    for one in data:
        assert isinstance(outcome(one, EXACT), np.ndarray)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 90 * 70 // 2 - 1)
    for one in data:
        assert outcome(one, EXACT).startswith("too_large: ")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
    for one in data:
        assert isinstance(outcome(one, EXACT), np.ndarray)


def test_truncated_files_are_accepted_where_pillow_is_told_to(monkeypatch):
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)
    data = zoo()["jpeg, cut"]
    assert difference(decode(data, EXACT), decode(data, REFERENCE))[0] <= 2


def test_warnings_are_neither_shown_nor_failures_and_stay_as_they_were(recwarn):
    filters = list(warnings.filters)
    threads = [threading.Thread(target=lambda: [outcome(data, EXACT) for data in zoo().values()]) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not recwarn and warnings.filters == filters


def test_memory_that_is_not_there_is_a_cause_of_its_own(monkeypatch):
    def refuse(*_, **__):
        raise MemoryError

    monkeypatch.setattr(Image.Image, "load", refuse)
    assert outcome(zoo()["png"], EXACT) == "memory: there is not enough memory to decode it"


def test_a_failure_of_torch_that_is_not_memory_is_no_failure_of_the_image(monkeypatch):
    def fail(text):
        def run(*_, **__):
            raise RuntimeError(text)
        monkeypatch.setattr(decoding.F, "interpolate", run)

    fail("[enforce fail at alloc_cpu.cpp:127] DefaultCPUAllocator: can't allocate memory")
    assert outcome(zoo()["jpeg"], EXACT).startswith("memory: ")
    fail("something else")
    with pytest.raises(RuntimeError, match="something else"):
        decode(zoo()["jpeg"], EXACT)


def test_whatever_simplejpeg_says_pillow_decides(monkeypatch):
    def fail(*_, **__):
        raise KeyError("of all things")

    whole = decode(zoo()["jpeg"], EXACT)
    monkeypatch.setattr(decoding.simplejpeg, "decode_jpeg", fail)
    np.testing.assert_array_equal(decode(zoo()["jpeg"], EXACT), whole)


def test_without_simplejpeg_pillow_decodes_and_the_id_says_so(monkeypatch):
    whole, known = decode(zoo()["jpeg"], EXACT), Preprocessing((48, 48)).id
    monkeypatch.setattr(decoding, "simplejpeg", None)
    np.testing.assert_array_equal(decode(zoo()["jpeg"], EXACT), whole)
    assert Preprocessing((48, 48)).id != known
    with pytest.raises(MissingExtra, match="simplejpeg"):
        Preprocessing((48, 48), decode="fast")


def test_the_models_configuration_is_taken_over():
    model = ziggurat.create_model("test_vit", img_size=96)
    config = resolve_model_data_config(model)
    preprocessing = Preprocessing.of(model)
    assert preprocessing.size == (96, 96) and preprocessing.crop_pct == config["crop_pct"]
    assert preprocessing.mean == config["mean"] and preprocessing.interpolation == config["interpolation"]
    assert Preprocessing.of(model, size=64, decode=None).size == (64, 64)
    assert Preprocessing.of(model, size=(64, 32), exif="apply").exif == "apply"
    data = PHOTOS[0].read_bytes()
    image = ziggurat.data.open_image(PHOTOS[0])
    whole = create_transform(**{**config, "normalize": False})(image).permute(1, 2, 0)
    np.testing.assert_array_equal(decode(data, Preprocessing.of(model, decode="reference")), whole.numpy())
    grey = Preprocessing.of(ziggurat.create_model("resnet10t", in_chans=1))
    assert grey.channels == len(grey.mean) == 1


def test_what_cannot_work_is_refused():
    with pytest.raises(BadArgument, match="5 input channels"):
        Preprocessing.of(ziggurat.create_model("resnet10t", in_chans=5))
    with pytest.raises(BadArgument, match="no 'interpolaton'; nearest are interpolation"):
        Preprocessing.of(ziggurat.create_model("resnet10t"), interpolaton="bicubic")
    for wrong in ({"size": (0, 5)}, {"size": (5,)}, {"decode": "quick"}, {"exif": "follow"}, {"crop_mode": "left"}, {"mean": (0.5,)},
                  {"crop_pct": -1.0}, {"interpolation": "random"}, {"interpolation": "cubic"}):
        with pytest.raises(BadArgument, match=next(iter(wrong))):
            Preprocessing(**{"size": (48, 48), **wrong})


def test_the_id_stands_for_every_field_and_library(monkeypatch):
    base = Preprocessing((48, 48))
    others = [
        Preprocessing((48, 32)), Preprocessing((48, 48), crop_pct=0.9), Preprocessing((48, 48), crop_mode="squash"),
        Preprocessing((48, 48), interpolation="bilinear"), Preprocessing((48, 48), mean=(0.5, 0.5, 0.5)),
        Preprocessing((48, 48), std=(0.5, 0.5, 0.5)), Preprocessing((48, 48), decode="fast"), REFERENCE,
        Preprocessing((48, 48), exif="apply"), Preprocessing((48, 48), channels=1, mean=(0.5,), std=(0.5,)),
    ]
    assert len({one.id for one in [base, *others]}) == 11 and len(base.id) == 16
    assert Preprocessing((48, 48)).id == base.id == pickle.loads(pickle.dumps(base)).id
    for one in others:
        stamp = json.loads(json.dumps(one.stamp()))
        assert Preprocessing.from_stamp(stamp) == one and stamp["id"] == one.id
    assert set(base.stamp()["libraries"]) == {"pillow", "libjpeg_turbo", "simplejpeg", "torch"}
    assert set(REFERENCE.stamp()["libraries"]) == {"pillow", "libjpeg_turbo"}
    monkeypatch.setattr(decoding.PIL, "__version__", "0")
    assert Preprocessing((48, 48)).id != base.id
