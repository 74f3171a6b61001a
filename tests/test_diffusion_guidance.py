"""Guidance as the samplers see it: in which channels and at which times, and from how many evaluations."""

import math
from dataclasses import replace

import pytest
import torch
from conftest import randomised

from fiducial.diffusion.grids import PLACES, STEPS
from fiducial.diffusion.guidance import SCHEDULES, Guidance, Inner, guided
from fiducial.diffusion.paths import linear
from fiducial.diffusion.prediction import Prediction, from_velocity
from fiducial.diffusion.samplers import SAMPLERS
from fiducial.models import DiT
from fiducial.models.networks import table

N, CLASSES = 2, 10
T = 0.371
LABELS = torch.tensor([3, 9])
NULL = torch.full((N,), CLASSES)


def asked(network, shared_timestep=False):
    """A DiT on the clock of the samplers."""
    return table.asked(network, table.NETWORKS["DiT"], shared_timestep)


@pytest.fixture(scope="module")
def network():
    return randomised(DiT(input_size=6, hidden_size=24, depth=2, num_heads=2, num_classes=CLASSES)).eval()


@pytest.fixture
def latents():
    return torch.randn(N, 4, 6, 6, generator=torch.Generator().manual_seed(2))


@pytest.fixture
def seen(network):
    """What `network` was asked for: labels and timesteps, one pair a call."""
    calls = []
    hook = network.register_forward_pre_hook(lambda _, given: calls.append((given[2].tolist(), given[1].tolist())))
    yield calls
    hook.remove()


@torch.no_grad()
@pytest.mark.parametrize("channels", [1, 3, 4])
def test_it_is_the_first_half_of_dits_own(network, latents, seen, channels):
    """And so formula and channels of `forward_with_cfg`, which has tests of its own."""
    out = guided(asked(network), NULL, LABELS, Guidance(4.0, channels))(latents, T)
    assert seen == [([3, 9, CLASSES, CLASSES], [371.0] * 4)]
    twice = torch.cat([latents, latents])
    expected = network.forward_with_cfg(twice, torch.tensor(371.0).repeat(4), torch.cat([LABELS, NULL]), 4.0, channels)
    assert torch.equal(out, expected[:N])


@torch.no_grad()
def test_a_shared_timestep_is_embedded_once(network, latents, seen):
    out = guided(asked(network, shared_timestep=True), NULL, LABELS, Guidance(4.0, 3))(latents, T)
    assert [len(timesteps) for _, timesteps in seen] == [1]
    apart = guided(asked(network), NULL, LABELS, Guidance(4.0, 3))(latents, T)
    assert torch.allclose(out, apart, atol=1e-5 * apart.abs().max().item())


@torch.no_grad()
@pytest.mark.parametrize("guidance", [Guidance(1.0, 3), Guidance(4.0, 3, 0.4, 1.0)], ids=["a scale of 1", "outside"])
def test_without_guidance_no_second_half_is_computed(network, latents, seen, guidance):
    out = guided(asked(network), None, LABELS, guidance)(latents, T)
    assert seen == [([3, 9], [371.0] * 2)]
    assert torch.equal(out, asked(network)(latents, T, LABELS))


def test_without_channels_all_that_is_predicted_is_guided():
    network = lambda x, _t, labels: labels.view(-1, 1, 1, 1) * torch.cat([x, x], dim=1)  # noqa: E731
    out = guided(network, torch.zeros(N), LABELS, Guidance(2.0))(torch.ones(N, 4, 1, 1), T)
    assert torch.equal(out[:, :, 0, 0], 2.0 * LABELS[:, None] * torch.ones(N, 8))


def test_another_network_can_be_guided_away_from():
    """Which is asked for the same labels."""
    strong, bad = (lambda x, t, labels: x + t + labels.view(-1, 1, 1, 1)), (lambda x, *_: 3 * x)
    x = torch.ones(N, 4, 1, 1)
    out = guided(strong, bad, LABELS, Guidance(1.5, 4))(x, 0.5)
    assert torch.equal(out[:, 0, 0, 0], 3 + 1.5 * (1.5 + LABELS - 3))


@pytest.mark.parametrize(
    ("t", "low", "high", "ends", "expected"),
    [
        (0.0, 0, 1, {}, True),
        (0.999, 0, 1, {}, True),
        (0.7, 0.0, 0.7, {}, True),
        (0.701, 0.0, 0.7, {}, False),
        (0.199, 0.2, 0.7, {}, False),
        (0.2, 0.2, 0.7, {}, True),
        (0.2, 0.2, 0.7, {"open_low": True}, False),
        (0.7, 0.2, 0.7, {"open_low": True}, True),
        (0.7, 0.2, 0.7, {"open_high": True}, False),
        (0.0, 0.0, 1.0, {"open_low": True}, False),
    ],
)
def test_an_interval_has_closed_or_open_ends(t, low, high, ends, expected):
    assert Guidance(2.0, 3, low, high, **ends).applies(t) is expected
    assert not Guidance(1.0, 3, low, high, **ends).applies(t)


@pytest.mark.parametrize(
    ("guidance", "ways"),
    [
        (Guidance(2.0), {True}),
        (Guidance(1.0), {False}),
        (Guidance(2.0, 3, 0.0383, 1.0), {True, False}),
        (Guidance(2.0, 3, 0.0, 0.7), {True, False}),
        (Guidance(2.0, 3, 0.5, 0.5), {True, False}),
    ],
)
def test_times_are_one_for_each_way_of_evaluating(guidance, ways):
    assert sorted(map(guidance.applies, guidance.times())) == sorted(ways)


@pytest.mark.parametrize("cfg_scale", [1.0, 4.0])
def test_guidance_never_waits_for_the_device(cfg_scale):
    """On the meta device there are no values to wait for: reading one raises."""
    with torch.device("meta"):
        network = DiT(input_size=6, hidden_size=8, depth=1, num_heads=1, num_classes=CLASSES)
        y, x = torch.zeros(N, dtype=torch.int64), torch.zeros(N, 4, 6, 6)
    network.to("meta")
    assert guided(asked(network), y, y, Guidance(cfg_scale, 3))(x, 0.005).shape == (N, 8, 6, 6)


def test_a_place_of_a_grid_is_the_number_that_a_person_types():
    """So that an end of an interval that is closed holds the place there: 0.3, and not 0.30000000000000004."""
    for count in range(2, 252):
        for point in PLACES.places(linear, count).points:
            assert point.t == float(f"{point.t:.2f}") or abs(point.t - float(f"{point.t:.2f}")) > 1e-9


@pytest.mark.parametrize("t", [500, -0.001, float("nan")])
def test_a_timestep_is_not_taken_for_a_time_that_is_not_guided(t):
    with pytest.raises(ValueError, match="must be from 0, the image, to 1, noise"):
        guided(lambda x, *_: x, NULL, LABELS, Guidance(4.0))(torch.zeros(N, 4, 6, 6), t)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_schedules_are_those_of_the_papers(schedule):
    """MDT's scale (w - 1) (1 - cos(pi (1 - t / T)^p)) / 2 + 1, and a line from none at noise."""
    guidance = Guidance(3.8, 3, schedule=schedule, power=4.0)
    for t in (0.0, 0.123, 0.5, 0.9):
        right = {
            "constant": 3.8,
            "linear": 1 + 2.8 * (1 - t),
            "power-cosine": 2.8 * 0.5 * (1 - math.cos(math.pi * (1 - t) ** 4)) + 1,
        }
        assert guidance.scale_at(t) == pytest.approx(right[schedule], rel=1e-12)
        assert replace(guidance, high=t, open_high=True).scale_at(t) == 1.0
    assert Guidance(3.8, schedule=schedule).applies(1.0) == (schedule == "constant")
    assert {guidance.applies(t) for t in guidance.times()} == ({True} if schedule == "constant" else {True, False})


def test_the_scale_of_a_schedule_acts(latents):
    network = lambda x, _t, labels: labels.view(-1, 1, 1, 1) + 0 * x  # noqa: E731
    out = guided(network, NULL, LABELS, Guidance(3.0, None, schedule="linear"))(latents, 0.25)
    assert torch.allclose(out[:, 0, 0, 0], NULL + 2.5 * (LABELS - NULL.float()))


def counting(calls, name, out):
    def network(x, t, *_):
        calls.append((name, len(x), t))
        return out(x)

    return network


@pytest.mark.parametrize("weak", ["a label", "a network", "an inner head"])
@pytest.mark.parametrize(("t", "is_guided"), [(0.2, False), (0.3, True), (0.6, True), (0.7, False)])
def test_outside_the_interval_the_weak_pass_is_not_computed(weak, t, is_guided, latents):
    calls: list = []
    network, bad = counting(calls, "full", lambda x: 2 * x), counting(calls, "bad", lambda x: x)
    both = counting(calls, "both", lambda x: (2 * x, x))
    away = {"a label": NULL, "a network": bad, "an inner head": Inner(both)}[weak]
    out = guided(network, away, LABELS, Guidance(1.78, None, 0.3, 0.7, open_high=True))(latents, t)
    expected = {"a label": [("full", 2 * N, t)], "a network": [("full", N, t), ("bad", N, t)], "an inner head": [("both", N, t)]}
    assert calls == (expected[weak] if is_guided else [("full", N, t)])
    right = {False: 2 * latents, True: latents + 1.78 * latents if weak != "a label" else 2 * latents}[is_guided]
    assert torch.allclose(out, right)


def test_the_other_end_of_a_step_reaches_all_networks(latents):
    seen = []

    def network(x, t, labels, r):
        seen.append((len(labels), t, r))
        return x

    guided(network, network, LABELS, Guidance(2.0))(latents, 0.5, r=0.25)
    guided(network, NULL, LABELS, Guidance(2.0))(latents, 0.5, r=0.25, guided_at=0.9)
    guided(network, NULL, LABELS, Guidance(2.0, high=0.8))(latents, 0.5, r=0.25, guided_at=0.9)
    assert seen == [(N, 0.5, 0.25)] * 2 + [(2 * N, 0.5, 0.25), (N, 0.5, 0.25)]


MEAN, NULL_MEAN, SPREAD, SCALE = 0.7, -0.2, 0.4, 2.5  # of Gaussian data with a label and without


def gaussian_velocity(x, t, labels):
    """The exact one; guidance of two Gaussians of one spread gives that whose mean is guided."""
    mean = torch.where(labels.view(-1, 1, 1, 1) == CLASSES, NULL_MEAN, MEAN).to(x.dtype)
    slope = (t - (1 - t) * SPREAD**2) / ((1 - t) ** 2 * SPREAD**2 + t**2)
    return slope * (x - (1 - t) * mean) - mean


def moments_of(predict, count=10_000):
    x = torch.randn(count, 4, 1, 1, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    found = SAMPLERS["flow-heun"].draw(predict, x, STEPS.places(linear, 60), iter(())).flatten(1)
    return found.mean(0), found.var(0)


def by_guidance(**options):
    labels = torch.zeros(10_000, dtype=torch.int64)
    return from_velocity(guided(gaussian_velocity, labels + CLASSES, labels, Guidance(SCALE, **options)))


def by_inner_head(scale=SCALE, is_swapped=False):
    """Of a network whose inner head has the mean that there is without a label."""
    labels = torch.zeros(10_000, dtype=torch.int64)

    def both(x, t, y):
        heads = gaussian_velocity(x, t, y), gaussian_velocity(x, t, y + CLASSES)
        return heads[::-1] if is_swapped else heads

    return from_velocity(guided(gaussian_velocity, Inner(both), labels, Guidance(scale)))


def misses(predict, channels):
    """Standard errors of mean and variance in the worst channel, where the first `channels` are to be guided."""
    mean, variance = moments_of(predict)
    right = torch.full((4,), MEAN, dtype=torch.float64)
    right[:channels] = NULL_MEAN + SCALE * (MEAN - NULL_MEAN)
    of_mean = ((mean - right).abs() / (SPREAD / 100)).max().item()
    return max(of_mean, ((variance / SPREAD**2 - 1).abs() / math.sqrt(2 / 10_000)).max().item())


@pytest.mark.parametrize(("given", "channels"), [(3, 3), (4, 4), (None, 4), (1, 1)])
def test_guided_gaussians_have_the_guided_mean_in_the_guided_channels(given, channels):
    assert misses(by_guidance(channels=given), channels) < 4.5


def test_gaussians_guided_by_an_inner_head_have_the_guided_mean():
    assert misses(by_inner_head(), 4) < 4.5


def guided_image_beside_unguided_noise(x, point):
    labels = torch.zeros(len(x), dtype=torch.int64)
    strong, weak = (from_velocity(lambda x, t, y=y: gaussian_velocity(x, t, y))(x, point) for y in (labels, labels + CLASSES))
    return Prediction(weak.x0 + SCALE * (strong.x0 - weak.x0), strong.noise)


WRONG = {
    "3 for 4 channels": lambda: by_guidance(channels=3),
    "guidance on x0 instead of velocity": lambda: guided_image_beside_unguided_noise,
    "an interval that ends early": lambda: by_guidance(channels=4, high=0.9, open_high=True),
    "an interval that begins late": lambda: by_guidance(channels=4, low=0.1),
    "inner and outer head swapped": lambda: by_inner_head(is_swapped=True),
    "the whole scale beside the full prediction": lambda: by_inner_head(SCALE + 1),
    "an inner head that has no part": lambda: by_inner_head(1.0),
    "a schedule": lambda: by_guidance(channels=4, schedule="linear"),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_a_wrong_guidance_misses_the_moments(wrong):
    assert misses(WRONG[wrong](), 4) > 9


@pytest.mark.parametrize("ends", [{}, {"open_low": True}, {"open_high": True}, {"open_low": True, "open_high": True}])
def test_ends_of_an_interval_that_are_places_of_the_grid(ends):
    """Euler's method with its steps guided one by one."""
    x, labels = torch.ones(1, 4, 1, 1, dtype=torch.float64), torch.zeros(1, dtype=torch.int64)
    predict = guided(gaussian_velocity, labels + CLASSES, labels, Guidance(SCALE, 4, 0.3, 0.7, **ends))
    found = SAMPLERS["euler"].draw(from_velocity(predict), x, STEPS.places(linear, 10), iter(()))

    def by_hand(guided_steps):
        at = x
        for step in range(10, 0, -1):
            t, away = step / 10, gaussian_velocity(at, step / 10, labels + CLASSES)
            strong = gaussian_velocity(at, t, labels)
            at = at - 0.1 * (away + SCALE * (strong - away) if step in guided_steps else strong)
        return at

    first, last = 3 + ("open_low" in ends), 7 - ("open_high" in ends)
    assert torch.allclose(found, by_hand(range(first, last + 1)), rtol=0, atol=1e-12)
    for wrong in (range(first - 1, last + 1), range(first + 1, last + 1), range(first, last), range(first, last + 2)):
        assert not torch.allclose(found, by_hand(wrong), rtol=0, atol=1e-4)
