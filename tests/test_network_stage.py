import copy
import math
from collections import Counter
from contextlib import nullcontext
from dataclasses import replace

import numpy as np
import pytest
import torch
from recording import Recorder
from tiny import CONFIG, TRAIN, differing

from facevae.config import ModelConfig
from facevae.data.batches import Batches
from facevae.data.dataset import Faces
from facevae.data.image_tensors import from_pixels
from facevae.latent_space.latents import posteriors
from facevae.measures import losses
from facevae.models.tensor_files import load_state, save_state
from facevae.networks.prior import FlowPrior
from facevae.networks.vae import VAE
from facevae.stages import flow_matching, network_stage
from facevae.stages.fast import LEAST_SECONDS, WARM_UP, WATCHED, AcceleratedStep
from facevae.stages.flow_matching import PriorStage
from facevae.stages.network_stage import NetworkStage
from facevae.system.runtime import training_precision

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def faces():
    """40 faces to train on and 4 held out: four fields of colour each, all different."""
    draw = np.random.default_rng(0)
    coarse = draw.integers(0, 256, (44, 2, 2, 3), np.uint8)
    pixels = coarse.repeat(16, axis=1).repeat(16, axis=2)
    stems = [f"{i:02}" for i in range(44)]
    return Faces(pixels, stems, np.arange(40), np.arange(40, 44), [], "")


def network(faces: Faces, **changes: object) -> NetworkStage:
    torch.manual_seed(3)
    config = replace(TRAIN, **changes)
    return NetworkStage(VAE(CONFIG), Batches(faces, config.batch_size, config.seed, CPU), config)


def flow(_faces: Faces | None = None) -> PriorStage:
    torch.manual_seed(3)
    draw = torch.Generator().manual_seed(8)
    mean = torch.randn(300, CONFIG.latent_dim, generator=draw)
    mean[:, 0] = mean[:, 0].sign()  # two lumps, unlike any Gaussian
    logvar = torch.full_like(mean, -3.0)
    return PriorStage(FlowPrior(CONFIG.latent_dim, 128, 1), mean, logvar, epochs=24, seed=5)


@pytest.mark.parametrize("build", [network, flow])
@pytest.mark.parametrize("num_before", [1, 4])
def test_steps_before_and_after_a_restored_state_are_the_steps_of_one_go(
    tmp_path, faces, build, num_before
):
    whole = build(faces)
    figures = [whole.step(i) for i in range(7)]
    before = build(faces)
    for i in range(num_before):
        before.step(i)
    save_state(tmp_path / "state.safetensors", before.state(), {})
    after = build(faces)
    after.restore(load_state(tmp_path / "state.safetensors")[0])
    for i in range(num_before, 7):
        assert after.step(i).equal(figures[i]), f"step {i}"
    assert differing(whole.state(), after.state()) == []


@pytest.mark.parametrize("build", [network, flow])
def test_a_state_is_all_there_is_and_does_not_change_when_steps_follow(faces, build):
    stage = build(faces)
    stage.step(0)
    state = {name: tensor.clone() for name, tensor in stage.state().items()}
    stage.step(1)
    later = stage.state()
    assert differing(state, later)
    stage.restore(state)
    stage.step(1)
    assert differing(later, stage.state()) == []


def test_the_number_of_steps_covers_the_epochs(faces):
    for epochs in (1, 2, 5):
        assert network(faces, epochs=epochs).budget.num_steps == math.ceil(epochs * 40 / 16)
    assert network(faces, batch_size=1000).budget.num_steps == TRAIN.epochs
    assert flow().budget.num_steps == math.ceil(24 * 300 / PriorStage.batch_size)


def test_every_epoch_shows_each_training_face_once_and_no_other(faces):
    batches = Batches(faces, 16, 5, CPU)
    # 5 batches of 16 are 2 passes over 40 faces
    shown = torch.cat([batches(step) for step in range(5)])
    known = from_pixels(faces.pixels)
    both_ways = torch.stack([known, known.flip(-1)], dim=1).flatten(0, 1)
    same = (shown[:, None] == both_ways[None]).flatten(2).all(-1)
    assert (same.sum(1) == 1).all()
    counts = Counter((same.float().argmax(1) // 2).tolist())
    assert counts == dict.fromkeys(range(40), 2)
    first_pass = same[:40].float().argmax(1) // 2
    assert sorted(first_pass.tolist()) == list(range(40))
    mirrored = (same.float().argmax(1) % 2).float().mean()
    assert 0.3 < mirrored < 0.7


def test_a_batch_depends_on_its_number_and_the_seed_alone(faces):
    in_order = [Batches(faces, 16, 5, CPU)(step) for step in range(6)]
    batches = Batches(faces, 16, 5, CPU)
    for step in (5, 0, 3, 4):
        assert batches(step).equal(in_order[step])
    assert not Batches(faces, 16, 6, CPU)(0).equal(in_order[0])


@pytest.mark.parametrize("factor", [None, 1000.0])
def test_a_step_reports_the_terms_of_its_loss(faces, factor):
    stage = network(faces, r_loss_factor=factor)
    reconstruction, kl, mse = stage.step(0).tolist()
    dims = CONFIG.num_pixels
    expected = dims / 2 * math.log(mse) if factor is None else factor * mse
    assert reconstruction == pytest.approx(expected, rel=1e-4)
    assert 0 < mse < 1
    assert kl > 0


def test_the_calibrated_step_is_the_weighted_step_with_the_factor_it_amounts_to(faces):
    auto = network(faces)
    mse = auto.step(0)[2].item()
    factor = losses.calibrated_factor(mse, CONFIG.num_pixels)
    fixed = network(faces, r_loss_factor=factor)
    fixed.step(0)
    for (name, a), b in zip(auto.vae.named_parameters(), fixed.vae.parameters(), strict=True):
        # Adam's first step is the sign of the gradient, so only a gradient near nought may differ
        assert ((a - b).abs() < 1e-5).float().mean() > 0.98, name


def test_training_lowers_the_error(faces):
    stage = network(faces, learning_rate=3e-3)
    errors = [stage.step(i)[2].item() for i in range(150)]
    assert np.mean(errors[-5:]) < 0.6 * np.mean(errors[:5])


def test_without_averaging_the_trained_weights_are_the_ones_to_use(faces):
    stage = network(faces, ema_images=0)
    assert stage.averaged is stage.vae
    assert not [name for name in stage.state() if name.startswith("averaged.")]


def test_averaged_weights_follow_the_trained_ones_by_their_half_life(faces):
    stage = network(faces, ema_images=32)
    expected = copy.deepcopy(stage.averaged)
    for i in range(4):
        stage.step(i)
        half_life = min(32, 0.1 * 16 * (i + 1))
        kept = 0.5 ** (16 / half_life)
        with torch.no_grad():
            for e, p in zip(expected.parameters(), stage.vae.parameters(), strict=True):
                e.copy_(kept * e + (1 - kept) * p)
    for e, p in zip(expected.parameters(), stage.averaged.parameters(), strict=True):
        torch.testing.assert_close(p, e)


def test_mean_and_noise_of_the_first_step_are_those_of_the_seed(faces):
    """The step's error is that of a sample of the posterior, not of its mean."""
    stage = network(faces)
    vae = copy.deepcopy(stage.vae)
    images = stage.batches(0)
    with torch.no_grad(), training_precision(CPU):
        mean, _ = vae.encode(images)
        of_mean = losses.mean_squared_error(vae.decode(mean), images).mean()
    assert stage.step(0)[2] != of_mean


def test_a_flow_becomes_like_the_latents_where_a_gaussian_cannot(faces):
    del faces
    stage = flow()
    stage.budget.num_steps = 700
    losses_seen = [stage.step(i).item() for i in range(700)]
    assert np.mean(losses_seen[-20:]) < np.mean(losses_seen[:20])
    noise = torch.randn(400, CONFIG.latent_dim, generator=torch.Generator().manual_seed(1))

    def share_between(latents: torch.Tensor) -> float:
        """How many lie in the gap between the lumps."""
        return float((latents[:, 0].abs() < 0.5).float().mean())

    with torch.no_grad():
        fitted, gaussian = stage.prior(noise), stage.prior.whitening(noise)
    assert share_between(stage.mean) == 0
    assert share_between(fitted) < 0.5 * share_between(gaussian)


def test_posteriors_of_batches_are_those_of_all(faces):
    vae = VAE(ModelConfig(32, 4, (8,))).eval()
    images = from_pixels(faces.pixels)
    mean, logvar = posteriors(vae, images.split(7))
    assert mean.shape == logvar.shape == (44, 4)
    torch.testing.assert_close(mean, posteriors(vae, [images])[0])


def test_the_kl_divergence_counts_by_its_weight(faces):
    ends = {}
    for weight in (0.0, 1.0, 1000.0):
        stage = network(faces, kl_weight=weight)
        ends[weight] = [stage.step(i)[1].item() for i in range(25)][-1]
    assert ends[1000.0] < ends[1.0] < ends[0.0]


# ---------------------------------------------------------------- steps as recordings


def recorded(stage):
    """Have its steps recorded from now on, by the recorder that is returned."""
    live = [
        *stage.state().values(),
        stage.guard.kept_statistics,
        stage.optimizer.param_groups[0]["lr"],
    ]
    record = Recorder(lambda: live)
    stage._update = AcceleratedStep(
        stage._update_from, *part_of(stage), pytest.fail, lambda _: 0.0, record=record
    )
    return record


def part_of(stage):
    """What of a stage's step is worth compiling, and the module that it is a loss of."""
    if isinstance(stage, NetworkStage):
        return stage._terms, stage.vae
    return stage._loss, stage.raw


@pytest.mark.parametrize("build", [network, flow])
def test_a_recorded_step_does_what_the_step_does(faces, build, monkeypatch):
    for module in (network_stage, flow_matching):
        monkeypatch.setattr(module, "training_precision", lambda _: nullcontext())
    changing = {"warm_up_images": 100, "cool_down": 0.5} if build is network else {}
    plain, replayed = build(faces, **changing), build(faces, **changing)
    for i in range(2):  # so that the optimiser has its moments
        assert plain.step(i).equal(replayed.step(i))
    record = recorded(replayed)
    for i in range(2, 10):
        torch.testing.assert_close(replayed.step(i), plain.step(i), rtol=1e-4, atol=1e-5)
    assert record.count == 1
    for (name, found), wanted in zip(replayed.state().items(), plain.state().values(), strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-3, atol=1e-5, msg=name)


def test_a_recorded_step_leaves_out_what_is_not_sound(faces):
    stage = network(faces)
    stage.step(0)
    recorded(stage)
    for i in range(1, 6):
        stage.step(i)
    before = {name: tensor.clone() for name, tensor in stage.state().items()}
    images, noise = torch.full((16, 3, 32, 32), float("nan")), torch.zeros(16, CONFIG.latent_dim)
    assert stage._update(images, noise, torch.tensor([1e-3, 1.0])).tolist() == [0, 0, 0]
    after = stage.state()
    changed = [k for k in before if not before[k].equal(after[k]) and "tracked" not in k]
    assert changed == ["guard.figures"]
    assert stage.guard.counts().num_skipped == 1


@pytest.mark.parametrize("build", [network, flow])
def test_a_compiled_step_does_what_the_step_does(faces, build):
    """What makes one graph of it, and its gradient, is the compiler's; only the kernels are not."""
    plain, compiled = build(faces), build(faces)
    told = []

    def compiler(part):
        told.append("compiled")
        return torch.compile(part, backend="aot_eager", fullgraph=True, dynamic=False)

    compiled._update = AcceleratedStep(
        compiled._update_from,
        *part_of(compiled),
        told.append,
        lambda _: LEAST_SECONDS,
        record=lambda step, _: step,
        compiler=compiler,
    )
    compiled._update._num_calls = WARM_UP + WATCHED - 1  # as after many steps
    for i in range(6):
        torch.testing.assert_close(compiled.step(i), plain.step(i), rtol=1e-4, atol=1e-5)
    assert [what.split()[0] for what in told] == ["compiling", "compiled"]
    for (name, found), wanted in zip(compiled.state().items(), plain.state().values(), strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-3, atol=1e-5, msg=name)
