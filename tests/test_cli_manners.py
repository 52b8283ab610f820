"""Environment variables, completion, and terminals that are narrow, plain or not there."""

import errno
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image
from tiny import ATTRIBUTES, tiny_bundle

from facevae.models import loading
from facevae.models.bundle import save


def has_shell() -> bool:
    """Whether some parent of this process is a shell, which completion asks for."""
    shellingham = pytest.importorskip("shellingham")
    try:
        shellingham.detect_shell()
    except (shellingham.ShellDetectionFailure, RuntimeError):
        return False
    return True


needs_a_shell = pytest.mark.skipif("not has_shell()", reason="started from no shell")


@pytest.fixture
def model(tmp_path):
    """A tiny model, `tiny.safetensors`, where the command line runs."""
    save(tiny_bundle(), tmp_path / "tiny.safetensors")
    return "tiny.safetensors"


def test_variables_set_other_defaults_and_options_count_first(facevae, model):
    done = facevae("info", FACEVAE_MODEL=model, FACEVAE_JSON="1", FACEVAE_QUIET="1")
    assert json.loads(done.stdout)["model"]["name"] == model
    assert done.stderr == ""
    sampled = ("sample", "-n", "1", "-o", "a.png")
    assert facevae(*sampled, FACEVAE_MODEL="nowhere", FACEVAE_QUIET="0", code=1).stdout == ""
    done = facevae(*sampled, "-m", model, FACEVAE_MODEL="nowhere", FACEVAE_JSON="0")
    assert done.stdout == "a.png\n"
    assert "model: tiny" in done.stderr


@pytest.mark.parametrize("group", [(), ("attributes",)])
def test_a_command_that_needs_another_shows_which_there_are(facevae, group):
    done = facevae(*group)
    assert done.stderr == ""
    assert done.stdout.strip() == facevae(*group, "--help").stdout.strip()


def test_a_variable_that_makes_no_sense_is_named(facevae, model):
    done = facevae("info", model, code=2, FACEVAE_QUIET="perhaps")
    assert done.stdout == ""
    assert "FACEVAE_QUIET" in done.stderr


def test_every_attribute_is_a_word_whatever_the_width(facevae, model):
    for width in ("40", "80"):
        shown = facevae("attributes", "list", model, COLUMNS=width).stdout
        assert set(ATTRIBUTES) <= set(shown.split())
        assert max(map(len, shown.splitlines())) <= int(width) + len(
            model
        )  # the title is not broken


def test_there_are_no_colours_where_nobody_sees_them(facevae, model):
    for environment in ({}, {"NO_COLOR": "1", "FORCE_COLOR": "1"}):
        done = facevae("attributes", "list", model, **environment)
        assert not re.search(r"\x1b\[[\d;]*3[0-7]", done.stdout + done.stderr)


@pytest.mark.parametrize("command", [("train",), ("sample",), ("attributes", "learn")])
def test_help_in_a_narrow_terminal_names_every_option_in_full(facevae, command):
    wide, narrow = (
        set(re.findall(r"--[a-z-]+", facevae(*command, "--help", COLUMNS=width).stdout))
        for width in ("200", "40")
    )
    assert narrow == wide


def shell_says(script: str, **environment: str) -> str:
    done = subprocess.run(
        ["bash", "-c", script],
        capture_output=True,
        text=True,
        check=True,
        env={"PATH": f"{Path(sys.executable).parent}:/usr/bin:/bin", **environment},
    )
    return done.stdout


@needs_a_shell
def test_bash_is_told_how_to_complete(facevae):
    script = facevae("--show-completion", "bash").stdout
    assert script.rstrip().endswith("facevae")
    defined = shell_says(f"{script}\ncomplete -p facevae")
    assert re.search(r"-F (\w+) facevae", defined)


@pytest.mark.parametrize(
    ("typed", "offered"),
    [("att", {"attributes"}), ("attributes le", {"learn"}), ("sample --temp", {"--temperature"})],
)
def test_commands_and_options_are_completed(facevae, typed, offered):
    words = f"facevae {typed}"
    done = facevae(
        _FACEVAE_COMPLETE="complete_bash", COMP_WORDS=words, COMP_CWORD=str(len(typed.split()))
    )
    assert set(done.stdout.split()) == offered


@needs_a_shell
def test_install_completion_writes_where_the_shell_looks(facevae, tmp_path):
    home = tmp_path / "home"
    home.mkdir()
    facevae("--install-completion", "bash", HOME=str(home))
    assert "facevae" in (home / ".bashrc").read_text()


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (MemoryError(), "too little memory"),
        (torch.OutOfMemoryError("CUDA out of memory."), "too little memory"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory"), "too little memory"),
        (OSError(errno.ENOSPC, "No space left on device", "a"), "a: No space left on device; free"),
    ],
)
def test_what_the_machine_lacks_is_one_line(here, monkeypatch, error, said):
    def fail(*_args, **_kwargs):
        raise error

    monkeypatch.setattr(loading, "read_model", fail)
    done = here("info", code=1)
    assert done.stderr.startswith(f"error: {said}")
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("sample", "-n", "0"), "--number"),
        (("sample", "-n", "many"), "--number"),
        (("sample", "--temperature", "nan"), "--temperature"),
        (("sample", "--prior", "vamp"), "vamp"),
        (("sample", "--sed", "3"), "--sed"),
        (("sampel",), "sampel"),
        (("morph",), "A B"),
        (("attributes", "lern"), "lern"),
    ],
)
@pytest.mark.parametrize("environment", [{}, {"FACEVAE_JSON": "1"}])
def test_wrong_usage_is_one_line_that_says_where_to_look(facevae, arguments, said, environment):
    done = facevae(*arguments, code=2, **environment)
    assert done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: ")
    assert said in line
    assert line.endswith("--help")


def test_ctrl_c_is_told_in_a_line(here, monkeypatch):
    def interrupt(*_args, **_kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(loading, "read_model", interrupt)
    assert here("info", code=130).stderr.splitlines()[-1] == "stopped"


def test_a_failure_of_ours_is_not_hidden(here, monkeypatch):
    def fail(*_args, **_kwargs):
        raise RuntimeError("a mistake")

    monkeypatch.setattr(loading, "read_model", fail)
    with pytest.raises(RuntimeError, match="a mistake"):
        here("info")


# ---------------------------------------------------------------- errors in the user's words


def test_errors_name_options_as_they_are_typed(facevae, tmp_path, model):
    Image.new("RGB", (64, 64)).save(tmp_path / "blank.png")
    save(tiny_bundle(kind="normal"), tmp_path / "normal.safetensors")
    no_face = "error: blank.png: no face found; crop closer"
    arith = ("arith", "seed:0", "-m", model, "--attr")
    for command, code, message in (
        (("sample", "-n", 1, "--guidance", 2, "-m", "normal.safetensors"), 2, "--guidance 2: only"),
        (("sample", "-n", 1, "--prior", "flow", "-m", "normal.safetensors"), 2, "--prior flow: "),
        (("sample", "--device", "abacus"), 2, "--device abacus: must be auto, cpu"),
        ((*arith, "wings"), 2, "--attr wings: this model knows "),
        ((*arith, "smile", "--keep", "x"), 2, "--keep x: this model knows "),
        (
            ("reconstruct", "blank.png"),
            1,
            f"{no_face}, or take the picture as it is with --no-align",
        ),
        (("align", "blank.png", "-o", "faces"), 1, f"the first: {no_face.removeprefix('error: ')}"),
    ):
        told = facevae(*command, code=code).stderr.splitlines()[-1]
        assert told.startswith("error: ")
        assert message in told
        assert ("--no-align" in told) == (command[0] == "reconstruct")


@pytest.mark.parametrize(
    ("arguments", "option", "value"),
    [
        (("sample", "-n", "0"), "--number", "0"),
        (("sample", "-n", "abc"), "--number", "abc"),
        (("sample", "-n", "2000000"), "--number", "2000000"),
        (("sample", "--prior", "foo"), "--prior", "foo"),
        (("sample", "--temperature", "-1"), "--temperature", "-1"),
        (("morph", "a.png", "b.png", "--fps", "0"), "--fps", "0"),
    ],
)
def test_an_impossible_value_is_shown_with_its_option_in_our_words(
    facevae, arguments, option, value
):
    done = facevae(*arguments, code=2)
    assert option in done.stderr
    assert value in done.stderr
    assert "Input should" not in done.stderr
    assert done.stderr.rstrip().endswith(f"; see facevae {arguments[0]} --help")


@pytest.mark.parametrize("arguments", [("sample", "-n", "a\nb\x1b[31m"), ("sam\nple\x1b[31m",)])
def test_what_was_typed_breaks_no_line_and_colours_nothing(facevae, arguments):
    done = facevae(*arguments, code=2)
    assert len(done.stderr.splitlines()) == 1
    assert "\x1b" not in done.stderr


def test_a_message_that_asks_is_followed_by_where_to_look(facevae):
    assert "'reconstruct'" in (said := facevae("reconstrut", code=2).stderr)
    assert said.rstrip().endswith("? See facevae --help")


def test_an_option_without_its_value_names_its_own_command(facevae):
    assert facevae("cache", "--clear", code=2).stderr.rstrip().endswith("see facevae cache --help")
    assert (
        "see facevae attributes list --help" in facevae("attributes", "list", "-x", code=2).stderr
    )
