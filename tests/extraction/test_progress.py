"""What a run says while it goes on: to people, to a log and to programs."""

import io
import json
import re

import pytest

from ziggurat.extraction.failures import CAUSES
from ziggurat.extraction.progress import (
    REMEDIES,
    Bar,
    Cause,
    Finished,
    JsonLines,
    Lines,
    Meter,
    Planned,
    Progress,
    Resumed,
    Unit,
    Verified,
    duration,
    reporter_for,
    size,
    summary,
)

PLANNED = Planned(images=10_000, units=10, to_do=6_000, bytes_estimated=15_360_000, free_bytes=10**12,
                  model="resnet50", backend="openvino", reason="openvino: the fastest on a CPU")
BUSY = {"read": 10.0, "decode": 100.0, "forward": 40.0, "write": 1.0}
FINISHED = Finished("complete with failures", images=6_000, rows=9_990, failures=10, seconds=120.0,
                    by_cause=(Cause("read", "missing", 3, "a/b.jpg"), Cause("decode", "truncated", 7, "c.png")))


class Terminal(io.StringIO):
    def isatty(self):
        return True


def told(reporter, *events):
    with reporter as report:
        for event in events:
            if event is KeyboardInterrupt:
                raise event
            report(event)
    return reporter.stream.getvalue()


def test_a_log_gets_a_line_a_minute_and_one_at_each_end():
    steps = [Progress(50 * second, second // 30, second, {}, 2) for second in range(1, 121)]
    first, resumed, one, two, *end = told(Lines(io.StringIO()), PLANNED, Resumed(4, 4_000), *steps, Unit(4, 1000, 0), FINISHED).splitlines()
    assert first == ("10,000 images in 10 units, 6,000 to do here; resnet50 by openvino: the fastest on a CPU; "
                     "about 15.4 MB on disk, 1.0 TB free")
    assert resumed == "4 units with 4,000 images done earlier"
    assert one == "3,000 of 6,000 images, 50.0 images/s now, 50.0 overall, 2 failures, 1:00 left"
    assert two.startswith("6,000 of 6,000 images")
    assert end == summary(FINISHED).splitlines()


def test_the_bar_shows_speed_failures_time_left_and_the_bottleneck():
    stream = Terminal()
    reporter = reporter_for(stream=stream)
    assert isinstance(reporter, Bar)
    reporter.console.width = 100
    with reporter as report:
        report(PLANNED)
        report(Progress(3_000, 2, 60.0, BUSY, workers=2))
        reporter.bar.refresh()
        report(FINISHED)
    shown = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", stream.getvalue())
    assert "3000/6000 50/s (50), 2 failed, 1:00 left, decode 92%" in shown
    assert "10,000 images in 10 units" in shown
    assert "complete with failures: 9,990 rows, 10 failures; 6,000 images in 2:00 (50.0 images/s)" in shown


def test_the_bar_gives_the_terminal_back_after_an_error():
    stream = Terminal()
    with pytest.raises(KeyboardInterrupt):
        told(reporter_for(stream=stream), PLANNED, KeyboardInterrupt)
    assert stream.getvalue().rindex("\x1b[?25h") > stream.getvalue().rindex("\x1b[?25l")  # the cursor is shown again


def test_programs_get_an_object_a_line_and_nothing_else():
    text = told(reporter_for(json=True, stream=io.StringIO()), PLANNED, Resumed(4, 4_000),
                Progress(50, 0, 1.0, BUSY, 2), Progress(60, 0, 1.2, BUSY, 2), Progress(150, 0, 3.0, BUSY, 2),
                Unit(4, 999, 1), Verified(9_990, 10, 10, 1234), FINISHED)
    events = [json.loads(line) for line in text.splitlines()]
    assert [event["event"] for event in events] == ["planned", "resumed", "progress", "progress", "unit", "verified", "finished"]
    assert events[0]["images"] == 10_000
    assert events[2]["images_per_second"] == 50
    assert events[2]["bottleneck"] == "decode"
    assert events[2]["seconds_left"] == 119
    assert events[3]["images"] == 150  # two within a second are one
    assert events[4] == {"event": "unit", "unit": 4, "rows": 999, "failures": 1}
    assert events[-1]["by_cause"][1] == {"stage": "decode", "cause": "truncated", "count": 7, "example": "c.png"}


def test_json_goes_to_stdout_and_words_to_stderr(capsys):
    told_to = reporter_for(json=True)
    told_to(Finished("complete", 1, 1, 0, 1.0, (Cause("read", "missing", 1, "\udcff.jpg"),)))
    with reporter_for() as report:
        assert isinstance(report, Lines)
        report(PLANNED)
    out, err = capsys.readouterr()
    assert out.isascii()
    assert json.loads(out)["by_cause"][0]["example"] == "\udcff.jpg"  # a name that is not UTF-8
    assert err.startswith("10,000 images")


@pytest.mark.parametrize("busy,workers,stage,share", [
    ({"read": 3, "decode": 15, "forward": 9.5, "write": 1}, 2, "forward", 0.95),
    ({"read": 4, "decode": 15.5, "forward": 9.5, "write": 1}, 2, "decode", 0.975),  # neither alone, but their processes
    ({"read": 16, "decode": 3.5, "forward": 9.5, "write": 1}, 2, "read", 0.975),
    ({"read": 3, "decode": 4, "forward": 2, "write": 9}, 1, "write", 0.9),
    ({"decode": 8, "forward": 2}, 0, "decode", 0.8),
])
def test_the_bottleneck_is_the_stage_whose_processes_are_busiest(busy, workers, stage, share):
    meter = Meter()
    meter.add(Progress(100, 0, 10.0, busy, workers))
    assert meter.bottleneck() == (stage, pytest.approx(share))


def test_now_looks_back_ten_seconds():
    meter = Meter()
    meter.to_do = 10_000
    for second in range(1, 101):  # ten a second, and from the 80th second on a hundred
        meter.add(Progress(10 * second + 90 * max(0, second - 80), 0, float(second), {"forward": min(second, 80), "decode": max(0, second - 80)}))
    assert meter.recently == 100
    assert meter.overall == pytest.approx(28)
    assert meter.bottleneck() == ("decode", 1.0)
    assert len(meter.seen) <= 12
    assert meter.seconds_left == pytest.approx((10_000 - 2_800) / 28)


def test_nothing_is_divided_by_zero():
    meter = Meter()
    assert (meter.recently, meter.overall, meter.seconds_left, meter.bottleneck()) == (0, 0, None, None)
    assert summary(Finished("resumable", 0, 0, 0, 0.0)) == "resumable: 0 rows, 0 failures; 0 images in 0:00 (0.0 images/s)"
    told(JsonLines(io.StringIO()), Planned(0, 0, 0, 0, -1, "m", "torch"), Progress(0, 0, 0.0))


def test_the_summary_counts_by_cause_and_says_what_to_do():
    assert summary(FINISHED).splitlines()[1:] == [
        "stage   cause      count  first    what to do",
        "decode  truncated      7  c.png    copy the file again, then retry",
        "read    missing        3  a/b.jpg  bring the file back, then retry",
    ]
    assert REMEDIES.keys() == CAUSES.keys()


def test_units_of_people():
    assert [duration(seconds) for seconds in (0.4, 59.6, 3723, 176_523)] == ["0:00", "1:00", "1:02:03", "2 d 1:02:03"]
    assert [size(count) for count in (0, 999, 1000, 3_010_000, 999_960, 4 * 10**18)] == [
        "0 B", "999 B", "1.0 kB", "3.0 MB", "1.0 MB", "4000.0 PB"]
