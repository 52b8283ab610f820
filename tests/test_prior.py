"""Priors map noise to latents with the distribution that they were fitted to."""

import pytest
import torch
from tiny import tiny_bundle

from facevae.config import PriorConfig
from facevae.data.augment import NUM_CHANGES
from facevae.errors import UsageError
from facevae.networks.prior import (
    FlowPrior,
    GaussianPrior,
    NormalPrior,
    build_prior,
    fitted_gaussian,
    kind_of,
    other_prior,
    sample_latents,
)
from facevae.stages.flow_matching import PriorStage
from facevae.system.runtime import face_noise


@pytest.fixture(autouse=True)
def one_thread():
    """Use one thread: for small tensors, a second one costs time, and most on a busy machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def draw(seed):
    return torch.Generator().manual_seed(seed)


def correlated(count, dims, seed=0):
    mix = torch.randn(dims, dims, generator=draw(seed))
    return torch.randn(count, dims, generator=draw(seed + 1)) @ mix + 3


def stirred_flow(latent_dim, width=16, blocks=2, seed=0):
    """An untrained flow in which every weight has an effect, as after a training."""
    torch.manual_seed(seed)
    flow = FlowPrior(latent_dim, width, blocks).eval()
    with torch.no_grad():
        for parameter in flow.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape, generator=draw(seed)))
    mean = correlated(50, latent_dim, seed)
    flow.whitening.fit(mean, torch.full_like(mean, -1.0))
    return flow


def test_a_gaussian_takes_the_moments_of_the_aggregate_posterior():
    mean = correlated(200, 4)
    logvar = torch.randn(200, 4, generator=draw(5))
    prior = GaussianPrior(4)
    prior.fit(mean, logvar)
    # by the law of total variance, written out a posterior at a time
    centre = sum(mean.double()) / 200
    covariance = sum(
        torch.outer(m - centre, m - centre) + torch.diag(v.exp())
        for m, v in zip(mean.double(), logvar.double(), strict=True)
    )
    torch.testing.assert_close(prior.mean.double(), centre, rtol=1e-5, atol=1e-5)
    factor, shrinkage = prior.factor.double(), 4 / 204
    expected = covariance / 200 * (1 - shrinkage * (1 - torch.eye(4).double()))
    torch.testing.assert_close(factor @ factor.T, expected, rtol=1e-4, atol=1e-4)


def test_few_latents_do_not_say_that_others_cannot_differ_where_they_do_not():
    few, others = torch.randn(2, 40, 40, generator=draw(0)).unbind()
    prior = GaussianPrior(40)
    prior.fit(few[:20], torch.full((20, 40), -8.0))
    assert prior.whiten(few[:20]).square().mean() < 1.5
    assert prior.whiten(others).square().mean() < 6


def test_gaussian_samples_have_the_fitted_moments():
    mean = correlated(500, 3)
    logvar = torch.zeros(500, 3)
    prior = GaussianPrior(3)
    prior.fit(mean, logvar)
    samples = prior(torch.randn(100_000, 3, generator=draw(9)))
    expected = mean.T.cov(correction=0) + torch.eye(3)
    spread = expected.diag().sqrt()
    assert ((samples.mean(0) - mean.mean(0)).abs() < 0.02 * spread).all()
    tolerance = 0.03 * spread[:, None] * spread
    assert ((samples.T.cov() - expected).abs() < tolerance).all()


@pytest.mark.parametrize("count", [1, 3, 40])
def test_a_gaussian_of_fewer_latents_than_dimensions_is_positive_definite(count):
    mean = torch.randn(count, 40, generator=draw(0)) * 3
    prior = GaussianPrior(40)
    prior.fit(mean, torch.full((count, 40), -12.0))
    assert prior.factor.isfinite().all()
    assert prior.factor.diag().gt(0).all()
    assert prior.factor.triu(1).eq(0).all()


@pytest.mark.parametrize("kind", ["gaussian", "flow"])
def test_a_fitted_prior_knows_its_covariance(kind):
    fitted = fitted_gaussian(tiny_bundle(kind=kind).prior)
    fitted.factor.copy_(torch.randn(fitted.factor.shape, generator=draw(3)).tril())
    assert fitted.covariance.equal(fitted.covariance.T)
    torch.testing.assert_close(fitted.covariance, fitted.factor @ fitted.factor.T)
    assert fitted_gaussian(NormalPrior()) is None


def test_whitening_is_the_inverse_of_sampling():
    mean = correlated(300, 6)
    prior = GaussianPrior(6)
    prior.fit(mean, torch.zeros(300, 6))
    noise = torch.randn(50, 6, generator=draw(2))
    torch.testing.assert_close(prior.whiten(prior(noise)), noise, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(prior(prior.whiten(mean)), mean, rtol=1e-4, atol=1e-4)


def test_whitened_posterior_samples_have_unit_covariance():
    mean = correlated(100_000, 3)
    logvar = torch.zeros(100_000, 3)
    prior = GaussianPrior(3)
    prior.fit(mean, logvar)
    white = prior.whiten(mean + torch.randn(mean.shape, generator=draw(3)))
    assert white.mean(0).abs().max() < 0.02
    assert (white.T.cov() - torch.eye(3)).abs().max() < 0.03


def test_an_unfitted_flow_is_its_whitening_gaussian():
    flow = FlowPrior(4, width=16, blocks=2)
    flow.whitening.fit(correlated(100, 4), torch.zeros(100, 4))
    noise = torch.randn(10, 4, generator=draw(1))
    torch.testing.assert_close(flow(noise), flow.whitening(noise))


def test_a_flow_goes_where_its_velocity_points():
    # with a constant velocity v, the path ends at noise + v, whatever the number of steps
    flow = FlowPrior(3, width=8, blocks=1)
    velocity = torch.tensor([0.5, -2.0, 0.0])
    with torch.no_grad():
        flow.outward.bias.copy_(velocity)
    noise = torch.randn(5, 3, generator=draw(1))
    torch.testing.assert_close(flow(noise), noise + velocity, rtol=1e-4, atol=1e-5)


def test_the_steps_are_enough_for_a_smooth_flow():
    flow = stirred_flow(4).double()
    with torch.no_grad():
        for block in flow.blocks:
            fast = flow.frequencies.repeat(2) > 3
            block.time.weight[:, fast] = 0
        noise = torch.randn(20, 4, generator=draw(4)).double()
        exact = flow.whitening(runge_kutta(flow, noise, steps=60))
        moved = (exact - flow.whitening(noise)).abs().mean()
        off = (flow(noise) - exact).abs().mean()
    assert moved > 0.1
    assert off < 1e-3 * moved


def runge_kutta(flow, points, steps):
    """The same path, integrated with the classic fourth-order Runge-Kutta method."""
    h = 1 / steps
    for i in range(steps):
        t = points.new_full((len(points), 1), i * h)
        k1 = flow.velocity(points, t)
        k2 = flow.velocity(points + h / 2 * k1, t + h / 2)
        k3 = flow.velocity(points + h / 2 * k2, t + h / 2)
        k4 = flow.velocity(points + h * k3, t + h)
        points = points + h / 6 * (k1 + 2 * k2 + 2 * k3 + k4)
    return points


def bimodal(count, seed):
    """Points in two narrow modes at (±2, 0), half of them in each."""
    sides = torch.randint(2, (count,), generator=draw(seed)) * 4.0 - 2
    centres = torch.stack([sides, torch.zeros(count)], dim=1)
    return centres + 0.3 * torch.randn(count, 2, generator=draw(seed + 1))


def sliced_distance(a, b, directions=32):
    """Mean over directions of the Wasserstein-1 distance between two sets of equal size."""
    angles = torch.arange(directions) * torch.pi / directions
    lines = torch.stack([angles.cos(), angles.sin()])
    return ((a @ lines).sort(0).values - (b @ lines).sort(0).values).abs().mean().item()


def test_a_flow_learns_two_modes_that_a_gaussian_cannot():
    mean = bimodal(4096, seed=0)
    torch.manual_seed(0)
    stage = PriorStage(FlowPrior(2, 64, 2), mean, torch.full_like(mean, -6.0), epochs=100, seed=0)
    for index in range(stage.budget.num_steps):
        stage.step(index)
    noise = torch.randn(4096, 2, generator=draw(7))
    with torch.no_grad():
        flow, gaussian = stage.prior(noise), stage.prior.whitening(noise)
    unseen = bimodal(4096, seed=100)

    # hardly a point lies in the gap; a third of the Gaussian's do
    def in_gap(points):
        return (points[:, 0].abs() < 1).float().mean().item()

    assert in_gap(unseen) < 0.01
    assert in_gap(gaussian) > 0.25
    assert in_gap(flow) < 0.1
    assert 0.4 < (flow[:, 0] > 0).float().mean().item() < 0.6
    assert sliced_distance(flow, unseen) < 0.5 * sliced_distance(gaussian, unseen)


def test_a_flow_that_is_told_of_changes_gives_what_was_not_changed():
    """Three times as many changed latents lie elsewhere; with and without the condition."""
    plain = bimodal(1024, seed=0)
    changes = torch.zeros(4096, NUM_CHANGES)
    changes[1024:, 2] = torch.randn(3072, generator=draw(3)).sign()
    mean = plain.repeat(4, 1) + 2 * changes[:, 2:3]

    def distance(told):
        torch.manual_seed(0)
        stage = PriorStage(
            FlowPrior(2, 64, 2), mean, torch.full_like(mean, -6.0), told, epochs=800, seed=0
        )
        stage.prior.whitening.fit(plain, torch.full_like(plain, -6.0))  # of either
        stage.raw.flow.whitening.load_state_dict(stage.prior.whitening.state_dict())
        for index in range(800):
            stage.step(index)
        with torch.no_grad():
            flow = stage.prior(torch.randn(1024, 2, generator=draw(7)))
        return sliced_distance(flow, plain)

    assert distance(changes) < 0.5 * distance(None)


def test_passes_of_a_flow_are_over_latents_that_were_not_changed():
    mean = torch.randn(3 * PriorStage.batch_size, 2)
    changes = torch.zeros(len(mean), NUM_CHANGES)
    changes[PriorStage.batch_size :, 0] = 1.0
    logvar = torch.full_like(mean, -6.0)
    stage = PriorStage(FlowPrior(2, 8, 1), mean, logvar, changes, epochs=5, seed=0)
    assert stage.budget.num_steps == 5
    whitened = stage.prior.whitening.whiten(mean[: PriorStage.batch_size])
    torch.testing.assert_close(whitened.mean(0), torch.zeros(2), rtol=0, atol=1e-5)


def test_a_seed_names_the_same_latent_in_any_batch():
    prior = stirred_flow(6)
    seeds = list(range(37))
    with torch.no_grad():
        together = sample_latents(prior, face_noise(seeds, 6))
        alone = torch.cat([sample_latents(prior, face_noise([seed], 6)) for seed in seeds])
        backward = sample_latents(prior, face_noise(seeds[::-1], 6)).flip(0)
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(together, backward, rtol=1e-4, atol=1e-4)
    assert (together[0] - together[1]).abs().max() > 0.1


def test_temperature_scales_the_noise_down_to_the_mean():
    prior = GaussianPrior(4)
    mean = correlated(100, 4)
    prior.fit(mean, torch.zeros(100, 4))
    noise = torch.randn(6, 4, generator=draw(0))
    coldest = sample_latents(prior, noise, temperature=0.0)
    torch.testing.assert_close(coldest, prior.mean.expand(6, 4))
    half = sample_latents(prior, noise, temperature=0.5)
    whole = sample_latents(prior, noise)
    torch.testing.assert_close(half, (whole + prior.mean) / 2, rtol=1e-4, atol=1e-5)


def test_guidance_goes_from_the_gaussian_over_what_was_learned_and_further():
    flow = stirred_flow(6)
    noise = torch.randn(20, 6, generator=draw(0))
    with torch.no_grad():
        gaussian, learned = flow.whitening(noise), flow(noise)
        torch.testing.assert_close(
            sample_latents(flow, noise, guidance=0.0), gaussian, rtol=1e-2, atol=1e-2
        )
        assert sample_latents(flow, noise, guidance=1.0).equal(learned)
        half, twice = (sample_latents(flow, noise, guidance=g) for g in (0.5, 2.0))
    assert flow.guidance == 1
    near, far = ((x - gaussian).norm() for x in (half, twice))
    assert near < (learned - gaussian).norm() < far


def test_guidance_ends_where_the_flow_says_so():
    flow, noise = stirred_flow(6), torch.randn(20, 6, generator=draw(0))
    with torch.no_grad():
        learned, found = flow(noise), {}
        for until in (0.0, 0.5, 0.9, 1.0):
            flow.guided_until = until
            found[until] = sample_latents(flow, noise, guidance=3.0)
        assert found[0.0].equal(learned)
        assert all(not found[until].isclose(learned).all() for until in (0.5, 0.9, 1.0))
        assert not found[0.5].isclose(found[1.0]).all()
        # what is left of the way is gone alike
        near = (found[0.9] - found[1.0]).norm()
        assert 0 < near < (found[0.5] - found[1.0]).norm()


def test_only_a_flow_can_be_guided():
    with pytest.raises(UsageError, match="only a flow can be guided, and this prior is gaussian"):
        sample_latents(GaussianPrior(3), torch.zeros(1, 3), guidance=2.0)
    with pytest.raises(UsageError, match=r"guidance=10\.1: must be 0 to 10"):
        sample_latents(FlowPrior(3, 8, 1), torch.zeros(1, 3), guidance=10.1)


@pytest.mark.parametrize(
    ("config", "cls"),
    [
        (PriorConfig("normal"), NormalPrior),
        (PriorConfig("gaussian"), GaussianPrior),
        (PriorConfig("flow", 8, 1), FlowPrior),
    ],
)
def test_each_kind_is_built_and_known_again(config, cls):
    prior = build_prior(config, 3)
    assert type(prior) is cls
    assert kind_of(prior) == config.kind
    noise = torch.randn(2, 3, generator=draw(0))
    torch.testing.assert_close(sample_latents(prior, noise), noise)  # unfitted, each is N(0, I)


def test_a_flow_holds_a_gaussian_and_all_hold_the_normal():
    flow, gaussian, normal = FlowPrior(3, 8, 1), GaussianPrior(3), NormalPrior()
    assert other_prior(flow, "flow") is flow
    assert other_prior(flow, "gaussian") is flow.whitening
    assert other_prior(gaussian, "gaussian") is gaussian
    assert all(kind_of(other_prior(p, "normal")) == "normal" for p in (flow, gaussian, normal))


@pytest.mark.parametrize(
    ("prior", "kind"),
    [
        (GaussianPrior(3), "flow"),
        (NormalPrior(), "flow"),
        (NormalPrior(), "gaussian"),
        (FlowPrior(3, 8, 1), "vamp"),
    ],
    ids=lambda value: value if isinstance(value, str) else kind_of(value),
)
def test_a_prior_that_a_model_does_not_hold_is_refused(prior, kind):
    with pytest.raises(UsageError, match=f"prior={kind}: .*holds a {kind_of(prior)} prior"):
        other_prior(prior, kind)


def test_a_residual_flow_begins_as_one_gaussian_and_a_plain_one_does_too():
    for residual in (True, False):
        flow = FlowPrior(3, 8, 1, residual=residual)
        flow.whitening.fit(
            torch.randn(50, 3) * torch.tensor([1.0, 2.0, 0.1]) + 1, torch.zeros(50, 3)
        )
        noise = torch.randn(20, 3)
        with torch.no_grad():
            torch.testing.assert_close(flow(noise), flow.whitening(noise), rtol=1e-3, atol=1e-3)


def test_where_latents_are_one_gaussian_a_residual_flow_has_nothing_to_learn():
    """Its velocity is optimal: no multiple of it is closer to latents − noise."""
    draw = torch.Generator().manual_seed(0)
    noise, latents = torch.randn(2, 4000, 3, generator=draw)
    times = torch.rand(4000, 1, generator=draw)
    points = (1 - times) * noise + times * latents
    with torch.no_grad():
        velocity = FlowPrior(3, 8, 1, residual=True).velocity(points, times)
    losses = [(scale * velocity - (latents - noise)).square().mean() for scale in (0.9, 1, 1.1)]
    assert min(losses) == losses[1]
