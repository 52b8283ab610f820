"""A face is named by a photo, a seed, or a row of a file of latents."""

import pytest

from facevae.errors import UsageError
from facevae.latent_space.face_names import check_suffix, split_name


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("a.npz", ("a.npz", None)),
        ("a.b/c.NPZ#3", ("a.b/c.NPZ", "3")),
        ("x.safetensors#a#b", ("x.safetensors", "a#b")),
        ("x.npz#y.npz#z", ("x.npz#y.npz", "z")),
        ("x.npz#", ("x.npz", "")),
        ("a.png", None),
        ("seed:3", None),
        (".npz", None),
    ],
)
def test_what_names_a_file_of_latents(name, expected):
    found = split_name(name)
    assert (found and (str(found[0]), found[1])) == expected


def test_a_photo_of_such_a_name_is_a_photo(tmp_path):
    (tmp_path / "a.npz#3").touch()
    assert split_name(str(tmp_path / "a.npz#3")) is None


def test_a_name_without_a_format_is_refused(tmp_path):
    for name in ("a", "a.csv", "a.npy"):
        with pytest.raises(UsageError, match=r"\.npz or \.safetensors"):
            check_suffix(tmp_path / name)
