import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from conftest import ROOT, draw_face
from PIL import Image
from tiny import ATTRIBUTES, CONFIG, tiny_bundle, with_texture

import facevae
from facevae import errors
from facevae.api import Model
from facevae.data.image_tensors import to_pixels
from facevae.errors import FacevaeError, ImageError, NoFaceError, UsageError
from facevae.latent_space.edits import edit_faces, plan_edit
from facevae.latent_space.latents import decode, encode_pixels, latents_of_seeds, morph
from facevae.models.bundle import save

PORTRAIT = ROOT / ".github" / "pictures" / "astronaut.png"


@pytest.fixture
def model():
    return Model(tiny_bundle(), "tiny")


# ---------------------------------------------------------------- the package


def test_importing_the_package_loads_nothing_until_something_is_asked_for():
    script = """
import json, sys
import facevae
before = sorted(sys.modules)
names = dir(facevae)
assert facevae.__version__
assert facevae.UsageError
light = sorted(sys.modules)
facevae.load
print(json.dumps([before, names, light, "torch" in sys.modules]))
"""
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    before, names, light, has_torch = json.loads(done.stdout)
    heavy = {"torch", "numpy", "PIL", "rich", "typer", "safetensors", "huggingface_hub"}
    assert not heavy & set(before)
    assert not heavy & set(light)
    assert has_torch
    assert set(facevae.__all__) <= set(names)


def test_the_package_has_what_it_names_and_nothing_else():
    from importlib.metadata import version

    for name in facevae.__all__:
        assert getattr(facevae, name)
    assert facevae.__version__ == version("facevae")
    assert facevae.FacevaeError is FacevaeError
    kinds = {name for name, kind in vars(errors).items() if _is_public_error(kind)}
    assert kinds <= set(facevae.__all__)
    assert all(getattr(facevae, name) is getattr(errors, name) for name in kinds)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = facevae.nothing


def _is_public_error(value):
    return isinstance(value, type) and issubclass(value, FacevaeError)


# ---------------------------------------------------------------- loading


def test_a_model_is_loaded_by_any_name(tmp_path):
    save(tiny_bundle(), tmp_path / "model.safetensors")
    for name in (tmp_path, str(tmp_path), tmp_path / "model.safetensors"):
        model = facevae.load(name, device="cpu")
        assert (model.size, model.latent_dim) == (CONFIG.size, CONFIG.latent_dim)
        assert model.name == str(name)
        assert [a.name for a in model.attributes] == list(ATTRIBUTES)
        assert model.provenance["terms"] == "for tests"
    assert facevae.load().name == "default"
    assert "size=32" in repr(model)


def test_what_cannot_be_loaded_is_said_in_one_line():
    for name, device in (("nowhere", "cpu"), ("default", "abacus")):
        with pytest.raises(FacevaeError) as caught:
            facevae.load(name, device=device)
        assert len(str(caught.value).splitlines()) == 1


# ---------------------------------------------------------------- faces


def test_sampling_gives_the_faces_of_the_command(model):
    expected = latents_of_seeds(model.bundle, [5, 6, 7], 0.8)
    latents = model.sample(3, seed=5, temperature=0.8)
    assert latents.equal(expected)
    guided = latents_of_seeds(model.bundle, [5, 6, 7], guidance=2.0)
    assert model.sample(3, seed=5, guidance=2.0).equal(guided)
    assert not guided.allclose(model.sample(3, seed=5))
    assert latents.dtype == torch.float32
    assert model.sample(0).shape == (0, CONFIG.latent_dim)


def test_decoding_gives_pictures_or_a_tensor(model):
    latents = model.sample(3)
    expected = decode(model.bundle.vae, latents)
    assert model.decode_images(latents).equal(expected)
    pictures = model.decode(latents)
    assert [p.mode for p in pictures] == ["RGB"] * 3
    assert np.array_equal(np.stack([np.array(p) for p in pictures]), to_pixels(expected))
    one = model.decode(latents[1])
    assert np.array_equal(np.array(one[0]), to_pixels(expected)[1])
    assert model.decode_images(latents.double().numpy()).equal(expected)
    assert model.decode(model.sample(0)) == []


def test_encoding_takes_pictures_and_tensors_one_or_many(model):
    pictures = [draw_face(seed, CONFIG.size) for seed in range(3)]
    pixels = np.stack([np.array(picture) for picture in pictures])
    expected = encode_pixels(model.bundle, pixels)
    assert model.encode(pictures).equal(expected)
    images = torch.from_numpy(pixels).movedim(-1, 1) / 255
    assert model.encode(images).equal(expected)
    assert model.encode(list(images)).equal(expected)
    for one in (pictures[0], images[0]):
        assert torch.allclose(model.encode(one), expected[:1], atol=1e-5)
    assert model.encode([]).shape == (0, CONFIG.latent_dim)
    # any other picture is brought to the size: upright, its largest centred square
    wide = Image.new("L", (90, 40))
    assert model.encode(wide).shape == (1, CONFIG.latent_dim)


def test_a_morph_begins_and_ends_at_its_faces(model):
    a, b = model.sample(2)
    way = model.morph(a, b, steps=5)
    assert way.equal(morph(model.bundle, torch.stack([a, b]), 5))
    assert way[0].equal(a)
    assert way[-1].equal(b)
    straight = model.morph(a, b, steps=3, path="lerp")
    assert torch.allclose(straight[1], (a + b) / 2)


def test_an_edit_adds_what_the_attribute_is(model):
    latents = model.sample(2)
    edited = model.edit(latents, {"beard": 2.0}, keep=["none"])
    # "beard" is against the direction of No_Beard
    edit = plan_edit(model.bundle, ["no beard"], ["none"])
    expected = edit_faces(model.bundle, edit, latents, -2 * torch.ones(2, 1))
    torch.testing.assert_close(edited, expected)
    # corrected by what the pictures of this untrained network show
    score = (edited - latents) @ model.bundle.scorers[3]
    torch.testing.assert_close(score, torch.tensor([-2.0, -2.0]), rtol=0, atol=0.301)
    both = model.edit(latents, {"glasses": 1.5, "beard": 2.0}, keep=["none"])
    moved = (both - latents) @ model.bundle.scorers[[0, 3]].T
    torch.testing.assert_close(moved, torch.tensor([[1.5, -2.0]] * 2), rtol=0, atol=0.301)
    held = model.edit(latents, {"glasses": 1.5})
    assert not held.equal(model.edit(latents, {"glasses": 1.5}, keep=["none"]))
    assert model.edit(latents, {}).equal(latents)
    assert model.edit(latents[0], {"smile": 0.0}).equal(latents[:1])


def test_aligning_finds_the_face_of_a_photo():
    model = facevae.load()
    from_path = model.align(PORTRAIT)
    with Image.open(PORTRAIT) as photo:
        assert model.align(photo) == from_path
    assert from_path.size == (128, 128)
    with pytest.raises(ImageError, match=r"has 1 face, so there is no face=2$"):
        model.align(str(PORTRAIT), face=2)
    with pytest.raises(NoFaceError, match=r"^the picture: no face found; crop closer$"):
        model.align(Image.new("RGB", (200, 200)))


def test_without_a_framing_a_photo_is_its_centred_square(model):
    with Image.open(PORTRAIT) as photo:
        assert model.align(photo).size == (CONFIG.size, CONFIG.size)


@pytest.mark.parametrize(
    "wrong",
    [
        lambda m: m.decode(torch.zeros(2, 5)),
        lambda m: m.decode(torch.zeros(1, 2, CONFIG.latent_dim)),
        lambda m: m.encode("face.png"),
        lambda m: m.encode(torch.full((3, CONFIG.size, CONFIG.size), 255.0)),
        lambda m: m.encode(torch.zeros(3, 7, 7)),
        lambda m: m.encode(torch.zeros(3, CONFIG.size, CONFIG.size, dtype=torch.uint8)),
        lambda m: m.morph(m.sample(2), m.sample(2)),
        lambda m: m.morph(*m.sample(2), steps=1),
        lambda m: m.edit(m.sample(1), {"wings": 1.0}),
        lambda m: m.edit(m.sample(1), {"smile": 1.0}, keep=["wings"]),
        lambda m: m.edit(m.sample(1), {"smile": 1.0}, keep=["smile"]),
        lambda m: m.edit(m.sample(1), {"smile": 1.0, "Smiling": 1.0}),
        lambda m: m.sample(1, guidance=12),
        lambda m: m.sample(1, guidance="strong"),
        lambda m: m.sample(1, temperature="hot"),
        lambda m: m.sample(-1),
        lambda m: m.sample(1.5),
        lambda m: m.sample(1, seed=0.5),
        lambda m: m.morph(*m.sample(2), steps=2.5),
        lambda m: m.morph(*m.sample(2), path="foo"),
        lambda m: m.decode(m.sample(1), texture="fine"),
        lambda m: m.align(PORTRAIT, face=1.5),
        lambda _: facevae.load(device="abacus"),
        lambda m: m.sample(2, seed=-1),
        lambda m: m.sample(2, seed=2**63 - 1),
        lambda m: m.align(PORTRAIT, face=0),
        lambda m: m.align("nowhere.png"),
    ],
)
def test_what_cannot_be_meant_is_said_in_one_line(model, wrong):
    with pytest.raises((UsageError, ImageError)) as caught:
        wrong(model)
    assert len(str(caught.value).splitlines()) == 1
    assert "--" not in str(caught.value)  # options are the command line's words


def test_arguments_are_named_as_python_has_them(model):
    latents = model.sample(2)
    for call, message in (
        (lambda: model.sample(1, guidance=12), "guidance=12: must be 0 to 10"),
        (lambda: model.edit(latents, {"wings": 1}), "attribute=wings: this model knows"),
        (lambda: model.edit(latents, {"smile": 1}, keep=["x"]), "keep=x: "),
        (lambda: facevae.load(device="abacus"), "device=abacus: must be auto, cpu"),
        (lambda: model.morph(*latents, path="foo"), "morph(path='foo'): must be 'slerp' or 'lerp'"),
        (lambda: model.morph(*latents, steps=2.5), "morph(steps=2.5): must be a whole number"),
        (lambda: model.sample(1.5), "sample(1.5, seed=0): a count and seeds are whole numbers"),
    ):
        with pytest.raises(UsageError) as caught:
            call()
        assert str(caught.value).startswith(message)


def test_whole_numbers_may_be_numpys(model):
    a, b = model.sample(np.int64(2), seed=np.int64(3))
    assert model.sample(2, seed=3).equal(torch.stack([a, b]))
    assert len(model.morph(a, b, steps=np.int64(3))) == 3


# ---------------------------------------------------------------- what is refused


@pytest.mark.parametrize("amount", [float("nan"), float("inf"), 10**400, "1.5", None])
def test_edits_are_by_finite_numbers(model, amount):
    with pytest.raises(UsageError, match="needs names with finite numbers"):
        model.edit(model.sample(1), {"smile": amount})


def test_edits_have_names_and_numbers(model):
    with pytest.raises(UsageError, match="needs names with finite numbers"):
        model.edit(model.sample(1), "smile")
    with pytest.raises(UsageError, match="needs names with finite numbers"):
        model.edit(model.sample(1), {1: 1.0})
    with pytest.raises(UsageError, match=r"keep='gender'\): needs a list of names"):
        model.edit(model.sample(1), {"smile": 1.0}, keep="gender")
    assert model.edit(model.sample(1), {"smile": np.float32(1)}).shape == (1, CONFIG.latent_dim)


def test_a_finished_model_decodes_with_texture_or_without():
    model = Model(with_texture(tiny_bundle()), "finished")
    latents = model.sample(2)
    whole, half, none = (model.decode_images(latents, texture=t) for t in (1, 0.5, 0))
    assert model.decode_images(latents).equal(none)
    assert none.equal(decode(model.bundle.vae, latents, 0.0))
    assert (half - none).norm() < (whole - none).norm()
    assert np.array_equal(np.array(model.decode(latents, texture=0)[0]), to_pixels(none)[0])


@pytest.mark.parametrize("texture", [-0.1, 1.1, float("nan")])
def test_texture_is_from_0_to_1(model, texture):
    with pytest.raises(UsageError, match=r"decode\(texture="):
        model.decode(model.sample(1), texture=texture)
    with pytest.raises(UsageError, match=r"tuned\(texture="):
        model.tuned(draw_face(0), texture=texture)


def test_a_tuned_model_is_another_one_that_draws_its_pictures_better(model):
    pictures = [draw_face(i, CONFIG.size) for i in range(2)]
    latents = model.encode(pictures)
    before = model.decode_images(latents)
    tuned = model.tuned(pictures)
    assert isinstance(tuned, Model)
    assert model.decode_images(latents).equal(before)
    # the latents are the same to both, and edits are corrected by what each draws
    assert tuned.encode(pictures).equal(latents)
    edits = [one.edit(latents, {"smile": 1}) for one in (model, tuned)]
    torch.testing.assert_close(edits[1], edits[0], rtol=0, atol=1)
    assert not edits[1].equal(edits[0])
    assert tuned.sample(1).equal(model.sample(1))
    photos = torch.stack([model._image(picture) for picture in pictures])
    errors_of = [
        (images - photos).square().mean((1, 2, 3))
        for images in (before, tuned.decode_images(latents))
    ]
    assert (errors_of[1] < errors_of[0]).all()
    assert model.tuned(pictures[0]).decode_images(latents[0]).shape == (1, *photos[0].shape)
    with pytest.raises(UsageError, match=r"tuned\(\[\]\)"):
        model.tuned([])


@pytest.mark.parametrize("temperature", [-1, float("nan"), float("inf")])
def test_a_temperature_is_finite_and_not_below_0(model, temperature):
    with pytest.raises(UsageError, match=r"sample\(temperature="):
        model.sample(2, temperature=temperature)


def test_what_is_no_latent_is_named(model):
    with pytest.raises(UsageError, match="'seed:1': no latents; `encode` makes them"):
        model.morph("seed:1", model.sample(1))


@pytest.mark.parametrize("given", ["photo.jpg", PORTRAIT])
def test_encode_takes_no_path_and_says_what_does(model, given):
    with pytest.raises(ImageError, match="not a PIL image or a tensor; `align` opens a photo"):
        model.encode(given)


def test_align_takes_pictures_and_paths(model):
    with PORTRAIT.open("rb") as file, pytest.raises(ImageError, match="neither a PIL image nor"):
        model.align(file)


def test_numbers_may_be_tensors_and_arrays_without_dimensions(model):
    latents = model.sample(torch.tensor(2), seed=np.int64(3), temperature=torch.tensor(0.5))
    assert latents.equal(model.sample(2, seed=3, temperature=0.5))
    images = model.decode_images(latents, texture=torch.tensor(0.5))
    assert images.equal(model.decode_images(latents, texture=0.5))
    path = model.morph(latents[0], latents[1], steps=np.array(3))
    assert path.equal(model.morph(latents[0], latents[1], steps=3))
