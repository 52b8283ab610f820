"""The finish changes the decoder alone, repeatably, towards what the discriminator takes for faces."""

import copy
from contextlib import nullcontext
from dataclasses import replace

import numpy as np
import pytest
import torch
from recording import Recorder
from tiny import CONFIG, TRAIN, differing, tiny_bundle

from facevae.data.batches import Batches
from facevae.data.dataset import Faces
from facevae.measures import losses
from facevae.measures.losses import LossWeights
from facevae.models.tensor_files import load_state, save_state
from facevae.stages import adversary, projected
from facevae.stages.adversary import FinishStage, batch_size
from facevae.stages.critic import Critic
from facevae.stages.discriminator import checkerboard_energy, detail
from facevae.stages.fast import WARM_UP, AcceleratedStep
from facevae.stages.projected import ProjectedCritic

pytestmark = pytest.mark.usefixtures("quick_features")

CPU = torch.device("cpu")
RESIDUAL = replace(CONFIG, residual_blocks=1)


@pytest.fixture(scope="module")
def faces():
    """40 faces to train on: noise on fields of colour, which no small decoder makes by itself."""
    draw = np.random.default_rng(0)
    coarse = draw.integers(0, 256, (44, 2, 2, 3), np.uint8).repeat(16, axis=1).repeat(16, axis=2)
    pixels = (coarse // 2 + draw.integers(0, 128, coarse.shape, np.uint8)).astype(np.uint8)
    return Faces(pixels, [f"{i:02}" for i in range(44)], np.arange(40), np.arange(40, 44), [], "")


def finish(faces, model=CONFIG, *, perceptual=None, weights=None, **changes):
    config = replace(TRAIN, stages=("finish",), finish_epochs=4, **changes)
    bundle = tiny_bundle(model)
    batches = Batches(faces, config.batch_size, config.seed, CPU)
    return FinishStage(
        bundle.vae, bundle.prior, batches, config, perceptual, weights=weights or LossWeights()
    )


@pytest.mark.parametrize("model", [CONFIG, RESIDUAL], ids=["plain", "residual"])
@pytest.mark.parametrize("num_before", [1, 3])
def test_steps_before_and_after_a_restored_state_are_the_steps_of_one_go(
    tmp_path, faces, model, num_before
):
    whole = finish(faces, model)
    figures = [whole.step(i) for i in range(5)]
    before = finish(faces, model)
    for i in range(num_before):
        before.step(i)
    save_state(tmp_path / "state.safetensors", before.state(), {})
    after = finish(faces, model)
    after.restore(load_state(tmp_path / "state.safetensors")[0])
    for i in range(num_before, 5):
        assert after.step(i).equal(figures[i]), f"step {i}"
    assert differing(whole.state(), after.state()) == []


def test_recorded_steps_do_what_the_steps_do(faces, monkeypatch):
    for module in (adversary, projected):
        monkeypatch.setattr(module, "training_precision", lambda _: nullcontext())
    monkeypatch.setattr(adversary, "CYCLE", 4)
    plain, replayed = (finish(faces, RESIDUAL, batch_size=4) for _ in range(2))

    def changed_in_place():
        trained = (replayed, *replayed.critics, *replayed.projected)
        guards = [one.guard for one in trained]
        optimizers = [one.optimizer for one in trained]
        yield from replayed.state().values()
        yield from (guard.kept_statistics for guard in guards)
        yield from (optimizer.param_groups[0]["lr"] for optimizer in optimizers)

    record = Recorder(changed_in_place)

    def recorded(step, forward):
        left = replayed.budget.seconds_left
        return AcceleratedStep(
            step, forward, replayed.decoder, pytest.fail, left, record=record, compiler=None
        )

    replayed.use_accelerator(recorded)
    at_rest = 24  # from when on coarser layers have no gradients, and steps are recorded anew
    assert replayed.budget.share(at_rest) == adversary.COARSE_END
    last = (at_rest // 4 + 1 + WARM_UP) * 4 + 2
    found = [replayed.step(i) for i in range(last)]
    assert record.count == 5, "what they draw, and twice with the penalty and without"
    wanted = [plain.step(i) for i in range(last)]
    torch.testing.assert_close(found, wanted, rtol=1e-3, atol=1e-4)
    for (name, found), wanted in zip(replayed.state().items(), plain.state().values(), strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-2, atol=1e-4, msg=name)


def test_encoder_prior_and_batch_norm_statistics_stay_as_they_are(faces):
    stage = finish(faces)
    before = copy.deepcopy((stage.vae.state_dict(), stage.prior.state_dict()))
    for i in range(3):
        stage.step(i)
    assert differing(before[1], stage.prior.state_dict()) == []
    changed = differing(before[0], stage.vae.state_dict())
    assert changed
    assert all(name.startswith("decoder.") for name in changed)
    assert not [name for name in changed if "running" in name or "tracked" in name]


def test_a_second_finish_is_of_the_finest_layers_alone(faces):
    first = finish(faces, RESIDUAL)
    first.step(0)
    stages = [finish(faces, RESIDUAL) for _ in range(2)]
    for stage in stages:
        stage.vae.decoder.load_state_dict(first.vae.decoder.state_dict())
    batches, config = first.batches, first.config
    again, whole = (FinishStage(stage.vae, stage.prior, batches, config) for stage in stages)
    coarse, fine = (copy.deepcopy(part) for part in whole.decoder.coarse_and_fine())
    figures = [whole.step(index) for index in range(3)]
    assert all(
        was.equal(now) for was, now in zip(coarse, whole.decoder.coarse_and_fine()[0], strict=True)
    )
    assert all(
        not was.equal(now)
        for was, now in zip(fine, whole.decoder.coarse_and_fine()[1], strict=True)
    )
    # one that knows no texture, as another process has it, does as the state says
    again.step(0)
    other = finish(faces, RESIDUAL)
    other.restore(again.state())
    assert all(other.step(index).equal(figures[index]) for index in (1, 2))
    assert differing(other.state(), whole.state()) == []


def test_texture_is_for_samples_and_leaves_reconstructions_to_their_pixels(faces):
    stage = finish(faces, RESIDUAL)
    stage.budget.num_steps = 10**6  # no cool-down
    for index in range(180):  # past the warm-up
        stage.step(index)
    images = stage.batches(180)
    with torch.no_grad():
        mean, _ = stage.vae.encode(images)
        plain, textured = (stage.vae.decode(mean, texture) for texture in (0.0, 1.0))
    assert detail(textured).square().mean() > 1.5 * detail(plain).square().mean()
    assert (plain - images).square().mean() < 0.95 * (textured - images).square().mean()


def test_coarser_layers_come_to_rest_before_the_others(faces):
    stage = finish(faces, RESIDUAL)
    stage.budget.num_steps = 100
    for index in range(3):  # so that Adam has moments that could go on by themselves
        stage.step(index)
    coarse, fine = stage.decoder.coarse_and_fine()
    assert {id(p) for p in (*coarse, *fine)} == {id(p) for p in stage.decoder.parameters()}
    assert len(coarse) + len(fine) == len([*stage.decoder.parameters()])
    for index, (moves_coarse, moves_fine) in {30: (True, True), 60: (False, True)}.items():
        before = copy.deepcopy((coarse, fine))
        stage.step(index)
        moved = [
            any(not was.equal(now) for was, now in zip(old, new, strict=True))
            for old, new in zip(before, (coarse, fine), strict=True)
        ]
        assert moved == [moves_coarse, moves_fine]
    stage.budget.num_steps = 1000  # a longer finish does not begin with them again
    before = copy.deepcopy(coarse)
    stage.step(61)
    assert all(was.equal(now) for was, now in zip(before, coarse, strict=True))


def test_samples_have_a_new_discriminator_once_coarser_layers_are_at_rest(faces, tmp_path):
    def steps(stage, indices):
        return [stage.step(index) for index in indices]

    stage, other = finish(faces, RESIDUAL), finish(faces, RESIDUAL)
    for one in (stage, other):
        one.budget.num_steps = 10
    new = copy.deepcopy(stage.critics[1].state())
    steps(stage, range(6))
    assert int(stage.frozen_at) == -1
    before = [copy.deepcopy(critic.state()) for critic in stage.critics]
    stage.freeze_coarse(6)
    kept, renewed = (critic.state() for critic in stage.critics)
    assert differing(before[0], kept) == []
    assert set(differing(before[1], renewed)) >= set(differing(before[1], new))
    assert not any(t.any() for name, t in renewed.items() if name.startswith("optimizer."))

    # by itself, at that step and no other, and gone on with as it was
    steps(other, range(7))
    assert int(other.frozen_at) == 6
    schedule = other.schedule(6)
    assert schedule.samples_strength == 0 < schedule.strength
    save_state(tmp_path / "state.safetensors", other.state(), {})
    again = finish(faces, RESIDUAL)
    again.budget.num_steps = 10
    again.restore(load_state(tmp_path / "state.safetensors")[0])
    for found, wanted in zip(steps(again, (7, 8, 9)), steps(other, (7, 8, 9)), strict=True):
        assert found.equal(wanted)
    assert differing(again.state(), other.state()) == []
    assert int(other.frozen_at) == 6


def test_the_penalty_is_taken_at_steps_that_their_numbers_name(faces, monkeypatch):
    taken = []
    penalty = Critic._penalty
    monkeypatch.setattr(Critic, "_penalty", lambda *args: taken.append(args[0]) or penalty(*args))
    stage = finish(faces, batch_size=4)
    for i in (0, 1, 15, 16, 17):
        stage.step(i)
    assert taken == [*stage.critics] * 2


def test_samples_of_the_prior_depend_on_seed_and_step_alone(faces):
    stage = finish(faces)
    in_order = [stage.samples(i) for i in range(20)]
    other = finish(faces)
    for i in (18, 3, 0):
        assert other.samples(i).equal(in_order[i])
    assert not in_order[0].equal(in_order[1])
    assert not finish(faces, seed=6).samples(0).equal(in_order[0])


def test_the_decoder_is_swayed_by_the_discriminator_as_its_weight_says(faces):
    def rise(weight):
        """How much more a step's own faces and samples are taken for real after it."""
        stage = finish(faces, RESIDUAL, finish_weight=0.0)
        stage.budget.num_steps = 10**6  # no cool-down
        for index in range(15):  # until the discriminator knows something
            stage.step(index)
        stage.config = replace(stage.config, finish_weight=weight)
        before = copy.deepcopy(stage.decoder)
        stage.step(100)  # past the warm-up
        with torch.no_grad():
            mean, _ = stage.vae.encode(stage.batches(100))
            made = [(d(mean), d(stage.samples(100), 1.0)) for d in (before, stage.decoder)]
            was, now = (
                torch.cat([c.network(p)[0] for c, p in zip(stage.critics, parts, strict=True)])
                for parts in made
            )
        return (now - was).mean().item()

    without, little, much = (rise(weight) for weight in (0.0, 1.0, 10.0))
    assert without < little < much


def test_each_kind_of_pictures_has_a_discriminator_of_its_own(faces, monkeypatch):
    updates, update = [], Critic.update

    def watched(critic, real, made, **how):
        updates.append((critic, real, made))
        return update(critic, real, made, **how)

    monkeypatch.setattr(Critic, "update", watched)
    stage = finish(faces, RESIDUAL, batch_size=4)
    stage.step(0)
    (first, real, reconstructions), (second, same, samples) = updates
    assert (first, second) == stage.critics
    assert real.equal(same)
    assert len(real) == len(reconstructions) == len(samples) == 4
    assert not reconstructions.allclose(samples, atol=0.05)


def test_features_of_photographs_are_told_of_each_kind_by_one_of_its_own(faces, monkeypatch):
    updates, update = [], ProjectedCritic.update

    def watched(critic, real, made):
        updates.append((critic, real, made))
        return update(critic, real, made)

    monkeypatch.setattr(ProjectedCritic, "update", watched)
    stage = finish(faces, RESIDUAL, batch_size=4)
    stage.step(0)
    (first, real, reconstructions), (second, same, samples) = updates
    assert (first, second) == stage.projected
    assert all(a.equal(b) for a, b in zip(real, same, strict=True))
    for made in (reconstructions, samples):
        assert [level.shape for level in made] == [level.shape for level in real]
        assert not any(level.requires_grad for level in made)
    assert not reconstructions[0].allclose(samples[0], atol=0.05)


@pytest.mark.parametrize(("kind", "name"), [(0, "projected"), (1, "projected_samples")])
def test_the_decoder_is_swayed_by_what_is_told_by_features(faces, kind, name):
    without = LossWeights(adversarial=0, adversarial_samples=0, projected=0, projected_samples=0)

    def rise(weight):
        """How much more a step's own pictures are taken for faces after it."""
        stage = finish(faces, RESIDUAL, weights=without, batch_size=4)
        stage.budget.num_steps = 10**6  # no cool-down
        for index in range(12):  # until they can tell
            stage.step(index)
        stage.weights = replace(without, **{name: weight})
        before = copy.deepcopy(stage.decoder)
        stage.step(100)  # past the warm-up
        with torch.no_grad():
            mean, _ = stage.vae.encode(stage.batches(100))
            latents, texture = ((mean, 0.0), (stage.samples(100), 1.0))[kind]
            was, now = (
                stage.projected[kind].generator_loss(stage.projection(d(latents, texture)))
                for d in (before, stage.decoder)
            )
        return (was - now).item()

    assert rise(0.0) < rise(100.0)


def test_a_step_that_is_not_sound_for_one_by_features_leaves_the_decoder_alone(faces, monkeypatch):
    stage = finish(faces, RESIDUAL, batch_size=4)
    stage.step(0)
    before = copy.deepcopy(stage.decoder.state_dict())
    with monkeypatch.context() as broken:
        broken.setattr(losses, "hinge", lambda real, *_: real.mean() * torch.nan)
        assert not stage.step(1).any()
    assert differing(before, stage.decoder.state_dict()) == []
    assert stage.guard.counts().num_skipped == 1
    stage.step(2)
    assert differing(before, stage.decoder.state_dict()) != []


def test_samples_stay_coarsely_what_they_were(faces):
    stage = finish(faces, replace(RESIDUAL, size=64), batch_size=4)
    latents = stage.samples(0)
    with torch.no_grad():
        made = stage.decoder(latents)
    columns = torch.arange(64)
    texture, bars = (0.1 * (-1.0) ** (columns // width) for width in (1, 4))

    def drifts() -> list[float]:
        changed = (made, made + texture, made + bars, made - 0.1)
        return [stage.sample_drift(latents, images).item() for images in changed]

    nothing, everything = pytest.approx(0, abs=1e-4), pytest.approx(0.01, rel=0.05)
    assert drifts() == [nothing, nothing, everything, everything]
    stage.freeze_coarse(
        0
    )  # coarser layers rest, and bars within a square of 8 x 8 px may be mended
    assert drifts() == [nothing, nothing, nothing, everything]


def test_a_perceptual_distance_holds_reconstructions_to_what_it_measures(faces):
    """A stand-in that measures brightness alone, against no other term that could."""
    seen = []

    def darkness(made, real):
        seen.append((made.shape, real.shape))
        return 1e6 * made.mean((1, 2, 3))

    stage = finish(faces, RESIDUAL, perceptual=darkness)
    stage.budget.num_steps = 10**6
    before = copy.deepcopy(stage.decoder)
    stage.step(0)
    assert seen == [((16, 3, 32, 32), (16, 3, 32, 32))]
    latents = stage.vae.encode(stage.batches(0))[0]
    with torch.no_grad():
        assert stage.decoder(latents).mean() < before(latents).mean()


def test_a_step_reports_the_error_of_what_is_decoded_from_the_mean(faces):
    stage = finish(faces)
    images = stage.batches(0)
    with torch.no_grad():
        made = stage.vae.decode(stage.vae.encode(images)[0])
    mse = stage.step(0)[stage.terms.index("mse")]
    torch.testing.assert_close(mse, (made - images).square().mean(), rtol=0.05, atol=0)


def test_batches_of_a_finish_are_small_whatever_the_training_has():
    assert [batch_size(replace(TRAIN, batch_size=n)) for n in (4, 16, 150)] == [4, 16, 16]


@pytest.mark.parametrize("size", [32, 128])
def test_a_checkerboard_has_more_energy_than_noise_light_and_edges(size):
    columns = 0.01 * (-1.0) ** torch.arange(size)
    noise = 0.01 * torch.randn(1, 3, size, size, generator=torch.Generator().manual_seed(0))
    grey = torch.full((1, 3, size, size), 0.5)
    edge = grey + 0.3 * (torch.arange(size) >= size // 2 - 1)
    ramp = grey + torch.linspace(-0.4, 0.4, size)
    energy = checkerboard_energy(grey + columns).item()
    assert energy == pytest.approx(1.0e-4, rel=1)
    assert checkerboard_energy(grey + columns[:, None]).item() == pytest.approx(energy, rel=0.01)
    assert checkerboard_energy(grey).item() < 1e-9
    assert checkerboard_energy(ramp).item() < energy / 10
    if size == 128:
        assert checkerboard_energy(grey + noise).item() < energy / 20
        assert checkerboard_energy(edge).item() < energy


def test_a_checkerboard_goes_sooner_than_by_its_error_alone(faces):
    def left(weight):
        weights = LossWeights(checkerboard=weight)
        stage = finish(faces, RESIDUAL, weights=weights, finish_weight=0.0)
        stage.budget.num_steps = 10**6  # no cool-down
        with torch.no_grad():  # the biases of a pixel's four places, one colour after another
            bias = stage.decoder.convolutions[-3].bias
            bias += torch.tensor([0.05, -0.05, 0.05, -0.05]).repeat(3)
        for index in range(20):
            stage.step(index)
        with torch.no_grad():
            made = stage.decoder(stage.vae.encode(stage.batches(0))[0])
        return checkerboard_energy(made).mean().item()

    assert left(20.0) < 0.8 * left(0.0)
