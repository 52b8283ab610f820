"""Which faces are evaluated, what is measured of them, and that results are repeatable."""

import dataclasses
import json

import numpy as np
import pytest
import torch
from conftest import draw_face
from tiny import CONFIG, tiny_bundle

from facevae.data.batches import batches_of
from facevae.data.dataset import load_faces
from facevae.data.image_tensors import to_pixels
from facevae.evaluation import evaluation
from facevae.evaluation.evaluation import (
    Candidate,
    Evaluation,
    choose_rows,
    framing_problem,
    is_training_set,
)
from facevae.faces import framing
from facevae.latent_space.latents import decode, latents_of_seeds
from facevae.measures import metrics
from facevae.measures.figures import SCORES, reconstruct
from facevae.measures.swd import SlicedWasserstein

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def faces(tmp_path_factory):
    root = tmp_path_factory.mktemp("evaluation")
    (root / "faces").mkdir()
    for i in range(60):
        draw_face(i, 32).save(root / "faces" / f"{i:03}.png")
    return load_faces([root / "faces"], CONFIG.size, cache=root / "cache")


@pytest.fixture(scope="module")
def bundle():
    return tiny_bundle()


@pytest.fixture(scope="module")
def model(bundle):
    return Candidate("tiny", bundle.vae, bundle.prior, CONFIG.latent_dim, has_posteriors=True)


def measure(faces, rows, model, **options):
    return Evaluation(faces, rows, CPU, **{"num_samples": 40, **options}).measure(model)


# ---------------------------------------------------------------- which faces


def test_the_split_chooses_the_faces(faces, bundle):
    known = dataclasses.replace(bundle, provenance={"fingerprint": faces.fingerprint})
    assert is_training_set(known, faces)
    assert not is_training_set(bundle, faces)
    assert choose_rows(faces, "held-out").tolist() == faces.held_out.tolist()
    assert choose_rows(faces, "train").tolist() == faces.train.tolist()
    assert choose_rows(faces, "all").tolist() == list(range(60))


def test_a_model_without_provenance_was_not_trained_on_the_data(faces, bundle):
    unknown = dataclasses.replace(bundle, provenance={})
    assert not is_training_set(unknown, dataclasses.replace(faces, fingerprint="None"))


@pytest.mark.parametrize(
    ("found", "problem"),
    [(framing.FFHQ, None), (None, "not framed alike"), ("moved", "not framed like the model's")],
)
def test_another_framing_than_the_models_gives_a_warning(
    faces, bundle, monkeypatch, found, problem
):
    if found == "moved":
        points = tuple((x * 0.6 + 0.05, y * 0.6) for x, y in framing.FFHQ.points)
        found = framing.Framing(points, framing.FFHQ.spreads)
    monkeypatch.setattr(evaluation, "measure_framing", lambda _: found)
    framed = dataclasses.replace(bundle, framing=framing.FFHQ)
    warning = framing_problem(framed, faces, faces.train)
    assert warning is None if problem is None else problem in warning
    assert framing_problem(bundle, faces, faces.train) is None  # the model states no framing
    assert framing_problem(framed, faces, faces.train[:7]) is None  # too few to measure


# ---------------------------------------------------------------- figures


def test_figures_are_those_of_the_metrics(faces, bundle, model):
    rows = faces.train
    found = measure(faces, rows, model).figures
    scores = {**SCORES, "ssim": metrics.ssim}
    whole = reconstruct(bundle.vae, batches_of(faces, rows, CPU), scores)
    assert found["psnr"] == pytest.approx(whole.average("psnr"), rel=1e-4)
    assert found["ssim"] == pytest.approx(whole.average("ssim"), rel=1e-4)
    assert found["sharpness"] == pytest.approx(whole.sharpness, rel=1e-4)
    assert found["kl_nats"] == pytest.approx(whole.kl_nats, rel=1e-4)
    assert found["kl"] == pytest.approx(np.mean(found["kl_dims"]), rel=1e-3)
    assert found["active_units"] == whole.active_units
    samples = decode(bundle.vae, latents_of_seeds(bundle, list(range(40))))
    expected = metrics.sharpness(samples).mean() / whole.average("sharpness_real")
    assert found["sharpness_samples"] == pytest.approx(float(expected), rel=1e-4)


def test_samples_are_those_of_the_seeds(faces, bundle, model):
    result = measure(faces, faces.train, model, seed=7)
    expected = latents_of_seeds(bundle, list(range(7, 47)))
    torch.testing.assert_close(result.latents, expected)
    pixels = to_pixels(decode(bundle.vae, expected))
    assert np.abs(result.samples.astype(int) - pixels).max() <= 1


def test_swd_is_between_as_many_samples_as_faces(faces, bundle, model):
    measured = Evaluation(faces, faces.train, CPU, num_samples=40)
    assert len(measured.order) == 40
    rows = faces.train[measured.order]
    samples = decode(bundle.vae, latents_of_seeds(bundle, list(range(40))))
    expected = SlicedWasserstein(batches_of(faces, rows, CPU), 32)(samples.split(9))
    found = measured.measure(model).figures["swd"]
    assert found["32"] == pytest.approx(expected["32"], rel=1e-3)
    assert found["mean"] == pytest.approx((found["32"] + found["16"]) / 2)


def test_midpoints_are_halfway_between_faces(faces, bundle, model):
    measured = Evaluation(faces, faces.train, CPU, num_samples=20)
    rows = faces.train[measured.order]
    images = next(batches_of(faces, rows, CPU))
    with torch.no_grad():
        mean = bundle.vae.encode(images)[0]
        halfway = bundle.vae.decode(torch.stack([(mean[i] + mean[i - 19]) / 2 for i in range(20)]))
        back = bundle.vae.decode(mean)
    distance = SlicedWasserstein([images], 32)
    figures = measured.measure(model).figures
    for key, expected in (("swd_midpoints", halfway), ("swd_reconstructions", back)):
        assert figures[key]["32"] == pytest.approx(distance([expected])["32"], rel=1e-3), key
    assert figures["swd_midpoints"] != figures["swd_reconstructions"]


def test_more_samples_than_faces_are_all_measured(faces, model):
    result = measure(faces, faces.held_out, model, num_samples=70)
    assert len(result.latents) == 70
    assert len(result.samples) == 64
    assert len(result.reconstructions) == len(result.originals) == min(16, len(faces.held_out))


def test_the_floor_compares_with_other_faces_or_else_between_halves(faces):
    held_out = Evaluation(faces, faces.held_out, CPU, num_samples=40)
    assert held_out.num_floor == len(faces.held_out)
    everything = Evaluation(faces, np.arange(60), CPU, num_samples=40)
    assert everything.num_floor == 20
    assert held_out.swd_floor["mean"] > 0
    one = Evaluation(faces, np.arange(60), CPU, num_samples=1)
    assert (one.swd_floor, one.num_floor) == (None, 0)


def test_samples_of_an_untrained_model_are_farther_away_than_real_faces(faces, model):
    """The distance of an untrained model is well above that between sets of real faces."""
    measured = Evaluation(faces, faces.held_out, CPU, num_samples=40)
    assert measured.measure(model).figures["swd"]["mean"] > 1.5 * measured.swd_floor["mean"]


def test_repeated_measurements_are_equal(faces, model):
    first, again = (measure(faces, faces.train, model).figures for _ in range(2))
    assert json.dumps(first) == json.dumps(again)


def test_interpolations_begin_and_end_at_reconstructions(faces, bundle, model):
    measured = Evaluation(faces, faces.train, CPU, num_samples=40)
    pictures = measured.measure(model).interpolations
    assert pictures.shape == (6, 8, 32, 32, 3)
    images = next(batches_of(faces, faces.train[measured.order[2:4]], CPU))
    with torch.no_grad():
        ends = to_pixels(bundle.vae.decode(bundle.vae.encode(images)[0]))
    assert np.abs(pictures[1, [0, -1]].astype(int) - ends).max() <= 1


def test_a_baseline_has_no_figures_of_posteriors(faces, bundle):
    baseline = Candidate("pca", bundle.vae, bundle.prior, CONFIG.latent_dim)
    result = measure(faces, faces.train, baseline)
    for name in ("kl", "kl_nats", "kl_dims", "active_units", "posterior_distance"):
        assert result.figures[name] is None
        assert name in result.reasons
    assert result.figures["psnr"] > 0


def test_one_face_has_no_distribution(faces, model):
    result = measure(faces, faces.train[:1], model, num_samples=1, features=lambda p: p.flatten(1))
    for name in ("fid", "kid", "active_units", "posterior_distance"):
        assert result.figures[name] is None, name
        assert result.reasons[name] == "a distribution needs at least two images"
    json.dumps(result.figures, allow_nan=False)


def test_features_and_lpips_are_measured_when_given(faces, model):
    pytest.importorskip("torchmetrics")
    result = measure(
        faces,
        faces.train,
        model,
        features=lambda pictures: pictures.float().mean((2, 3)),
        lpips=lambda made, _: made.flatten(1).mean(1),
    )
    assert result.figures["fid"] > 0
    assert result.figures["kid"] is not None
    assert 0 < result.figures["lpips"] < 1
    assert measure(faces, faces.train, model).figures["fid"] is None


def test_progress_is_reported_to_the_end(faces, model):
    reported = {}

    def progress(task, done, total):
        assert reported.get(task, (0,))[0] < done <= total
        reported[task] = (done, total)

    Evaluation(faces, faces.train, CPU, num_samples=40, progress=progress).measure(model)
    assert {"Real faces", "Reconstructing (tiny)", "Sampling (tiny)"} <= reported.keys()
    assert all(done == total for done, total in reported.values())
