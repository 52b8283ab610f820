"""Files are written whole or not at all, and never replace another by accident."""

import json
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from facevae.errors import FacevaeError, UsageError
from facevae.system import files

# locks the folder in its argument, reports it, and keeps the lock until its stdin is closed
HOLDER = """
import sys
from pathlib import Path
from facevae.system.files import locked
with locked(Path(sys.argv[1]), "this run"):
    print("held", flush=True)
    sys.stdin.read()
"""


def start_holder(folder):
    command = [sys.executable, "-c", HOLDER, str(folder)]
    holder = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert holder.stdout.readline() == "held\n"
    return holder


def end(holder):
    holder.kill()
    holder.communicate()


def take(folder):
    with files.locked(folder, "this run"):
        return True


@pytest.mark.parametrize("named", ["a.png", "/etc/a.png", "../../a.png", "b/../a.png"])
def test_what_others_name_is_in_the_folder_all_the_same(tmp_path, named):
    assert files.inside(tmp_path, named) == tmp_path / "a.png"


def test_replacing_takes_the_place_of_the_old_file(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("old")
    with files.replacing(path) as temporary:
        temporary.write_text("new")
        assert path.read_text() == "old"
    assert path.read_text() == "new"
    assert list(tmp_path.iterdir()) == [path]


def write_half(path):
    with files.replacing(path) as temporary:
        temporary.write_text("half of the n")
        msg = "disk full"
        raise OSError(msg)


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("old")
    with pytest.raises(OSError, match="disk full"):
        write_half(path)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_failed_first_write_leaves_nothing(tmp_path):
    with pytest.raises(OSError, match="disk full"):
        write_half(tmp_path / "a.txt")
    assert list(tmp_path.iterdir()) == []


def test_the_temporary_name_keeps_the_suffix_and_the_folder(tmp_path):
    path = tmp_path / "deep" / "deeper" / ("long name " * 20 + ".png")
    with files.replacing(path) as temporary:
        assert temporary.suffix == ".png"
        assert temporary.parent == path.parent
        temporary.write_bytes(b"x")
    assert path.read_bytes() == b"x"


def test_a_written_file_has_the_permissions_of_an_ordinary_one(tmp_path):
    ordinary = tmp_path / "ordinary"
    ordinary.touch()
    mask = os.umask(0o027)
    try:
        files.write_text(tmp_path / "written", "")
    finally:
        os.umask(mask)
    assert stat.S_IMODE((tmp_path / "written").stat().st_mode) == 0o640
    files.write_text(tmp_path / "again", "")
    assert (tmp_path / "again").stat().st_mode == ordinary.stat().st_mode


def test_json_comes_back_as_it_went(tmp_path):
    value = {"name": "Zoë 顔", "numbers": [1, 2.5, None, True], "nested": {"a": []}}
    files.write_json(tmp_path / "a.json", value)
    assert files.read_json(tmp_path / "a.json") == value
    assert json.loads((tmp_path / "a.json").read_bytes()) == value


@pytest.mark.parametrize("content", [b"", b'{"a": ', b"\xff\xfe", None])
def test_json_that_cannot_be_read_is_named(tmp_path, content):
    path = tmp_path / "a.json"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(FacevaeError, match=r"a\.json"):
        files.read_json(path)


def test_unused_numbers_past_every_name_that_is_taken(tmp_path):
    path = tmp_path / "grid.png"
    assert files.unused(path) == path
    path.touch()
    assert files.unused(path) == tmp_path / "grid-1.png"
    (tmp_path / "grid-1.png").mkdir()
    (tmp_path / "grid-3.png").touch()
    assert files.unused(path) == tmp_path / "grid-2.png"


def test_distinct_names_tells_equal_stems_apart():
    paths = ["a/face.png", "b/face.jpg", "face-2.png", "c/face", "other.png"]
    assert files.distinct_names(paths) == ["face", "face-2", "face-2-2", "face-3", "other"]


def test_distinct_names_holds_case_to_be_no_difference():
    assert files.distinct_names(["Ann.png", "ANN.jpg", "ann.bmp"]) == ["Ann", "ANN-2", "ann-3"]


@given(st.lists(st.sampled_from(["a", "A", "a-2", "A-2", "a-3", "ß", "SS", "", "."]), max_size=12))
def test_distinct_names_are_distinct_on_any_file_system(stems):
    names = files.distinct_names([f"x/{stem}.png" for stem in stems])
    assert len(names) == len(stems)
    assert len({name.casefold() for name in names}) == len(names)
    assert all(names)


def test_digest_counts_the_boundaries_of_its_parts():
    assert files.digest("ab", "c") != files.digest("a", "bc")
    assert files.digest("ab", "c") == files.digest(b"ab", b"c")
    assert files.digest() != files.digest("")
    assert len(files.digest("\udcff")) == 64


def test_a_lock_excludes_another_process_until_that_ends(tmp_path):
    holder = start_holder(tmp_path / "run")
    try:
        with pytest.raises(FacevaeError, match="run: this run is in use by another facevae"):
            take(tmp_path / "run")
        assert take(tmp_path / "another")
        holder.communicate()  # closes its stdin, so that it releases the lock
        assert holder.returncode == 0
        assert take(tmp_path / "run")
    finally:
        end(holder)


def test_a_lock_is_freed_when_its_process_is_killed(tmp_path):
    holder = start_holder(tmp_path)
    end(holder)
    assert take(tmp_path)


def test_a_lock_is_freed_by_an_error(tmp_path):
    msg = "work failed"
    with pytest.raises(ValueError, match=msg), files.locked(tmp_path, "this run"):
        raise ValueError(msg)
    assert take(tmp_path)


def test_the_cache_is_where_the_environment_says(tmp_path, monkeypatch):
    monkeypatch.setenv("FACEVAE_CACHE", str(tmp_path / "mine"))
    assert files.cache_folder() == tmp_path / "mine"
    monkeypatch.delenv("FACEVAE_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    if sys.platform == "linux":
        assert files.cache_folder() == tmp_path / "xdg" / "facevae"


def test_size_bytes_adds_up_what_is_below(tmp_path):
    (tmp_path / "a").write_bytes(bytes(10))
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "b").write_bytes(bytes(7))
    Path(tmp_path / "nowhere").symlink_to(tmp_path / "missing")
    assert files.size_bytes(tmp_path) == 17


def test_homes_are_found_and_names_that_begin_alike_are_names(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert files.expanded("~/a.png") == tmp_path / "home" / "a.png"
    assert files.expanded("a~b.png") == Path("a~b.png")
    with pytest.raises(UsageError, match=r"^~nobody at all: no user is called 'nobody at all'"):
        files.expanded("~nobody at all")
    Path("~nobody at all").mkdir()
    assert files.expanded("~nobody at all/a.png") == Path("~nobody at all/a.png")
