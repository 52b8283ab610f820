import dataclasses
import json

import numpy as np
import pytest
from tiny import tiny_bundle

from facevae.data.image_tensors import to_pixels
from facevae.errors import FacevaeError, UsageError
from facevae.latent_space.latents import decode, latents_of_seeds
from facevae.models.bundle import save
from facevae.sharing.card import ALPHAS, NUM_SAMPLES, Licence
from facevae.sharing.package import (
    check_folder,
    configuration,
    draw_pictures,
    is_configuration,
    write_package,
)


@pytest.fixture
def source(tmp_path):
    path = tmp_path / "run" / "model.safetensors"
    save(tiny_bundle(), path)
    return path


def test_the_folder_holds_the_very_model_and_a_picture_of_each_kind(source, tmp_path):
    folder = tmp_path / "out"
    names = write_package(tiny_bundle(), source, "a/b", Licence("other", "none"), folder)
    assert {p.relative_to(folder).as_posix() for p in folder.rglob("*.*")} | {"LICENSE"} == set(
        names
    )
    assert (folder / "model.safetensors").read_bytes() == source.read_bytes()
    assert "none" in (folder / "LICENSE").read_text()
    values = json.loads((folder / "config.json").read_text())
    assert is_configuration(values)
    assert values["config"]["size"] == 32
    for name in names:
        if name.endswith(".png"):
            assert f"({name})" in (folder / "README.md").read_text()


def test_pictures_are_of_generated_faces_alone():
    """All that they hold are seeds, and ways from seeds."""
    bundle = tiny_bundle()
    pictures, seeds = draw_pictures(bundle)
    size = bundle.config.size
    faces = latents_of_seeds(bundle, list(range(NUM_SAMPLES)))
    expected = to_pixels(decode(bundle.vae, faces))

    def cell(name, row, column):
        return pictures[name][row * size : (row + 1) * size, column * size : (column + 1) * size]

    for i in range(NUM_SAMPLES):
        assert np.array_equal(cell("pictures/samples.png", i // 8, i % 8), expected[i])
    assert np.array_equal(cell("pictures/morph.png", 0, 0), expected[seeds[0]])
    assert np.array_equal(cell("pictures/morph.png", 0, 7), expected[seeds[1]])
    middle = ALPHAS.index(0.0)
    for row in range(4):
        assert np.array_equal(cell("pictures/attributes.png", row, middle), expected[seeds[0]])


def test_what_an_earlier_model_left_goes(source, tmp_path):
    folder = tmp_path / "out"
    write_package(tiny_bundle(), source, "a/b", Licence("other", "none"), folder)
    plain = dataclasses.replace(tiny_bundle(), attributes=[], directions=None)
    check_folder(folder, source)
    names = write_package(plain, source, "a/b", Licence("mit"), folder)
    found = {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()}
    assert found == set(names)
    assert not {"LICENSE", "pictures/attributes.png"} & found


def test_a_folder_of_anything_else_is_refused(source, tmp_path):
    check_folder(tmp_path / "new", source)
    (tmp_path / "empty").mkdir()
    check_folder(tmp_path / "empty", source)
    package = tmp_path / "package"
    write_package(tiny_bundle(), source, "a/b", Licence("mit"), package)
    (source.parent / "config.json").write_text("{}")  # a run's
    (tmp_path / "file").touch()
    (tmp_path / "odd").mkdir()
    (tmp_path / "odd" / "config.json").write_text("{")
    for folder, model in (
        (source.parent, package / "model.safetensors"),  # another's run
        (source.parent, source),
        (package, package / "model.safetensors"),  # of itself
        (tmp_path, source),
        (tmp_path / "file", source),
    ):
        with pytest.raises(UsageError, match="-o"):
            check_folder(folder, model)
    with pytest.raises(FacevaeError, match="JSON"):
        check_folder(tmp_path / "odd", source)


@pytest.mark.parametrize("values", [None, [], {}, {"library_name": "diffusers"}])
def test_other_configurations_are_told_apart(values):
    assert is_configuration(configuration(tiny_bundle()))
    assert not is_configuration(values)
