import copy
import dataclasses
import itertools
import json
import math
import re
import shutil
import signal
import sys
from collections import Counter
from contextlib import suppress
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import ROOT, draw_face
from PIL import Image
from tiny import CONFIG, TRAIN, Ear, differing, tensors_of, tiny_bundle, tiny_run
from torch import nn

from facevae.config import STAGES, ModelConfig
from facevae.data import batches
from facevae.data.batches import Batches
from facevae.data.dataset import load_faces
from facevae.data.image_tensors import from_pixels, to_pixels
from facevae.data.images import grid
from facevae.data.label_files import read_labels
from facevae.errors import FacevaeError, RunError, Stopped
from facevae.faces.framing import FFHQ
from facevae.latent_space.latents import decode, latents_of_seeds, posteriors
from facevae.measures import losses
from facevae.models.bundle import load, save
from facevae.models.tensor_files import load_state
from facevae.networks.vae import sample_posterior
from facevae.stages import budget
from facevae.stages.adversary import FinishStage
from facevae.stages.critic import Critic
from facevae.stages.flow_matching import PriorStage
from facevae.stages.network_stage import NetworkStage
from facevae.system.files import locked
from facevae.training import estimate, steps, training
from facevae.training.run_folders import read_metrics
from facevae.training.snapshots import snapshot
from facevae.training.training import train

pytestmark = pytest.mark.usefixtures("quick_features")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """A folder with pictures in `faces/`, half of them with glasses, and `labels.csv`."""
    root = tmp_path_factory.mktemp("training")
    folder = root / "faces"
    folder.mkdir()
    for i in range(48):
        draw_face(i, CONFIG.size, glasses=i % 2 == 0).save(folder / f"{i:03}.png")
    rows = "".join(f"{i:03}.png,{int(i % 2 == 0)}\n" for i in range(48))
    (root / "labels.csv").write_text("name,Eyeglasses\n" + rows)
    return root


@pytest.fixture(scope="module")
def faces(data):
    return load_faces([data / "faces"], CONFIG.size, cache=data / "cache")


@pytest.fixture(autouse=True)
def _no_plots(monkeypatch):
    """As if the extra `plot` were not installed: matplotlib takes longer than everything else."""
    monkeypatch.setitem(sys.modules, "matplotlib", None)


@pytest.fixture(scope="module")
def whole(data, faces):
    """The folder of an uninterrupted run, its model, and what its listener received."""
    ear = Ear()
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "matplotlib", None)
        labels = read_labels(data / "labels.csv")
        bundle = train(tiny_run(data / "whole", faces, labels=labels), ear)
    return data / "whole", bundle, ear


def records(folder) -> list[dict]:
    return read_metrics(folder / "metrics.jsonl")


def _last_epoch(records: list[dict]) -> dict:
    return [r for r in records if r["event"] == "epoch"][-1]


def same_records(a: list[dict], b: list[dict]) -> bool:
    """Whether records agree, except for times, speeds and memory, which depend on the machine."""
    costs = ("seconds", "images_per_second", "latents_per_second", "process_bytes")
    plain = [[{k: v for k, v in r.items() if k not in costs} for r in part] for part in (a, b)]
    return plain[0] == plain[1]


# ---------------------------------------------------------------- repeating and going on


def test_the_same_training_again_elsewhere_ends_with_the_same_bits(data, faces, whole, tmp_path):
    labels = read_labels(data / "labels.csv")
    again = train(tiny_run(tmp_path / "again", faces, labels=labels), Ear())
    assert differing(tensors_of(whole[1]), tensors_of(again)) == []
    assert same_records(records(whole[0]), records(tmp_path / "again"))


def test_another_seed_ends_elsewhere(faces, whole, tmp_path):
    train_config = dataclasses.replace(TRAIN, seed=TRAIN.seed + 1, epochs=1)
    other = train(tiny_run(tmp_path / "other", faces, train=train_config), Ear())
    changed = differing(tensors_of(whole[1]), tensors_of(other))
    assert "vae.encoder.mean.weight" in changed


def test_a_run_stopped_again_and_again_ends_as_if_it_never_was(faces, whole, tmp_path, monkeypatch):
    """A real signal stops the run before every step of both stages."""
    folder = tmp_path / "run"
    labels = read_labels(whole[0].parent / "labels.csv")
    step, stops = NetworkStage.step, []

    def interrupted(self, index):
        if index % 2:
            signal.raise_signal(signal.SIGTERM if index % 3 else signal.SIGINT)
        return step(self, index)

    monkeypatch.setattr(NetworkStage, "step", interrupted)
    ear = Ear()
    while True:
        try:
            bundle = train(tiny_run(folder, faces, labels=labels), ear)
            break
        except Stopped as stopped:
            stops.append(stopped.signal_number)
        assert len(stops) < 50
    assert set(stops) == {signal.SIGINT, signal.SIGTERM}
    assert sum("going on" in notice for notice in ear.notices) >= len(stops) - 1
    assert differing(tensors_of(bundle), tensors_of(whole[1])) == []
    places = Counter((r["event"], r["step"]) for r in records(folder))
    assert set(places.values()) == {1}
    wanted, found = ([r for r in records(f) if r["event"] == "epoch"] for f in (whole[0], folder))
    figures = ("step", "images", "psnr", "kl_nats", "active_units")
    assert [[r[k] for k in figures] for r in found] == [[r[k] for k in figures] for r in wanted]


def test_signals_act_as_before_once_a_run_has_ended(whole):
    assert whole[1] is not None
    # a process in the background of a shell begins with it ignored
    before = (signal.default_int_handler, signal.SIG_IGN)
    assert signal.getsignal(signal.SIGINT) in before


def test_a_damaged_newest_state_gives_way_to_the_one_before_it(faces, whole, tmp_path):
    folder, labels = tmp_path / "run", read_labels(whole[0].parent / "labels.csv")
    shutil.copytree(whole[0], folder)
    (folder / "model.safetensors").unlink()
    newest = folder / "state" / "network.safetensors"
    newest.write_bytes(newest.read_bytes()[:-500])
    shutil.rmtree(folder / "state" / "prior", ignore_errors=True)
    ear = Ear()
    bundle = train(tiny_run(folder, faces, labels=labels), ear)
    assert any(str(newest) in notice for notice in ear.notices)
    assert differing(tensors_of(bundle), tensors_of(whole[1])) == []
    assert set(Counter((r["event"], r["step"]) for r in records(folder)).values()) == {1}


def test_when_no_state_can_be_read_the_run_says_so_and_starts_over(faces, whole, tmp_path):
    """The model stays until the new training has reached the same progress."""
    folder, labels = tmp_path / "run", read_labels(whole[0].parent / "labels.csv")
    shutil.copytree(whole[0], folder)
    model = folder / "model.safetensors"
    unfinished = load(model)
    del unfinished.provenance["complete"]
    save(unfinished, model)
    for state in (folder / "state").glob("*.safetensors"):
        state.write_bytes(b"")
    before, has_stayed, ear = model.read_bytes(), [], Ear()
    ear.epoch = lambda _: has_stayed.append(model.read_bytes() == before)
    bundle = train(tiny_run(folder, faces, labels=labels), ear)
    said = [notice for notice in ear.notices if "the network begins anew" in notice]
    assert len(said) == 1
    assert f"{model} stays until it is as far again" in said[0]
    assert has_stayed == [True, False]
    assert differing(tensors_of(bundle), tensors_of(whole[1])) == []


def test_more_epochs_extend_a_run_to_what_it_would_have_been(faces, whole, tmp_path):
    folder = tmp_path / "run"
    labels = read_labels(whole[0].parent / "labels.csv")
    train(tiny_run(folder, faces, train=dataclasses.replace(TRAIN, epochs=1)), Ear())
    ear = Ear()
    extended = train(tiny_run(folder, faces, labels=labels), ear)
    assert any("going on" in notice for notice in ear.notices)
    assert differing(tensors_of(extended), tensors_of(whole[1])) == []
    assert extended.provenance["epochs"] == TRAIN.epochs


def test_a_finished_run_says_so_and_touches_nothing(faces, whole):
    folder, bundle, _ = whole
    labels = read_labels(folder.parent / "labels.csv")
    before = {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()}
    ear = Ear()
    again = train(tiny_run(folder, faces, labels=labels), ear)
    assert len(ear.notices) == 1
    assert "finished already" in ear.notices[0]
    assert ear.tasks == set()
    assert differing(tensors_of(again), tensors_of(bundle)) == []
    assert {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()} == before


def test_fewer_epochs_than_were_made_leave_the_run_as_it_is(faces, whole, tmp_path):
    folder, labels = tmp_path / "run", read_labels(whole[0].parent / "labels.csv")
    shutil.copytree(whole[0], folder)
    before = (folder / "config.json").read_bytes()
    shorter = dataclasses.replace(TRAIN, epochs=1)
    bundle = train(tiny_run(folder, faces, train=shorter, labels=labels), Ear())
    assert bundle.provenance["epochs"] == TRAIN.epochs
    assert (folder / "config.json").read_bytes() == before, "it should tell the epochs it made"


def test_a_run_looks_for_the_framing_of_its_faces_once(faces, tmp_path, monkeypatch):
    """It takes seconds, each time that a run is resumed or extended."""
    looks = []
    monkeypatch.setattr(training, "measure_framing", lambda *_: looks.append(1) or FFHQ)
    step = NetworkStage.step

    def interrupted(self, index):
        if index == 7:
            signal.raise_signal(signal.SIGTERM)
        return step(self, index)

    for epochs, stepping in ((2, interrupted), (2, step), (3, step)):
        monkeypatch.setattr(NetworkStage, "step", stepping)
        config = dataclasses.replace(TRAIN, epochs=epochs, prior="normal")
        with suppress(Stopped):
            train(tiny_run(tmp_path, faces, train=config), Ear())
        assert load(tmp_path / "model.safetensors").framing == FFHQ
        assert len(looks) == 1


def test_the_framing_of_another_models_faces_is_not_taken_for_that_of_ones_own(
    faces, tmp_path, monkeypatch
):
    """It is that of the model in the folder until the run trains a network of its own."""
    monkeypatch.setattr(training, "measure_framing", lambda *_: FFHQ)
    init = tiny_bundle()
    init.framing = dataclasses.replace(FFHQ, extent=0.6)

    def stop(*_):
        raise Stopped(signal.SIGTERM)

    alone = dataclasses.replace(TRAIN, stages=("prior", "finish"), prior="gaussian")
    with monkeypatch.context() as patch:
        patch.setattr(training, "finish", stop)
        with pytest.raises(Stopped):
            train(tiny_run(tmp_path, faces, train=alone, init=init), Ear())
    assert load(tmp_path / "model.safetensors").framing == init.framing
    config = dataclasses.replace(alone, stages=("vae", "prior"))
    assert train(tiny_run(tmp_path, faces, train=config, init=init), Ear()).framing == FFHQ


def test_another_configuration_is_refused_naming_what_differs(faces, whole):
    folder = whole[0]
    before = {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()}
    for change, named in (
        ({"train": dataclasses.replace(TRAIN, seed=77)}, "`seed` was 5, now 77"),
        ({"train": dataclasses.replace(TRAIN, batch_size=8)}, "`batch_size` was 16, now 8"),
        ({"model": ModelConfig(32, 9, (8, 8))}, "`latent_dim` was 8, now 9"),
        ({"init": tiny_bundle()}, "the initial weights' fingerprint was None"),
    ):
        with pytest.raises(RunError, match=named):
            train(tiny_run(folder, faces, **change), Ear())
    assert {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()} == before


def test_other_data_are_refused(faces, whole):
    with pytest.raises(RunError, match="fingerprint was"):
        train(tiny_run(whole[0], dataclasses.replace(faces, fingerprint="other")), Ear())


def test_a_folder_that_is_in_use_is_refused(faces, tmp_path):
    folder = tmp_path / "run"
    with locked(folder, "this run"), pytest.raises(FacevaeError, match="in use"):
        train(tiny_run(folder, faces), Ear())


def test_figures_that_are_not_finite_end_the_run_with_advice(faces, tmp_path):
    wild = dataclasses.replace(TRAIN, learning_rate=1e30, epochs=20)
    with pytest.raises(RunError, match="--learning-rate"):
        train(tiny_run(tmp_path / "run", faces, train=wild), Ear())


# ---------------------------------------------------------------- steps that are not sound


def spoil(monkeypatch, is_spoilt):
    """Fill the batches of these steps with NaN."""
    whole = Batches.__call__

    def batch(self, step):
        return whole(self, step) * (math.nan if is_spoilt(step) else 1.0)

    monkeypatch.setattr(Batches, "__call__", batch)


def test_bad_steps_are_skipped_and_counted_wherever_a_run_tells_of_itself(
    faces, tmp_path, monkeypatch
):
    spoil(monkeypatch, lambda step: step in (1, 4))
    run, ear, notes = tiny_run(tmp_path / "run", faces), Ear(), []
    ear.progress = lambda _task, _done, _total, note="": notes.append(note)
    bundle = train(run, ear)
    assert bundle.provenance["skipped_steps"] == 2
    counted = [r["skipped_steps"] for r in records(run.folder) if r["event"] == "steps"]
    assert counted == [1, 2]
    assert any("1 step skipped" in note.split(" · ") for note in notes)
    assert any("2 steps skipped" in note.split(" · ") for note in notes)


def test_a_run_with_bad_steps_that_was_stopped_ends_as_if_it_never_was(
    faces, tmp_path, monkeypatch
):
    """Also without averaged weights: batch norms must not keep statistics of bad batches."""
    spoil(monkeypatch, lambda step: step in (1, 2))
    plain = dataclasses.replace(TRAIN, ema_images=0)
    whole = train(tiny_run(tmp_path / "whole", faces, train=plain), Ear())
    step = NetworkStage.step

    def interrupted(self, index):
        signal.raise_signal(signal.SIGTERM)
        return step(self, index)

    with monkeypatch.context() as patch:
        patch.setattr(NetworkStage, "step", interrupted)
        for _ in range(3):
            with pytest.raises(Stopped):
                train(tiny_run(tmp_path / "run", faces, train=plain), Ear())
    bundle = train(tiny_run(tmp_path / "run", faces, train=plain), Ear())
    assert differing(tensors_of(bundle), tensors_of(whole)) == []
    assert bundle.provenance["skipped_steps"] == 2


def test_a_run_that_keeps_failing_ends_with_advice_and_its_good_state(
    faces, whole, tmp_path, monkeypatch
):
    run = tiny_run(tmp_path / "run", faces, labels=read_labels(whole[0].parent / "labels.csv"))
    with monkeypatch.context() as patch:
        spoil(patch, lambda step: step > 2)
        long = dataclasses.replace(TRAIN, epochs=50)
        with pytest.raises(RunError, match=r"run: \d+ of \d+ steps .*lower --learning-rate"):
            train(dataclasses.replace(run, train=long), Ear())
    state, _ = load_state(run.folder / "state" / "network.safetensors")
    assert all(tensor.isfinite().all() for tensor in state.values())
    assert load(run.folder / "model.safetensors").provenance.get("complete") is None


def test_a_short_run_of_which_most_steps_are_bad_is_none(faces, tmp_path, monkeypatch):
    spoil(monkeypatch, lambda step: step > 0)
    with pytest.raises(RunError, match="5 of 6 steps were skipped"):
        train(tiny_run(tmp_path / "run", faces), Ear())


@pytest.mark.parametrize("bad", [{3}, set(range(100))], ids=["one", "all"])
def test_bad_steps_of_the_prior_are_skipped_too_and_when_all_are_it_is_told(
    faces, tmp_path, monkeypatch, bad
):
    loss, calls = losses.flow_matching, itertools.count()

    def spoilt(*args):
        return loss(*args) * (math.nan if next(calls) in bad else 1.0)

    monkeypatch.setattr(losses, "flow_matching", spoilt)
    short = dataclasses.replace(TRAIN, epochs=1, prior_epochs=600)
    run = tiny_run(tmp_path / "run", faces, train=short)
    if len(bad) == 1:
        assert train(run, Ear()).provenance["skipped_steps"] == 1
    else:
        with pytest.raises(RunError, match=r"steps were skipped.*--prior gaussian"):
            train(run, Ear())


# ---------------------------------------------------------------- too little memory


@pytest.fixture
def gpu(monkeypatch):
    """Simulate a GPU with so many free bytes: a step takes 1 MB, and 100 kB for each face."""
    step, peak = NetworkStage.step, [0]

    def limited(free):
        def take(self, index):
            peak[0] = 1_000_000 + 100_000 * self.batches.size
            if peak[0] > 0.9 * free:
                msg = "CUDA out of memory. Tried to allocate 9 GiB."
                raise torch.OutOfMemoryError(msg)
            return step(self, index)

        monkeypatch.setattr(NetworkStage, "step", take)
        for module in (estimate, batches):
            monkeypatch.setattr(module, "free_bytes", lambda _device: free)
        monkeypatch.setattr(estimate, "peak_bytes", lambda _device: peak[0])

    return limited


# a tenth of what is free is left alone, and 43 faces of 32 × 32 px take 132,096 bytes
@pytest.mark.parametrize(("free", "fitting"), [(2_600_000, 12), (2_100_000, 7)])
def test_where_memory_is_too_little_the_batch_that_fits_is_named(
    faces, tmp_path, gpu, free, fitting
):
    gpu(free)
    run = tiny_run(tmp_path / "run", faces)
    with pytest.raises(RunError, match=f"--batch-size {fitting} should fit") as caught:
        train(run, Ear())
    assert str(caught.value).startswith(f"{run.folder}: cpu has too little memory")
    smaller = dataclasses.replace(TRAIN, batch_size=fitting, prior="normal", epochs=1)
    train(tiny_run(tmp_path / "smaller", faces, train=smaller), Ear())


def test_where_not_even_a_small_batch_fits_none_is_named(faces, tmp_path, gpu):
    gpu(1_000_000)
    with pytest.raises(RunError, match="too little memory; lower --batch-size or --size"):
        train(tiny_run(tmp_path / "run", faces), Ear())


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory."),
        RuntimeError(
            "[enforce fail at alloc_cpu.cpp:117] DefaultCPUAllocator: can't allocate memory"
        ),
    ],
    ids=["gpu", "cpu"],
)
def test_a_prior_for_which_memory_is_too_little_says_what_takes_less(
    faces, tmp_path, monkeypatch, error
):
    def step(_self, _index):
        raise error

    monkeypatch.setattr(PriorStage, "step", step)
    with pytest.raises(RunError, match="too little memory; --prior gaussian needs less"):
        train(tiny_run(tmp_path / "run", faces), Ear())


# ---------------------------------------------------------------- what a run learns from


def test_held_out_faces_change_no_number_of_the_model(faces, whole, tmp_path):
    pixels = np.array(faces.pixels)
    pixels[faces.held_out] = 255 - pixels[faces.held_out]
    other = dataclasses.replace(faces, pixels=pixels)
    labels = read_labels(whole[0].parent / "labels.csv")
    bundle = train(tiny_run(tmp_path / "run", other, labels=labels), Ear())
    assert differing(tensors_of(bundle), tensors_of(whole[1])) == []
    assert bundle.provenance["figures"]["psnr"] != whole[1].provenance["figures"]["psnr"]


def test_averaged_weights_have_batch_norm_statistics_of_their_own(faces, tmp_path):
    run = tiny_run(tmp_path / "run", faces)
    stage = NetworkStage(
        copy.deepcopy(tiny_bundle().vae), _batches(run), dataclasses.replace(TRAIN)
    )
    for i in range(4):
        stage.step(i)
    vae = snapshot(run, stage)

    # the same weights over all training faces at once, each norm's input caught on its way
    plain = copy.deepcopy(stage.averaged).train()
    inputs = {}
    for name, module in plain.named_modules():
        if isinstance(module, nn.BatchNorm2d):
            module.register_forward_hook(
                lambda _module, args, _out, name=name: inputs.update({name: args[0]})
            )
    with torch.no_grad():
        plain.decode(plain.encode(from_pixels(faces.pixels[faces.train]))[0])
    norms = {n: m for n, m in vae.named_modules() if isinstance(m, nn.BatchNorm2d)}
    assert len(norms) == len(inputs) == 3
    for name, norm in norms.items():
        variance, mean = torch.var_mean(inputs[name], dim=(0, 2, 3))
        torch.testing.assert_close(norm.running_mean, mean, rtol=1e-3, atol=1e-4)
        torch.testing.assert_close(norm.running_var, variance, rtol=1e-3, atol=1e-4)
    assert not vae.training
    # taking them changed neither the weights nor what training goes on with
    for p, q in zip(vae.parameters(), stage.averaged.parameters(), strict=True):
        assert p.equal(q)


def _batches(run):
    return Batches(run.faces, run.train.batch_size, run.train.seed, run.device)


def test_init_goes_on_from_the_weights_it_is_given(faces, tmp_path):
    init = tiny_bundle()
    # so small a rate that no weight can move
    still = dataclasses.replace(TRAIN, epochs=1, learning_rate=1e-30, ema_images=0, prior="normal")
    bundle = train(tiny_run(tmp_path / "run", faces, train=still, init=init), Ear())
    for (name, p), q in zip(bundle.vae.named_parameters(), init.vae.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=0, atol=1e-20, msg=name)
    fresh = train(tiny_run(tmp_path / "fresh", faces, train=still), Ear())
    assert not fresh.vae.encoder.mean.weight.equal(init.vae.encoder.mean.weight)


def test_directions_lead_from_faces_without_to_faces_with(faces, whole):
    bundle = whole[1]
    assert [a.name for a in bundle.attributes] == ["Eyeglasses"]
    images = from_pixels(faces.pixels[faces.train])
    mean, logvar = posteriors(bundle.vae, [images, images.flip(-1)])
    has = torch.tensor([int(faces.stems[row]) % 2 == 0 for row in faces.train]).repeat(2)
    expected = mean[has].mean(0) - mean[~has].mean(0)
    torch.testing.assert_close(bundle.directions[0], expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(bundle.scorers[0] @ expected, torch.tensor(1.0))
    torch.testing.assert_close(bundle.latent_mean, mean.mean(0), rtol=1e-4, atol=1e-5)
    # of draws from the posteriors, shrunk towards the diagonal by as many latents as dimensions
    covariance = mean.T.cov(correction=0) + logvar.exp().mean(0).diag()
    share = len(covariance) / (len(covariance) + len(mean))
    covariance = (1 - share) * covariance + share * covariance.diag().diag()
    torch.testing.assert_close(bundle.latent_covariance, covariance, rtol=1e-3, atol=1e-4)
    has = has[: len(faces.train)]
    assert bundle.attributes[0].num_positives == int(has.sum())
    assert bundle.attributes[0].num_negatives == int((~has).sum())


# ---------------------------------------------------------------- what a run leaves


def test_the_model_in_the_folder_is_the_one_that_is_returned(whole):
    folder, bundle, _ = whole
    found = load(folder / "model.safetensors")
    assert differing(tensors_of(found), tensors_of(bundle)) == []
    assert found.provenance["complete"]
    assert found.prior_config.kind == "flow"
    assert found.provenance["num_train"] + found.provenance["num_held_out"] == 48


def test_records_say_what_their_terms_amount_to(whole):
    found = records(whole[0])
    steps = [r for r in found if r["event"] == "steps"]
    epochs = [r for r in found if r["event"] == "epoch"]
    assert len(epochs) == TRAIN.epochs
    assert steps
    dims = CONFIG.num_pixels
    for record in steps + epochs:
        assert record["r_loss_factor"] == pytest.approx(dims / (2 * record["mse"]))
        assert record["sigma"] == pytest.approx(record["mse"] ** 0.5)
        assert record["kl_nats_per_dim"] == pytest.approx(record["kl_nats"] / CONFIG.latent_dim)
        assert record["images"] == record["step"] * TRAIN.batch_size
    for record, told in zip(epochs, whole[2].epochs, strict=True):
        assert record == told
    seconds = [r["seconds"] for r in found]
    assert seconds == sorted(seconds)


def test_the_last_held_out_figures_are_those_of_the_model(faces, whole):
    bundle = whole[1]
    images = from_pixels(faces.pixels[faces.held_out])
    mean, _ = posteriors(bundle.vae, [images])
    mse = (decode(bundle.vae, mean) - images).square().flatten(1).mean(1)
    psnr = (-10 * mse.log10()).mean().item()
    assert bundle.provenance["figures"]["psnr"] == pytest.approx(psnr, abs=1e-3)
    assert _last_epoch(records(whole[0]))["psnr"] == pytest.approx(psnr, abs=1e-3)


def test_pictures_show_held_out_faces_and_samples_of_fixed_seeds(faces, whole):
    folder, bundle, _ = whole
    side = CONFIG.size
    for record in (r for r in records(folder) if r["event"] == "epoch"):
        with Image.open(folder / "pictures" / record["reconstructions"]) as sheet:
            assert sheet.size == (side * len(faces.held_out), 2 * side)
            upper = np.asarray(sheet)[:side]
        held_out = np.concatenate(list(faces.pixels[faces.held_out]), axis=1)
        assert np.array_equal(upper, held_out)
        with Image.open(folder / "pictures" / record["samples"]) as sheet:
            assert sheet.size == (4 * side, 4 * side)
    with Image.open(folder / "pictures" / "samples.png") as sheet:
        latents = latents_of_seeds(bundle, list(range(64)))
        expected = grid(to_pixels(decode(bundle.vae, latents)))
        assert abs(np.asarray(sheet).astype(int) - expected).max() <= 1


def test_a_plane_of_latents_is_shown_decoded(faces, tmp_path):
    model, side = ModelConfig(32, 2, (8, 8)), 32
    short = dataclasses.replace(TRAIN, epochs=1, prior="gaussian")
    bundle = train(tiny_run(tmp_path / "run", faces, model=model, train=short), Ear())
    with Image.open(tmp_path / "run" / "pictures" / "plane.png") as sheet:
        plane = np.asarray(sheet).astype(int)
    count = plane.shape[0] // side
    assert plane.shape == (count * side, count * side, 3)
    middle = count // 2
    for row, column in ((middle, middle), (0, middle), (middle, count - 1)):
        place = torch.tensor([(column - middle) / middle, (middle - row) / middle]) * 2
        latent = bundle.latent_mean + place * bundle.latent_spread
        expected = to_pixels(decode(bundle.vae, latent[None]))[0]
        found = plane[row * side : (row + 1) * side, column * side : (column + 1) * side]
        assert abs(found - expected).max() <= 1


def test_plots_are_drawn_where_they_can_be_and_without_them_the_rest_is_the_same(
    faces, whole, tmp_path, monkeypatch
):
    monkeypatch.undo()  # what hides matplotlib
    pytest.importorskip("matplotlib")
    labels = read_labels(whole[0].parent / "labels.csv")
    bundle = train(tiny_run(tmp_path / "run", faces, labels=labels), Ear())
    assert differing(tensors_of(bundle), tensors_of(whole[1])) == []
    drawn = {p.name for p in (tmp_path / "run" / "pictures").iterdir()}
    plain = {p.name for p in (whole[0] / "pictures").iterdir()}
    assert drawn - plain == {"curves.png", "latents.png"}


def test_config_json_tells_people_what_the_run_is(whole):
    kept = json.loads((whole[0] / "config.json").read_text())
    assert kept["identity"]["model"] == json.loads(json.dumps(CONFIG.to_dict()))
    assert kept["epochs"] == TRAIN.epochs
    assert kept["num_train"] == 48 - kept["num_held_out"]


def test_progress_tells_the_terms_the_last_held_out_figure_and_what_it_takes(faces, tmp_path):
    notes = {}
    ear = Ear()
    ear.progress = lambda task, _done, _total, note="": notes.setdefault(task, []).append(note)
    train(tiny_run(tmp_path / "run", faces), ear)
    psnr = _last_epoch(records(tmp_path / "run"))["psnr"]
    first, last = (notes["Training"][i].split(" · ") for i in (0, -1))
    assert re.fullmatch(r"reconstruction -?[\d,]+ \+ KL [\d,]+ nats", last[0])
    assert not any(part.startswith("held-out PSNR") for part in first), "nothing is measured yet"
    assert any(re.fullmatch(r"held-out PSNR [\d.]+ dB", part) for part in last)
    assert f"{psnr:.2f}" not in " ".join(last), "the last is told before it is measured"
    assert any(re.fullmatch(r"[\d,]+ images/s", part) for part in last)
    assert any(re.fullmatch(r"memory [\d.]+ GB", part) for part in last) == sys.platform.startswith(
        ("linux", "darwin")
    )
    last = notes["Fitting the prior"][-1].split(" · ")
    assert re.fullmatch(r"flow-matching loss [\d.]+", last[0])
    assert re.fullmatch(r"held-out [\d.]+", last[1])
    assert any(re.fullmatch(r"[\d,]+ latents/s", part) for part in last)


def test_records_tell_what_they_took_and_how_latents_are_distributed(faces, whole):
    found = records(whole[0])
    for record in found:
        if record["event"] == "steps":
            assert record["images_per_second"] > 0
    counted = _last_epoch(found)["histograms"]
    assert sum(counted["latents"]["counts"]) == len(faces.train) * CONFIG.latent_dim
    assert sum(counted["kl_nats_of_dimensions"]["counts"]) == CONFIG.latent_dim
    total = counted["kl_nats_of_dimensions"]["sum"]
    assert total == pytest.approx(_kl_of(whole[1], faces), rel=0.05)


def test_records_of_the_prior_follow_on_those_of_the_network_and_count_its_time(whole):
    found = records(whole[0])
    network, prior = ([r for r in found if r["event"] == event] for event in ("steps", "prior"))
    assert [r["event"] for r in found[-len(prior) :]] == ["prior"] * len(prior)
    assert {r["images"] for r in prior} == {network[-1]["images"]}
    for record in prior:
        assert record["latents"] == (record["step"] - network[-1]["step"]) * PriorStage.batch_size
        assert record["flow_loss"] > 0
        assert record["latents_per_second"] > 0
        assert record["skipped_steps"] == 0
    assert whole[1].provenance["train_seconds"] == prior[-1]["seconds"] > network[-1]["seconds"]


def test_the_prior_is_measured_on_held_out_faces_now_and_then_and_at_its_end(faces, whole):
    prior = [r for r in records(whole[0]) if r["event"] == "prior"]
    assert [("held_out_flow_loss" in r, "train_flow_loss" in r) for r in prior] == [
        (r is prior[-1],) * 2 for r in prior
    ]
    # the same from many other draws
    flow, draw = whole[1].prior, torch.Generator().manual_seed(0)
    for name, rows in (("held_out", faces.held_out), ("train", faces.train)):
        images = from_pixels(faces.pixels[rows])
        mean, logvar = posteriors(whole[1].vae, [images, images.flip(-1)])
        some = torch.randint(len(mean), (20_000,), generator=draw)
        noises = torch.randn(2, 20_000, CONFIG.latent_dim, generator=draw)
        latents = flow.whitening.whiten(sample_posterior(mean[some], logvar[some], noises[0]))
        times = torch.randn(20_000, 1, generator=draw).sigmoid()
        with torch.no_grad():
            velocity = flow.velocity((1 - times) * noises[1] + times * latents, times)
        loss = losses.flow_matching(velocity, noises[1], latents).mean().item()
        assert prior[-1][f"{name}_flow_loss"] == pytest.approx(loss, rel=0.05), name


def test_the_readme_says_what_records_hold(whole, finished):
    readme = (ROOT / "README.md").read_text("utf-8")
    lines = (
        readme.split("Each line of `metrics.jsonl`", 1)[1].split("always use", 1)[0].splitlines()
    )
    rows = {line.split("`")[1]: line for line in lines if line.startswith("| `")}
    del rows["event"]
    common = "\n".join(line for line in lines if line not in rows.values())
    for record in [*records(whole[0]), *records(finished[0])]:
        assert [key for key in record if f"`{key}`" not in common + rows[record["event"]]] == []
    assert rows.keys() == {r["event"] for r in [*records(whole[0]), *records(finished[0])]}


def _kl_of(bundle, faces) -> float:
    mean, logvar = posteriors(bundle.vae, [from_pixels(faces.pixels[faces.train])])
    return float(0.5 * (mean.square() + logvar.exp() - logvar - 1).sum(1).mean())


def test_a_run_keeps_the_command_that_it_was_last_worked_on_with(faces, tmp_path):
    folder, config = tmp_path / "run", tmp_path / "run" / "config.json"
    short = dataclasses.replace(TRAIN, epochs=1, prior="normal")
    long = dataclasses.replace(short, epochs=2)
    for settings, command, kept in (
        (short, "one", "one"),
        (long, "two", "two"),
        (short, "nothing to do", "two"),
    ):
        run = tiny_run(folder, faces, train=settings)
        train(dataclasses.replace(run, command=command), Ear())
        found = json.loads(config.read_text())
        assert found["command"] == kept
        assert found["environment"]["torch"] == torch.__version__


def test_a_state_holds_the_step_to_go_on_from(whole):
    _, metadata = load_state(whole[0] / "state" / "network.safetensors")
    assert metadata["step"] == _last_epoch(records(whole[0]))["step"]


def test_dropout_is_repeatable_and_goes_on_as_if_never_stopped(faces, tmp_path):
    config = dataclasses.replace(CONFIG, dropout=0.3)
    whole = train(tiny_run(tmp_path / "whole", faces, model=config), Ear())
    short = dataclasses.replace(TRAIN, epochs=1)
    train(tiny_run(tmp_path / "parts", faces, model=config, train=short), Ear())
    extended = train(tiny_run(tmp_path / "parts", faces, model=config), Ear())
    assert differing(tensors_of(extended), tensors_of(whole)) == []


def test_fewer_epochs_than_an_unfinished_run_has_made_are_refused(faces, whole, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(whole[0], folder)
    (folder / "model.safetensors").unlink()
    fewer = dataclasses.replace(TRAIN, epochs=1)
    with pytest.raises(RunError, match=r"has been trained for 2 epochs; --epochs cannot be fewer"):
        train(tiny_run(folder, faces, train=fewer), Ear())


def test_without_labels_a_finished_run_keeps_its_attributes(faces, whole):
    before = (whole[0] / "model.safetensors").read_bytes()
    again = train(tiny_run(whole[0], faces), Ear())
    assert [a.name for a in again.attributes] == [a.name for a in whole[1].attributes]
    assert (whole[0] / "model.safetensors").read_bytes() == before


def test_lost_metrics_cost_nothing_but_themselves(faces, whole, tmp_path):
    folder, labels = tmp_path / "run", read_labels(whole[0].parent / "labels.csv")
    shutil.copytree(whole[0], folder)
    (folder / "model.safetensors").unlink()
    (folder / "metrics.jsonl").unlink()
    bundle = train(tiny_run(folder, faces, labels=labels), Ear())
    assert differing(tensors_of(bundle), tensors_of(whole[1])) == []
    assert bundle.provenance["figures"] == whole[1].provenance["figures"]


def test_what_a_killed_process_left_half_written_is_cleared(faces, whole, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(whole[0], folder)
    left = folder / "state" / ".network-abcd1234.safetensors"
    left.write_bytes(b"half")
    train(tiny_run(folder, faces), Ear())
    assert not left.exists()


def test_each_epoch_has_a_number_and_pictures_of_its_own(faces, tmp_path, monkeypatch):
    """A batch size that divides no epoch must not skip or repeat one."""
    monkeypatch.setattr(steps, "_MEASURING_SHARE", math.inf)
    long = dataclasses.replace(TRAIN, epochs=7, batch_size=29, prior="normal")
    ear = Ear()
    train(tiny_run(tmp_path / "run", faces, train=long), ear)
    assert [figures["epoch"] for figures in ear.epochs] == [1, 2, 3, 4, 5, 6, 7]
    assert len(list((tmp_path / "run" / "pictures").glob("samples-*.png"))) == 7


def test_where_time_is_short_the_first_epoch_and_the_last_are_shown_and_training_is_the_same(
    faces, tmp_path, monkeypatch
):
    long = dataclasses.replace(TRAIN, epochs=5, prior="normal")
    shown, ends = [], []
    for number, share in enumerate((0.0, math.inf)):
        monkeypatch.setattr(steps, "_MEASURING_SHARE", share)
        ear = Ear()
        bundle = train(tiny_run(tmp_path / f"{number}", faces, train=long), ear)
        shown.append([figures["epoch"] for figures in ear.epochs])
        ends.append(bundle)
    assert shown == [[1, 5], [1, 2, 3, 4, 5]]
    assert differing(*map(tensors_of, ends)) == []
    assert ends[0].provenance["figures"] == ends[1].provenance["figures"]


# ---------------------------------------------------------------- stages

FINISHED = dataclasses.replace(TRAIN, stages=STAGES, prior="gaussian", finish_epochs=2)
RESIDUAL = dataclasses.replace(CONFIG, residual_blocks=1)


@pytest.fixture(scope="module")
def finished(data, faces):
    """The folder of an uninterrupted run of all stages, its model, and what its listener received."""
    ear = Ear()
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "matplotlib", None)
        labels = read_labels(data / "labels.csv")
        run = tiny_run(data / "finished", faces, model=RESIDUAL, train=FINISHED, labels=labels)
        bundle = train(run, ear)
    return data / "finished", bundle, ear


def interrupting(step):
    """The step of a stage, with a Ctrl-C at every second one."""

    def interrupted(self, index):
        if index % 2:
            signal.raise_signal(signal.SIGINT)
        return step(self, index)

    return interrupted


PER_ATTRIBUTE = ("directions", "scorers", "interactions")


def of_decoder(names: list[str]) -> bool:
    return bool(names) and all(name.startswith("vae.decoder.") for name in names)


def test_every_stage_leaves_its_model_and_the_finish_changes_the_decoder_alone(faces, finished):
    folder, bundle, ear = finished
    unfinished = load(folder / "state" / "unfinished.safetensors")
    changed = differing(tensors_of(unfinished), tensors_of(bundle))
    assert of_decoder([name for name in changed if name not in PER_ATTRIBUTE])
    told = [(figures["stage"], figures["epoch"]) for figures in ear.epochs]
    assert told == [("vae", 1), ("vae", 2), ("finish", 1), ("finish", 2)]
    assert bundle.provenance["finish"]["epochs"] == 2
    assert [a.name for a in bundle.attributes] == ["Eyeglasses"]
    last = records(folder)[-1]
    assert last["psnr"] == pytest.approx(bundle.provenance["figures"]["psnr"], abs=1e-3)
    assert (folder / "pictures" / last["samples"]).is_file()
    steps = [r["step"] for r in records(folder)]
    assert steps == sorted(steps)
    assert len(faces.train)


def test_a_finish_stopped_at_any_step_ends_as_if_it_never_was(
    faces, finished, tmp_path, monkeypatch
):
    folder, labels = tmp_path / "run", read_labels(finished[0].parent / "labels.csv")
    stops = []
    monkeypatch.setattr(FinishStage, "step", interrupting(FinishStage.step))
    run = tiny_run(folder, faces, model=RESIDUAL, train=FINISHED, labels=labels)
    while True:
        try:
            bundle = train(run, Ear())
            break
        except Stopped as stopped:
            stops.append(stopped)
        assert len(stops) < 20
    assert len(stops) > 1
    assert differing(tensors_of(bundle), tensors_of(finished[1])) == []
    places = Counter((r["event"], r["step"]) for r in records(folder))
    assert set(places.values()) == {1}
    wanted, found = (
        [r for r in records(f) if r["event"] == "epoch"] for f in (finished[0], folder)
    )
    assert same_records(found, wanted)


def test_a_run_is_finished_later_and_for_longer_as_if_that_had_been_meant(
    faces, finished, tmp_path
):
    folder, labels = tmp_path / "run", read_labels(finished[0].parent / "labels.csv")
    without = dataclasses.replace(FINISHED, stages=("vae", "prior"))
    plain = train(tiny_run(folder, faces, model=RESIDUAL, train=without, labels=labels), Ear())
    assert "finish" not in plain.provenance
    # epochs of stages that are left out do not matter, and labels are known already
    alone = dataclasses.replace(FINISHED, stages=("finish",), epochs=30)
    later = train(tiny_run(folder, faces, model=RESIDUAL, train=alone), Ear())
    assert tuple(later.provenance["train"]["stages"]) == STAGES
    assert later.provenance["labels"] == finished[1].provenance["labels"]
    assert differing(tensors_of(later), tensors_of(finished[1])) == []
    ear = Ear()
    again = tiny_run(folder, faces, model=RESIDUAL, train=alone, labels=labels)
    train(again, ear)
    assert "finished already" in ear.notices[0]
    longer = dataclasses.replace(alone, finish_epochs=3)
    more = train(tiny_run(folder, faces, model=RESIDUAL, train=longer, labels=labels), Ear())
    assert more.provenance["finish"]["epochs"] == 3
    assert of_decoder([n for n in differing(tensors_of(more), tensors_of(later)) if "vae" in n])


def test_without_its_prior_a_run_takes_one_gaussian_until_that_stage_is_gone_through(
    faces, tmp_path
):
    flow = dataclasses.replace(TRAIN, epochs=1, prior_epochs=2)
    alone = dataclasses.replace(flow, stages=("vae",))
    first = train(tiny_run(tmp_path / "run", faces, train=alone), Ear())
    assert first.prior_config.kind == "gaussian"
    prior = dataclasses.replace(flow, stages=("prior",))
    second = train(tiny_run(tmp_path / "run", faces, train=prior), Ear())
    whole = train(tiny_run(tmp_path / "whole", faces, train=flow), Ear())
    assert differing(tensors_of(second), tensors_of(whole)) == []


def test_a_flow_is_guided_as_its_samples_need_it_and_the_file_says_so(faces, tmp_path, monkeypatch):
    monkeypatch.setattr("facevae.training.prior_fit.best_guidance", lambda *_: 1.75)
    monkeypatch.setattr("facevae.training.prior_fit._FEWEST_GUIDED", len(faces.train))
    flow = dataclasses.replace(TRAIN, epochs=1, prior_epochs=2)
    bundle = train(tiny_run(tmp_path / "run", faces, train=flow), Ear())
    found = load(tmp_path / "run" / "model.safetensors")
    for model in (bundle, found):
        assert model.prior.guidance == model.prior_config.guidance == 1.75
    # fewer faces do not say; a flow that is gone on with keeps its own
    monkeypatch.setattr("facevae.training.prior_fit._FEWEST_GUIDED", len(faces.train) + 1)
    alone = dataclasses.replace(flow, stages=("prior",))
    further = train(tiny_run(tmp_path / "further", faces, train=alone, init=bundle), Ear())
    assert further.prior.guidance == further.prior_config.guidance == 1.75
    anew = train(tiny_run(tmp_path / "anew", faces, train=flow), Ear())
    assert anew.prior.guidance == anew.prior_config.guidance == 1


def test_another_models_finish_is_gone_on_with_and_all_else_stays_its_own(
    faces, finished, tmp_path
):
    given = load(finished[0] / "model.safetensors")
    given.provenance["terms"] = "for research"
    alone = dataclasses.replace(FINISHED, stages=("finish",), finish_epochs=1)
    run = tiny_run(tmp_path / "run", faces, model=RESIDUAL, train=alone, init=given)
    made = train(run, Ear())
    changed = differing(tensors_of(given), tensors_of(made))
    assert of_decoder(changed)
    assert any("textured" in name for name in changed)
    assert made.provenance["terms"] == "for research"
    assert made.provenance["images_seen"] == given.provenance["images_seen"]
    assert made.attributes == given.attributes
    assert tuple(made.provenance["train"]["stages"]) == STAGES
    # what it was given is as it was, and the same command again finds its own model
    assert differing(tensors_of(given), tensors_of(load(finished[0] / "model.safetensors"))) == []
    ear = Ear()
    assert differing(tensors_of(made), tensors_of(train(run, ear))) == []
    assert "finished already" in ear.notices[0]


def test_a_fitted_prior_can_give_way_to_the_normal_one_before_a_finish(faces, finished, tmp_path):
    """The model that the finish begins with is saved, with the covariance that the prior had."""
    given = load(finished[0] / "model.safetensors")
    assert given.mean_covariance is None
    normal = dataclasses.replace(
        FINISHED, stages=("prior", "finish"), prior="normal", finish_epochs=1
    )
    folder = tmp_path / "run"
    made = train(tiny_run(folder, faces, model=RESIDUAL, train=normal, init=given), Ear())
    assert made.prior_config.kind == "normal"
    assert load(folder / "model.safetensors").latent_covariance.isfinite().all()


def test_another_models_flow_is_gone_on_with_where_its_network_stays(faces, tmp_path, monkeypatch):
    flow = dataclasses.replace(TRAIN, epochs=1, prior_epochs=4)
    given = train(tiny_run(tmp_path / "given", faces, train=flow), Ear())
    monkeypatch.setattr(PriorStage, "learning_rate", 1e-30)
    alone = dataclasses.replace(flow, stages=("prior",), prior_epochs=1)
    made = train(tiny_run(tmp_path / "run", faces, train=alone, init=given), Ear())
    torch.testing.assert_close(tensors_of(made), tensors_of(given), rtol=0, atol=1e-6)
    wider = dataclasses.replace(alone, prior_width=2 * TRAIN.prior_width)
    other = train(tiny_run(tmp_path / "wider", faces, train=wider, init=given), Ear())
    assert other.prior_config.width == 2 * TRAIN.prior_width
    # a network that is trained has other latents, of which that flow knows nothing
    trained = train(tiny_run(tmp_path / "trained", faces, train=flow, init=given), Ear())
    last = [bundle.prior.outward.weight.abs().max() for bundle in (given, trained)]
    assert last[0] > 1e-7
    assert last[1] < 1e-20


def test_another_models_prior_and_finish_stopped_anywhere_end_as_if_they_never_were(
    faces, finished, tmp_path, monkeypatch
):
    given = load(finished[0] / "model.safetensors")
    both = dataclasses.replace(FINISHED, prior="flow", prior_epochs=2, stages=("prior", "finish"))
    settings = {"model": RESIDUAL, "train": both, "init": given}
    whole = train(tiny_run(tmp_path / "whole", faces, **settings), Ear())
    assert whole.prior_config.kind == "flow"
    stops = []
    for stage in (PriorStage, FinishStage):
        monkeypatch.setattr(stage, "step", interrupting(stage.step))
    while True:
        try:
            made = train(tiny_run(tmp_path / "run", faces, **settings), Ear())
            break
        except Stopped as stopped:
            stops.append(stopped)
        assert len(stops) < 20
    assert len(stops) > 2
    assert differing(tensors_of(made), tensors_of(whole)) == []


@pytest.mark.parametrize("stages", [("finish",), ("prior",), ("prior", "finish")])
def test_there_is_nothing_to_go_on_with_in_an_empty_folder(faces, tmp_path, stages):
    alone = dataclasses.replace(TRAIN, stages=stages)
    wanted = ",".join(STAGES[: STAGES.index(stages[-1]) + 1])
    with pytest.raises(RunError, match=f"--stages {wanted}, or name a model with --init"):
        train(tiny_run(tmp_path / "run", faces, train=alone), Ear())


@pytest.fixture
def ticking(monkeypatch):
    """Budgets with a clock that advances by 10 ms at every reading."""
    now = SimpleNamespace(seconds=0.0)

    def monotonic() -> float:
        now.seconds += 0.01
        return now.seconds

    monkeypatch.setattr(budget, "time", SimpleNamespace(monotonic=monotonic))


@pytest.mark.usefixtures("ticking")
def test_a_run_of_so_much_time_ends_with_all_its_stages_and_is_complete(faces, tmp_path):
    timed = dataclasses.replace(FINISHED, max_seconds=1.0)
    folder = tmp_path / "run"
    bundle = train(tiny_run(folder, faces, model=RESIDUAL, train=timed), Ear())
    assert bundle.provenance["complete"]
    assert bundle.provenance["stage_seconds"] == {
        stage: timed.seconds_for(stage) for stage in ("vae", "finish")
    }
    steps = records(folder)[-1]["step"]
    assert 5 < steps < 100
    check_epochs(faces, folder)
    ear = Ear()
    train(tiny_run(folder, faces, model=RESIDUAL, train=timed), ear)
    assert "finished already" in ear.notices[-1]
    longer = dataclasses.replace(timed, max_seconds=1.5)
    more = train(tiny_run(folder, faces, model=RESIDUAL, train=longer), Ear())
    assert records(folder)[-1]["step"] > steps
    assert more.provenance["stage_seconds"]["finish"] == longer.seconds_for("finish")
    check_epochs(faces, folder)


def check_epochs(faces, folder):
    """Each has its own number and pictures; an incomplete one has a fractional number."""
    epochs = [r for r in records(folder) if r["event"] == "epoch"]
    assert len({(r["stage"], r["epoch"]) for r in epochs}) == len(epochs)
    named = [r[kind] for r in epochs for kind in ("reconstructions", "samples")]
    assert len(set(named)) == len(named)
    assert all((folder / "pictures" / name).is_file() for name in named)
    broken = [r for r in epochs if r["epoch"] != int(r["epoch"])]
    assert broken
    for record in (r for r in broken if r["stage"] == "vae"):
        assert record["epoch"] == record["images"] / len(faces.train)


def test_the_learning_rate_rises_and_falls_with_what_is_used_of_the_budget(faces, tmp_path):
    run = tiny_run(tmp_path / "run", faces)
    config = dataclasses.replace(TRAIN, epochs=10, warm_up_images=64, cool_down=0.5)
    stage = NetworkStage(copy.deepcopy(tiny_bundle().vae), _batches(run), config)
    count = stage.budget.num_steps
    rates = [stage._learning_rate(i) / config.learning_rate for i in range(count)]
    assert rates[:4] == pytest.approx([0.25, 0.5, 0.75, 1])
    assert rates[4 : count // 2] == [1] * (count // 2 - 4)
    assert rates[-1] == pytest.approx(2 / count)
    assert rates[count // 2 :] == sorted(rates[count // 2 :], reverse=True)


# ---------------------------------------------------------------- stages in any order


SHORT = dataclasses.replace(
    TRAIN, stages=STAGES, prior="gaussian", prior_epochs=3, finish_epochs=1, epochs=1
)


def stages_after(faces, folder, *trainings, labels=None) -> tuple:
    """The model after these trainings in one folder, and the listener of the last of them."""
    for changes in trainings:
        ear = Ear()
        config = dataclasses.replace(SHORT, **changes)
        bundle = train(tiny_run(folder, faces, train=config, labels=labels), ear)
        labels = None
    return bundle, ear


def test_a_finish_is_of_the_longest_training(faces, tmp_path):
    longer = {"stages": ("vae", "prior"), "epochs": 3}
    found, _ = stages_after(faces, tmp_path / "a", {}, longer, {"stages": ("finish",), "epochs": 3})
    wanted, _ = stages_after(faces, tmp_path / "b", {"epochs": 3})
    assert found.provenance["epochs"] == 3
    assert differing(tensors_of(found), tensors_of(wanted)) == []


def test_a_finish_is_of_the_last_prior(faces, tmp_path):
    flow, finish = {"prior": "flow"}, {"stages": ("finish",), "prior": "flow"}
    stages = ({"stages": ("vae",), **flow}, finish, {"stages": ("prior",), **flow}, finish)
    found, _ = stages_after(faces, tmp_path / "a", *stages)
    assert found.prior_config.kind == "flow"
    assert found.provenance["train"]["stages"] == [*STAGES]
    wanted, _ = stages_after(faces, tmp_path / "b", flow)
    assert differing(tensors_of(found), tensors_of(wanted)) == []


def test_a_run_that_was_killed_before_its_last_save_knows_that_it_was_finished(faces, tmp_path):
    wanted, _ = stages_after(faces, tmp_path / "run", {})
    (tmp_path / "run" / "model.safetensors").unlink()
    found, _ = stages_after(faces, tmp_path / "run", {})
    known = {"finish", "skipped_steps", "epochs", "figures"}
    assert {k: found.provenance[k] for k in known} == {k: wanted.provenance[k] for k in known}
    _, ear = stages_after(faces, tmp_path / "run", {})
    assert "nothing to do" in ear.notices[-1]


def test_a_longer_finish_keeps_what_was_learned_from_labels(faces, whole, tmp_path):
    labels = read_labels(whole[0].parent / "labels.csv")
    longer = {"stages": ("finish",), "finish_epochs": 2}
    found, _ = stages_after(faces, tmp_path / "run", {}, longer, labels=labels)
    assert [a.name for a in found.attributes] == ["Eyeglasses"]
    assert found.provenance["labels"] == labels.fingerprint
    assert found.directions is not None


def test_a_prior_that_is_fitted_later_leaves_what_is_known_of_the_network(faces, tmp_path):
    later = {"stages": ("prior",), "max_seconds": 5.0, "prior": "flow"}
    before = {"stages": ("vae",), "epochs": 2, "prior": "flow"}
    found, _ = stages_after(faces, tmp_path / "run", before, later)
    assert found.provenance["epochs"] == found.provenance["train"]["epochs"] == 2
    assert found.provenance["stage_seconds"] == {"vae": None, "prior": 5.0}
    assert found.provenance["train"]["stages"] == ["vae", "prior"]


@pytest.mark.usefixtures("ticking")
def test_time_is_asked_of_each_stage_and_not_of_those_together(faces, tmp_path):
    together = {"max_seconds": 1.0, "stages": STAGES, "prior": "flow"}
    for alone in STAGES:
        folder = tmp_path / alone
        # less than all of them had, and more than this one
        found, _ = stages_after(
            faces, folder, together, {**together, "max_seconds": 0.9, "stages": (alone,)}
        )
        assert found.provenance["stage_seconds"][alone] == pytest.approx(0.9)


def test_a_discriminator_whose_steps_are_not_sound_is_counted(faces, tmp_path, monkeypatch):
    def broken(self, real):
        return float("nan") * self.network(real)[0].sum()

    monkeypatch.setattr(Critic, "_penalty", broken)
    found, _ = stages_after(faces, tmp_path / "run", {"finish_epochs": 8})
    assert found.provenance["skipped_steps"] > 0
    assert "NaN" not in (tmp_path / "run" / "metrics.jsonl").read_text()
