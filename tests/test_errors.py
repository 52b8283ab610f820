"""A failure is one line, whatever is named in it."""

import pickle

import pytest

from facevae.cli.session import error_line
from facevae.errors import (
    Argument,
    FacevaeError,
    ImageError,
    ModelError,
    NoFaceError,
    UsageError,
)


@pytest.mark.parametrize(
    ("named", "shown"),
    [
        ("a\nb.png", r"a\nb.png"),
        ("\x1b]0;title\x07.png", r"\x1b]0;title\x07.png"),
        ("a\u2028b\x85c", r"a\u2028b\x85c"),
        ("Zoë 顔 \udce9.png", "Zoë 顔 \udce9.png"),
    ],
)
@pytest.mark.parametrize("kind", [FacevaeError, ModelError])
def test_a_line_stays_one_line_and_does_nothing_to_a_terminal(kind, named, shown):
    assert str(kind(f"{named}: damaged")) == f"{shown}: damaged"


@pytest.mark.parametrize(
    ("error", "in_python", "as_options"),
    [
        (UsageError("as it is"), "as it is", "as it is"),
        (
            UsageError(Argument("guidance", 12), ": too much"),
            "guidance=12: too much",
            "--guidance 12: too much",
        ),
        (
            UsageError(Argument("latent_dim", 0), ": too few"),
            "latent_dim=0: too few",
            "--latent-dim 0: too few",
        ),
        (
            UsageError(Argument("attribute", "a\nb"), ": give ", Argument("alpha")),
            r"attribute=a\nb: give `alpha`",
            r"--attr a\nb: give --alpha",
        ),
        (
            UsageError(Argument("max_seconds", 0), ": too short"),
            "max_seconds=0: too short",
            "--max-time 0: too short",
        ),
        (
            ImageError("a.png: has 1 face, so there is no ", Argument("face", 2)),
            "a.png: has 1 face, so there is no face=2",
            "a.png: has 1 face, so there is no --face 2",
        ),
    ],
)
def test_arguments_are_named_in_the_words_of_whoever_reads_the_message(
    error, in_python, as_options
):
    assert str(error) == in_python
    assert error_line(error) == as_options


def test_an_error_keeps_its_arguments_between_processes():
    error = pickle.loads(pickle.dumps(UsageError(Argument("guidance", 12), ": too much")))
    assert str(error) == "guidance=12: too much"


def test_the_way_out_without_a_face_is_shown_by_commands_that_have_it():
    error = NoFaceError("a.png: no face found; crop closer")
    assert str(error) == error_line(error, has_no_align=False)
    assert error_line(error) == f"{error}, or take the picture as it is with --no-align"
