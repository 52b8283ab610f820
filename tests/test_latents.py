import itertools

import numpy as np
import pytest
import torch
from conftest import draw_face
from hypothesis import given
from hypothesis import strategies as st
from tiny import CONFIG, tiny_bundle

from facevae.config import MAX_SEED
from facevae.data.image_tensors import from_pixels, to_pixels
from facevae.data.images import load_square
from facevae.errors import ImageError, UsageError
from facevae.latent_space.latents import (
    combine,
    decode,
    encode_both_sides,
    encode_pixels,
    interpolate,
    latents_of_seeds,
    morph,
    posteriors,
    read_face,
    shares_of_faces,
    times_of,
)

BUNDLE = tiny_bundle()


@pytest.fixture
def bundle():
    return BUNDLE


@pytest.fixture
def three(bundle):
    return latents_of_seeds(bundle, [1, 2, 3])


# ---------------------------------------------------------------- paths


@pytest.mark.parametrize("kind", ["slerp", "lerp"])
@pytest.mark.parametrize("steps", [2, 3, 10])
def test_a_morph_has_steps_pictures_a_leg_and_its_faces_exactly(bundle, three, steps, kind):
    for faces in (three[:2], three):
        path = morph(bundle, faces, steps, kind)
        legs = len(faces) - 1
        assert len(path) == legs * (steps - 1) + 1
        assert path[:: steps - 1].equal(faces)


@pytest.mark.parametrize("num_faces", [2, 3])
def test_a_loop_goes_there_and_back_without_showing_a_face_twice_over(bundle, three, num_faces):
    faces, steps = three[:num_faces], 5
    path = morph(bundle, faces, steps, loop=True)
    legs = 2 * (num_faces - 1)
    assert len(path) == legs * (steps - 1)
    there_and_back = torch.cat([faces, faces[:-1].flip(0)])
    assert torch.cat([path, path[:1]])[:: steps - 1].equal(there_and_back)
    # the way back is the way there
    torch.testing.assert_close(path[1:], path[1:].flip(0))
    assert all(not a.equal(b) for a, b in itertools.pairwise([*path, path[0]]))


def test_slerp_keeps_the_distance_from_the_centre(three):
    centre = torch.randn(CONFIG.latent_dim, generator=torch.Generator().manual_seed(4))
    radius = 3.0
    ends = [centre + radius * (v - centre) / (v - centre).norm() for v in three[:2]]
    path = interpolate(*ends, torch.linspace(0, 1, 13), "slerp", centre)
    torch.testing.assert_close((path - centre).norm(dim=1), torch.full((13,), radius))
    # and it turns evenly
    chords = path.diff(dim=0).norm(dim=1)
    torch.testing.assert_close(chords, chords[:1].expand(12), rtol=1e-3, atol=1e-4)


def test_slerp_between_unequal_distances_changes_them_evenly(three):
    start, end = 2 * three[0] / three[0].norm(), 5 * three[1] / three[1].norm()
    times = torch.linspace(0, 1, 7)
    path = interpolate(start, end, times, "slerp")
    torch.testing.assert_close(path.norm(dim=1), 2 + 3 * times)


def test_lerp_is_straight_and_even(three):
    path = interpolate(three[0], three[1], torch.linspace(0, 1, 9), "lerp")
    expected = np.linspace(three[0].numpy(), three[1].numpy(), 9)
    torch.testing.assert_close(path, torch.from_numpy(expected).float())


@pytest.mark.parametrize("other", ["itself", "its opposite", "the centre", "twice itself"])
def test_paths_between_faces_in_line_are_finite_and_exact_at_their_ends(three, other):
    start = three[0]
    end = {
        "itself": start,
        "its opposite": -start,
        "the centre": torch.zeros_like(start),
        "twice itself": 2 * start,
    }[other]
    path = interpolate(start, end, torch.linspace(0, 1, 5), "slerp")
    assert path.isfinite().all()
    assert path[0].equal(start)
    assert path[-1].equal(end)


@given(seed=st.integers(0, 10_000), steps=st.integers(2, 12), num_faces=st.integers(2, 4))
def test_every_morph_passes_through_its_faces(seed, steps, num_faces):
    draw = torch.Generator().manual_seed(seed)
    faces = 3 * torch.randn(num_faces, CONFIG.latent_dim, generator=draw)
    path = morph(BUNDLE, faces, steps)
    assert path[:: steps - 1].equal(faces)
    assert path.isfinite().all()


# ---------------------------------------------------------------- arithmetic


def test_with_as_many_faces_added_as_taken_away_combining_is_plain_arithmetic(three):
    a, b, c = three
    centre = torch.full_like(a, 0.7)
    torch.testing.assert_close(combine(a, [c], [b], centre), a - b + c)
    torch.testing.assert_close(combine(a, [c, b], [b, a], centre), c)


def test_adding_one_face_adds_its_difference_from_the_centre(three):
    a, b, _ = three
    centre = torch.full_like(a, 0.7)
    torch.testing.assert_close(combine(a, [b], [], centre), a + b - centre)
    torch.testing.assert_close(combine(a, [], [b], centre), a - b + centre)
    assert combine(a, [], [], centre).equal(a)


@pytest.mark.parametrize("loop", [True, False])
@pytest.mark.parametrize("num_faces", [2, 3])
def test_shares_say_how_much_of_a_morph_is_of_each_face(bundle, three, num_faces, loop):
    faces, steps = three[:num_faces], 5
    path = morph(bundle, faces, steps, "lerp", loop=loop)
    shares = shares_of_faces(num_faces, steps, loop=loop)
    torch.testing.assert_close(shares @ faces, path)
    assert shares[: steps - 1, 0].tolist() == [1, 0.75, 0.5, 0.25]


@pytest.mark.parametrize("loop", [True, False])
@pytest.mark.parametrize("num_faces", [2, 3])
def test_times_say_how_far_along_a_morph_each_picture_is(bundle, three, num_faces, loop):
    faces, steps = three[:num_faces], 5
    path = morph(bundle, faces, steps, loop=loop)
    times = times_of(len(path), loop=loop)
    assert times.shape == (len(path),)
    assert (times[0], times.max()) == (0, 1)
    # at the last face, which a loop reaches half-way, it is 1
    assert path[times.argmax()].equal(faces[-1])
    if loop:
        torch.testing.assert_close(times[1:], times[1:].flip(0))
        torch.testing.assert_close(times.diff().abs(), times[1].expand(len(path) - 1))
    else:
        torch.testing.assert_close(times, torch.arange(len(path)) / (len(path) - 1))


def test_both_sides_of_pictures_are_encoded(bundle):
    pixels = np.stack([np.asarray(draw_face(i, CONFIG.size)) for i in range(5)])
    images = from_pixels(pixels)
    plain, mirrored = encode_both_sides(bundle.vae, [images[:2], images[2:]])
    torch.testing.assert_close(plain, encode_pixels(bundle, pixels))
    torch.testing.assert_close(mirrored, encode_pixels(bundle, pixels[:, :, ::-1].copy()))
    assert not torch.allclose(plain, mirrored)


# ---------------------------------------------------------------- seeds and photos


def test_a_face_depends_on_its_seed_alone(bundle):
    many = latents_of_seeds(bundle, list(range(20)))
    for order in ([7], [3, 7], [7, 19, 0]):
        found = latents_of_seeds(bundle, order)
        torch.testing.assert_close(found, many[order], rtol=0, atol=1e-5)


def test_temperature_nought_makes_every_face_the_same_and_lower_makes_them_more_alike(bundle):
    def spread(temperature: float) -> float:
        return float(latents_of_seeds(bundle, list(range(40)), temperature).std(0).mean())

    assert spread(0) < 1e-6
    assert spread(0.5) < 0.8 * spread(1)


def test_decoding_in_chunks_changes_nothing_that_shows(bundle):
    latents = latents_of_seeds(bundle, list(range(11)))
    whole = decode(bundle.vae, latents)
    assert whole.shape == (11, 3, CONFIG.size, CONFIG.size)
    assert (decode(bundle.vae, latents, chunk=4) - whole).abs().max() < 1 / 255
    assert decode(bundle.vae, latents[:0]).shape == (0, 3, CONFIG.size, CONFIG.size)


def test_pictures_become_posterior_means(bundle):
    pixels = np.stack([np.asarray(draw_face(i, CONFIG.size)) for i in range(5)])
    with torch.no_grad():
        mean, logvar = bundle.vae.encode(from_pixels(pixels))
    torch.testing.assert_close(encode_pixels(bundle, pixels), mean)
    found = posteriors(bundle.vae, [from_pixels(pixels[:2]), from_pixels(pixels[2:])])
    torch.testing.assert_close(found, (mean, logvar))


def test_a_photo_is_read_as_its_square_and_its_mean(bundle, tmp_path):
    draw_face(3, 60).save(tmp_path / "a.png")
    pixels, latent = read_face(bundle, str(tmp_path / "a.png"))
    assert np.array_equal(pixels, load_square(tmp_path / "a.png", CONFIG.size))
    assert latent.equal(encode_pixels(bundle, pixels[None])[0])
    with pytest.raises(ImageError, match=r"nothing\.png"):
        read_face(bundle, str(tmp_path / "nothing.png"))


def test_a_seed_is_read_as_its_sample(bundle):
    pixels, latent = read_face(bundle, "seed:7")
    assert latent.equal(latents_of_seeds(bundle, [7])[0])
    assert np.array_equal(pixels, to_pixels(decode(bundle.vae, latent[None]))[0])
    read_face(bundle, f"seed:{MAX_SEED}")


@pytest.mark.parametrize("seed", ["", "-1", "x", "1.5", str(MAX_SEED + 1), "9" * 5000])
def test_a_bad_seed_is_refused_by_name(bundle, seed):
    with pytest.raises(UsageError, match=f"^seed:{seed}: "):
        read_face(bundle, f"seed:{seed}")


def test_numbers_beyond_what_a_model_can_decode_are_refused():
    bundle = tiny_bundle()
    with pytest.raises(UsageError, match="NaN or infinity; use a smaller alpha or temperature"):
        decode(bundle.vae, torch.full((1, bundle.config.latent_dim), 3e38))


def test_many_posteriors_are_held_as_they_come_and_in_order():
    class Counter:
        """Means that say which image they are of."""

        def encode(self, images):
            mean = images.flatten(1)[:, :3]
            return mean, -mean

    images = torch.arange(300.0).view(-1, 1, 1, 1).expand(-1, 3, 2, 2)
    for size in (1, 7, 300):
        mean, logvar = posteriors(Counter(), iter(images.split(size)))
        assert mean.equal(images.flatten(1)[:, :3])
        assert logvar.equal(-mean)
