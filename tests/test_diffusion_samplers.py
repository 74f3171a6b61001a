"""The samplers against diffusers' schedulers, and against the exact solution where the data are Gaussian."""

import dataclasses
import itertools
import math

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler, EulerDiscreteScheduler
from diffusers.schedulers import scheduling_ddpm
from torch.utils._python_dispatch import TorchDispatchMode

from fiducial.diffusion import prediction, samplers
from fiducial.diffusion.prediction import from_noise
from fiducial.diffusion.samplers import sample_ddim, sample_ddpm, sample_dpm_solver, sample_heun, sample_unipc
from fiducial.diffusion.schedule import Schedule, linear_betas, spaced_timesteps

TOLERANCE = 2e-6  # of the largest value; the coefficients are float32, the latents here float64
SHAPE = (2, 4, 3, 3)
ABAR = np.cumprod(1 - np.linspace(1e-4, 0.02, 1000))


def randn(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def network(x, t):
    """Stands for a DiT: not linear, mixes channels, depends on the timestep, and its variance fractions fill [-1, 1]."""
    t = torch.as_tensor(t) / 1000
    epsilon = torch.tanh(x + 0.3 * x.roll(1, dims=1) + t) * (0.5 + 0.5 * t)
    return torch.cat([epsilon, torch.sin(3 * x.flip(1) - 5 * t)], dim=1)


def denoiser(model):
    """What a sampler takes, of a model (x, timestep number) -> noise and the variance's fraction."""
    return from_noise(lambda x, t: model(x, 1000 * t))


DENOISE = denoiser(network)


def relative(a, b):
    return ((a - b).abs().max() / b.abs().max()).item()


def in_float64(scheduler):
    """diffusers holds its table in float32, which costs more than the tolerance over 1000 steps."""
    scheduler.alphas_cumprod = torch.from_numpy(ABAR)
    return scheduler


def diffusers_ddpm(timesteps, x, noise):
    scheduler = in_float64(DDPMScheduler(beta_schedule="linear", variance_type="learned_range", clip_sample=False))
    scheduler.set_timesteps(timesteps=timesteps)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(scheduling_ddpm, "randn_tensor", lambda *_arguments, **_options: next(noise))
        for t in timesteps:
            x = scheduler.step(network(x, t), t, x).prev_sample
    return x


def diffusers_ddim(timesteps, x, noise, eta):
    options = {"clip_sample": False, "set_alpha_to_one": True, "steps_offset": 0, "timestep_spacing": "leading"}
    scheduler = in_float64(DDIMScheduler(beta_schedule="linear", **options))
    scheduler.set_timesteps(len(timesteps))
    assert scheduler.timesteps.tolist() == timesteps
    for t in timesteps:
        drawn = next(noise) if eta > 0 and t > 0 else torch.zeros_like(x)
        x = scheduler.step(network(x, t)[:, : x.shape[1]], t, x, eta=eta, variance_noise=drawn).prev_sample
    return x


def disagreement(spacing, eta=None, schedule=None, sample=None):
    """How far ours, or some `sample` and `schedule` in its place, ends from diffusers; DDPM where there is no `eta`."""
    timesteps = spaced_timesteps(spacing)[::-1]
    x, noise = randn(*SHAPE), list(randn(len(timesteps), *SHAPE, seed=1))
    options = {} if eta is None else {"eta": eta}
    sample = sample or (sample_ddpm if eta is None else sample_ddim)
    ours = sample(DENOISE, x, schedule or Schedule.create(spacing), iter(noise), **options)
    reference = diffusers_ddpm if eta is None else diffusers_ddim
    return relative(ours, reference(timesteps, x, iter(noise), **options))


@pytest.mark.parametrize("spacing", ["1", "10", "250", "ddim10", "ddim50", "10,20,30"])
def test_ddpm_agrees_with_diffusers(spacing):
    assert disagreement(spacing) < TOLERANCE


@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("spacing", ["ddim10", "ddim50", "1000"])
def test_ddim_agrees_with_diffusers(spacing, eta):
    assert disagreement(spacing, eta) < TOLERANCE


@pytest.mark.parametrize("eta", [None, 0.0, 1.0])
def test_float32_is_close_enough(eta):
    """As a run computes it, in the type of the latents."""
    x, noise, schedule = randn(*SHAPE), randn(50, *SHAPE, seed=1), Schedule.create("ddim50")
    options = {} if eta is None else {"eta": eta}
    sample = sample_ddpm if eta is None else sample_ddim
    single = sample(DENOISE, x.float(), schedule, iter(noise.float()), **options)
    assert single.dtype == torch.float32
    assert relative(single.double(), sample(DENOISE, x, schedule, iter(noise), **options)) < 10 * TOLERANCE


def respaced_index_for_timestep(_patch, schedule):
    return {"numbers": tuple(reversed(range(len(schedule))))}


def clipped_x0(patch, _schedule):
    original = prediction.predict_x0
    patch.setattr(prediction, "predict_x0", lambda *arguments: original(*arguments).clamp(-1, 1))
    return {}


def betas_of_the_whole_chain(_patch, schedule):
    return {"log_variance_max": torch.from_numpy(linear_betas()).log()[schedule.timesteps]}


def variance_interpolated_linearly(patch, _schedule):
    def log_variance(fraction, point):
        low, high = (bound.exp() for bound in point.log_variance)
        return torch.log(low + (fraction + 1) / 2 * (high - low))

    patch.setattr(prediction, "learned_log_variance", log_variance)
    return {}


def fraction_from_zero_to_one(patch, _schedule):
    original = prediction.learned_log_variance
    patch.setattr(prediction, "learned_log_variance", lambda fraction, *rest: original(2 * fraction - 1, *rest))
    return {}


def variance_for_deviation(patch, _schedule):
    original = prediction.learned_log_variance
    patch.setattr(prediction, "learned_log_variance", lambda *arguments: 2 * original(*arguments))
    return {}


def last_step_ends_at_the_first_noise_level(_patch, schedule):
    before = schedule.alphas_cumprod_prev.clone()
    before[-1] = schedule.alphas_cumprod[-1]
    return {"alphas_cumprod_prev": before}


ANY_SAMPLER = [respaced_index_for_timestep, clipped_x0]
DDPM_ONLY = [betas_of_the_whole_chain, variance_interpolated_linearly, fraction_from_zero_to_one, variance_for_deviation]
BREAKAGES = [(None, breakage) for breakage in ANY_SAMPLER + DDPM_ONLY]
BREAKAGES += [(eta, breakage) for eta in (0.0, 1.0) for breakage in [*ANY_SAMPLER, last_step_ends_at_the_first_noise_level]]


@pytest.mark.parametrize(("eta", "breakage"), BREAKAGES)
def test_comparison_notices_a_broken_step(monkeypatch, eta, breakage):
    schedule = Schedule.create("ddim10")
    broken = dataclasses.replace(schedule, **breakage(monkeypatch, schedule))
    assert disagreement("ddim10", eta, broken) > 10 * TOLERANCE


def noise_in_the_last_step(denoise, x, schedule, noise):
    return sample_ddpm(denoise, x, schedule, noise) + (0.5 * schedule.log_variance_min[-1]).exp() * next(noise)


def smaller_variance_always(denoise, x, schedule, noise):
    return sample_ddpm(with_variance(denoise, 0), x, schedule, noise)


def larger_variance_always(denoise, x, schedule, noise):
    return sample_ddpm(with_variance(denoise, 1), x, schedule, noise)


def with_variance(denoise, bound):
    return lambda x, point: dataclasses.replace(denoise(x, point), log_variance=point.log_variance[bound])


@pytest.mark.parametrize("sample", [noise_in_the_last_step, smaller_variance_always, larger_variance_always])
def test_comparison_notices_wrong_noise(sample):
    assert disagreement("ddim10", sample=sample) > 10 * TOLERANCE


def test_comparison_notices_another_eta():
    half = lambda *arguments, eta: sample_ddim(*arguments, eta=0.5 * eta)  # noqa: E731
    assert disagreement("ddim10", 1.0, sample=half) > 10 * TOLERANCE


def dpm_solver_by_hand(x, steps):
    """The paper's algorithm 2, over the logarithm of the ratio of signal to noise; the last step is x_0."""
    times = [*(round(999 * k / steps) for k in range(steps, 0, -1)), None]
    before = None
    for t, to in itertools.pairwise(times):
        signal, noise = math.sqrt(ABAR[t]), math.sqrt(1 - ABAR[t])
        x0 = (x - noise * network(x, t)[:, :4]) / signal
        if to is None:
            return x0
        signal_to, noise_to = math.sqrt(ABAR[to]), math.sqrt(1 - ABAR[to])
        width = math.log(signal_to / noise_to) - math.log(signal / noise)
        there = x0 if before is None else x0 + width / (2 * before[1]) * (x0 - before[0])
        x = noise_to / noise * x - signal_to * math.expm1(-width) * there
        before = x0, width


def heun_by_hand(x, steps):
    """Trapezoids over sigma = sqrt(1 - abar) / sqrt(abar), in latents that are x / sqrt(abar)."""
    times = [999 * k // (steps - 1) for k in range(steps - 1, -1, -1)]
    sigmas = [math.sqrt((1 - ABAR[t]) / ABAR[t]) for t in times] + [0.0]
    x = x * sigmas[0]
    for step, t in enumerate(times):
        slope = network(x / math.hypot(1, sigmas[step]), t)[:, :4]
        width = sigmas[step + 1] - sigmas[step]
        there = x + width * slope
        if step < steps - 1:
            slope = (slope + network(there / math.hypot(1, sigmas[step + 1]), times[step + 1])[:, :4]) / 2
        x = x + width * slope
    return x


SOLVERS = [(sample_dpm_solver, dpm_solver_by_hand, steps) for steps in (1, 2, 10, 37)]
SOLVERS += [(sample_heun, heun_by_hand, steps) for steps in (10, 28)]
SINGLE = 2e-5  # of the largest value: diffusers' tables and steps are float32


@pytest.mark.parametrize(("sample", "by_hand", "steps"), SOLVERS)
def test_solvers_are_those_of_the_papers(sample, by_hand, steps):
    x = randn(*SHAPE)
    ours = sample(DENOISE, x.float(), Schedule.create(str(steps)), iter(()))
    assert ours.dtype == torch.float32
    assert relative(ours.double(), by_hand(x, steps)) < SINGLE


@pytest.mark.parametrize(("sample", "by_hand", "steps"), SOLVERS[2:])
def test_solvers_are_not_of_first_order(monkeypatch, sample, by_hand, steps):
    """Without the memory of one and the second evaluation of the other they are noticed."""
    x = randn(*SHAPE)
    right = by_hand(x, steps)
    monkeypatch.setattr("diffusers.DPMSolverMultistepScheduler.multistep_dpm_solver_second_order_update", first_order)
    monkeypatch.setattr("diffusers.HeunDiscreteScheduler", EulerDiscreteScheduler)
    assert relative(sample(DENOISE, x.float(), Schedule.create(str(steps)), iter(())).double(), right) > 10 * SINGLE


def first_order(self, outputs, sample=None, **_):
    return self.dpm_solver_first_order_update(outputs[-1], sample=sample)


MEAN, DEVIATION = 0.7, 0.4  # of the data, from here on a Gaussian


def gaussian_model(fraction=0.0):
    """The exact noise prediction for N(MEAN, DEVIATION^2) data."""

    def model(x, t):
        abar = ABAR[int(t)]
        epsilon = math.sqrt(1 - abar) * (x - math.sqrt(abar) * MEAN) / (abar * DEVIATION**2 + 1 - abar)
        return torch.cat([epsilon, torch.full_like(x, fraction)], dim=1)

    return model


def levels(spacing):
    """(abar of the step, abar of where it leads) in sampling order."""
    abar = ABAR[spaced_timesteps(spacing)]
    return list(zip(abar, np.append(1.0, abar), strict=False))[::-1]


def response(sample, schedule, model, draws):
    """A sampler of an affine model is affine in the initial latents and its noises: (constant, their coefficients in order).

    Row 0 is fed nothing but zeros, every other row a single one.
    """
    unit = torch.cat([torch.zeros(1, draws + 1), torch.eye(draws + 1)]).double().reshape(draws + 2, draws + 1, 1, 1, 1)
    out = sample(denoiser(model), unit[:, 0], schedule, iter(unit[:, 1:].unbind(1))).flatten().numpy()
    return out[0], out[1:] - out[0]


@pytest.mark.parametrize("spacing", ["1", "10", "ddim50", "1000"])
def test_ddim_on_a_gaussian_is_the_exact_recursion(spacing):
    """Around its mean, a Gaussian's latent only shrinks, by a cosine between (s sqrt(abar), sqrt(1 - abar)) before and after."""
    constant, (from_latents,) = response(sample_ddim, Schedule.create(spacing), gaussian_model(), 0)
    factor = 1.0
    for abar, before in levels(spacing):
        along = DEVIATION**2 * math.sqrt(abar * before) + math.sqrt((1 - abar) * (1 - before))
        factor *= along / (DEVIATION**2 * abar + 1 - abar)
    assert from_latents == pytest.approx(factor, rel=TOLERANCE)
    assert constant == pytest.approx(MEAN - factor * math.sqrt(levels(spacing)[0][0]) * MEAN, rel=TOLERANCE)


def test_ddim_approaches_the_probability_flow():
    """Its exact solution keeps the number of deviations from the mean; the error falls in proportion to the step."""
    errors = []
    for steps in (125, 250, 500, 1000):
        constant, (from_latents,) = response(sample_ddim, Schedule.create(str(steps)), gaussian_model(), 0)
        exact = DEVIATION / math.sqrt(ABAR[999] * DEVIATION**2 + 1 - ABAR[999])
        assert constant == pytest.approx(MEAN, rel=0.02)
        errors.append(abs(from_latents / exact - 1))
    assert errors[-1] < 0.005
    assert np.divide(errors[1:], errors[:-1]) == pytest.approx(0.5, abs=0.05)


@pytest.mark.parametrize(("sample", "error"), [(sample_dpm_solver, 1e-3), (sample_unipc, 4e-3), (sample_heun, 1e-3)])
def test_solvers_approach_the_probability_flow_sooner(sample, error):
    """With 112 steps, where DDIM is 0.03 away."""
    constant, (from_latents,) = response(sample, Schedule.create("112"), gaussian_model(), 0)
    exact = DEVIATION / math.sqrt(ABAR[999] * DEVIATION**2 + 1 - ABAR[999])
    assert constant == pytest.approx(MEAN, rel=0.01)
    assert from_latents == pytest.approx(exact, rel=error)
    another = sample_dpm_solver if sample is sample_unipc else sample_unipc
    _, (by_another,) = response(another, Schedule.create("112"), gaussian_model(), 0)
    assert by_another != pytest.approx(from_latents, rel=1e-5)
    _, (by_ddim,) = response(sample_ddim, Schedule.create("112"), gaussian_model(), 0)
    assert by_ddim != pytest.approx(exact, rel=0.02)


@pytest.mark.parametrize("fraction", [-1.0, 0.3, 1.0])
@pytest.mark.parametrize("spacing", ["1", "10", "ddim50", "250"])
def test_ddpm_on_a_gaussian_is_the_exact_recursion(spacing, fraction):
    """Bayes' rule for q(x_{t-1} | x_t, x_0), with x_0 at its expectation; the last step ends there, without noise."""
    steps = levels(spacing)
    shrinkage, scales = [], []
    for abar, before in steps:
        alpha = abar / before
        expected_x0 = DEVIATION**2 * math.sqrt(abar) / (abar * DEVIATION**2 + 1 - abar)  # a unit of deviation of x_t
        if before == 1:
            shrinkage.append(expected_x0)
            break
        variance = 1 / (alpha / (1 - alpha) + 1 / (1 - before))
        shrinkage.append(variance * (math.sqrt(alpha) / (1 - alpha) + math.sqrt(before) / (1 - before) * expected_x0))
        scales.append(math.sqrt((1 - alpha) ** ((1 + fraction) / 2) * variance ** ((1 - fraction) / 2)))
    remaining = np.cumprod(shrinkage[::-1])[::-1]  # from before each step to the end

    constant, (from_latents, *from_noises) = response(
        sample_ddpm, Schedule.create(spacing), gaussian_model(fraction), len(steps) - 1
    )
    assert from_latents == pytest.approx(remaining[0], rel=TOLERANCE)
    assert from_noises == pytest.approx(np.array(scales) * remaining[1:], rel=TOLERANCE)
    assert constant == pytest.approx(MEAN * (1 - remaining[0] * math.sqrt(steps[0][0])), rel=TOLERANCE)


@pytest.mark.parametrize("fraction", [-1.0, 1.0])
def test_ddpm_samples_the_gaussian(fraction):
    """With all steps it hardly matters which of the two variances is taken."""
    constant, coefficients = response(sample_ddpm, Schedule.create("1000"), gaussian_model(fraction), 999)
    assert constant == pytest.approx(MEAN, rel=1e-3)
    assert math.sqrt((coefficients**2).sum()) == pytest.approx(DEVIATION, rel=0.02)


SAMPLERS = {
    "ddpm": (sample_ddpm, {}),
    "ddim": (sample_ddim, {"eta": 0.0}),
    "ddim, eta 0.5": (sample_ddim, {"eta": 0.5}),
    "ddim, eta 1": (sample_ddim, {"eta": 1.0}),
}
SOLVERS_TOO = SAMPLERS | {
    "dpm-solver++": (sample_dpm_solver, {}),
    "unipc": (sample_unipc, {}),
    "heun": (sample_heun, {}),
}
each_sampler = pytest.mark.parametrize(("sample", "options"), SAMPLERS.values(), ids=SAMPLERS)
with_solvers = pytest.mark.parametrize(("sample", "options"), SOLVERS_TOO.values(), ids=SOLVERS_TOO)


@each_sampler
@pytest.mark.parametrize("spacing", ["1", "10", "ddim50", "3,2"])
def test_model_gets_the_original_timesteps(sample, options, spacing):
    seen = []

    def model(x, t):
        seen.append(t)
        return network(x, t)

    sample(denoiser(model), randn(*SHAPE), Schedule.create(spacing), iter(randn(50, *SHAPE)), **options)
    assert seen == spaced_timesteps(spacing)[::-1]


@with_solvers
@pytest.mark.parametrize("spacing", ["2", "10"])
def test_noise_draws_are_counted(sample, options, spacing):
    row = next(row for row in samplers.SAMPLERS.values() if row.draw is sample)
    draws = row.noises(row.steps(spacing), **options)
    left = iter(randn(20, *SHAPE))
    sample(DENOISE, randn(*SHAPE), Schedule.create(spacing), left, **options)
    assert 20 - len(list(left)) == draws


@with_solvers
def test_images_do_not_see_each_other(sample, options):
    """An image is the same alone and in a batch, in any place."""
    x, noise, schedule = randn(3, *SHAPE[1:]), randn(9, 3, *SHAPE[1:], seed=1), Schedule.create("10")
    together = sample(DENOISE, x, schedule, iter(noise), **options)
    alone = sample(DENOISE, x[1:2], schedule, iter(noise[:, 1:2]), **options)
    turned = sample(DENOISE, x.flip(0), schedule, iter(noise.flip(1)), **options)
    assert torch.allclose(alone, together[1:2], rtol=0, atol=1e-12)
    assert torch.allclose(turned.flip(0), together, rtol=0, atol=1e-12)


@with_solvers
def test_inputs_are_left_as_they_are(sample, options):
    x, noise = randn(*SHAPE), randn(9, *SHAPE, seed=1)
    sample(DENOISE, x, Schedule.create("10"), iter(noise), **options)
    assert torch.equal(x, randn(*SHAPE))
    assert torch.equal(noise, randn(9, *SHAPE, seed=1))


class Waits(TorchDispatchMode):
    """Counts the copies from host to device, and the checks whose outcome is read from there."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, function, types, given=(), options=None):
        out = function(*given, **(options or {}))
        name, places = str(function), {one.device.type for one in given if isinstance(one, torch.Tensor)}
        is_copy = "copy" in name and isinstance(out, torch.Tensor) and places - {out.device.type}
        self.count += bool(is_copy or "check_errors" in name)
        return out


@with_solvers
def test_a_step_copies_nothing_to_the_device(sample, options):
    """However many steps, the same copies before the first."""
    counts, x = [], torch.empty(SHAPE, device="meta")
    for steps in ("5", "10"):
        schedule = Schedule.create(steps, "meta")
        with Waits() as waits:
            sample(denoiser(lambda x, _: torch.cat([x, x], dim=1)), x, schedule, iter([x] * 9), **options)
        counts.append(waits.count)
    assert counts[0] == counts[1] <= 1


@with_solvers
def test_no_step_waits_for_the_device(sample, options):
    """On the meta device there are no values to wait for: reading one raises."""
    x = torch.empty(SHAPE, device="meta")

    def model(x, _):
        return torch.cat([x, x], dim=1)

    def waiting(x, _):
        return torch.cat([x, x], dim=1) * x.sum().item()

    schedule = Schedule.create("10", "meta")
    out = sample(denoiser(model), x, schedule, iter([x] * 9), **options)
    assert (out.device.type, out.shape) == ("meta", SHAPE)
    with pytest.raises(RuntimeError, match="meta"):
        sample(denoiser(waiting), x, schedule, iter([x] * 9), **options)
