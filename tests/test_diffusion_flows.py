"""Solvers of a flow where the answer is known: a Gaussian and a mixture of two, for every prediction, path and solver.

In one dimension the probability flow keeps quantiles, so that where a solver ends is known for each latent, beside all moments.
"""

import math
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from diffusers import DPMSolverMultistepScheduler
from scipy.optimize import brentq
from scipy.stats import norm

from fiducial.diffusion.grids import PLACES, STEPS, read_spacing
from fiducial.diffusion.guidance import Guidance, guided
from fiducial.diffusion.paths import PATHS
from fiducial.diffusion.prediction import PREDICTIONS, Prediction, from_velocity, from_x0
from fiducial.diffusion.samplers import SAMPLERS
from fiducial.diffusion.samplers.row import FLOWS, why_not

COUNT = 10_000  # latents
MOST = 4.5  # standard errors


@dataclass(frozen=True)
class Mixture:
    """Of Gaussians in one dimension: the data."""

    weights: tuple[float, ...]
    means: tuple[float, ...]
    deviations: tuple[float, ...]

    def at(self, point):
        """Weights, means and deviations of x_t."""
        deviations = [math.hypot(point.alpha * own, point.sigma) for own in self.deviations]
        return self.weights, [point.alpha * mean for mean in self.means], deviations

    def predict(self, x, point):
        """The expectations of image and noise where x_t is x."""
        parts = list(zip(*self.at(point), self.means, self.deviations, strict=True))
        logs = torch.stack([math.log(share / spread) - ((x - mean) / spread) ** 2 / 2 for share, mean, spread, *_ in parts])
        shares = logs.softmax(0)
        units = [(x - mean) / deviation**2 for _, mean, deviation, *_ in parts]
        images = [own + point.alpha * spread**2 * unit for unit, (*_, own, spread) in zip(units, parts, strict=True)]
        return (shares * torch.stack(images)).sum(0), (shares * point.sigma * torch.stack(units)).sum(0)

    @property
    def moments(self):
        """Mean, variance and fourth central moment."""
        mean = sum(weight * own for weight, own in zip(self.weights, self.means, strict=True))
        parts = [(weight, own - mean, spread) for weight, own, spread in zip(*vars(self).values(), strict=True)]
        second = sum(weight * (off**2 + spread**2) for weight, off, spread in parts)
        return mean, second, sum(w * (off**4 + 6 * off**2 * spread**2 + 3 * spread**4) for w, off, spread in parts)

    def quantile(self, level, point):
        weights, means, deviations = self.at(point)

        def above(x):
            return sum(w * norm.cdf(x, m, d) for w, m, d in zip(weights, means, deviations, strict=True)) - level

        return brentq(above, -30, 30, xtol=1e-13)

    def flow(self, x, here, there):
        """Where the probability flow leads from x at one place to at another."""
        weights, means, deviations = self.at(here)
        level = sum(w * norm.cdf(x, m, d) for w, m, d in zip(weights, means, deviations, strict=True))
        return self.quantile(level, there)


GAUSSIAN = Mixture((1.0,), (0.7,), (0.4,))
PAIR = Mixture((0.3, 0.7), (-1.0, 0.8), (0.25, 0.35))
DATA = (GAUSSIAN, PAIR)  # a channel each


def outputs(predicts, path):
    """A network that predicts so, exactly, of both at once."""

    def network(x, t, *_, **__):
        point = path(t)
        x0, noise = (
            torch.stack(both, 1) for both in zip(*(data.predict(x[:, at], point) for at, data in enumerate(DATA)), strict=True)
        )
        return {
            "noise": noise,
            "x0": x0,
            "score": -noise / point.sigma if point.sigma else -noise,
            "velocity": Prediction(x0, noise).velocity(point),
            "average velocity": Prediction(x0, noise).velocity(point),
        }[predicts]

    return network


def latents(count=COUNT, seed=0):
    return torch.randn(count, len(DATA), 1, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def noises(count=COUNT, seed=1):
    generator = torch.Generator().manual_seed(seed)
    while True:
        yield torch.randn(count, len(DATA), 1, 1, dtype=torch.float64, generator=generator)


# Steps with which a solver's own error is small beside that of 10,000 latents.
ENOUGH = {
    "euler": 150,
    "flow-heun": 50,
    "repa-heun": 50,
    "flow-dpm-solver++": 80,
    "dopri5": 2,
    "euler-maruyama": 100,
    "sde-heun": 60,
}
OPTIONS = {name: {"diffusion_form": "linear"} for name in ("euler-maruyama", "sde-heun")}  # for the rest as usual


def drawn(name, path, predicts="velocity", text=None, network=None, **options):
    row = SAMPLERS[name]
    spacing = read_spacing(text) if text else row.spacing
    own = {key: option.default for key, option in row.options.items()} | OPTIONS.get(name, {}) | options
    denoise = PREDICTIONS[predicts](network or outputs(predicts, path))
    return row.draw(denoise, latents(), spacing.places(path, ENOUGH[name]), noises(), **own)


def off(found, data=DATA):
    """The largest distance of mean and variance from those of the data, in standard errors."""
    errors = []
    for x, part in zip(found.flatten(1).T, data, strict=True):
        mean, variance, fourth = part.moments
        errors.append(abs(x.mean().item() - mean) / math.sqrt(variance / len(x)))
        errors.append(abs(((x - mean) ** 2).mean().item() - variance) / math.sqrt((fourth - variance**2) / len(x)))
    return max(errors)


def spacing_of(name, path, predicts):
    """The usual one, or that which begins and ends far enough from where a prediction tells nothing."""
    tail = "tail=0.01" if name in OPTIONS else "end=0.001" if name == "dopri5" else ""
    start = "start=0.999" if predicts in ("noise", "score") and path is not PATHS["vp"] else ""
    return ",".join(filter(None, ("places" if tail else "steps", start, tail)))


@pytest.mark.parametrize("predicts", PREDICTIONS)
@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("name", [name for name, row in SAMPLERS.items() if row.solves == FLOWS])
def test_moments_are_those_of_the_data(name, path, predicts):
    assert off(drawn(name, PATHS[path], predicts, spacing_of(name, PATHS[path], predicts))) < MOST


LINEAR, GVP = PATHS["linear"], PATHS["gvp"]
WRONG = {  # what a network is taken to predict on the linear path, and what it does; a velocity leads to the data on any path
    "a reversed clock": ("velocity", lambda x, t, **_: outputs("velocity", LINEAR)(x, 1 - t)),
    "towards the image": ("velocity", lambda x, t, **_: -outputs("velocity", LINEAR)(x, t)),
    "another prediction": ("velocity", outputs("x0", LINEAR)),
    "an image on another path": ("x0", outputs("x0", GVP)),
    "noise on another path": ("noise", outputs("noise", GVP)),
    "a score of the other sign": ("score", lambda x, t, **_: -outputs("score", LINEAR)(x, t)),
}


@pytest.mark.parametrize("wrong", WRONG)
@pytest.mark.parametrize("name", ENOUGH)
def test_moments_notice_a_wrong_network(name, wrong):
    predicts, network = WRONG[wrong]
    text = spacing_of(name, LINEAR, predicts)
    assert not off(drawn(name, LINEAR, predicts, text, network)) < 3 * MOST


@pytest.mark.parametrize("text", ["places,end=0.1", "steps,start=0.8"])
@pytest.mark.parametrize("name", ["euler", "flow-heun", "flow-dpm-solver++", "dopri5"])
def test_moments_notice_a_grid_that_lacks_an_end(name, text):
    assert off(drawn(name, PATHS["linear"], text=text)) > 2 * MOST


STARTS = np.linspace(-2.5, 2.5, 11)  # latents of which the end is known


@pytest.fixture(scope="module")
def ends():
    """Where the flow leads the latents, exactly, by path: (latents, channels)."""
    return {
        name: np.array([[data.flow(x, path(1.0), path(0.0)) for data in DATA] for x in STARTS]) for name, path in PATHS.items()
    }


def ended(name, path, count, text="steps", predicts="velocity", **options):
    x = torch.from_numpy(STARTS).view(-1, 1, 1, 1).repeat(1, 2, 1, 1)
    denoise = PREDICTIONS[predicts](outputs(predicts, PATHS[path]))
    places = read_spacing(text).places(PATHS[path], count)
    return SAMPLERS[name].draw(denoise, x, places, iter(()), **options).flatten(1).numpy()


@pytest.mark.parametrize("path", ["linear", "gvp"])
@pytest.mark.parametrize(("name", "order", "most"), [("euler", 1, 0.02), ("flow-heun", 2, 6e-4), ("flow-dpm-solver++", 2, 1e-3)])
def test_latents_end_where_the_flow_leads_them_in_the_order_of_the_method(name, order, most, path, ends):
    errors = [np.abs(ended(name, path, count) - ends[path]).max() for count in (100, 200)]
    assert errors[1] < most
    assert errors[0] / errors[1] > (1.7, 2.5)[order - 1]


def test_dopri5_ends_where_the_flow_leads_by_its_tolerance(ends):
    found = [ended("dopri5", "linear", 2, "places", atol=tolerance / 1000, rtol=tolerance) for tolerance in (1e-3, 1e-7)]
    errors = [np.abs(one - ends["linear"]).max() for one in found]
    assert errors[0] < 0.03
    assert errors[1] < 1e-6
    assert errors[1] < errors[0] / 100


def test_dopri5_asks_nothing_beyond_the_ends_and_gives_nan_for_nan():
    seen = []

    def network(x, t):
        seen.append(t)
        return outputs("velocity", PATHS["linear"])(x, t)

    for text, first, last in (("places", 1.0, 0.0), ("places,start=0.9,end=0.25", 0.9, 0.25)):
        seen.clear()
        places = read_spacing(text).places(PATHS["linear"], 250)
        SAMPLERS["dopri5"].draw(from_velocity(network), latents(50), places, iter(()))
        assert (seen[0], min(seen)) == (first, pytest.approx(last, abs=1e-12))
        assert max(seen) == first
        assert 12 < len(seen) < 200
    places = PLACES.places(PATHS["linear"], 2)
    assert SAMPLERS["dopri5"].draw(from_velocity(lambda x, _: x * float("nan")), latents(5), places, iter(())).isnan().all()


def test_heun_is_jits():
    """On its own clock: z = t x + (1 - t) e, velocity (x - z) / max(1 - t, 0.05), the last step Euler's, 50 steps."""
    image = outputs("x0", PATHS["linear"])
    z, times = latents(30), np.linspace(0, 1, 51)

    def velocity(z, t):
        return (image(z, 1 - t) - z) / max(1 - t, 0.05)

    for step, (t, then) in enumerate(pairwise(times), start=1):
        first = velocity(z, t)
        second = velocity(z + (then - t) * first, then) if step < 50 else first
        z = z + (then - t) * (first + second) / 2
    places = STEPS.places(PATHS["linear"], 50)
    found = SAMPLERS["flow-heun"].draw(from_x0(image, 0.05), latents(30), places, iter(()))
    assert torch.allclose(found, z, rtol=0, atol=1e-12)
    for wrong in (from_x0(image), from_x0(image, 0.1)):
        assert not torch.allclose(SAMPLERS["flow-heun"].draw(wrong, latents(30), places, iter(())), z, rtol=0, atol=1e-4)
    by_euler = SAMPLERS["euler"].draw(from_x0(image, 0.05), latents(30), places, iter(()))
    assert not torch.allclose(by_euler, z, rtol=0, atol=1e-4)


@pytest.mark.parametrize(("name", "by_start"), [("flow-heun", False), ("repa-heun", True)])
def test_an_evaluation_is_guided_by_its_own_time_and_in_repas_variant_by_that_of_its_step(name, by_start):
    conditional, other = (lambda x, t: x * t + 1), (lambda x, _: -x)

    def network(x, t, labels):
        return torch.where(labels.view(-1, 1, 1, 1) == 0, conditional(x, t), other(x, t))

    def by_hand(low, high):
        x = latents(4)
        for step, (t, then) in enumerate(pairwise(np.linspace(1, 0, 6)), start=1):

            def velocity(x, at, decided):
                within = low - 1e-9 <= decided <= high + 1e-9
                return other(x, at) + 3.0 * (conditional(x, at) - other(x, at)) if within else conditional(x, at)

            first = velocity(x, t, t)
            ahead = x + (then - t) * first
            second = velocity(ahead, then, t if by_start else then) if step < 5 else first
            x = x + (then - t) * (first + second) / 2
        return x

    labels = torch.zeros(4)
    predict = guided(network, labels + 1, labels, Guidance(3.0, None, 0.4, 0.8))
    found = SAMPLERS[name].draw(from_velocity(predict), latents(4), STEPS.places(PATHS["linear"], 5), iter(()))
    assert torch.allclose(found, by_hand(0.4, 0.8), rtol=0, atol=1e-12)
    for wrong in ((0.5, 0.8), (0.4, 0.7), (0.0, 1.0)):  # open ends, and no interval
        assert not torch.allclose(found, by_hand(*wrong), rtol=0, atol=1e-3)


@pytest.mark.parametrize("count", [3, 20])
def test_dpm_solver_is_that_of_diffusers_on_a_flow(count):
    scheduler = DPMSolverMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True, final_sigmas_type="zero", solver_order=2
    )
    scheduler.set_timesteps(count)
    network, x = outputs("velocity", PATHS["linear"]), latents(6)
    for timestep, t in zip(scheduler.timesteps, scheduler.sigmas.tolist(), strict=False):
        x = scheduler.step(network(x, t), timestep, x).prev_sample
    places = read_spacing("steps,start=0.999").places(PATHS["linear"], count)
    found = SAMPLERS["flow-dpm-solver++"].draw(from_velocity(network), latents(6), places, iter(()))
    assert torch.allclose(found, x, rtol=0, atol=2e-5)
    euler = SAMPLERS["euler"].draw(from_velocity(network), latents(6), places, iter(()))
    assert not torch.allclose(euler, x, rtol=0, atol=2e-3)


@pytest.mark.parametrize("count", [1, 2, 5])
def test_jumps_of_the_exact_mean_velocity_end_where_the_flow_leads(count, ends):
    linear = PATHS["linear"]

    def mean_velocity(x, t, r):
        rows = (zip(row, DATA, strict=True) for row in x.flatten(1).tolist())
        there = [[data.flow(value, linear(t), linear(r)) for value, data in row] for row in rows]
        return (x - torch.tensor(there, dtype=x.dtype).view_as(x)) / (t - r)

    def without_an_interval(x, t, **_):
        return outputs("velocity", linear)(x, t)

    x = torch.from_numpy(STARTS).view(-1, 1, 1, 1).repeat(1, 2, 1, 1)
    places, jump = STEPS.places(linear, count), SAMPLERS["jump"]
    for network, is_right in ((mean_velocity, True), (without_an_interval, False)):
        found = jump.draw(PREDICTIONS["average velocity"](network), x, places, iter(())).flatten(1).numpy()
        assert np.allclose(found, ends["linear"], rtol=0, atol=1e-9) == is_right


def test_a_solver_without_jumps_asks_a_mean_velocity_at_the_place_itself():
    seen = []

    def network(x, t, r):
        seen.append((t, r))
        return x

    PREDICTIONS["average velocity"](network)(latents(1), PATHS["linear"](0.5))
    PREDICTIONS["average velocity"](network)(latents(1), replace(PATHS["linear"](0.5), r=0.2))
    assert seen == [(0.5, 0.5), (0.5, 0.2)]


@pytest.mark.parametrize(
    ("name", "text", "path", "predicts", "options", "said"),
    [
        ("euler", "steps", "linear", "noise", {}, "begins at pure noise, of which a noise tells no image"),
        ("euler", "steps", "gvp", "score", {}, "begins at pure noise"),
        ("euler", "steps", "vp", "score", {}, None),
        ("euler", "steps,start=0.999", "linear", "score", {}, None),
        ("dopri5", "places", "linear", "velocity", {}, None),
        ("dopri5", "places", "vp", "velocity", {}, "ends at the image itself"),
        ("dopri5", "places", "linear", "x0", {}, "ends at the image itself"),
        ("dopri5", "places,end=0.001", "vp", "x0", {}, None),
        ("euler-maruyama", "places,tail=0.04", "gvp", "velocity", {"diffusion_form": "sbdm"}, "sbdm is infinite"),
        ("euler-maruyama", "places,start=0.999,tail=0.04", "gvp", "velocity", {"diffusion_form": "sbdm"}, None),
        ("euler-maruyama", "places,tail=0.04", "gvp", "velocity", {"last_step": "none"}, "has a tail"),
        ("euler-maruyama", "places", "gvp", "velocity", {"last_step": "none"}, None),
        ("sde-heun", "places,tail=0.04", "gvp", "velocity", {}, None),
        ("sde-heun", "places", "gvp", "velocity", {"last_step": "none"}, "ends at the image itself"),
        ("sde-heun", "places,end=0.04", "gvp", "velocity", {"last_step": "none"}, None),
        ("sde-heun", "places,tail=0.04", "gvp", "velocity", {"last_step": "none"}, "has a tail"),
    ],
)
def test_places_that_a_solver_cannot_be_asked_at_are_told(name, text, path, predicts, options, said):
    row = SAMPLERS[name]
    own = {key: option.default for key, option in row.options.items()} | options
    found = why_not(row, read_spacing(text), PATHS[path], predicts, own)
    assert found is None if said is None else said in found
