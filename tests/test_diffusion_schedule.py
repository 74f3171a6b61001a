"""The schedule against improved-DDPM's spacing written a second time, against diffusers, and against closed forms."""

import dataclasses
import re

import numpy as np
import pytest
import torch
from diffusers import DDPMScheduler

from fiducial.diffusion.schedule import Schedule, linear_betas, spaced_timesteps

SPACINGS = ["1", "2", "10", "250", "1000", "ddim10", "ddim50", "10,20,30"]
ABAR = np.cumprod(1 - np.linspace(1e-4, 0.02, 1000))
TOLERANCE = 1e-6  # relative: what float64 loses when it is stored as float32, and a little more


def walked_timesteps(counts, num_timesteps=1000):
    """Improved-DDPM's choice as published: walk each section with a float position, round where it stands."""
    bounds = np.cumsum([0] + [len(part) for part in np.array_split(np.arange(num_timesteps), len(counts))])
    kept = []
    for count, start, end in zip(counts, bounds, bounds[1:], strict=False):
        position = 0.0
        for _ in range(count):
            kept.append(int(start) + round(position))
            position += (end - start - 1) / max(count - 1, 1)
    return kept


@pytest.mark.parametrize(
    ("spacing", "length", "first", "last"),
    [
        ("250", 250, [0, 4, 8, 12], [987, 991, 995, 999]),
        ("ddim50", 50, [0, 20, 40, 60], [920, 940, 960, 980]),
        ("ddim250", 250, [0, 4, 8, 12], [984, 988, 992, 996]),
        ("1000", 1000, [0, 1, 2, 3], [996, 997, 998, 999]),
        ("1", 1, [0], [0]),
        ("2", 2, [0, 999], [0, 999]),
        ("2,2,1", 5, [0, 333, 334, 666, 667], [0, 333, 334, 666, 667]),
    ],
)
def test_known_spacings(spacing, length, first, last):
    timesteps = spaced_timesteps(spacing)
    assert len(timesteps) == length
    assert timesteps[: len(first)] == first
    assert timesteps[-len(last) :] == last


def test_every_step_count_is_spaced_as_published():
    """Where a position falls on a half, the sum of strides decides the side, a product would not: 21 steps hold 499, not 500."""
    different = [count for count in range(1, 1001) if spaced_timesteps(str(count)) != walked_timesteps([count])]
    assert different == []


@pytest.mark.parametrize(
    "counts", [[10, 20, 30], [10, 15, 20, 25], [333, 1, 333], [334, 333, 333], [21, 21], [1] * 7, [143] * 6 + [142], [25] * 40]
)
def test_sections_are_spaced_as_published(counts):
    assert spaced_timesteps(",".join(map(str, counts))) == walked_timesteps(counts)


@pytest.mark.parametrize("stride", [1, 2, 3, 7, 20, 143, 999])
def test_ddim_is_a_constant_stride_from_zero(stride):
    expected = list(range(0, 1000, stride))
    kept = spaced_timesteps(f"ddim{len(expected)}")
    assert len(kept) == len(expected)
    assert kept[0] == 0
    assert len(set(np.diff(kept))) <= 1


def test_the_smallest_stride_serves_where_several_do():
    """143 to 166 all give seven steps."""
    assert spaced_timesteps("ddim7") == list(range(0, 1000, 143))


@pytest.mark.parametrize(
    ("spacing", "said"),
    [
        ("", "''"),
        ("fast", "'fast'"),
        ("ddim", "'ddim'"),
        ("ddim5.0", "'ddim5.0'"),
        ("ddim-5", "'ddim-5'"),
        ("2.5", "'2.5'"),
        ("-5", "'-5'"),
        (" 250", "' 250'"),
        ("10,", "'10,'"),
        ("10,,20", "'10,,20'"),
        ("0", "0 steps do not fit"),
        ("1001", "1001 steps do not fit in a section of 1000"),
        ("10,0", "0 steps do not fit in a section of 500"),
        ("10,10,334", "334 steps do not fit in a section of 333"),
        ("ddim0", "0 steps"),
        ("ddim999", "999 steps"),
        ("ddim1001", "1001 steps"),
    ],
)
def test_bad_spacing_is_one_sentence(spacing, said):
    with pytest.raises(ValueError, match=re.escape(said)) as caught:
        spaced_timesteps(spacing)
    assert "\n" not in str(caught.value)
    assert ". " not in str(caught.value)


def test_betas_are_ddpms():
    betas = linear_betas()
    assert (betas.dtype, betas.shape) == (np.float64, (1000,))
    assert betas == pytest.approx(np.array([1e-4 + step * (0.02 - 1e-4) / 999 for step in range(1000)]), rel=1e-14)


def test_shorter_betas_destroy_as_much_signal():
    assert linear_betas(500).sum() == pytest.approx(linear_betas(1000).sum(), rel=1e-12)


def diffusers_coefficients(timesteps):
    """What diffusers steps with, coefficient by coefficient in sampling order, its table replaced by one in float64."""
    scheduler = DDPMScheduler(beta_schedule="linear", variance_type="learned_range", clip_sample=False)
    assert scheduler.alphas_cumprod.numpy() == pytest.approx(ABAR, rel=1e-4)
    scheduler.alphas_cumprod = torch.cumprod(1 - torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64), dim=0)
    scheduler.one = scheduler.one.double()
    scheduler.set_timesteps(timesteps=[int(t) for t in timesteps])
    one, zero = torch.ones(1, 1, 1, 1, dtype=torch.float64), torch.zeros(1, 2, 1, 1, dtype=torch.float64)
    rows = []
    for t in scheduler.timesteps.tolist():
        x0 = scheduler.step(zero, t, one, return_dict=True).pred_original_sample
        noise = scheduler.step(zero + 1, t, 0 * one, return_dict=True).pred_original_sample
        low, high = (scheduler._get_variance(t, torch.tensor(v, dtype=torch.float64)) for v in (-1.0, 1.0))
        rows.append([value.item() for value in (scheduler.alphas_cumprod[t], x0, -noise, low, high)])
    return np.array(rows).T


def worst_error(schedule):
    """The largest difference from diffusers, relative; but at the last step, which has no smaller variance."""
    ours = [
        schedule.alphas_cumprod,
        schedule.sqrt_recip_alphas_cumprod,
        schedule.sqrt_recipm1_alphas_cumprod,
        schedule.log_variance_min,
        schedule.log_variance_max,
    ]
    theirs = diffusers_coefficients(schedule.timesteps)
    theirs[3, -1] = schedule.log_variance_min[-1]
    return max(np.abs(a.double().numpy() / b - 1).max() for a, b in zip(ours, theirs, strict=True))


@pytest.mark.parametrize("spacing", ["2", "10", "250", "ddim50", "10,20,30"])
def test_coefficients_are_diffusers(spacing):
    assert worst_error(Schedule.create(spacing)) < TOLERANCE


def betas_of_the_whole_chain(schedule):
    return {"log_variance_max": torch.from_numpy(linear_betas()).log()[schedule.timesteps]}


def bounds_swapped(schedule):
    return {"log_variance_min": schedule.log_variance_max, "log_variance_max": schedule.log_variance_min}


def off_by_one(schedule):
    return {"alphas_cumprod": torch.from_numpy(ABAR)[(schedule.timesteps + 1).clamp_max(999)]}


@pytest.mark.parametrize("breakage", [betas_of_the_whole_chain, bounds_swapped, off_by_one])
def test_comparison_notices_wrong_coefficients(breakage):
    schedule = Schedule.create("10")
    assert worst_error(dataclasses.replace(schedule, **breakage(schedule))) > 10 * TOLERANCE


@pytest.mark.parametrize("spacing", SPACINGS)
def test_noise_level_is_the_whole_chains(spacing):
    schedule = Schedule.create(spacing)
    abar = ABAR[spaced_timesteps(spacing)][::-1]
    np.testing.assert_allclose(schedule.alphas_cumprod, abar, rtol=1e-14)
    np.testing.assert_allclose(schedule.alphas_cumprod_prev, np.append(abar[1:], 1.0), rtol=1e-14)
    np.testing.assert_allclose(schedule.sqrt_recip_alphas_cumprod, abar**-0.5, rtol=TOLERANCE)
    np.testing.assert_allclose(schedule.sqrt_recipm1_alphas_cumprod, ((1 - abar) / abar) ** 0.5, rtol=TOLERANCE)


@pytest.mark.parametrize("spacing", SPACINGS)
def test_posterior_leads_from_one_marginal_to_the_next(spacing):
    """From x_t ~ N(sqrt(abar) x0, 1 - abar) a step has to give x_{t-1} ~ N(sqrt(abar_prev) x0, 1 - abar_prev)."""
    schedule = Schedule.create(spacing)
    abar, before = schedule.alphas_cumprod.numpy(), schedule.alphas_cumprod_prev.numpy()
    x0, xt = schedule.posterior_mean_x0.double().numpy(), schedule.posterior_mean_xt.double().numpy()
    variance = np.append(schedule.log_variance_min.double().exp().numpy()[:-1], 0.0)
    np.testing.assert_allclose(x0 + xt * np.sqrt(abar), np.sqrt(before), rtol=TOLERANCE)
    np.testing.assert_allclose(xt**2 * (1 - abar) + variance, 1 - before, rtol=1e-5, atol=1e-12)


@pytest.mark.parametrize("spacing", SPACINGS)
def test_larger_variance_is_that_of_the_kept_chain(spacing):
    """Its betas lead from one kept timestep to the next: all together they destroy what the whole chain destroys."""
    schedule = Schedule.create(spacing)
    beta = schedule.log_variance_max.double().exp().numpy()
    np.testing.assert_allclose(np.cumprod(1 - beta[::-1])[::-1], schedule.alphas_cumprod, rtol=1e-4)
    assert beta[-1] == pytest.approx(1 - ABAR[schedule.timesteps[-1]], rel=1e-5)


def test_bounds_of_the_variance_are_in_order():
    schedule = Schedule.create("250")
    assert (schedule.log_variance_min[:-1] < schedule.log_variance_max[:-1]).all()
    assert schedule.log_variance_min[-1] == schedule.log_variance_min[-2]


@pytest.mark.parametrize("spacing", SPACINGS)
def test_timesteps_are_the_original_numbers_noisiest_first(spacing):
    schedule = Schedule.create(spacing)
    assert schedule.timesteps.dtype == torch.int64
    assert schedule.timesteps.tolist() == list(schedule.numbers) == spaced_timesteps(spacing)[::-1]
    assert len(schedule) == len(spaced_timesteps(spacing))


TENSORS = [field.name for field in dataclasses.fields(Schedule) if field.name != "numbers"]


@pytest.mark.parametrize("field", TENSORS)
def test_coefficients_are_finite_and_a_step_is_a_view_of_them(field):
    """A copy or a number would wait for the device."""
    values = getattr(Schedule.create("10"), field)
    dtypes = {"timesteps": torch.int64, "alphas_cumprod": torch.float64, "alphas_cumprod_prev": torch.float64}
    assert values.dtype == dtypes.get(field, torch.float32)
    assert values.isfinite().all()
    assert values[3].untyped_storage().data_ptr() == values.untyped_storage().data_ptr()


def test_device_is_the_one_asked_for():
    schedule = Schedule.create("10", "meta")
    assert {getattr(schedule, field).device.type for field in TENSORS} == {"meta"}
