"""Results go to stdout, messages to stderr, and nothing else is written to either."""

import json
import os
import re
import subprocess
import sys
from contextlib import suppress

import pytest

from facevae.system.console import Console, duration, fitted, packed


def test_the_result_is_on_stdout_and_the_talk_on_stderr(capsys):
    console = Console()
    console.say("working")
    console.warn("careful")
    console.progress("Converting", 5, 5, "soon done")
    console.result(["a.png", 7], {"path": "a.png", "count": 7})
    out, err = capsys.readouterr()
    assert out == "a.png\n7\n"
    assert err.splitlines() == ["working", "warning: careful", "Converting: 5 of 5  soon done"]


def test_json_is_one_object_and_nothing_else(capsys):
    console = Console(as_json=True)
    values = {"path": "Zoë.png", "figures": [1.5, None], "nested": {"a": True}}
    console.say("working")
    console.result(["a line for people"], values)
    out, err = capsys.readouterr()
    assert json.loads(out) == values
    assert err == "working\n"


def test_quiet_leaves_only_warnings_errors_and_results(capsys):
    console = Console(quiet=True)
    console.say("working")
    console.progress("Converting", 1, 1)
    console.warn("careful")
    console.error("that failed")
    console.result(["done"], {})
    out, err = capsys.readouterr()
    assert out == "done\n"
    assert err == "warning: careful\nerror: that failed\n"


@pytest.mark.parametrize("method", ["say", "warn", "error"])
def test_a_line_is_shown_as_it_is_and_in_one(capsys, method):
    text = "runs/[bold]1[/bold].png " + "and a long tale " * 30 + "0x1f :smile:"
    getattr(Console(), method)(text)
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    assert err.endswith(text + "\n")


def test_progress_into_a_file_is_a_line_now_and_then_and_one_at_the_end(capsys):
    console = Console()
    for done in range(1, 1001):
        console.progress("Training", done, 1000)
    lines = capsys.readouterr().err.splitlines()
    assert lines[-1] == "Training: 1,000 of 1,000"
    assert len(lines) < 50


def test_a_table_is_on_stdout_with_every_cell(capsys):
    Console().table("Figures", ["name", "count", "psnr"], [["[a]", 1234, 20.12345], ["b", 7, None]])
    out, err = capsys.readouterr()
    assert err == ""
    title, header, rule, *rows = map(str.rstrip, out.splitlines())
    assert (title, header.split()) == ("Figures", ["name", "count", "psnr"])
    assert set(rule) == {"─"}
    assert [row.split() for row in rows] == [["[a]", "1234", "20.12"], ["b", "7", "-"]]


def test_a_table_sets_numbers_to_the_right_and_words_to_the_left(capsys):
    Console().table("", ["word", "number"], [["a", 1], ["bcdef", 23456]])
    lines = capsys.readouterr().out.splitlines()
    assert lines[-2:] == ["a           1", "bcdef   23456"]


def test_a_table_without_rows_still_has_its_columns(capsys):
    Console().table("Cache", ["key", "size"], [])
    out = capsys.readouterr().out
    assert "key" in out
    assert "size" in out


ROW = ["5_o_Clock_Shadow", 79, "Wearing_Lipstick +0.9\nHeavy_Makeup -0.8"]


def shown(capsys, monkeypatch, width, rows=(ROW,)):
    monkeypatch.setenv("COLUMNS", str(width))
    Console().table("t", ["name", "accuracy", "goes along with"], rows)
    return [line.rstrip() for line in capsys.readouterr().out.splitlines()[1:]]


def test_no_word_of_a_table_is_broken(capsys, monkeypatch):
    words = {word for cell in ROW for word in str(cell).split()}
    for width in range(20, 120):
        lines = shown(capsys, monkeypatch, width)
        assert words <= {word for line in lines for word in line.split()}, width
        if width >= 45:  # room for the longest words
            assert max(map(len, lines)) <= width
            assert "─" in lines[1] + lines[2]


def test_a_table_that_is_too_wide_is_a_paragraph_a_row(capsys, monkeypatch):
    assert shown(capsys, monkeypatch, 40) == [
        "5_o_Clock_Shadow",
        "  accuracy: 79",
        "  goes along with: Wearing_Lipstick +0.9",
        "    Heavy_Makeup -0.8",
    ]


def test_where_there_is_no_terminal_a_row_stays_one_line(capsys, monkeypatch):
    monkeypatch.delenv("COLUMNS", raising=False)
    path = "/a/very/long/path" * 20
    Console().table("t", ["key", "path"], [["a", path]])
    assert capsys.readouterr().out.splitlines()[-1].split() == ["a", path]


@pytest.mark.parametrize(
    ("natural", "least", "room", "widths"),
    [
        ([5, 20], [5, 8], 30, [5, 20]),
        ([5, 20], [5, 8], 20, [5, 15]),
        ([5, 10, 20], [5, 8, 8], 25, [5, 10, 10]),
        ([5, 20], [5, 8], 13, [5, 8]),
        ([5, 20], [5, 8], 12, None),
    ],
)
def test_columns_take_what_room_there_is(natural, least, room, widths):
    assert fitted(natural, least, room) == widths


def test_a_note_is_broken_between_its_parts_where_a_line_is_too_short():
    parts = ["aaaa", "bb", "cccccc"]
    assert packed(parts, 40) == ["aaaa · bb · cccccc"]
    assert packed(parts, 10) == ["aaaa · bb", "cccccc"]
    assert packed(parts, 3) == parts, "no part is ever broken"
    assert packed([], 10) == []


def test_progress_into_a_file_says_how_long_it_will_take(capsys, monkeypatch):
    clock = iter([1000.0, 1040.0, 1400.0])
    monkeypatch.setattr("facevae.system.console.time.monotonic", lambda: next(clock))
    console = Console()
    for done in (10, 20, 110):
        console.progress("Training", done, 110, "KL 7 nats · 3 images/s")
    lines = capsys.readouterr().err.splitlines()
    assert lines == [
        "Training: 10 of 110  KL 7 nats · 3 images/s",
        "Training: 20 of 110, 6 min 00 s left  KL 7 nats · 3 images/s",
        "Training: 110 of 110  KL 7 nats · 3 images/s",
    ]


@pytest.mark.parametrize(
    ("seconds", "said"),
    [(0, "0 s"), (59.4, "59 s"), (60, "1 min 00 s"), (3725, "1 h 02 min"), (90_000, "25 h 00 min")],
)
def test_a_duration_is_said_as_people_say_it(seconds, said):
    assert duration(seconds) == said


SHOW = """
from facevae.system.console import Console
console = Console()
for done in range(1, 4):
    note = "reconstruction -12,345 + KL 678 nats · held-out PSNR 23.45 dB · 1,234 images/s"
    console.progress("Training", done, 3, note)
console.result(["end"], {})
"""


@pytest.mark.skipif(sys.platform == "win32", reason="needs a pseudo-terminal")
@pytest.mark.parametrize("width", [60, 80, 120])
@pytest.mark.parametrize("term", ["xterm", "dumb"])
def test_no_line_of_a_terminal_is_longer_than_it_is_wide(width, term):
    import pty

    main, end = pty.openpty()
    environment = {k: v for k, v in os.environ.items() if k != "LINES"}
    environment |= {"COLUMNS": str(width), "TERM": term, "NO_COLOR": "1"}
    with subprocess.Popen(
        [sys.executable, "-c", SHOW], stdin=end, stdout=end, stderr=end, env=environment
    ) as process:
        os.close(end)
        shown = b""
        with suppress(OSError):  # a pseudo-terminal's end of file
            while part := os.read(main, 4096):
                shown += part
    os.close(main)
    assert process.returncode == 0
    text = shown.decode()
    assert not re.search(r"\x1b\[[\d;]*3[0-7]m", text), "NO_COLOR"
    lines = re.sub(r"\x1b\[[\d;?]*[a-zA-Z]", "", text).replace("\r", "\n").splitlines()
    assert "end" in lines
    for part in ("KL 678 nats", "held-out PSNR 23.45 dB", "1,234 images/s"):
        assert any(part in line for line in lines)
    if term == "xterm":
        assert max(map(len, lines)) <= width
