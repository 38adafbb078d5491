"""What is near in a run: searched for by image, key and vector, and as near-duplicates."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from finished_run import finished_run
from PIL import Image
from running import picture, pictures, run

import ziggurat
from commanding import ziggurat_
from ziggurat import packages
from ziggurat.cli.duplicates import run as duplicates_command
from ziggurat.errors import BadArgument, ChangedRun, IncompleteRun, MissingExtra, UnreadableImage
from ziggurat.extraction import contact_sheet, find_duplicates, neighbours, search_images
from ziggurat.extraction.neighbours import DUPLICATES, largest, nearest, nearest_by_faiss, similar_pairs, unit_length
from ziggurat.extraction.outputs import Outputs

EMBED = Outputs(embed=True)


def in_blocks(vectors, size=7, rows=None):
    """Vectors as `Run.embedding.batches` gives them."""
    rows = np.arange(len(vectors)) if rows is None else rows
    return lambda start: ((rows[i : i + size], vectors[i : i + size]) for i in range(start, len(vectors), size))


def cosines(one, other):
    one, other = (v / np.maximum(np.linalg.norm(v, axis=1, keepdims=True), 1e-30) for v in (one.astype(float), other.astype(float)))
    return one @ other.T


@pytest.fixture
def vectors():
    return np.random.default_rng(1).standard_normal((100, 8)).astype(np.float16)


# -------------------------------------------------------------------- numbers


@pytest.mark.parametrize("k", [1, 5, 60, 100, 1000])
def test_the_nearest_are_those_of_the_whole_product(vectors, k):
    queries = np.random.default_rng(2).standard_normal((4, 8)).astype(np.float32)
    rows, found = nearest(in_blocks(vectors), queries, k)
    exact = cosines(queries, vectors)
    expected = np.argsort(-exact, 1)[:, :k]
    np.testing.assert_array_equal(rows, expected)
    np.testing.assert_allclose(found, np.take_along_axis(exact, expected, 1), atol=1e-6)


def test_equal_ones_come_in_the_order_of_their_rows(vectors):
    vectors[[3, 6, 20, 21, 50, 99]] = vectors[0]
    rows, found = nearest(in_blocks(vectors, rows=np.arange(100) * 10), vectors[:1], 5)
    assert rows.tolist() == [[0, 30, 60, 200, 210]]
    np.testing.assert_allclose(found, 1, atol=1e-6)
    assert largest(torch.tensor([[1.0, 2.0, 2.0, 3.0, 2.0]]), 3).tolist() == [[3, 1, 2]]


def test_a_vector_without_length_is_like_nothing():
    vectors = np.zeros((9, 8), np.float16)
    vectors[4, 2] = 1
    assert torch.equal(unit_length(vectors), torch.as_tensor(vectors).float())
    rows, found = nearest(in_blocks(vectors, 2), np.eye(8, dtype=np.float32)[[2, 3]], 2)
    assert rows.tolist() == [[4, 0], [0, 1]]
    assert found.tolist() == [[1, 0], [0, 0]]
    assert similar_pairs(in_blocks(vectors), 1e-3, 10)[3] == 0


def test_the_least_and_the_greatest_numbers_of_float16_have_a_length():
    vectors = np.full((2, 512), [[65504], [6e-8]], np.float16)
    _, found = nearest(in_blocks(vectors), vectors[:1], 2)
    np.testing.assert_allclose(found, 1, atol=1e-6)


@pytest.mark.parametrize("panel", [6, 64, 1000])
def test_pairs_are_those_of_the_upper_triangle(vectors, panel, monkeypatch):
    monkeypatch.setattr(neighbours, "BLOCK", 3)
    monkeypatch.setattr(neighbours, "PANEL", panel)
    rows = np.arange(100) * 3
    exact = cosines(vectors, vectors).round(6)
    first, second = np.nonzero(np.triu(exact >= 0.7, 1))
    order = np.argsort(-exact[first, second], kind="stable")
    found, ones, others, total = similar_pairs(in_blocks(vectors, 3, rows), 0.7, 1000)
    assert total == len(first) > 30
    assert list(zip(ones, others)) == [(rows[first[i]], rows[second[i]]) for i in order]
    np.testing.assert_allclose(found, exact[first, second][order], atol=1e-6)
    least = similar_pairs(in_blocks(vectors, 3, rows), 0.7, 10)
    assert least[3] == total
    np.testing.assert_array_equal(least[0], found[:10])
    np.testing.assert_array_equal(least[1], ones[:10])


def test_equal_pairs_come_in_the_order_of_their_rows_and_one_is_reached():
    same = np.tile(np.random.default_rng(3).standard_normal(8).astype(np.float32), (5, 1))
    found, ones, others, total = similar_pairs(in_blocks(same, 2), 1.0, 4)
    assert total == 10
    assert (found <= 1).all()
    assert list(zip(ones, others)) == [(0, 1), (0, 2), (0, 3), (0, 4)]


def test_faiss_finds_what_the_exact_search_does():
    random = np.random.default_rng(4)
    centres = random.standard_normal((20, 16))
    vectors = (centres[random.integers(20, size=600)] + 0.1 * random.standard_normal((600, 16))).astype(np.float16)
    queries = vectors[::50].astype(np.float32)
    blocks = in_blocks(vectors, 128, np.arange(600) * 2)
    exact, approximate = nearest(blocks, queries, 5), nearest_by_faiss(blocks, queries, 5)
    shared = np.mean([len(set(one) & set(other)) / 5 for one, other in zip(exact[0], approximate[0])])
    assert shared > 0.9
    np.testing.assert_array_equal(approximate[0][:, 0], exact[0][:, 0])
    np.testing.assert_allclose(approximate[1][:, 0], 1, atol=1e-3)
    few = nearest_by_faiss(in_blocks(vectors[:6]), queries[:1], 10)  # more than there are
    np.testing.assert_array_equal(few[0], nearest(in_blocks(vectors[:6]), queries[:1], 10)[0])


def test_the_way_is_chosen_by_the_number_of_queries(monkeypatch):
    assert neighbours.chosen_index("auto", neighbours.FAISS_QUERIES - 1) == "exact"
    assert neighbours.chosen_index("auto", neighbours.FAISS_QUERIES) == "faiss"
    assert neighbours.chosen_index("exact", 10**6) == "exact"
    with pytest.raises(BadArgument, match="give auto, exact or faiss"):
        neighbours.chosen_index("flat", 1)
    monkeypatch.setattr(packages, "find_spec", lambda name: None)
    assert neighbours.chosen_index("auto", 10**6) == "exact"
    with pytest.raises(MissingExtra, match=r"ziggurat\[faiss\]"):
        neighbours.chosen_index("faiss", 1)


# -------------------------------------------------------------------- runs of numbers


def test_a_key_and_a_vector_need_no_model(tmp_path):
    values = finished_run(tmp_path / "run", EMBED, failed=(3, 17))["embedding"]
    opened = ziggurat.open(tmp_path / "run")
    (found,) = search_images(opened, "images/005.jpg", k=3)
    assert (found.query, found.image.container) == ("images/005.jpg", "/data/images/005.jpg")
    assert found.neighbours[0] == ("images/005.jpg", 5, pytest.approx(1))
    exact = cosines(values, values)
    exact[:, [3, 17]] = -2  # those have no vector
    expected = np.argsort(-exact[5])[:3]
    assert [near.row for near in found.neighbours] == expected.tolist()
    assert [near.key for near in found.neighbours] == [f"images/{row:03d}.jpg" for row in expected]
    for query in (values[5], torch.from_numpy(values[5]), values[5:6] * 3, [values[5]]):
        (again,) = search_images(tmp_path / "run", query, k=3, index="exact")
        assert [near.row for near in again.neighbours] == expected.tolist()
    assert (again.query, again.image) == ("vector 0", None)
    by_faiss = search_images(opened, ["images/005.jpg", "images/039.jpg"], k=1, index="faiss")
    assert [each.neighbours[0].row for each in by_faiss] == [5, 39]


def test_duplicates_of_a_run(tmp_path):
    values = finished_run(tmp_path / "run", EMBED, failed=(0,))["embedding"]
    exact = np.triu(cosines(values, values), 1)
    exact[0] = 0
    found = find_duplicates(tmp_path / "run", 0.5)
    assert found.images == 39
    assert found.total == len(found.pairs) == (exact >= 0.5).sum() > 3
    row, other = np.unravel_index(exact.argmax(), exact.shape)
    assert found.pairs[0] == (pytest.approx(exact.max()), f"images/{row:03d}.jpg", f"images/{other:03d}.jpg", row, other)


@pytest.mark.parametrize("index", ["exact", "faiss"])
def test_a_run_whose_images_all_failed_has_no_neighbours(tmp_path, index):
    finished_run(tmp_path / "run", EMBED, images=3, failed=(0, 1, 2))
    opened = ziggurat.open(tmp_path / "run")
    found = search_images(opened, np.ones(12), index=index)
    assert found == [("vector 0", None, [])]
    assert contact_sheet(opened, found).height > 160
    assert find_duplicates(opened) == ([], 0, 0)


def test_what_cannot_be_searched(tmp_path):
    finished_run(tmp_path / "run", EMBED, failed=(3,))
    opened = ziggurat.open(tmp_path / "run")
    with pytest.raises(BadArgument, match=r"images/003.jpg.*failed: decode, truncated"):
        search_images(opened, "images/003.jpg")
    with pytest.raises(BadArgument, match=r"shape \(11,\); the run's have 12"):
        search_images(opened, np.zeros(11))
    with pytest.raises(BadArgument, match="finite"):
        search_images(opened, np.full(12, np.nan))
    with pytest.raises(BadArgument, match="nothing.jpg"):
        search_images(opened, "nothing.jpg")
    with pytest.raises(BadArgument, match="k=0"):
        search_images(opened, "images/005.jpg", k=0)
    for threshold in (0, 1.1, float("nan")):
        with pytest.raises(BadArgument, match="threshold"):
            find_duplicates(opened, threshold)
    with pytest.raises(BadArgument, match="limit=0"):
        find_duplicates(opened, limit=0)
    finished_run(tmp_path / "maps", Outputs(strides=(8,)))
    with pytest.raises(BadArgument, match="holds no embeddings, but pyramid"):
        find_duplicates(tmp_path / "maps")
    finished_run(tmp_path / "begun", EMBED, done={0})
    with pytest.raises(IncompleteRun):
        find_duplicates(tmp_path / "begun")
    with pytest.raises(BadArgument, match=r"holds no extraction"):
        search_images(tmp_path, "x.jpg")


# -------------------------------------------------------------------- runs of images


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """A folder of images, some of which are much alike, and the run over it."""
    folder = tmp_path_factory.mktemp("photos")
    pictures(folder / "images", 10)
    (folder / "images" / "again.jpg").write_bytes((folder / "images" / "00004.jpg").read_bytes())
    Image.open(folder / "images" / "00007.jpg").save(folder / "images" / "copy.png")
    (folder / "images" / "bad.jpg").write_bytes(b"")
    assert run(folder / "images", folder / "run").state == "quarantined"
    return folder


def test_an_image_of_the_run_finds_itself(photos):
    found = search_images(photos / "run", [photos / "images" / "00002.jpg", str(photos / "images" / "0000[47].jpg")], k=3)
    assert [Path(each.query).name for each in found] == ["00002.jpg", "00004.jpg", "00007.jpg"]
    assert [near.similarity for near in (each.neighbours[0] for each in found)] == pytest.approx([1, 1, 1], abs=1e-5)
    assert [found[0].neighbours[0].key, *(near.key for near in found[1].neighbours[:2])] == ["00002.jpg", "00004.jpg", "again.jpg"]
    assert {near.key for near in found[2].neighbours[:2]} == {"00007.jpg", "copy.png"}
    by_key = search_images(photos / "run", "00002.jpg", k=3)[0]
    assert [near.key for near in by_key.neighbours] == [near.key for near in found[0].neighbours]


def test_queries_are_held_to_the_weights_of_the_run(photos, tmp_path):
    torch.manual_seed(5)
    model = ziggurat.create_model("resnet10t", num_classes=0).eval()  # other random weights
    with pytest.raises(ChangedRun, match="cannot be compared"):
        search_images(photos / "run", photos / "images" / "00002.jpg", model=model)
    (tmp_path / "torn.jpg").write_bytes(picture(1)[:300])
    with pytest.raises(UnreadableImage, match=r"torn.jpg"):
        search_images(photos / "run", tmp_path / "torn.jpg")


def test_duplicates_are_found_among_images(photos):
    pairs = find_duplicates(photos / "run", 0.9999).pairs
    assert {(pair.key, pair.other) for pair in pairs} == {("00004.jpg", "again.jpg"), ("00007.jpg", "copy.png")}
    assert pairs[0].similarity == pytest.approx(1, abs=1e-6)


def test_the_contact_sheet_shows_what_is_there(photos):
    opened = ziggurat.open(photos / "run")
    found = search_images(opened, ["00002.jpg", "00004.jpg"], k=7)
    hidden = photos / "images" / f"{found[0].neighbours[1].key}"
    away = hidden.with_suffix(".away")
    hidden.rename(away)
    try:
        sheet = contact_sheet(opened, found)
    finally:
        away.rename(hidden)
    whole = contact_sheet(opened, found)
    assert sheet.size == whole.size
    assert sheet.width > 6 * 160
    assert sheet.height > 4 * 160  # two queries, each with two lines of images
    differs = np.flatnonzero((np.asarray(sheet) != np.asarray(whole)).any((1, 2)))
    assert differs.size  # a grey tile in the place of the image that is gone
    assert contact_sheet(opened, search_images(opened, np.ones(512), k=1)).height < 300


# -------------------------------------------------------------------- commands


def test_search_prints_a_table_and_draws_a_sheet(photos, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    out, err = ziggurat_("search", photos / "run", photos / "images" / "00004.jpg", "--k", 2, "--sheet", "made/found.png")
    heading, first, second = out.splitlines()
    assert heading.split() == ["query", "image", "rank", "similarity"]
    assert first.split()[1:] == ["00004.jpg", "1", "1.0000"]
    assert second.split()[1:] == ["again.jpg", "2", "1.0000"]
    assert err == "exact: 1 query over 12 embeddings (an index of FAISS pays from 1,000 queries at once)\nmade/found.png: the contact sheet\n"
    with Image.open("made/found.png") as sheet:
        assert sheet.height > 160
    out, err = ziggurat_("search", photos / "run", "00004.jpg", "00007.jpg", "--json", "--no-sheet", "-k", 2)
    found = json.loads(out)
    assert [each["query"] for each in found] == ["00004.jpg", "00007.jpg"]
    assert "faiss: 1 query over 12 embeddings (as asked; it may miss a neighbour" in ziggurat_(
        "search", photos / "run", "00004.jpg", "--index", "faiss", "--no-sheet")[1]
    assert found[0]["neighbours"][1] == {"key": "again.jpg", "row": 10, "similarity": pytest.approx(1, abs=1e-6)}
    assert not Path("search.png").exists()


def test_duplicates_prints_a_table(photos):
    out, err = ziggurat_("duplicates", photos / "run", "--threshold", 0.9999)
    assert [line.split() for line in out.splitlines()] == [
        ["image", "other", "similarity"], ["00004.jpg", "again.jpg", "1.0000"], ["00007.jpg", "copy.png", "1.0000"]]
    assert err == "2 pairs of 0.9999 or more among 12 images\n"
    found = json.loads(ziggurat_("duplicates", photos / "run", "--threshold", 0.9999, "--limit", 1, "--json")[0])
    assert (found["total"], len(found["pairs"]), found["images"]) == (2, 1, 12)
    assert duplicates_command.__defaults__[0] == DUPLICATES


def test_sentences_of_the_commands(photos, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("plain").mkdir()
    for command in (["search", "plain", "x.jpg"], ["search", "plain", "x.jpg", "--k", 3], ["duplicates", "plain"]):
        out, err = ziggurat_(*command, status=1)
        assert out == ""
        assert "_ziggurat/manifest.json" in err
        assert "'ziggurat extract'" in err
    assert "give one or more images" in ziggurat_("search", photos / "run", status=1)[1]
    assert "gone.jpg" in ziggurat_("search", photos / "run", "gone.jpg", status=1)[1]
    assert "--license: for choosing architectures" in ziggurat_("search", photos / "run", "x.jpg", "--license", "mit", status=1)[1]
    assert "--k: for searching the images of a run" in ziggurat_("search", "resnet18", "--k", 3, status=2)[1]
    assert "Pillow writes no .xyz" in ziggurat_("search", photos / "run", "00004.jpg", "--sheet", "a.xyz", status=1)[1]
    Path("resnet18").mkdir()  # a folder that happens to have the name of an architecture
    assert "resnet18" in ziggurat_("search", "resnet18")[0]
