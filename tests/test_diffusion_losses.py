"""The losses: their gradients, their zeros, and their values where they can be written down."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch.distributions import Normal, kl_divergence

from fiducial.diffusion.losses import VLB_WEIGHT, gaussian_kl, hybrid_loss, velocity_loss
from fiducial.diffusion.schedule import Schedule

SHAPE = (4, 2, 3, 3)
STEPS = torch.tensor([0, 5, 8, 9])
LAST = STEPS == 9  # of ten: the step without noise and without a bound
SCHEDULE = Schedule.create("10")
RATE = VLB_WEIGHT * 10  # what a bit weighs in the loss


def randn(seed):
    return torch.randn(SHAPE, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


X0, NOISE = randn(0), randn(1)


def loss(epsilon, fraction):
    """Each image's loss where the network says `epsilon` and `fraction`, whatever it is asked."""
    return hybrid_loss(lambda _x, _t: torch.cat([epsilon, fraction], dim=1), X0, STEPS, NOISE, SCHEDULE)


def constant(value):
    return torch.full(SHAPE, value, dtype=torch.float64)


def variances():
    """(smaller, larger) of each image's step."""
    return SCHEDULE.log_variance_min.exp()[STEPS].double(), SCHEDULE.log_variance_max.exp()[STEPS].double()


def epsilon_gradients():
    """(of the hybrid loss, of plain MSE), where both halves of the prediction are wrong."""
    epsilon = randn(2).requires_grad_()
    (hybrid,) = torch.autograd.grad(loss(epsilon, randn(3)).sum(), epsilon)
    (plain,) = torch.autograd.grad(F.mse_loss(epsilon, NOISE, reduction="none").mean((1, 2, 3)).sum(), epsilon)
    return hybrid, plain


def test_bound_does_not_train_the_mean():
    hybrid, plain = epsilon_gradients()
    assert torch.allclose(hybrid, plain, rtol=1e-12, atol=0)


def test_a_bound_that_trains_the_mean_is_noticed(monkeypatch):
    monkeypatch.setattr(torch.Tensor, "detach", lambda self: self)
    hybrid, plain = epsilon_gradients()
    assert (hybrid - plain).abs().max() > 1e-3 * plain.abs().max()


def test_bound_trains_the_variance():
    """Everywhere but in the last step, which has none."""
    fraction = randn(3).requires_grad_()
    (gradient,) = torch.autograd.grad(loss(randn(2), fraction).sum(), fraction)
    assert (gradient[~LAST] != 0).all()
    assert (gradient[LAST] == 0).all()


def test_perfect_prediction_costs_nothing():
    assert torch.allclose(loss(NOISE, constant(-1.0)), torch.zeros(4, dtype=torch.float64), atol=1e-9)


def test_too_large_a_variance_costs_its_bits():
    """KL of N(0, a) from N(0, b) is (log(b / a) + a / b - 1) / 2 nats."""
    smaller, larger = variances()
    bits = (torch.log(larger / smaller) + smaller / larger - 1) / (2 * math.log(2))
    expected = torch.where(LAST, 0.0, RATE * bits)
    assert expected[2] > 0.01
    assert torch.allclose(loss(NOISE, constant(1.0)), expected, rtol=1e-3, atol=1e-9)


def test_a_wrong_mean_costs_its_distance():
    """An error of the noise moves the mean by beta / sqrt((1 - beta) (1 - abar)) times itself, equation 11 of DDPM."""
    smaller, beta = variances()
    abar = SCHEDULE.alphas_cumprod[STEPS]
    nats = 0.5 * (0.3 * beta) ** 2 / ((1 - beta) * (1 - abar)) / smaller
    expected = 0.3**2 + torch.where(LAST, 0.0, RATE * nats / math.log(2))
    assert torch.allclose(loss(NOISE + 0.3, constant(-1.0)), expected, rtol=1e-4)


def test_last_step_is_plain_regression():
    wrong = loss(NOISE + 0.5, randn(3))
    assert wrong[LAST].item() == pytest.approx(0.25, rel=1e-12)
    assert (wrong[~LAST] > 0.25).all()


def test_network_sees_the_diffused_image_at_the_original_timestep():
    seen = []

    def model(x, t):
        seen.append((x, t))
        return torch.cat([x, x], dim=1)

    assert hybrid_loss(model, X0, STEPS, NOISE, SCHEDULE).shape == (4,)
    ((x, t),) = seen
    abar = SCHEDULE.alphas_cumprod[STEPS].view(4, 1, 1, 1)
    assert t.tolist() == [999, 444, 111, 0]
    assert torch.allclose(x, abar**0.5 * X0 + (1 - abar) ** 0.5 * NOISE, atol=1e-6)


TIMES = torch.tensor([0.0, 0.25, 0.9, 1.0], dtype=torch.float64)  # SiT's: noise first


def test_velocity_is_asked_for_on_the_straight_path_from_noise_to_the_image():
    seen = []

    def model(x, t):
        seen.append((x, t))
        return X0 - NOISE + 0.3

    assert velocity_loss(model, X0, TIMES, NOISE).tolist() == pytest.approx([0.09] * 4, rel=1e-12)
    ((x, t),) = seen
    assert t.tolist() == TIMES.tolist()
    for row, share in enumerate(TIMES.tolist()):
        assert torch.allclose(x[row], share * X0[row] + (1 - share) * NOISE[row], rtol=1e-12)


def of_gaussian_data(velocity, count=200_000):
    """The loss at three times, of images that are one number from N(MEAN, SPREAD**2), where the network says `velocity`."""
    random = torch.Generator().manual_seed(5)
    x0, noise = torch.randn(2, 3 * count, 1, 1, 1, dtype=torch.float64, generator=random)
    t = torch.tensor([0.2, 0.5, 0.8], dtype=torch.float64).repeat_interleave(count)
    loss = velocity_loss(lambda x, t: velocity(x, t.view(-1, 1, 1, 1)), MEAN + SPREAD * x0, t, noise)
    return loss.view(3, count).mean(1).tolist()


MEAN, SPREAD = 0.7, 0.5


def expected_velocity(x, t):
    """E[x_0 - noise | x_t] of such data, which no other guess beats."""
    variance = t**2 * SPREAD**2 + (1 - t) ** 2
    return MEAN + (t * SPREAD**2 - (1 - t)) / variance * (x - t * MEAN)


def test_the_best_velocity_of_gaussian_data_costs_what_is_left_unknown():
    """Var(x_0 - noise | x_t) = SPREAD^2 / Var(x_t), and the loss is least there."""
    left = [SPREAD**2 / (t**2 * SPREAD**2 + (1 - t) ** 2) for t in (0.2, 0.5, 0.8)]
    assert of_gaussian_data(expected_velocity) == pytest.approx(left, rel=0.02)
    for wrong in (
        lambda x, t: expected_velocity(x, 1 - t),
        lambda x, t: -expected_velocity(x, t),
        lambda x, t: 1.2 * expected_velocity(x, t),
    ):
        assert sum(of_gaussian_data(wrong)) > 1.03 * sum(left)


@pytest.mark.parametrize("seed", range(3))
def test_gaussian_kl_is_torchs(seed):
    mean_p, log_p, mean_q, log_q = (randn(4 * seed + number) for number in range(4))
    expected = kl_divergence(Normal(mean_p, (0.5 * log_p).exp()), Normal(mean_q, (0.5 * log_q).exp()))
    assert torch.allclose(gaussian_kl(mean_p, log_p, mean_q, log_q), expected, rtol=1e-12, atol=1e-14)
    assert not torch.allclose(gaussian_kl(mean_q, log_q, mean_p, log_p), expected, rtol=0.1)
