"""The plan: rows that keep their numbers, the same bytes for the same inputs, and what differs from it."""

import sys
from hashlib import sha256

import pytest

from ziggurat.errors import BadArgument, MissingExtra
from ziggurat.extraction import plan as module
from ziggurat.extraction.plan import Difference, Plan, PlanFile
from ziggurat.extraction.sources import Item, list_inputs


def item(number, stamp="1"):
    return Item(f"{number:05d}.jpg", f"/data/{number:05d}.jpg", "", -1, number, stamp)


ITEMS = [item(number) for number in range(100)]


@pytest.fixture(autouse=True)
def _small_chunks(monkeypatch):
    monkeypatch.setattr(module, "CHUNK", 16)


def test_rows_are_the_items_in_order_of_key():
    plan = Plan.make(reversed(ITEMS))
    assert len(plan) == 100 and list(plan) == plan.items() == ITEMS
    assert plan.items(10, 40) == ITEMS[10:40] and plan.keys(95, 200) == [one.key for one in ITEMS[95:]]
    assert plan.items(40, 40) == plan.items(40, 30) == [] and isinstance(plan.items(3, 4)[0], Item)
    assert plan.table["row"].to_pylist() == list(range(100))
    assert plan == Plan.make(ITEMS) != Plan.make(ITEMS[1:])


def test_a_key_stands_for_one_input():
    with pytest.raises(BadArgument, match=r"'00001\.jpg' stands for two inputs, in '/data/00001\.jpg' and in '/other'"):
        Plan.make([*ITEMS, ITEMS[1]._replace(container="/other")])


def test_saving_and_loading(tmp_path):
    plan = Plan.make(ITEMS)
    plan.save(tmp_path / "a.parquet")
    loaded = Plan.load(tmp_path / "a.parquet")
    assert loaded == plan and loaded.fingerprint == plan.fingerprint and loaded.items(90, 100) == ITEMS[90:]
    loaded.save(tmp_path / "b.parquet")
    assert (tmp_path / "a.parquet").read_bytes() == (tmp_path / "b.parquet").read_bytes()


def test_bytes_and_fingerprint_do_not_depend_on_how_it_came_to_be(tmp_path):
    whole, grown = Plan.make(ITEMS), Plan.make(ITEMS[:25]).extended(ITEMS[:60]).extended(ITEMS)
    assert grown == whole and grown.fingerprint == whole.fingerprint
    whole.save(tmp_path / "a.parquet")
    grown.save(tmp_path / "b.parquet")
    assert (tmp_path / "a.parquet").read_bytes() == (tmp_path / "b.parquet").read_bytes()


@pytest.mark.parametrize("field, value", [("key", "x"), ("container", "x"), ("member", "x"), ("offset", 7), ("size", 7), ("stamp", "2")])
def test_the_fingerprint_is_of_every_column(field, value):
    changed = [*ITEMS[:-1], ITEMS[-1]._replace(**{field: value})]
    assert Plan.make(changed).fingerprint != Plan.make(ITEMS).fingerprint


def test_the_fingerprint_is_what_it_was():
    """Runs on disk hold it: it must not change with ziggurat's or pyarrow's version."""
    columns = ["row\n0\n1\n", "key\n00000.jpg\n00001.jpg\n", "container\n/data/00000.jpg\n/data/00001.jpg\n",
               "member\n\n\n", "offset\n-1\n-1\n", "size\n0\n1\n", "stamp\n1\n1\n"]
    assert Plan.make(ITEMS[:2]).fingerprint == sha256("".join(columns).encode()).hexdigest()


def test_the_fingerprint_keeps_neighbours_apart():
    one, other = [item(1)._replace(container="ab", member="c")], [item(1)._replace(container="a", member="bc")]
    assert Plan.make(one).fingerprint != Plan.make(other).fingerprint


def test_difference():
    plan = Plan.make(ITEMS[:50])
    assert plan.difference(ITEMS[:50]) == Difference([], [], []) and not plan.difference(ITEMS[:50])
    found = plan.difference([item(70), item(60), *ITEMS[2:49], item(49, stamp="2")])
    assert found and found == Difference(["00060.jpg", "00070.jpg"], ["00000.jpg", "00001.jpg"], ["00049.jpg"])


def test_new_inputs_come_behind_the_old_ones():
    plan = Plan.make(ITEMS[10:40])
    longer = plan.extended([item(12, stamp="2"), *reversed(ITEMS[:10]), *ITEMS[10:45]])
    assert longer.items() == [*ITEMS[10:40], *ITEMS[:10], *ITEMS[40:45]]
    assert longer.table["row"].to_pylist() == list(range(45))
    assert plan.extended(ITEMS[10:20]) == plan and len(plan) == 30


def test_refreshed_rows(tmp_path):
    paths = [tmp_path / f"{number:02d}.jpg" for number in range(40)]
    for path in paths:
        path.write_bytes(b"x")
    plan = Plan.make(list_inputs(tmp_path).items)
    for path in paths:
        path.write_bytes(b"longer")
    again = plan.refreshed([3, 38])
    assert [row for row in range(40) if again.items()[row] != plan.items()[row]] == [3, 38]
    assert again.items(38, 39)[0].size == 6 and again.keys() == plan.keys()
    assert plan.refreshed([]) == plan
    assert plan.refreshed(range(40)) == Plan.make(list_inputs(tmp_path).items)
    with pytest.raises(BadArgument, match="rows go from 3 to 40, the plan's from 0 to 39"):
        plan.refreshed([3, 40])


def test_an_image_costs_about_a_hundred_bytes():
    many = [Item(f"train/class/{i:08d}.jpg", f"/data/train/class/{i:08d}.jpg", "", -1, i, str(10**18 + i)) for i in range(1000)]
    assert Plan.make(many).table.nbytes < 130 * len(many)


def test_an_empty_plan(tmp_path):
    plan = Plan.make([])
    plan.save(tmp_path / "a.parquet")
    assert len(plan) == 0 and plan.items() == [] and Plan.load(tmp_path / "a.parquet") == plan


def test_what_is_no_plan(tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.table({"x": [1]}), tmp_path / "a.parquet")
    with pytest.raises(BadArgument, match=r"cannot be read as a plan: its columns are \['x'\]"):
        Plan.load(tmp_path / "a.parquet")
    (tmp_path / "a.parquet").write_bytes(b"no parquet at all")
    with pytest.raises(BadArgument, match="cannot be read as a plan"):
        Plan.load(tmp_path / "a.parquet")


def test_without_pyarrow(monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(MissingExtra, match=r"pip install 'ziggurat\[extract\]'"):
        Plan.make(ITEMS)


def test_a_saved_plan_is_read_a_stretch_at_a_time(tmp_path):
    plan = Plan.make(ITEMS[:90]).extended([*ITEMS, item(200)])
    plan.save(tmp_path / "plan.parquet")
    kept = PlanFile(tmp_path / "plan.parquet")
    assert len(kept) == 101 and not kept.in_process_only
    for start, stop in ((0, 5), (15, 17), (16, 32), (10, 60), (95, 200), (100, 101), (40, 40), (200, 300)):
        assert kept.items(start, stop) == plan.items(start, stop)
        assert kept.keys(start, stop) == plan.keys(start, stop)
    assert kept._kept.cache_info().currsize == 2
    Plan.make([item(1), item(2)._replace(container="memory://2.jpg")]).save(tmp_path / "plan.parquet")
    assert PlanFile(tmp_path / "plan.parquet").in_process_only
    assert Plan.load(tmp_path / "plan.parquet").in_process_only
