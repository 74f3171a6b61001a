"""Euler-Maruyama as SiT and REPA write it, on their own clocks and with their own scores; and the marginals of a Gaussian."""

import math
from itertools import pairwise, product

import numpy as np
import pytest
import torch
from test_diffusion_flows import COUNT, DATA, GAUSSIAN, LINEAR, MOST, latents, noises, outputs

from fiducial.diffusion.grids import WITH_TAIL, read_spacing
from fiducial.diffusion.paths import PATHS
from fiducial.diffusion.prediction import from_velocity
from fiducial.diffusion.samplers import SAMPLERS
from fiducial.diffusion.samplers.euler_maruyama import FORMS, LAST_STEPS

ROW, HEUN = SAMPLERS["euler-maruyama"], SAMPLERS["sde-heun"]
STEPS = 12
BETAS = 0.1, 20.0


def sits_path(name, t):
    """alpha, its derivative, sigma, its derivative, for t from 0, noise, to 1, the image."""
    if name == "linear":
        return t, 1.0, 1 - t, -1.0
    if name == "gvp":
        quarter = math.pi / 2
        return math.sin(quarter * t), quarter * math.cos(quarter * t), math.cos(quarter * t), -quarter * math.sin(quarter * t)
    log = -0.25 * (1 - t) ** 2 * (BETAS[1] - BETAS[0]) - 0.5 * (1 - t) * BETAS[0]
    slope = 0.5 * (1 - t) * (BETAS[1] - BETAS[0]) + 0.5 * BETAS[0]
    alpha, sigma = math.exp(log), math.sqrt(1 - math.exp(2 * log))
    return alpha, alpha * slope, sigma, -math.exp(2 * log) * slope / sigma


def sits_diffusion(form, norm, path, t):
    alpha, alpha_rate, sigma, sigma_rate = path
    return {
        "constant": lambda: norm,
        "sbdm": lambda: norm * (alpha_rate / alpha * sigma**2 - sigma * sigma_rate),
        "sigma": lambda: norm * sigma,
        "linear": lambda: norm * (1 - t),
        "decreasing": lambda: 0.25 * (norm * math.cos(math.pi * t) + 1) ** 2,
        "increasing-decreasing": lambda: norm * math.sin(math.pi * t) ** 2,
    }[form]()


def by_sit(name, form, norm, last_step, start, change=None, heun=False):
    """Its integration; `change` spoils one thing."""
    x, noise, size = latents(50), noises(50), 0.0 if last_step == "none" else 0.04
    stop = 1 if last_step == "none" else 1 - size
    times = np.linspace(start, stop, STEPS)
    velocity = outputs("velocity", PATHS[name])

    def parts(x, t):
        alpha, alpha_rate, sigma, sigma_rate = path = sits_path(name, t)
        v = -velocity(x, 1 - t)
        ratio = alpha / alpha_rate
        score = (ratio * v - x) / (sigma**2 - ratio * sigma_rate * sigma)
        return path, v, score, v + sits_diffusion(form, norm, path, t) * score

    for t, then in pairwise(times):
        path = sits_path(name, t)
        w = sits_diffusion(form, norm, path, t)
        if change == "half the noise":
            w /= 4
        if heun:
            x = x + math.sqrt(2 * w) * math.sqrt(then - t) * next(noise)
            drift = parts(x, t)[-1]
            x = x + (then - t) / 2 * (drift + parts(x + (then - t) * drift, then)[-1])
            continue
        drift = parts(x, t)[-1]
        x = x + (then - t) * drift + math.sqrt(2 * w) * math.sqrt(then - t) * next(noise)
    if last_step == "none":
        return x
    (alpha, _, sigma, _), v, score, drift = parts(x, stop)
    if change == "noise in the last step":
        x = x + math.sqrt(2 * sits_diffusion(form, norm, sits_path(name, stop), stop) * size) * next(noise)
    return {"mean": x + drift * size, "tweedie": x / alpha + sigma**2 / alpha * score, "euler": x + v * size}[last_step]


def ours(name, form, norm, last_step, start, row=ROW):
    text = f"places,start={1 - start}" + ("" if last_step == "none" else ",tail=0.04")
    places = read_spacing(text).places(PATHS[name], STEPS)
    count, noise = row.noises(len(places), last_step=last_step), noises(50)
    given = iter([next(noise) for _ in range(count)])
    options = {"diffusion_form": form, "diffusion_norm": norm, "last_step": last_step}
    found = row.draw(from_velocity(outputs("velocity", PATHS[name])), latents(50), places, given, **options)
    assert next(given, None) is None
    return found


@pytest.mark.parametrize("last_step", LAST_STEPS)
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("path", PATHS)
def test_it_is_sits(path, form, last_step):
    start = 0.001 if form == "sbdm" else 0.0
    right = by_sit(path, form, 1.3, last_step, start)
    assert torch.allclose(ours(path, form, 1.3, last_step, start), right, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("last_step", ["mean", "tweedie", "euler"])
@pytest.mark.parametrize(("path", "form"), [("linear", "sigma"), ("gvp", "sbdm"), ("vp", "linear")])
def test_its_heun_is_sits(path, form, last_step):
    start = 0.001 if form == "sbdm" else 0.0
    found = ours(path, form, 1.3, last_step, start, HEUN)
    assert torch.allclose(found, by_sit(path, form, 1.3, last_step, start, heun=True), rtol=1e-6, atol=1e-8)
    others = [by_sit(path, form, 1.3, last_step, start)]
    others += [
        by_sit(path, form, norm, last_step, start, change, heun=True) for norm, change in ((1.0, None), (1.3, "half the noise"))
    ]
    assert min((found - other).abs().max().item() for other in others) > 1e-3


@pytest.mark.parametrize("form", FORMS)
def test_forms_norms_and_last_steps_are_told_apart(form):
    start = 0.001
    found = ours("linear", form, 1.3, "mean", start)
    others = [
        by_sit("linear", other, 1.3, "mean", start) for other in FORMS if other != form and {other, form} != {"linear", "sigma"}
    ]
    others += [by_sit("linear", form, 1.0, "mean", start), by_sit("gvp", form, 1.3, "mean", start)]
    others += [by_sit("linear", form, 1.3, "mean", start, change) for change in ("half the noise", "noise in the last step")]
    others += [by_sit("linear", form, 1.3, last, start) for last in ("tweedie", "none", "euler")]
    assert min((found - other).abs().max().item() for other in others) > 1e-3


def test_it_is_repas():
    """From 1, noise, to 0, g^2 = 2 t: the state in float64, the last step of the grid without noise."""
    x, noise, velocity = latents(50), noises(50), outputs("velocity", LINEAR)
    times = np.append(np.linspace(1.0, 0.04, STEPS), 0.0)
    for t, then in pairwise(times):
        v, d_alpha, d_sigma = velocity(x, t), -1.0, 1.0
        alpha, sigma = 1 - t, t
        ratio = alpha / d_alpha
        score = (ratio * v - x) / (sigma**2 - ratio * d_sigma * sigma)
        slope = v - 0.5 * 2 * t * score
        x = x + (then - t) * slope
        if then:
            x = x + math.sqrt(2 * t) * math.sqrt(abs(then - t)) * next(noise)
    options = {"diffusion_form": "linear", "diffusion_norm": 1.0, "last_step": "mean"}
    found = ROW.draw(from_velocity(velocity), latents(50), WITH_TAIL.places(LINEAR, STEPS), noises(50), **options)
    assert torch.allclose(found, x, rtol=0, atol=1e-10)
    assert ROW.spacing == WITH_TAIL
    spoiled = options | {"diffusion_norm": 0.5}
    assert not torch.allclose(
        ROW.draw(from_velocity(velocity), latents(50), WITH_TAIL.places(LINEAR, STEPS), noises(50), **spoiled), x, atol=1e-2
    )


def distance(x, data, point):
    """Of mean and variance from those of x_t, in standard errors."""
    _, second, fourth = data.moments
    mean, variance = point.alpha * data.moments[0], point.alpha**2 * second + point.sigma**2
    fourth = point.alpha**4 * fourth + 6 * point.alpha**2 * second * point.sigma**2 + 3 * point.sigma**4
    return max(
        abs(x.mean().item() - mean) / math.sqrt(variance / COUNT),
        abs(((x - mean) ** 2).mean().item() - variance) / math.sqrt((fourth - variance**2) / COUNT),
    )


def marginal(path, form, text, norm=1.0, last_step="none", steps=150, network=None, row=ROW):
    options = {"diffusion_form": form, "diffusion_norm": norm, "last_step": last_step}
    places = read_spacing(text).places(PATHS[path], steps)
    found = row.draw(from_velocity(network or outputs("velocity", PATHS[path])), latents(), places, noises(), **options)
    return list(found.flatten(1).T)


WAYS = [(*both, ROW) for both in product(("linear", "gvp"), ("linear", "sigma", "decreasing"))]


@pytest.mark.parametrize(("path", "form", "row"), [*WAYS, ("linear", "linear", HEUN), ("gvp", "sigma", HEUN)])
def test_on_its_way_it_has_the_exact_marginals(path, form, row):
    """Whatever the diffusion; where SiT's and REPA's last step begins. REPA's is `linear`."""
    for x, data in zip(marginal(path, form, "places,end=0.04", row=row), DATA, strict=True):
        assert distance(x, data, PATHS[path](0.04)) < MOST


WRONG_MARGINALS = {
    "a reversed clock": {"network": lambda x, t: outputs("velocity", LINEAR)(x, 1 - t)},
    "a missing tail": {"at": 0.0},
    "a tail too many": {"text": "places,tail=0.04", "last_step": "mean"},
    "no noise where the score is": {"norm": 1.0, "silent": True},
}


@pytest.mark.parametrize("wrong", WRONG_MARGINALS)
def test_marginals_notice(wrong):
    given = {"text": "places,end=0.04"} | WRONG_MARGINALS[wrong]
    at, silent = given.pop("at", 0.04), given.pop("silent", False)
    if silent:
        places = read_spacing(given["text"]).places(LINEAR, 150)
        noiseless = iter(lambda: torch.zeros(COUNT, len(DATA), 1, 1, dtype=torch.float64), None)
        options = {"diffusion_form": "linear", "diffusion_norm": 1.0, "last_step": "none"}
        found = ROW.draw(from_velocity(outputs("velocity", LINEAR)), latents(), places, noiseless, **options).flatten(1).T
    else:
        found = marginal("linear", "linear", **given)
    assert max(distance(x, data, LINEAR(at)) for x, data in zip(found, DATA, strict=True)) > 1.5 * MOST


@pytest.mark.parametrize("last_step", ["mean", "tweedie"])
def test_the_last_step_ends_at_the_mean_of_the_data(last_step):
    """Not with all of its variance: what noise the expectation leaves out at 0.04 is known."""
    x, _ = marginal("linear", "linear", "places,tail=0.04", last_step=last_step)
    point, (mean, variance, _) = LINEAR(0.04), GAUSSIAN.moments
    of_x = point.alpha**2 * variance + point.sigma**2
    slope = point.alpha * variance / of_x  # of E[x_0 | x_t]
    if last_step == "mean":
        unit = point.sigma / of_x
        slope = 1 + 0.04 * (point.alpha_rate * slope + point.sigma_rate * unit) * -1 - 0.04 * 0.04 / point.sigma * unit
    assert abs(x.mean().item() - mean) < MOST * 0.4 / math.sqrt(COUNT)
    assert x.var().item() == pytest.approx(slope**2 * of_x, rel=MOST * math.sqrt(2 / COUNT))


@pytest.mark.parametrize(("last_step", "noisy"), [("mean", 4), ("tweedie", 4), ("euler", 4), ("none", 5)])
def test_noises_are_counted(last_step, noisy):
    assert ROW.noises(5, last_step=last_step, diffusion_form="sigma", diffusion_norm=1.0) == noisy
