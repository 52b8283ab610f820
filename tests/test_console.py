"""Results go to stdout, talk to stderr, and nothing else happens to either."""

import json

import pytest

from facevae.console import Console


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
    Console().table("Figures", ["name", "count", "psnr"], [["[a]", 1234, 20.12345], ["b", 7, 9.5]])
    out, err = capsys.readouterr()
    assert err == ""
    rows = {
        line.split()[1]: line.replace("│", " ").split() for line in out.splitlines() if "│" in line
    }
    assert rows["[a]"] == ["[a]", "1234", "20.12"]
    assert rows["b"] == ["b", "7", "9.5"]
    assert "Figures" in out


def test_a_table_sets_numbers_to_the_right_and_words_to_the_left(capsys):
    Console().table("", ["word", "number"], [["a", 1], ["bcdef", 23456]])
    lines = [line for line in capsys.readouterr().out.splitlines() if "│" in line]
    cells = [line.strip("│").split("│") for line in lines]
    assert cells[0] == [" a     ", "      1 "]
    assert cells[1] == [" bcdef ", "  23456 "]


def test_a_table_without_rows_still_has_its_columns(capsys):
    Console().table("Cache", ["key", "size"], [])
    out = capsys.readouterr().out
    assert "key" in out
    assert "size" in out
