"""A failure is one line, whatever is named in it."""

import pytest

from facevae.errors import FacevaeError, ModelError


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
