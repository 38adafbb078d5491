"""Reading image files: every mode to RGB, every bad file an error of its own, every source accounted for."""

from __future__ import annotations

import io
import os
import pickle
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ziggurat import data
from ziggurat.errors import BadArgument, UnreadableImage


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    image = Image.fromarray(np.arange(48, dtype=np.uint8).reshape(4, 4, 3))
    for name in ("b.png", "a.jpg", "deep/er/c.PNG", "deep/d[1].png", ".hidden.png", ".thumbs/e.png", "raw.dat"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        image.save(tmp_path / name, format="jpeg" if name.endswith("jpg") else "png")
    (tmp_path / "notes.txt").write_text("no image")
    return tmp_path


def names(folder: Path, found: list[Path]) -> list[str]:
    return [path.relative_to(folder).as_posix() for path in found]


def test_folder_is_searched_below(folder: Path) -> None:
    assert names(folder, data.find_images(folder)) == ["a.jpg", "b.png", "deep/d[1].png", "deep/er/c.PNG"]
    assert names(folder, data.find_images(folder, [".dat"])) == ["raw.dat"]


def test_sources_mix_and_give_each_file_once(folder: Path) -> None:
    found = data.find_images([folder / "b.png", str(folder), f"{folder}/*.png", folder / "raw.dat", folder / "gone.png"])
    assert names(folder, found) == ["a.jpg", "b.png", "deep/d[1].png", "deep/er/c.PNG", "gone.png", "raw.dat"]


def test_patterns(folder: Path) -> None:
    assert names(folder, data.find_images(f"{folder}/*")) == ["a.jpg", "b.png", "deep/d[1].png", "deep/er/c.PNG"]
    assert names(folder, data.find_images(f"{folder}/**/*.PNG")) == ["deep/er/c.PNG"]
    assert names(folder, data.find_images(f"{folder}/?.jpg")) == ["a.jpg"]
    assert names(folder, data.find_images(f"{folder}/*.dat")) == ["raw.dat"]
    assert names(folder, data.find_images(f"{folder}/deep/d[1].png")) == ["deep/d[1].png"]


def test_one_bad_file_stops_no_other(folder: Path) -> None:
    (folder / "a0.png").write_bytes(b"")
    read = list(data.read_images([folder, folder / "gone.png"]))
    assert len(read) == 6
    bad = {path.name: str(image) for path, image in read if isinstance(image, UnreadableImage)}
    assert set(bad) == {"a0.png", "gone.png"}
    assert "empty" in bad["a0.png"]
    assert all(image.getpixel((0, 0)) is not None for _, image in read if not isinstance(image, UnreadableImage))


def test_folder_that_may_not_be_read_is_named(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    locked = str(folder / "deep")
    scandir, access = os.scandir, os.access

    def refuse(path: str) -> object:
        if str(path) == locked:
            raise PermissionError(13, "Permission denied", locked)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    monkeypatch.setattr(os, "access", lambda path, mode: path != locked and access(path, mode))
    assert names(folder, data.find_images(folder)) == ["a.jpg", "b.png", "deep"]
    with pytest.raises(UnreadableImage, match="may not be read"):
        data.open_image(locked)


def noise(form: str, **options: object) -> bytes:
    out = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)).save(out, form, **options)
    return out.getvalue()


BAD = {
    "missing": (None, "there is no such file"),
    "empty": (b"", "empty"),
    "text": (b"hello, this is no image", "not an image"),
    "truncated.jpg": (noise("jpeg")[:1500], "truncated"),
    "truncated.png": (noise("png")[:5000], "truncated"),
    "header only.png": (noise("png")[:40], ""),
    "truncated.gif": (noise("gif")[:1200], ""),
    "truncated.webp": (noise("webp", lossless=True)[:2000], ""),
    "truncated.tif": (noise("tiff")[:3000], ""),
    "truncated.bmp": (noise("bmp")[:3000], "truncated"),
    "damaged.png": (noise("png")[:3000] + bytes(400) + noise("png")[3400:], ""),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_files_say_which_and_why(tmp_path: Path, name: str) -> None:
    content, words = BAD[name]
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UnreadableImage) as caught:
        data.open_image(path)
    error = caught.value
    assert isinstance(error, BadArgument)
    assert error.path == str(path)
    assert str(path) in str(error)
    assert words in str(error.cause)
    assert error.cause
    again = pickle.loads(pickle.dumps(error))  # worker processes hand it on
    assert str(again) == str(error)
    if content:
        with pytest.raises(UnreadableImage, match="<stream>"):
            data.open_image(io.BytesIO(content))


@pytest.mark.parametrize("limit", [2000, 3000])
def test_decompression_bombs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: int) -> None:
    path = tmp_path / "bomb.png"
    path.write_bytes(noise("png"))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)  # 4096 pixels: an error above 2 * 2000, a warning below 2 * 3000
    with pytest.raises(UnreadableImage, match="MAX_IMAGE_PIXELS"):
        data.open_image(path)


def test_folders_pipes_and_patterns_are_no_images(tmp_path: Path) -> None:
    with pytest.raises(UnreadableImage, match="folder in which no image"):
        data.open_image(*data.find_images(tmp_path))
    with pytest.raises(UnreadableImage, match="pattern matches no image"):
        data.open_image(*data.find_images(f"{tmp_path}/*.png"))
    if hasattr(os, "mkfifo"):
        os.mkfifo(tmp_path / "pipe.png")
        with pytest.raises(UnreadableImage, match="regular file"):
            data.open_image(tmp_path / "pipe.png")


def test_image_is_usable_after_opening(tmp_path: Path) -> None:
    pixels = np.random.default_rng(1).integers(0, 255, (9, 7, 3), np.uint8)
    for name in ("a.png", "a.tif", "a.bmp", "a.ppm"):
        Image.fromarray(pixels).save(tmp_path / name)
        image = data.open_image(tmp_path / name)
        (tmp_path / name).unlink()
        assert np.array_equal(np.asarray(data.to_rgb(image)), pixels)
    with open(tmp_path / "b.png", "wb") as file:
        Image.fromarray(pixels).save(file, "png")
    with open(tmp_path / "b.png", "rb") as file:
        image = data.open_image(file)
    assert np.array_equal(np.asarray(image), pixels)


def test_first_frame_of_an_animation(tmp_path: Path) -> None:
    frames = [Image.new("RGB", (5, 5), color) for color in ("red", "blue")]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    assert data.to_rgb(data.open_image(tmp_path / "a.gif")).getpixel((0, 0)) == (255, 0, 0)


def test_exif_orientation_is_left_unless_asked_for(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by a quarter
    Image.new("RGB", (8, 4)).save(tmp_path / "a.jpg", exif=exif)
    assert data.open_image(tmp_path / "a.jpg").size == (8, 4)
    assert data.open_image(tmp_path / "a.jpg", apply_exif=True).size == (4, 8)
    assert data.to_rgb(data.open_image(tmp_path / "a.jpg")).size == (8, 4)


def rgb(image: Image.Image) -> list[tuple[int, ...]]:
    out = data.to_rgb(image)
    assert out.mode == "RGB"
    assert out.size == image.size
    return [tuple(row) for row in np.asarray(out).reshape(-1, 3).tolist()]


def test_rgb_is_itself() -> None:
    image = Image.new("RGB", (2, 2))
    assert data.to_rgb(image) is image


def test_sixteen_bits_are_scaled_not_clipped(tmp_path: Path) -> None:
    values = np.array([[0, 128, 129, 257, 32768, 65407, 65535]], np.uint16)
    eight = [0, 0, 1, 1, 128, 255, 255]
    expected = [(v, v, v) for v in eight]
    image = Image.fromarray(values)
    assert image.mode == "I;16"
    assert rgb(image) == expected
    assert rgb(Image.fromarray(values.astype(np.int32))) == expected
    assert np.asarray(data.to_grey(image)).tolist() == [eight]
    for name in ("a.png", "a.tif"):
        image.save(tmp_path / name)
        assert rgb(data.open_image(tmp_path / name)) == expected
    big = Image.frombytes("I;16B", (7, 1), values.astype(">u2").tobytes())
    assert rgb(big) == expected


def test_floats_lie_between_0_and_255() -> None:
    image = Image.fromarray(np.array([[-3.0, 0.4, 0.6, 254.7, 900.0, np.nan, np.inf]], np.float32))
    assert rgb(image) == [(v, v, v) for v in (0, 0, 1, 255, 255, 0, 255)]


def test_transparency_lies_over_white(tmp_path: Path) -> None:
    alpha = np.array([[[10, 20, 30, 255], [10, 20, 30, 0], [0, 0, 0, 128]]], np.uint8)
    expected = [(10, 20, 30), (255, 255, 255), (127, 127, 127)]
    assert rgb(Image.fromarray(alpha)) == expected
    grey = np.array([[[40, 255], [40, 0]]], np.uint8)
    assert rgb(Image.fromarray(grey)) == [(40, 40, 40), (255, 255, 255)]
    assert np.asarray(data.to_grey(Image.fromarray(grey))).tolist() == [[40, 255]]

    palette = Image.new("P", (2, 1))
    palette.putpalette([0, 0, 200, 9, 8, 7])
    palette.putdata([0, 1])
    assert rgb(palette) == [(0, 0, 200), (9, 8, 7)]
    palette.save(tmp_path / "p.png", transparency=1)
    assert rgb(data.open_image(tmp_path / "p.png")) == [(0, 0, 200), (255, 255, 255)]

    keyed = Image.fromarray(np.array([[[1, 2, 3], [4, 5, 6]]], np.uint8))
    keyed.save(tmp_path / "k.png", transparency=(1, 2, 3))
    assert rgb(data.open_image(tmp_path / "k.png")) == [(255, 255, 255), (4, 5, 6)]


def test_other_colour_spaces() -> None:
    image = Image.new("RGB", (1, 1), (250, 120, 20))
    for mode in ("CMYK", "RGBX"):
        assert rgb(image.convert(mode)) == [(250, 120, 20)]
    for mode in ("YCbCr", "HSV"):
        assert np.abs(np.subtract(rgb(image.convert(mode)), (250, 120, 20))).max() <= 2
    assert rgb(Image.new("1", (1, 1), 1)) == [(255, 255, 255)]
    white = rgb(Image.new("LAB", (1, 1), (255, 128, 128)))[0]
    assert min(white) >= 254
    red = rgb(Image.new("LAB", (1, 1), (138, 209, 198)))[0]  # L* 54.3, a* 80.8, b* 69.9 (D50): sRGB's red
    assert np.abs(np.subtract(red, (255, 0, 0))).max() <= 5  # as near as 8 bits a channel of LAB come
