import dataclasses
import math

import pytest
import torch
from tiny import CONFIG, TRAIN, Ear, tiny_run

from facevae.config import ModelConfig
from facevae.data.dataset import load_faces
from facevae.errors import DataError
from facevae.training import estimate as estimating
from facevae.training.estimate import estimate
from facevae.training.training import train

CPU = torch.device("cpu")


def test_an_estimate_counts_pictures_and_bytes_and_makes_nothing(faces_folder, tmp_path):
    cache = tmp_path / "cache"
    found = estimate([faces_folder], CONFIG, TRAIN, CPU, cache)
    assert found.num_pictures == 48
    assert found.cache_bytes == 48 * 3 * CONFIG.size**2
    assert found.convert_seconds > 0
    assert not cache.exists()
    assert found.to_dict() == dataclasses.asdict(found)


def test_what_was_converted_before_needs_no_time_and_is_where_the_estimate_says(
    faces_folder, tmp_path
):
    load_faces([faces_folder], CONFIG.size, cache=tmp_path / "cache")
    found = estimate([faces_folder], CONFIG, TRAIN, CPU, tmp_path / "cache")
    assert found.convert_seconds == 0
    pixels = (tmp_path / "cache").rglob("pixels.npy")
    assert [str(path.parent) for path in pixels] == [found.cache]


def test_training_time_is_the_epochs_at_the_speed_it_tells(faces_folder, tmp_path):
    long = dataclasses.replace(TRAIN, epochs=70)
    found = estimate([faces_folder], CONFIG, long, CPU, tmp_path / "cache")
    passes = 70 * 48 / found.images_per_second
    assert passes <= found.train_seconds <= 1.3 * passes


def test_only_a_flow_takes_time_to_fit(faces_folder, tmp_path):
    for prior in ("flow", "gaussian", "normal"):
        config = dataclasses.replace(TRAIN, prior=prior)
        found = estimate([faces_folder], CONFIG, config, CPU, tmp_path / "cache")
        assert (found.prior_seconds > 0) == (prior == "flow")


def test_more_work_needs_more_disk(faces_folder, tmp_path):
    small = estimate([faces_folder], CONFIG, TRAIN, CPU, tmp_path / "cache")
    large = estimate([faces_folder], ModelConfig(64, 64, (32, 32)), TRAIN, CPU, tmp_path / "cache")
    assert large.cache_bytes == 4 * small.cache_bytes
    assert large.run_bytes > 4 * small.run_bytes
    assert math.isfinite(large.memory_bytes)


def test_the_run_folder_takes_about_what_was_estimated(faces_folder, tmp_path):
    # large enough that weights, not names and pictures, are what takes the space
    model = ModelConfig(32, 64, (32, 64))
    config = dataclasses.replace(TRAIN, prior_width=256, prior_blocks=2, prior_epochs=1)
    found = estimate([faces_folder], model, config, CPU, tmp_path / "cache")
    faces = load_faces([faces_folder], model.size, cache=tmp_path / "cache")
    folder = tmp_path / "run"
    # a second go, so that the state before the newest is there too
    for epochs in (1, 2):
        again = dataclasses.replace(config, epochs=epochs)
        train(tiny_run(folder, faces, model=model, train=again), Ear())
    written = sum(p.stat().st_size for p in folder.rglob("*") if p.suffix == ".safetensors")
    assert written / 2 < found.run_bytes < 2 * written


def test_steps_that_do_not_fit_into_memory_are_not_tried(faces_folder, tmp_path, monkeypatch):
    peaks = {2: 1_000_000, 8: 7_000_000}
    monkeypatch.setattr(estimating, "_peak_of_steps", lambda _model, _train, size, _: peaks[size])
    tried, noise = [], estimating._noise_batches
    monkeypatch.setattr(
        estimating, "_noise_batches", lambda size, *more: tried.append(size) or noise(size, *more)
    )
    for total, expected in ((0, 16), (15_000_000, 16), (14_999_999, 8)):
        monkeypatch.setattr(estimating, "total_bytes", lambda _, total=total: total)
        tried.clear()
        found = estimate([faces_folder], CONFIG, TRAIN, CPU, tmp_path / "cache")
        assert tried == [expected]
        assert found.train_seconds > 0
    # 14 faces more than two, of a million bytes each
    monkeypatch.setattr(estimating, "peak_bytes", lambda _: 0)
    too_much = estimate([faces_folder], CONFIG, TRAIN, CPU, tmp_path / "cache").memory_bytes
    assert too_much == 15_000_000 + 4 * 48 * CONFIG.latent_dim * 4


def test_a_picture_that_cannot_be_read_does_not_stop_an_estimate(faces_folder, tmp_path):
    (faces_folder / "000.png").write_bytes(b"no picture")
    assert estimate([faces_folder], CONFIG, TRAIN, CPU, tmp_path / "cache").num_pictures == 48


def test_without_pictures_there_is_nothing_to_estimate(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="no pictures"):
        estimate([tmp_path / "empty"], CONFIG, TRAIN, CPU, tmp_path / "cache")
    with pytest.raises(DataError, match="no such file"):
        estimate([tmp_path / "nowhere"], CONFIG, TRAIN, CPU, tmp_path / "cache")
