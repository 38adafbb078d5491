"""Inputs of every kind: what is listed, under which keys, what is read, and what is said of what cannot be."""

import errno
import io
import multiprocessing
import os
import pickle
import sys
import tarfile
import threading
import time
import zipfile
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ziggurat.errors import BadArgument, MissingExtra
from ziggurat.extraction import places
from ziggurat.extraction.places import Disk, actual, failure_of, printable
from ziggurat.extraction.plan import Plan
from ziggurat.extraction.sources import Item, ReadFailure, list_inputs, read_bytes, refreshed


def put(folder, *names):
    """Files whose content is their own name."""
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(name.encode())


def keys(source, **arguments):
    return [item.key for item in list_inputs(source, **arguments).items]


def contents(source, **arguments):
    return {item.key: read_bytes(item).decode() for item in list_inputs(source, **arguments).items}


def tar_bytes(*members):
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w", encoding="utf-8", errors="surrogateescape") as tar:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return stream.getvalue()


SAMPLES = [(f"{i:04d}.{end}", f"{i}{end}".encode() * 300) for i in range(3) for end in ("jpg", "json", "cls")]


class TestFolders:
    def test_images_at_any_depth_and_nothing_else(self, tmp_path):
        put(tmp_path, "b.JPG", "a/c.png", "a/d/e.webp", "notes.md", ".hidden.jpg", ".git/f.jpg", "x.tar.jpg", "labels.txt")
        found = contents(tmp_path)
        assert found == {name: name for name in ("a/c.png", "a/d/e.webp", "b.JPG", "x.tar.jpg")}

    def test_an_item_says_where_how_large_and_how_old(self, tmp_path):
        put(tmp_path, "a/c.png")
        path = tmp_path / "a" / "c.png"
        item, = list_inputs(str(tmp_path)).items
        assert item == Item("a/c.png", str(path), "", -1, 7, str(path.stat().st_mtime_ns))
        path.write_bytes(b"longer now")
        os.utime(path, ns=(5, 5))
        assert refreshed(item) == item._replace(size=10, stamp="5")
        path.unlink()
        assert refreshed(item) == item._replace(size=-1, stamp="")

    def test_a_relative_source_gives_the_same_items(self, tmp_path, monkeypatch):
        put(tmp_path, "shots/a.jpg")
        monkeypatch.chdir(tmp_path)
        assert list_inputs("shots") == list_inputs(tmp_path / "shots") == list_inputs(f"file://{tmp_path}/shots")
        assert list_inputs("shots").description == f"folder {tmp_path}/shots"

    def test_what_is_broken_is_listed(self, tmp_path):
        (tmp_path / "empty.jpg").touch()
        (tmp_path / "gone.jpg").symlink_to(tmp_path / "nowhere")
        (tmp_path / "self.jpg").symlink_to("self.jpg")
        os.mkfifo(tmp_path / "pipe.jpg")
        items = {item.key: item for item in list_inputs(tmp_path).items}
        assert read_bytes(items.pop("empty.jpg")) == b""
        causes = {}
        for key, item in items.items():
            with pytest.raises(ReadFailure) as caught:
                read_bytes(item)  # a pipe without a writer must not be waited for
            causes[key] = caught.value.cause, caught.value.transient
        assert causes == {"gone.jpg": ("missing", False), "self.jpg": ("missing", False), "pipe.jpg": ("not_an_image", False)}

    def test_links_are_followed_once_and_loops_end(self, tmp_path):
        put(tmp_path, "root/a/1.jpg", "root/b/2.jpg", "outside/3.jpg")
        root = tmp_path / "root"
        (root / "a" / "up").symlink_to(root)
        (root / "0link").symlink_to(root / "b")  # sorts before b, which is real and has the name
        (root / "link").symlink_to(tmp_path / "outside")
        (root / "link2").symlink_to(tmp_path / "outside")
        (tmp_path / "outside" / "back").symlink_to(tmp_path)
        assert keys(root) == ["a/1.jpg", "b/2.jpg", "link/3.jpg"]
        (root / "c.jpg").symlink_to(root / "a" / "1.jpg")  # a linked file is a file of its own
        assert keys(root) == ["a/1.jpg", "b/2.jpg", "c.jpg", "link/3.jpg"]

    def test_a_closed_folder_is_filed(self, tmp_path, monkeypatch):
        put(tmp_path, "a.jpg", "closed/b.jpg")
        scandir = os.scandir

        def refuse(path):
            if str(path).endswith("closed"):
                raise PermissionError(errno.EACCES, "no")
            return scandir(path)

        monkeypatch.setattr(os, "scandir", refuse)
        with pytest.raises(BadArgument, match="cannot be listed: it may not be read"):
            list_inputs(tmp_path / "closed")
        items = list_inputs(tmp_path).items
        assert [item.key for item in items] == ["a.jpg", "closed"]
        with pytest.raises(ReadFailure, match="folder"):
            read_bytes(items[1])

    def test_names_that_are_no_utf8(self, tmp_path):
        names = [b"caf\xe9.jpg", b"caf\\xe9.jpg", b"new\nline.jpg", "snö.jpg".encode()]
        for name in names:
            with open(os.path.join(os.fsencode(tmp_path), name), "wb") as file:
                file.write(name)
        items = list_inputs(tmp_path).items
        assert [item.key for item in items] == ["caf\\\\xe9.jpg", "caf\\xe9.jpg", "new\\x0aline.jpg", "snö.jpg"]
        for item in items:
            assert (item.key + item.container).encode() and (item.key + item.container).isprintable()
            assert read_bytes(item) == os.fsencode(actual(item.key))

    def test_a_hundred_thousand_files(self, tmp_path):
        for folder in range(50):
            (tmp_path / f"{folder:02d}").mkdir()
        for folder in range(50):
            first = tmp_path / f"{folder:02d}" / "0000.jpg"
            first.write_bytes(b"jpg")
            for number in range(1, 2000):
                os.link(first, f"{tmp_path}/{folder:02d}/{number:04d}.jpg")
        (tmp_path / "00" / "loop").symlink_to(tmp_path)
        before = time.process_time()
        listing = list_inputs(tmp_path)
        spent = time.process_time() - before
        assert len(listing.items) == 100_000 and listing.duplicates == 0
        assert listing.items == sorted(listing.items) and listing.items[0].key == "00/0000.jpg"
        assert spent < 15  # about 1.5 s: "in seconds", on any machine

    def test_nothing_of_an_image_is_opened(self, tmp_path, monkeypatch):
        put(tmp_path, "a.jpg", "b/c.jpg")
        monkeypatch.setattr("builtins.open", None)
        monkeypatch.setattr(os, "open", None)
        assert keys(tmp_path) == ["a.jpg", "b/c.jpg"]


class TestPatterns:
    def test_stars(self, tmp_path):
        put(tmp_path, "a/1.jpg", "a/2.png", "a/b/3.jpg", "c/4.jpg", "5.jpg", "c/6.weird", "c/.7.jpg")
        assert keys(f"{tmp_path}/**/*.jpg") == ["5.jpg", "a/1.jpg", "a/b/3.jpg", "c/4.jpg"]
        assert keys(f"{tmp_path}/*/*.jpg") == ["a/1.jpg", "c/4.jpg"]
        assert keys(f"{tmp_path}/*.jpg") == ["5.jpg"]
        assert keys(f"{tmp_path}/a/*") == ["1.jpg", "2.png", "b/3.jpg"]  # a folder that fits gives all that is below it
        assert keys(f"{tmp_path}/[ab]/?.*") == ["a/1.jpg", "a/2.png"]
        assert keys(f"{tmp_path}/c/*.weird") == ["6.weird"]  # spelled out, so meant
        assert keys(f"{tmp_path}/**") == keys(tmp_path)

    def test_a_loop_gives_each_file_once(self, tmp_path):
        put(tmp_path, "a/1.jpg", "b/2.jpg")
        for folder in "ab":
            for name in ("x", "y"):
                (tmp_path / folder / name).symlink_to(tmp_path)
        assert keys(f"{tmp_path}/**/*.jpg") == ["a/1.jpg", "b/2.jpg"]

    def test_braces_count_and_choose(self, tmp_path):
        put(tmp_path, *(f"shard-{i:03d}/{i}.jpg" for i in range(8, 12)), "x/9.jpg")
        assert keys(f"{tmp_path}/shard-{{009..010}}/*.jpg") == ["shard-009/9.jpg", "shard-010/10.jpg"]
        assert keys(f"{tmp_path}/{{shard-009,x}}/9.jpg") == ["shard-009/9.jpg", "x/9.jpg"]
        with pytest.raises(BadArgument, match=r"shard-007/7\.jpg', where no file is"):
            keys(f"{tmp_path}/shard-00{{7..8}}/7.jpg")

    def test_braces_keep_the_width_that_is_written(self, tmp_path):
        put(tmp_path, "0.jpg", "1.jpg", "9.jpg", "10.jpg", "01.jpg", "02.jpg", "2.jpg")
        assert keys(f"{tmp_path}/{{9..10}}.jpg") == ["10.jpg", "9.jpg"]
        assert keys(f"{tmp_path}/{{0..1}}.jpg") == ["0.jpg", "1.jpg"]
        assert keys(f"{tmp_path}/{{01..02}}.jpg") == ["01.jpg", "02.jpg"]

    def test_a_folder_in_braces_is_part_of_the_key(self, tmp_path):
        put(tmp_path, "a1/x.jpg", "a2/x.jpg", "a3/x.jpg")
        assert keys(f"{tmp_path}/a{{1,2}}/*.jpg") == ["a1/x.jpg", "a2/x.jpg"]

    def test_a_file_may_be_called_like_a_pattern(self, tmp_path):
        put(tmp_path, "cat[1].jpg", "cat1.jpg")
        assert list(contents(f"{tmp_path}/cat[1].jpg").values()) == ["cat[1].jpg"]


class TestLists:
    def test_lines_are_relative_to_the_list_then_to_here(self, tmp_path, monkeypatch):
        put(tmp_path, "lists/a.jpg", "here/b.jpg", "here/a.jpg")
        monkeypatch.chdir(tmp_path / "here")
        lines = ["a.jpg", "", "b.jpg", "./a.jpg", str(tmp_path / "here" / "b.jpg"), "nowhere/c.jpg", "a.jpg\r", "  ",
                 f"file://{tmp_path}/here/a.jpg", "s3://bucket/d.jpg"]
        path = tmp_path / "lists" / "all.txt"
        path.write_text("\n".join(lines))
        listing = list_inputs(path)
        assert listing.duplicates == 3  # ./a.jpg, a.jpg again, and b.jpg by its full name
        assert {item.key: item.container for item in listing.items} == {
            "a.jpg": f"{tmp_path}/lists/a.jpg", "b.jpg": f"{tmp_path}/here/b.jpg",
            "nowhere/c.jpg": f"{tmp_path}/lists/nowhere/c.jpg", f"file://{tmp_path}/here/a.jpg": f"{tmp_path}/here/a.jpg",
            "s3://bucket/d.jpg": "s3://bucket/d.jpg"}
        missing = next(item for item in listing.items if item.key == "nowhere/c.jpg")
        with pytest.raises(ReadFailure) as caught:
            read_bytes(missing)
        assert (caught.value.cause, caught.value.transient) == ("missing", False)

    def test_bytes_of_a_list_are_names(self, tmp_path):
        name = b"caf\xe9.jpg"
        with open(os.path.join(os.fsencode(tmp_path), name), "wb") as file:
            file.write(b"coffee")
        (tmp_path / "all.lst").write_bytes(b"\xef\xbb\xbf" + name + b"\r\n")
        item, = list_inputs(tmp_path / "all.lst").items
        assert item.key == "caf\\xe9.jpg" and read_bytes(item) == b"coffee"

    def test_lines_may_name_shards(self, tmp_path):
        (tmp_path / "a.tar").write_bytes(tar_bytes(*SAMPLES))
        put(tmp_path, "b.jpg")
        (tmp_path / "all.txt").write_text("a.tar\nb.jpg\n")
        assert keys(tmp_path / "all.txt") == ["a.tar/0000.jpg", "a.tar/0001.jpg", "a.tar/0002.jpg", "b.jpg"]

    def test_a_list_that_is_no_utf_8(self, tmp_path):
        (tmp_path / "all.txt").write_bytes("a.jpg\nb.jpg\n".encode("utf-16"))
        with pytest.raises(BadArgument, match="no UTF-8 text: it holds zero bytes; save it as UTF-8"):
            list_inputs(tmp_path / "all.txt")


class TestTars:
    def test_members_by_offset(self, tmp_path):
        (tmp_path / "s.tar").write_bytes(tar_bytes(*SAMPLES, ("./deep/x.png", b"png"), ("._0000.jpg", b"apple's")))
        items = list_inputs(tmp_path / "s.tar").items
        assert [item.key for item in items] == ["s.tar/0000.jpg", "s.tar/0001.jpg", "s.tar/0002.jpg", "s.tar/deep/x.png"]
        assert items[1].member == "0001.jpg" and items[1].size == 4 * 300 and items[1].offset % 512 == 0
        assert items[1].stamp == str((tmp_path / "s.tar").stat().st_mtime_ns)
        assert [read_bytes(item) for item in reversed(items)][::-1] == [b"0jpg" * 300, b"1jpg" * 300, b"2jpg" * 300, b"png"]

    def test_a_file_of_two_names_is_two_images(self, tmp_path):
        put(tmp_path, "in/a.jpg")
        os.link(tmp_path / "in" / "a.jpg", tmp_path / "in" / "b.jpg")
        with tarfile.open(tmp_path / "s.tar", "w") as tar:
            tar.add(tmp_path / "in" / "a.jpg", "./a.jpg")
            tar.add(tmp_path / "in" / "b.jpg", "./b.jpg")
            assert tar.getmembers()[1].islnk()
        assert contents(tmp_path / "s.tar") == {"s.tar/a.jpg": "in/a.jpg", "s.tar/b.jpg": "in/a.jpg"}

    @pytest.mark.parametrize("source", ["", "/shard-*.tar", "/shard-{000..001}.tar", "/{shard-000,shard-001}.tar"])
    def test_shards(self, tmp_path, source):
        for number in range(2):
            (tmp_path / f"shard-{number:03d}.tar").write_bytes(tar_bytes(*SAMPLES[:4]))
        assert keys(f"{tmp_path}{source}") == [f"shard-00{shard}.tar/000{i}.jpg" for shard in (0, 1) for i in (0, 1)]

    def test_images_of_a_folder_come_before_its_shards(self, tmp_path):
        (tmp_path / "s.tar").write_bytes(tar_bytes(*SAMPLES))
        put(tmp_path, "a.jpg")
        assert keys(tmp_path) == ["a.jpg"]
        assert keys([tmp_path, tmp_path / "s.tar"])[0:2] == ["a.jpg", "s.tar/0000.jpg"]

    def test_one_name_twice(self, tmp_path):
        (tmp_path / "s.tar").write_bytes(tar_bytes(("a.jpg", b"one"), ("b.jpg", b"two"), ("a.jpg", b"three")))
        found = contents(tmp_path / "s.tar")
        assert list(found.values()) == ["one", "three", "two"]
        assert [key.partition("~")[0] for key in found] == ["s.tar/a.jpg", "s.tar/a.jpg", "s.tar/b.jpg"]

    def test_names_that_are_no_utf8(self, tmp_path):
        (tmp_path / "s.tar").write_bytes(tar_bytes(("caf\udce9.jpg", b"coffee")))
        item, = list_inputs(tmp_path / "s.tar").items
        assert (item.key, item.member, read_bytes(item)) == ("s.tar/caf\\xe9.jpg", "caf\\xe9.jpg", b"coffee")

    @pytest.mark.parametrize("end, whole", [(512 * 3 + 100, 1), (512 * 3, 1), (512 * 4 + 100, 1), (512 * 4, 1), (512 * 8, 2)])
    def test_a_cut_one_gives_what_is_whole_and_files_the_rest(self, tmp_path, end, whole):
        data = tar_bytes(("0.jpg", b"a" * 1000), ("1.jpg", b"b" * 1500), ("2.jpg", b"c"))
        (tmp_path / "s.tar").write_bytes(data[:end])
        read, lost = [], []
        for item in list_inputs(tmp_path / "s.tar").items:
            try:
                read.append(read_bytes(item))
            except ReadFailure as failure:
                lost.append((item.key, failure))
        assert sorted(read) == [b"a" * 1000, b"b" * 1500][:whole]
        assert {(failure.cause, failure.transient) for _, failure in lost} == {("truncated", False)}
        assert any("breaks off at byte" in failure.message for _, failure in lost)
        assert [key for key, _ in lost if key.endswith("1.jpg")] == (["s.tar/1.jpg"] if 512 * 4 <= end < 512 * 7 else [])

    def test_a_damaged_header_is_not_the_end(self, tmp_path):
        data = bytearray(tar_bytes(("0.jpg", b"a"), ("1.jpg", b"b"), ("2.jpg", b"c")))
        data[1024 + 100] ^= 0xFF  # in the second header
        (tmp_path / "s.tar").write_bytes(data)
        items = list_inputs(tmp_path / "s.tar").items
        assert len(items) == 2
        with pytest.raises(ReadFailure, match="breaks off at byte 1024"):
            read_bytes(items[0])

    def test_what_is_no_tar(self, tmp_path):
        (tmp_path / "s.tar").write_bytes(b"\x1f\x8b" * 600)
        with pytest.raises(BadArgument, match="cannot be read as a tar"):
            list_inputs(tmp_path / "s.tar")

    @pytest.mark.parametrize("name", ["s.tar.gz", "s.tgz", "s.zip"])
    def test_compressed_ones_are_refused(self, tmp_path, name):
        put(tmp_path, name)
        with pytest.raises(BadArgument, match="unpack it first"):
            list_inputs(tmp_path / name)
        if name != "s.zip":
            with pytest.raises(BadArgument, match="unpack it first"):
                list_inputs(tmp_path)

    def test_a_tar_that_was_written_again(self, tmp_path):
        path = tmp_path / "s.tar"
        path.write_bytes(tar_bytes(("a.jpg", b"old"), ("b.jpg", b"b")))
        old = list_inputs(path).items
        assert [read_bytes(item) for item in old] == [b"old", b"b"]
        time.sleep(0.01)
        path.unlink()
        path.write_bytes(tar_bytes(("b.jpg", b"now"), ("a.jpg", b"new one")))
        assert [read_bytes(refreshed(item)) for item in old] == [b"new one", b"now"]
        assert refreshed(refreshed(old[0])) == refreshed(old[0]) == list_inputs(path).items[0]


def image_struct(values, paths=None):
    paths = paths or [None] * len(values)
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    return pa.array([{"bytes": value, "path": path} for value, path in zip(values, paths)], kind)


class TestParquet:
    def test_dictionaries_views_and_empty_paths(self, tmp_path):
        put(tmp_path, "a.jpg")
        pq.write_table(pa.table({"path": pa.array(["a.jpg", "a.jpg", "b.jpg"]).dictionary_encode()}), tmp_path / "p.parquet")
        listing = list_inputs(tmp_path / "p.parquet")
        assert [item.key for item in listing.items] == ["a.jpg", "b.jpg"] and listing.duplicates == 1
        pq.write_table(pa.table({"image": pa.array([b"1", b"2", b"1"]).dictionary_encode()}), tmp_path / "d.parquet")
        assert list(contents(tmp_path / "d.parquet").values()) == ["1", "2", "1"]
        pq.write_table(pa.table({"path": pa.array(["", "a.jpg"])}), tmp_path / "e.parquet")
        full, empty = list_inputs(tmp_path / "e.parquet").items
        assert read_bytes(full) == b"a.jpg"
        with pytest.raises(ReadFailure, match="missing: row 0 of column 'path' is an empty path"):
            read_bytes(empty)

    def test_hugging_face_images(self, tmp_path):
        import datasets
        from PIL import Image

        pictures = []
        for number in range(4):
            Image.new("RGB", (8, 8), (number, 0, 0)).save(tmp_path / f"{number}.png")
            pictures.append((tmp_path / f"{number}.png").read_bytes())
        data = datasets.Dataset.from_dict({"photo": [str(tmp_path / f"{i}.png") for i in range(4)], "label": [0, 1, 0, 1]})
        data = data.cast_column("photo", datasets.Image())
        shards = tmp_path / "data"
        shards.mkdir()
        for shard in range(2):
            data.shard(2, shard, contiguous=True).to_parquet(shards / f"train-0000{shard}-of-00002.parquet")
        items = list_inputs(shards).items
        assert [item.key for item in items] == [f"train-0000{s}-of-00002.parquet/{r:09d}" for s in (0, 1) for r in (0, 1)]
        assert {item.member for item in items} == {"photo:0", "photo:1"}
        assert [read_bytes(item) for item in items] == pictures

    def test_rows_are_read_forward_and_once(self, tmp_path, monkeypatch):
        values = [f"image {i}".encode() for i in range(45)]
        path = tmp_path / "a.parquet"
        pq.write_table(pa.table({"label": range(45), "image": image_struct(values)}), path, row_group_size=20)
        items = list_inputs(path).items
        begun, iter_batches = [], pq.ParquetFile.iter_batches

        def counted(self, *arguments, **keywords):
            begun.append((keywords["row_groups"], keywords["columns"]))
            return iter_batches(self, *arguments, **keywords)

        monkeypatch.setattr(pq.ParquetFile, "iter_batches", counted)
        assert [read_bytes(item) for item in items] == values
        assert begun == [([0], ["image"]), ([1], ["image"]), ([2], ["image"])]
        assert [read_bytes(items[row]) for row in (44, 3, 39, 0, 19, 20)] == [values[row] for row in (44, 3, 39, 0, 19, 20)]

    def test_listing_reads_no_image(self, tmp_path, monkeypatch):
        pq.write_table(pa.table({"image": image_struct([b"x" * 100_000] * 20)}), tmp_path / "a.parquet",
                       use_dictionary=False, compression="none")
        read = []
        monkeypatch.setattr(Disk, "open", lambda self, address: CountedFile(address, read))
        assert len(list_inputs(tmp_path / "a.parquet").items) == 20
        assert sum(read) < 100_000

    def test_bytes_that_were_not_embedded(self, tmp_path):
        put(tmp_path, "sub/a.jpg")
        column = image_struct([None, b"inside", None], ["sub/a.jpg", "b.jpg", None])
        pq.write_table(pa.table({"image": column}), tmp_path / "a.parquet")
        items = list_inputs(tmp_path / "a.parquet").items
        assert [read_bytes(item) for item in items[:2]] == [b"sub/a.jpg", b"inside"]
        with pytest.raises(ReadFailure, match="row 2 of column 'image' is null"):
            read_bytes(items[2])

    def test_paths(self, tmp_path):
        put(tmp_path, "a.jpg", "b.jpg")
        pq.write_table(pa.table({"file_name": ["b.jpg", "a.jpg", None, "b.jpg"], "label": ["x"] * 4}), tmp_path / "a.parquet")
        listing = list_inputs(tmp_path / "a.parquet")
        assert [item.key for item in listing.items] == ["a.jpg", "a.parquet/000000002", "b.jpg"]
        assert listing.duplicates == 1 and read_bytes(listing.items[0]) == b"a.jpg"
        with pytest.raises(ReadFailure, match="null") as caught:
            read_bytes(listing.items[1])
        assert caught.value.cause == "missing"

    @pytest.mark.parametrize("columns, asked, expected", [
        ({"x": pa.array([b"1"])}, None, "x:0"),
        ({"mask": image_struct([b"1"]), "image": image_struct([b"2"])}, None, "image:0"),
        ({"mask": image_struct([b"1"]), "image": image_struct([b"2"])}, "mask", "mask:0"),
        ({"thumb": pa.array([b"1"]), "image": pa.array([b"2"], pa.large_binary())}, None, "image:0"),
        ({"a:b\n": pa.array([b"1"])}, None, "a:b\\x0a:0"),
    ])
    def test_the_column_is_found(self, tmp_path, columns, asked, expected):
        pq.write_table(pa.table(columns), tmp_path / "a.parquet")
        item, = list_inputs(tmp_path / "a.parquet", column=asked).items
        assert item.member == expected and read_bytes(item) in (b"1", b"2")

    @pytest.mark.parametrize("columns, asked, message", [
        ({"left": pa.array([b"1"]), "right": pa.array([b"2"])}, None, "several columns that may hold images, left, right"),
        ({"label": pa.array([1]), "caption": pa.array(["x"])}, None, r"no column of images.*label \(int64\), caption"),
        ({"image": pa.array([b"1"])}, "img", "column='img' is none of .*: image"),
        ({"image": pa.array([1])}, "image", "of type int64; it must hold bytes"),
    ])
    def test_the_column_is_not_found(self, tmp_path, columns, asked, message):
        pq.write_table(pa.table(columns), tmp_path / "a.parquet")
        with pytest.raises(BadArgument, match=message):
            list_inputs(tmp_path / "a.parquet", column=asked)

    def test_damage(self, tmp_path):
        path = tmp_path / "a.parquet"
        pq.write_table(pa.table({"image": image_struct([b"x" * 5000] * 4)}), path, use_dictionary=False)
        items = list_inputs(path).items
        data = bytearray(path.read_bytes())
        data[4:60] = b"\xff" * 56  # the header of the first page; the footer stays
        path.write_bytes(data)
        with pytest.raises(ReadFailure) as caught:
            read_bytes(items[0]._replace(stamp="new"))
        assert caught.value.cause == "corrupt" and not caught.value.transient
        path.write_bytes(data[:100])
        with pytest.raises(BadArgument, match="cannot be read as Parquet"):
            list_inputs(path)
        with pytest.raises(ReadFailure, match="corrupt"):
            read_bytes(items[0]._replace(stamp="newer"))
        pq.write_table(pa.table({"image": image_struct([b"x"] * 2)}), path)
        with pytest.raises(ReadFailure, match="no row 3"):
            read_bytes(items[3]._replace(stamp="newest"))


class CountedFile(io.FileIO):
    """A file that notes how many bytes each read gave."""

    def __init__(self, path, counts):
        super().__init__(path)
        self.counts = counts

    def read(self, size=-1):
        data = super().read(size)
        self.counts.append(len(data))
        return data

    def readinto(self, buffer):
        count = super().readinto(buffer)
        self.counts.append(count)
        return count


class TestSequences:
    def test_one_name_in_two_folders(self, tmp_path):
        put(tmp_path, "x/1.jpg", "y/1.jpg", "y/2.jpg")
        assert keys(tmp_path) == ["x/1.jpg", "y/1.jpg", "y/2.jpg"]
        found = contents([tmp_path / "x", tmp_path / "y"])
        told_apart = next(key for key in found if key.startswith("1.jpg~"))
        assert found == {"1.jpg": "x/1.jpg", "2.jpg": "y/2.jpg", told_apart: "y/1.jpg"}
        put(tmp_path, "a/1.jpg")  # a source more leaves the keys there were
        assert set(found.items()) < set(contents([tmp_path / "x", tmp_path / "y", tmp_path / "a"]).items())

    def test_what_is_named_twice_is_kept_once(self, tmp_path):
        put(tmp_path, "x/1.jpg", "x/2.jpg")
        listing = list_inputs([tmp_path / "x", tmp_path / "x" / "1.jpg", f"{tmp_path}/x/*.jpg"])
        assert [item.key for item in listing.items] == ["1.jpg", "2.jpg"] and listing.duplicates == 3

    def test_kinds_may_be_mixed(self, tmp_path, monkeypatch):
        put(tmp_path, "x/1.jpg", "named")
        (tmp_path / "s.tar").write_bytes(tar_bytes(*SAMPLES[:1]))
        pq.write_table(pa.table({"image": [b"row"]}), tmp_path / "p.parquet")
        monkeypatch.chdir(tmp_path)
        assert keys(["x", "s.tar", "p.parquet", "named"]) == ["1.jpg", "named", "p.parquet/000000000", "s.tar/0000.jpg"]

    def test_images_named_outright_keep_their_names(self, tmp_path, monkeypatch):
        put(tmp_path, "x/1.jpg", "y/1.jpg")
        monkeypatch.chdir(tmp_path)
        assert keys(["x/1.jpg", "./y/1.jpg", "y/3.jpg"]) == ["x/1.jpg", "y/1.jpg", "y/3.jpg"]  # the last is missing: filed
        assert keys("x/1.jpg") == ["x/1.jpg"]

    @pytest.mark.parametrize("source, message", [
        ("nowhere", "'nowhere' names no image: there is nothing at this address. It must be a folder"),
        ("nowhere.jpg", "there is nothing at this address"),
        ("empty", "the folder holds no file with the suffix"),
        ("empty/*.jpg", "the pattern matches none"),
        ("empty.txt", "the list has no line"),
        ("empty.tar", "the tar file holds none"),
        ("xyz://bucket", "xyz:// is no protocol"),
        ([], "source is an empty sequence; it must be a folder"),
        (["x.jpg", 3], "source is 3; it must be a folder"),
        (None, "source is None"),
        ("", "source is ''"),
        (["empty.txt", "nowhere"], "names no image"),
    ])
    def test_what_gives_nothing_is_refused(self, tmp_path, monkeypatch, source, message):
        monkeypatch.chdir(tmp_path)
        (tmp_path / "empty").mkdir()
        (tmp_path / "empty.txt").write_text("\n  \n")
        (tmp_path / "empty.tar").write_bytes(tar_bytes(("notes.md", b"x")))
        with pytest.raises(BadArgument) as caught:
            list_inputs(source)
        assert message in str(caught.value)

    def test_a_column_of_nothing(self, tmp_path):
        put(tmp_path, "x/1.jpg")
        with pytest.raises(BadArgument, match="column='image' names a column of Parquet files"):
            list_inputs(tmp_path, column="image")


class TestReading:
    @pytest.mark.parametrize("error, cause, transient", [
        (FileNotFoundError(errno.ENOENT, "x"), "missing", False),
        (NotADirectoryError(errno.ENOTDIR, "x"), "missing", False),
        (PermissionError(errno.EACCES, "x"), "denied", False),
        (IsADirectoryError(errno.EISDIR, "x"), "not_an_image", False),
        *((OSError(number, "x"), "unavailable", True)
          for number in (errno.EIO, errno.ETIMEDOUT, errno.ESTALE, errno.ECONNRESET, errno.EMFILE)),
        (TimeoutError(), "unavailable", True),
        (ConnectionResetError(), "unavailable", True),
        (OSError("a client's own words"), "unavailable", True),
    ])
    def test_errors_of_the_disk(self, tmp_path, monkeypatch, error, cause, transient):
        put(tmp_path, "1.jpg")
        item, = list_inputs(tmp_path).items

        def fail(*arguments):
            raise error

        monkeypatch.setattr(os, "open", fail)
        with pytest.raises(ReadFailure) as caught:
            read_bytes(item)
        assert (caught.value.cause, caught.value.transient) == (cause, transient)
        assert str(tmp_path) not in caught.value.message

    def test_errors_of_clients(self):
        from aiohttp import ClientConnectionError, ClientPayloadError, ClientResponseError
        from botocore.exceptions import ClientError, EndpointConnectionError, NoCredentialsError, ReadTimeoutError
        from fsspec.exceptions import FSTimeoutError

        def s3(status):
            return ClientError({"Error": {"Code": "x"}, "ResponseMetadata": {"HTTPStatusCode": status}}, "GetObject")

        def http(status):
            return ClientResponseError(None, (), status=status)

        transient = [EndpointConnectionError(endpoint_url="x"), ReadTimeoutError(endpoint_url="x"), FSTimeoutError(), s3(500),
                     s3(503), s3(429), http(502), http(408), ClientConnectionError(), ClientPayloadError()]
        for error in transient:
            failure = failure_of(error)
            assert failure.cause == "unavailable" and failure.transient, error
        for error, cause in ((s3(403), "denied"), (http(404), "missing"), (http(400), "denied"), (NoCredentialsError(), "denied")):
            failure = failure_of(error)
            assert failure.cause == cause and not failure.transient, error

    def test_a_mistake_in_a_program_is_no_failure_to_read(self, tmp_path, monkeypatch):
        put(tmp_path, "1.jpg")
        item, = list_inputs(tmp_path).items
        monkeypatch.setattr(os, "open", None)
        with pytest.raises(TypeError):
            read_bytes(item)

    def test_from_several_threads(self, tmp_path):
        from concurrent.futures import ThreadPoolExecutor

        (tmp_path / "s.tar").write_bytes(tar_bytes(*SAMPLES))
        pq.write_table(pa.table({"image": [str(row).encode() for row in range(90)]}), tmp_path / "p.parquet", row_group_size=40)
        items = list_inputs([tmp_path / "s.tar", tmp_path / "p.parquet"]).items * 3
        with ThreadPoolExecutor(4) as pool:
            assert list(pool.map(read_bytes, items)) == [read_bytes(item) for item in items]

    def test_a_file_put_out_of_those_kept_while_it_is_read_stays_open(self, tmp_path, monkeypatch):
        (tmp_path / "s.tar").write_bytes(tar_bytes(*SAMPLES))
        items = list_inputs(tmp_path / "s.tar").items
        expected = read_bytes(items[0])
        pread = os.pread

        def late(number, size, start):
            places.kept_open.cache_clear()
            return pread(number, size, start)

        monkeypatch.setattr(os, "pread", late)
        assert read_bytes(items[0]) == expected

    def test_failures_can_be_sent(self):
        failure = pickle.loads(pickle.dumps(ReadFailure("missing", "there is nothing", True)))
        assert (failure.cause, failure.message, failure.transient) == ("missing", "there is nothing", True)

    def test_in_another_process(self, tmp_path):
        put(tmp_path, "x/1.jpg")
        (tmp_path / "s.tar").write_bytes(tar_bytes(*SAMPLES))
        pq.write_table(pa.table({"image": [b"row"] * 3}), tmp_path / "p.parquet")
        items = list_inputs([tmp_path / "x", tmp_path / "s.tar", tmp_path / "p.parquet"]).items
        here = [read_bytes(item) for item in items]
        with multiprocessing.get_context("forkserver").Pool(1) as pool:
            assert pool.map(read_bytes, items) == here

    @pytest.mark.parametrize("name", ["plain", "a\\b", "caf\udce9", "\n\x7f", "\ud800", "\\xe9", "\\\\", "\u2028ö€😀"])
    def test_every_name_can_be_printed_and_got_back(self, name):
        text = printable(name)
        assert text.isprintable() and text.encode() and actual(text) == name


@pytest.fixture
def memory():
    system = fsspec.filesystem("memory")
    system.store.clear()
    system.pseudo_dirs[:] = [""]
    yield system
    system.store.clear()


def fill(system, root):
    """The same things in any file system: two images, a tar, a Parquet file, a list."""
    import zipfile

    parquet, archive = io.BytesIO(), io.BytesIO()
    pq.write_table(pa.table({"image": image_struct([b"r0", b"r1"])}), parquet)
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr("in/z.jpg", b"zipped")
    for name, content in {
        "shots/a.jpg": b"A", "shots/deep/b.png": b"B", "shots/.c.jpg": b"C", "shots/d.md": b"D",
        "tars/s-0.tar": tar_bytes(*SAMPLES[:4]), "tars/s-1.tar": tar_bytes(*SAMPLES[:1])[: 512 + 600],
        "rows/p.parquet": parquet.getvalue(), "all.txt": b"shots/a.jpg\nnowhere.jpg\n", "z.zip": archive.getvalue(),
    }.items():
        system.pipe_file(f"{root}/{name}", content)


def check_everywhere(url):
    """What every file system must give."""
    assert contents(f"{url}/shots") == {"a.jpg": "A", "deep/b.png": "B"}
    assert contents(f"{url}/shots/") == contents(f"{url}/shots")
    assert contents(f"{url}/shots/**/*.png") == {"deep/b.png": "B"}
    assert contents(f"{url}/shots/*") == {"a.jpg": "A", "deep/b.png": "B"}
    assert contents(f"{url}/rows") == contents(f"{url}/rows/*.parquet") == {
        "p.parquet/000000000": "r0", "p.parquet/000000001": "r1"}
    assert contents(f"{url}/tars/s-{{0..0}}.tar") == {"s-0.tar/0000.jpg": "0jpg" * 300, "s-0.tar/0001.jpg": "1jpg" * 300}
    assert contents(f"zip://*/*.jpg::{url}/z.zip") == {"in/z.jpg": "zipped"}
    for item in list_inputs(f"{url}/tars/s-1.tar").items:
        with pytest.raises(ReadFailure, match="truncated"):
            read_bytes(item)
    there, nowhere = list_inputs(f"{url}/all.txt").items[::-1]
    assert (there.key, read_bytes(there)) == ("shots/a.jpg", b"A")
    with pytest.raises(ReadFailure, match="missing"):
        read_bytes(nowhere)
    with pytest.raises(BadArgument, match="there is nothing at this address"):
        list_inputs(f"{url}/nothing")
    item = list_inputs(f"{url}/shots").items[0]
    assert item.size == 1 and item.stamp and refreshed(item) == item
    assert refreshed(nowhere) == nowhere


class TestFsspec:
    def test_memory(self, memory):
        fill(memory, "/root")
        check_everywhere("memory://root")
        assert Plan.make(list_inputs("memory://root/shots").items).in_process_only
        assert Plan.make(list_inputs("zip://*/*.jpg::memory://root/z.zip").items).in_process_only

    def test_names_that_look_like_a_chain(self, memory):
        memory.pipe("/root/a::b.jpg", b"ab")
        memory.pipe("/root/c.jpg", b"c")
        assert contents("memory://root") == {"a::b.jpg": "ab", "c.jpg": "c"}

    def test_a_zip_on_disk(self, tmp_path):
        with zipfile.ZipFile(tmp_path / "z.zip", "w") as archive:
            archive.writestr("in/a.jpg", "a")
        assert list(contents(f"zip://*/*.jpg::{tmp_path}/z.zip").values()) == ["a"]

    def test_a_list_on_disk_of_shards_elsewhere(self, memory, tmp_path):
        fill(memory, "/root")
        (tmp_path / "all.txt").write_text("memory://root/tars/s-0.tar\nmemory://root/rows/p.parquet\n")
        assert list(contents(tmp_path / "all.txt").values()) == ["r0", "r1", "0jpg" * 300, "1jpg" * 300]

    def test_a_web_server(self, tmp_path):

        class Answers(BaseHTTPRequestHandler):
            def do_HEAD(self):
                self.answer()

            def do_GET(self):
                self.wfile.write(self.answer())

            def answer(self):
                status = {"/gone.jpg": 404, "/closed.jpg": 403, "/broken.jpg": 503}.get(self.path, 200)
                content = self.path.encode()
                self.send_response(status)
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                return content

            def log_message(self, *arguments):
                pass

        with ThreadingHTTPServer(("127.0.0.1", 0), Answers) as server:
            thread = threading.Thread(target=server.serve_forever)
            thread.start()
            url = f"http://127.0.0.1:{server.server_port}"
            try:
                assert contents(f"{url}/a.jpg?size=large") == {f"{url}/a.jpg?size=large": "/a.jpg?size=large"}
                (tmp_path / "urls.txt").write_text("".join(f"{url}/{name}.jpg\n" for name in ("a", "gone", "closed", "broken")))
                found = {}
                for item in list_inputs(tmp_path / "urls.txt").items:
                    try:
                        found[item.key.removeprefix(url)] = read_bytes(item)
                    except ReadFailure as failure:
                        found[item.key.removeprefix(url)] = failure.cause, failure.transient
            finally:
                server.shutdown()
                thread.join()
        assert found == {"/a.jpg": b"/a.jpg", "/gone.jpg": ("missing", False), "/closed.jpg": ("denied", False),
                         "/broken.jpg": ("unavailable", True)}

    def test_local(self, tmp_path):
        fill(fsspec.filesystem("file", auto_mkdir=True), str(tmp_path))
        check_everywhere(f"file://{tmp_path}")
        assert not Plan.make(list_inputs(tmp_path / "shots").items).in_process_only

    def test_without_fsspec(self, monkeypatch, tmp_path):
        from ziggurat.extraction.places import _check_protocol

        _check_protocol.cache_clear()
        monkeypatch.setitem(sys.modules, "fsspec", None)
        (tmp_path / "all.txt").write_text("gs://bucket/a.jpg\n")
        for source in ("s3://bucket/shots", tmp_path / "all.txt"):
            with pytest.raises(MissingExtra, match=r"pip install 'ziggurat\[extract\]'"):
                list_inputs(source)
        put(tmp_path, "x/1.jpg")
        assert keys(f"file://{tmp_path}/x") == ["1.jpg"]  # the disk needs none

    def test_without_a_protocols_package(self, monkeypatch):
        from ziggurat.extraction.places import _check_protocol

        _check_protocol.cache_clear()
        monkeypatch.setitem(sys.modules, "gcsfs", None)
        with pytest.raises(MissingExtra, match="gcsfs"):
            list_inputs("gs://bucket/shots")

    def test_without_pyarrow(self, monkeypatch, tmp_path):
        put(tmp_path, "p.parquet")
        monkeypatch.setitem(sys.modules, "pyarrow", None)
        with pytest.raises(MissingExtra, match=r"pip install 'ziggurat\[extract\]'"):
            list_inputs(tmp_path / "p.parquet")


@pytest.fixture(scope="module")
def url():
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    environment = {"AWS_ENDPOINT_URL": f"http://{host}:{port}", "AWS_ACCESS_KEY_ID": "someone",
                   "AWS_SECRET_ACCESS_KEY": "something", "AWS_DEFAULT_REGION": "us-east-1", "AWS_MAX_ATTEMPTS": "1"}
    with pytest.MonkeyPatch.context() as patch:
        for name, value in environment.items():
            patch.setenv(name, value)
        patch.delenv("AWS_PROFILE", raising=False)
        system = fsspec.filesystem("s3", skip_instance_cache=True)
        system.mkdir("pictures")
        fill(system, "pictures/root")
        yield "s3://pictures/root"
    server.stop()


class TestS3:
    def test_all_kinds(self, url):
        check_everywhere(url)
        assert not Plan.make(list_inputs(f"{url}/shots").items).in_process_only

    def test_a_new_version_has_another_stamp(self, url):
        item = list_inputs(f"{url}/shots").items[0]
        fsspec.filesystem("s3").pipe_file("pictures/root/shots/a.jpg", b"AAA")
        now = refreshed(item)
        assert now.size == 3 and now.stamp not in ("", item.stamp) and read_bytes(now) == b"AAA"
        fsspec.filesystem("s3").pipe_file("pictures/root/shots/a.jpg", b"A")

    def test_in_another_process(self, url):
        items = list_inputs([f"{url}/shots", f"{url}/rows", f"{url}/tars/s-0.tar"]).items
        here = [read_bytes(item) for item in items]
        with multiprocessing.get_context("spawn").Pool(1) as pool:  # a fork server may be older than the environment
            assert pool.map(read_bytes, items) == here

    def test_an_image_costs_one_request(self, url, monkeypatch):
        import s3fs

        items = [*list_inputs(f"{url}/shots").items, *list_inputs(f"{url}/tars/s-0.tar").items]
        calls, call = [], s3fs.S3FileSystem._call_s3

        async def counted(self, method, *arguments, **keywords):
            calls.append(method)
            return await call(self, method, *arguments, **keywords)

        monkeypatch.setattr(s3fs.S3FileSystem, "_call_s3", counted)
        for item in items:
            read_bytes(item)
        assert calls == ["get_object"] * len(items)

    def test_a_server_that_is_gone(self, url, monkeypatch):
        import s3fs.core

        async def at_once(seconds):
            pass

        item = list_inputs(f"{url}/shots").items[0]
        monkeypatch.setattr(s3fs.core.asyncio, "sleep", at_once)
        monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")  # nobody listens there
        s3fs.S3FileSystem.clear_instance_cache()
        with pytest.raises(ReadFailure) as caught:
            read_bytes(item)
        assert (caught.value.cause, caught.value.transient) == ("unavailable", True)
        with pytest.raises(BadArgument, match="cannot be listed: reading failed"):
            list_inputs(f"{url}/shots")
        s3fs.S3FileSystem.clear_instance_cache()

    def test_without_credentials(self, url, monkeypatch):
        import s3fs

        item = list_inputs(f"{url}/shots").items[0]
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            monkeypatch.delenv(name)
        monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
        s3fs.S3FileSystem.clear_instance_cache()
        with pytest.raises(ReadFailure) as caught:
            read_bytes(item)
        assert (caught.value.cause, caught.value.transient) == ("denied", False)
        s3fs.S3FileSystem.clear_instance_cache()

    def test_a_bucket_that_is_not_there(self, url):
        with pytest.raises(BadArgument, match="there is nothing at this address"):
            list_inputs("s3://no-such-bucket/shots")


