"""Guidance as the samplers see it: in which channels and at which times, and from how many evaluations."""

import pytest
import torch
from conftest import randomised

from fiducial.diffusion.grids import ends_included
from fiducial.diffusion.guidance import Guidance, guided
from fiducial.diffusion.paths import linear
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
        for point in ends_included(linear)(str(count)).points:
            assert point.t == float(f"{point.t:.2f}") or abs(point.t - float(f"{point.t:.2f}")) > 1e-9


@pytest.mark.parametrize("t", [500, -0.001, float("nan")])
def test_a_timestep_is_not_taken_for_a_time_that_is_not_guided(t):
    with pytest.raises(ValueError, match="must be from 0, the image, to 1, noise"):
        guided(lambda x, *_: x, NULL, LABELS, Guidance(4.0))(torch.zeros(N, 4, 6, 6), t)
