"""Event files, read back by TensorBoard."""

import dataclasses
import shutil
import sys

import numpy as np
import pytest
import torch
from conftest import draw_face
from PIL import Image
from tiny import CONFIG, TRAIN, Ear, tiny_run

from facevae.data.dataset import load_faces
from facevae.errors import FacevaeError, UsageError
from facevae.measures.metrics import histogram
from facevae.training.events import Events, require_tensorboard
from facevae.training.run_folders import read_metrics
from facevae.training.training import train

pytest.importorskip("tensorboardX")
accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")

SHORT = dataclasses.replace(TRAIN, prior="normal")


def read_back(folder):
    """Everything TensorBoard finds in a folder, without subsampling."""
    sizes = dict.fromkeys(("scalars", "histograms", "images", "tensors"), 0)
    found = accumulator.EventAccumulator(str(folder), size_guidance=sizes)
    found.Reload()
    return found


def points(folder, tag: str) -> list[tuple[int, float]]:
    return [(e.step, e.value) for e in read_back(folder).Scalars(tag)]


def recorded(folder, event: str, key: str) -> list[tuple[int, float]]:
    records = read_metrics(folder / "metrics.jsonl")
    return [(r["images"], pytest.approx(r[key])) for r in records if r["event"] == event]


@pytest.fixture(scope="module")
def faces(tmp_path_factory):
    folder = tmp_path_factory.mktemp("events") / "faces"
    folder.mkdir()
    for i in range(48):
        draw_face(i, CONFIG.size).save(folder / f"{i:03}.png")
    return load_faces([folder], CONFIG.size, cache=folder.parent / "cache")


@pytest.fixture(autouse=True)
def _no_plots(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)


def trained(folder, faces, *, tensorboard: bool = True, epochs: int = 2) -> list[str]:
    """Train in `folder` and return the notices."""
    config = dataclasses.replace(SHORT, epochs=epochs)
    run = dataclasses.replace(tiny_run(folder, faces, train=config), tensorboard=tensorboard)
    ear = Ear()
    train(run, ear)
    return ear.notices


@pytest.fixture(scope="module")
def whole(faces, tmp_path_factory):
    """The folder of an uninterrupted run with event files."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "matplotlib", None)
        trained(folder, faces)
    return folder


def test_every_figure_is_at_the_number_of_images_seen(whole):
    for tag, event in (
        ("train/reconstruction_nats", "steps"),
        ("train/kl_nats", "steps"),
        ("train/mse", "steps"),
        ("train/r_loss_factor", "steps"),
        ("train/sigma", "steps"),
        ("train/images_per_second", "steps"),
        ("held_out/psnr", "epoch"),
        ("held_out/kl_nats", "epoch"),
    ):
        found = points(whole / "tensorboard", tag)
        assert found == recorded(whole, event, tag.split("/")[1]), tag
        assert len(found) >= 2
    tags = read_back(whole / "tensorboard").Tags()["scalars"]
    assert not {tag.split("/")[1] for tag in tags} & {"images", "step", "seconds", "epoch"}


def test_histograms_pictures_and_settings_are_written(whole, faces):
    found = read_back(whole / "tensorboard")
    latents = found.Histograms("latents/latents")
    assert [e.step for e in latents] == [r[0] for r in recorded(whole, "epoch", "psnr")]
    counted = latents[-1].histogram_value
    assert counted.num == sum(counted.bucket) == len(faces.train) * CONFIG.latent_dim
    last = read_metrics(whole / "metrics.jsonl")[-1]
    shown = found.Images("pictures/samples")[-1]
    assert shown.encoded_image_string == (whole / "pictures" / last["samples"]).read_bytes()
    assert (shown.width, shown.height) == (4 * CONFIG.size, 4 * CONFIG.size)
    text = found.Tensors("config/text_summary")[0].tensor_proto.string_val[0].decode()
    assert f"| identity.train.batch_size | {SHORT.batch_size} |" in text


def test_a_run_that_repeats_steps_has_no_point_twice_or_out_of_order(whole, faces, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(whole, folder)
    (folder / "model.safetensors").unlink()
    states = folder / "state"
    # as after a crash: the newest state is lost, so its steps are repeated
    (states / "network-earlier.safetensors").replace(states / "network.safetensors")
    notices = trained(folder, faces)
    assert any("going on with the network after step 3" in notice for notice in notices)
    for tag in ("train/kl_nats", "held_out/psnr"):
        steps = [step for step, _ in points(folder / "tensorboard", tag)]
        assert steps == sorted(set(steps)), tag
        assert steps == [step for step, _ in points(whole / "tensorboard", tag)]


def test_an_open_tensorboard_discards_repeated_steps(tmp_path):
    events = Events(tmp_path, tmp_path)
    records = [{"event": "steps", "images": i, "seconds": i, "mse": 1 / i} for i in (10, 20, 30)]
    events.begin({}, records)
    (first,) = tmp_path.iterdir()
    events.close()
    # two files begun within a second, as only in a test, would have the same name
    first = first.rename(first.with_name("events.out.tfevents.0.first"))
    reader = read_back(tmp_path)
    assert [e.step for e in reader.Scalars("train/mse")] == [10, 20, 30]
    events.begin({}, records[:1])
    events.add({"event": "steps", "images": 20, "seconds": 2, "mse": 7.0})
    events.close()
    reader.Reload()
    found = [(e.step, e.value) for e in reader.Scalars("train/mse")]
    assert found == [(10, pytest.approx(0.1)), (20, 7.0)]
    assert first.stat().st_size == 0, "earlier event files are emptied"


def test_event_files_of_a_finished_run_can_be_added_afterwards(faces, tmp_path):
    folder = tmp_path / "run"
    trained(folder, faces, tensorboard=False)
    assert not (folder / "tensorboard").exists()
    before = {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()}
    (notice,) = trained(folder, faces)
    assert "finished already" in notice
    assert {p: p.read_bytes() for p in before} == before
    assert points(folder / "tensorboard", "held_out/psnr") == recorded(folder, "epoch", "psnr")


def test_without_the_option_tensorboardx_is_not_imported(faces, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorboardX", None)
    trained(tmp_path / "run", faces, tensorboard=False)
    with pytest.raises(UsageError, match=r"pip install 'facevae\[tensorboard\]'"):
        require_tensorboard()


def test_records_without_histograms_or_pictures_are_written(tmp_path):
    events = Events(tmp_path / "events", tmp_path)
    record = {"event": "epoch", "images": 5, "seconds": 1.0, "psnr": 12.5, "samples": "gone.png"}
    events.begin({"odd": "a|b\nc", "nested": {"x": None}}, [record])
    events.close()
    assert points(tmp_path / "events", "held_out/psnr") == [(5, 12.5)]
    assert read_back(tmp_path / "events").Tags()["images"] == []


def test_the_finish_has_a_group_of_its_own(tmp_path):
    events = Events(tmp_path / "events", tmp_path)
    place = {"step": 3, "images": 30, "seconds": 1.0}
    events.begin({}, [{"event": "finish", **place, "generator_loss": 0.5}])
    events.close()
    assert points(tmp_path / "events", "finish/generator_loss") == [(30, 0.5)]


def test_losses_of_the_prior_stand_at_the_latents_it_has_seen(tmp_path):
    events = Events(tmp_path / "events", tmp_path)
    place = {"event": "prior", "step": 3, "images": 30, "seconds": 1.0}
    events.begin({}, [{**place, "latents": n, "flow_loss": 1 / n} for n in (1024, 2048)])
    events.close()
    found = points(tmp_path / "events", "prior/flow_loss")
    assert found == [(1024, 1 / 1024), (2048, 1 / 2048)]
    assert read_back(tmp_path / "events").Tags()["scalars"] == ["prior/flow_loss"]


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(FacevaeError, match="without --tensorboard"):
        Events(tmp_path / "file", tmp_path).begin({}, [])


def test_pictures_keep_their_bytes(tmp_path):
    Image.fromarray(np.zeros((4, 6, 3), np.uint8)).save(tmp_path / "s.png")
    events = Events(tmp_path / "events", tmp_path)
    record = {"event": "epoch", "images": 5, "seconds": 1.0, "samples": "s.png"}
    events.begin({}, [record | {"histograms": {"latents": histogram(torch.randn(9))}}])
    events.close()
    (shown,) = read_back(tmp_path / "events").Images("pictures/samples")
    assert (shown.width, shown.height) == (6, 4)
    assert shown.encoded_image_string == (tmp_path / "s.png").read_bytes()
