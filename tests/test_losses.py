"""The terms of the bound, against independent derivations."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.distributions import Normal
from torch.distributions import kl_divergence as kl_of_distributions

from facevae.measures import losses

DIMS = 3 * 128 * 128
NUMBERS = st.floats(-15, 15, width=32)


def random_pair(seed=0, shape=(5, 7)):
    draw = torch.Generator().manual_seed(seed)
    return torch.randn(2, *shape, generator=draw, dtype=torch.float64) * 2


def random_images():
    draw = torch.Generator().manual_seed(3)
    return torch.rand(2, 4, 3, 8, 8, generator=draw, dtype=torch.float32)


def test_kl_is_that_of_the_distributions():
    mean, logvar = random_pair()
    posterior = Normal(mean, (0.5 * logvar).exp())
    expected = kl_of_distributions(posterior, Normal(torch.tensor(0.0), torch.tensor(1.0)))
    torch.testing.assert_close(losses.kl_divergence(mean, logvar), expected)


@given(NUMBERS, NUMBERS)
def test_kl_is_never_negative(mean, logvar):
    one = torch.tensor([[mean]], dtype=torch.float64), torch.tensor([[logvar]], dtype=torch.float64)
    assert losses.kl_divergence(*one).item() >= -1e-12


def test_kl_is_zero_at_the_prior_and_only_there():
    zero = torch.zeros(1, 3)
    assert losses.kl_divergence(zero, zero).eq(0).all()
    assert losses.kl_divergence(zero + 0.1, zero).gt(0).all()
    assert losses.kl_divergence(zero, zero + 0.1).gt(0).all()
    assert losses.kl_divergence(zero, zero - 0.1).gt(0).all()


def test_mean_squared_error_is_one_number_an_image():
    made, real = random_images()
    expected = [((made[i] - real[i]) ** 2).sum().item() / (3 * 8 * 8) for i in range(4)]
    assert losses.mean_squared_error(made, real).tolist() == pytest.approx(expected, rel=1e-5)


def test_mean_squared_error_of_bfloat16_is_reckoned_in_float32():
    made, real = (images.bfloat16() for images in random_images())
    got = losses.mean_squared_error(made, real)
    assert got.dtype == torch.float32
    torch.testing.assert_close(got, losses.mean_squared_error(made.float(), real.float()))


def test_weighted_reconstruction_is_a_gaussian_likelihood_less_a_constant():
    made, real = (images.double() for images in random_images())
    factor = 5000.0
    sigma = losses.implied_sigma(factor, real[0].numel())
    nll = -Normal(made, sigma).log_prob(real).flatten(1).sum(1)
    constant = -Normal(real, sigma).log_prob(real).flatten(1).sum(1)
    mse = losses.mean_squared_error(made, real)
    got = losses.weighted_reconstruction(mse, factor).item()
    assert got == pytest.approx((nll - constant).mean().item(), rel=1e-5)


def test_calibrated_reconstruction_is_the_likelihood_at_its_best_variance():
    made, real = (images.double() for images in random_images())
    dims = real[0].numel()
    mse = losses.mean_squared_error(made, real)

    def nll(variance):
        likelihood = Normal(made, math.sqrt(variance))
        return -likelihood.log_prob(real).flatten(1).sum(1).mean().item()

    best = mse.mean().item()
    constant = dims / 2 * (math.log(2 * math.pi) + 1)
    got = losses.calibrated_reconstruction(mse, dims).item()
    assert got + constant == pytest.approx(nll(best), rel=1e-5)
    assert nll(best) < min(nll(best * 1.05), nll(best / 1.05))


def gradient(loss, made, real):
    made = made.clone().requires_grad_()
    loss(losses.mean_squared_error(made, real)).backward()
    return made.grad


def test_the_calibrated_gradient_is_that_of_the_factor_in_closed_form():
    made, real = random_images()
    dims = real[0].numel()
    mse = ((made - real) ** 2).mean().item()
    factor = dims / (2 * mse)
    calibrated = gradient(lambda m: losses.calibrated_reconstruction(m, dims), made, real)
    weighted = gradient(lambda m: losses.weighted_reconstruction(m, factor), made, real)
    assert calibrated.abs().max() > 0
    torch.testing.assert_close(calibrated, weighted, rtol=1e-4, atol=1e-6)
    assert losses.calibrated_factor(mse, dims) == pytest.approx(factor)


def test_no_likelihood_claims_to_know_a_pixel_better_than_its_rounding():
    # levels are uniform within one step of 1/255: the variance of that is step² / 12
    assert pytest.approx((1 / 255) ** 2 / 12) == losses.MIN_MSE
    floor = losses.calibrated_reconstruction(torch.tensor([losses.MIN_MSE]), DIMS).item()
    for mse in (0.0, losses.MIN_MSE / 100):
        assert losses.calibrated_reconstruction(torch.tensor([mse]), DIMS).item() == floor
        assert losses.calibrated_factor(mse, DIMS) == losses.calibrated_factor(losses.MIN_MSE, DIMS)
    above = losses.calibrated_reconstruction(torch.tensor([losses.MIN_MSE * 2]), DIMS).item()
    assert above == pytest.approx(floor + DIMS / 2 * math.log(2), rel=1e-5)


def test_a_perfect_reconstruction_has_a_finite_loss_and_no_gradient():
    _, real = random_images()
    grad = gradient(lambda m: losses.calibrated_reconstruction(m, DIMS), real, real)
    assert grad.eq(0).all()


@given(st.floats(1e-4, 1e6))
def test_implied_sigma_is_the_inverse_of_the_factor(factor):
    sigma = losses.implied_sigma(factor, DIMS)
    assert DIMS / (2 * sigma**2) == pytest.approx(factor)


@given(st.floats(losses.MIN_MSE, 1))
def test_the_calibrated_factor_implies_the_error_it_was_made_from(mse):
    sigma = losses.implied_sigma(losses.calibrated_factor(mse, DIMS), DIMS)
    assert sigma**2 == pytest.approx(mse)


def test_flow_matching_is_zero_only_at_the_straight_velocity():
    noise, latents = random_pair(1)
    assert losses.flow_matching(latents - noise, noise, latents).max().item() == pytest.approx(
        0, abs=1e-9
    )
    off_by_two = losses.flow_matching(latents - noise + 2, noise, latents).mean().item()
    assert off_by_two == pytest.approx(4, rel=1e-5)


def test_the_logistic_losses_are_those_of_telling_real_from_made():
    real, made = torch.tensor([2.0, -1.0]), torch.tensor([0.5, -3.0, 1.0])
    probability = torch.sigmoid
    expected = -probability(real).log().mean() - (1 - probability(made)).log().mean()
    torch.testing.assert_close(losses.discriminator_loss(real, made), expected)
    torch.testing.assert_close(losses.generator_loss(made), -probability(made).log().mean())


def test_hinge_is_content_beyond_its_margin_and_counts_each_image_alike():
    real = torch.tensor([2.0, 0.5]).view(2, 1, 1, 1).expand(2, 1, 3, 3)
    made = torch.tensor([-1.0, 0.25]).view(2, 1, 1, 1).expand(2, 1, 3, 3)
    torch.testing.assert_close(
        losses.hinge(real, made), torch.tensor((0 + 0.5) / 2 + (0 + 1.25) / 2)
    )
    weighted = losses.hinge(real, made, lambda values: values[1])
    torch.testing.assert_close(weighted, torch.tensor(0.5 + 1.25))


def test_the_gradient_penalty_is_half_the_squared_slope():
    images = torch.rand(2, 3, 4, 4, requires_grad=True)
    logits = 3 * images.flatten(1).sum(1)
    assert losses.gradient_penalty(logits, images).item() == pytest.approx(0.5 * 9 * 48)


def test_features_are_matched_in_units_of_the_real_ones():
    real = [torch.full((2, 3, 4, 4), 10.0), torch.full((2, 5, 2, 2), -0.1)]
    made = [real[0] + 5, real[1] - 0.1]
    assert losses.feature_matching(made, real).item() == pytest.approx((0.5 + 1) / 2)
    assert losses.feature_matching(real, real).item() == 0
