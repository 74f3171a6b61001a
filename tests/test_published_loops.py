"""Every preset of a flow is drawn as its family's own loop does it, written down once more on that family's clock, with its
numbers as its source has them: a preset with a wrong option ends elsewhere.
"""

import math
from collections.abc import Callable
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from fiducial.diffusion.guidance import Inner, guided
from fiducial.diffusion.samplers import SAMPLERS
from fiducial.models.networks.table import asked
from fiducial.sampling.options.choices import INNER_HEAD
from fiducial.sampling.options.parser import parse
from fiducial.sampling.options.presets import ROWS
from fiducial.sampling.source.flow import Flow
from fiducial.sampling.source.from_checkpoint import check_options, with_sampler
from fiducial.sampling.source.latent_diffusion import guidance_of

NULL = 10
LABELS = torch.tensor([3, 7])
Noise = list[Tensor]
BY_SOLVER = {"sit-xl-2-256-ode"}  # dopri5 has no loop to write down; its options are among the facts


def native(x: Tensor, t: float, labels: Tensor, *more: float) -> Tensor:
    """Something that depends on all that it is given; `t` on the family's own clock."""
    channel = torch.arange(x.shape[1]).view(1, -1, 1, 1) / x.shape[1]
    label = labels.double().view(-1, 1, 1, 1)
    found = 0.3 * torch.sin(x * (1 + t)) + 0.2 * torch.cos(3 * t + label + channel) + 0.1 * x * t
    return found + 0.1 * sum((place + 1) * value for place, value in enumerate(more))


def predicted(x: Tensor, t: float, scale: float, channels: int | None, is_guided: bool) -> Tensor:
    """The guided prediction of a family that guides its first channels."""
    strong, weak = native(x, t, LABELS), native(x, t, torch.full_like(LABELS, NULL))
    combined = weak + scale * (strong - weak)
    count = channels or x.shape[1]
    return torch.cat([combined[:, :count], strong[:, count:]], 1) if is_guided else strong


def sit_sde(noise: Noise, scale: float) -> Tensor:
    """SiT: t = 0 is noise; linspace(0, 0.96, 250), diffusion sigma, then the mean over the last 0.04."""
    x, places = noise[0], torch.linspace(0, 0.96, 250, dtype=torch.float64).tolist()

    def drift(x: Tensor, t: float) -> Tensor:
        velocity = predicted(x, t, scale, 3, True)
        score = (t * velocity - x) / (1 - t)  # of x = t * image + (1 - t) * noise
        return velocity + (1 - t) * score

    for begin, end, z in zip(places[:-1], places[1:], noise[1:], strict=False):
        x = x + drift(x, begin) * (end - begin) + math.sqrt(2 * (1 - begin) * (end - begin)) * z
    return x + drift(x, 0.96) * 0.04


def repa_sde(noise: Noise, scale: float, high: float) -> Tensor:
    """REPA: t = 1 is noise; linspace(1, 0.04, 250) and 0, g^2 = 2t, no noise in the last step, guided up to `high`."""
    x, places = noise[0], [*torch.linspace(1, 0.04, 250, dtype=torch.float64).tolist(), 0.0]
    for number, (begin, end) in enumerate(pairwise(places)):
        velocity = predicted(x, begin, scale, None, begin <= high)
        score = -(x + (1 - begin) * velocity) / begin  # of x = (1 - t) * image + t * noise
        x = x + (velocity - begin * score) * (end - begin)
        if number < 249:
            x = x + math.sqrt(2 * begin * (begin - end)) * noise[number + 1]
    return x


def lightningdit(noise: Noise, scale: float, start: float) -> Tensor:
    """LightningDiT: t = 0 is noise; linspace(0, 1, 250) shifted by 0.3, Euler, 3 of 32 channels from `start` on."""
    x, line = noise[0], torch.linspace(0, 1, 250, dtype=torch.float64)
    places = (0.3 * line / (1 + (0.3 - 1) * line)).tolist()
    for begin, end in pairwise(places):
        x = x + predicted(x, begin, scale, 3, begin >= start) * (end - begin)
    return x


def jit(noise: Noise, scale: float) -> Tensor:
    """JiT: t = 0 is noise, an image is predicted; 50 steps of Heun, the last Euler's; guided above 0.1."""
    x = noise[0]

    def velocity(x: Tensor, step: int) -> Tensor:
        return (predicted(x, step / 50, scale, None, step > 5) - x) / max(1 - step / 50, 0.05)

    for step in range(50):
        first = velocity(x, step)
        guess = x + first / 50
        x = guess if step == 49 else x + (first + velocity(guess, step + 1)) / 100
    return x


def ddt(noise: Noise, scale: float) -> Tensor:
    """DDT: t = 0 is noise; linspace(0, 0.96, 250) and 1, Euler, guided strictly between 0.3 and 1."""
    x, places = noise[0], [*torch.linspace(0, 0.96, 250, dtype=torch.float64).tolist(), 1.0]
    for begin, end in pairwise(places):
        x = x + predicted(x, begin, scale, None, 0.3 < begin < 1) * (end - begin)
    return x


def rae(noise: Noise, scale: float) -> Tensor:
    """RAE: t = 1 is noise; 1 - linspace(0, 0.999, 50) shifted by sqrt(48), Euler, ending at 0.0069."""
    line, by, x = 1 - torch.linspace(0, 0.999, 50, dtype=torch.float64), math.sqrt(48), noise[0]
    places = (by * line / (1 + (by - 1) * line)).tolist()
    for begin, end in pairwise(places):
        x = x + predicted(x, begin, scale, None, scale != 1) * (end - begin)
    return x


def raev2(noise: Noise, scale: float) -> Tensor:
    """RAEv2: t = 1 is noise, an image is predicted; linspace(1, 0, 101) shifted by 8, away from the inner head down to 0.1."""
    line, x = torch.linspace(1, 0, 101, dtype=torch.float64), noise[0]
    places = (8 * line / (1 + 7 * line)).tolist()
    for begin, end in pairwise(places):
        full, base = native(x, begin, LABELS), inner(x, begin, LABELS)
        image = base + scale * (full - base) if begin >= 0.1 else full
        x = x + (x - image) / max(begin, 0.05) * (end - begin)
    return x


def inner(x: Tensor, t: float, labels: Tensor) -> Tensor:
    """What an inner head predicts."""
    return 0.5 * native(x, t, labels, 1.0)


def jumps(noise: Noise, steps: int, *told: float) -> Tensor:
    """MeanFlow and iMF: t = 1 is noise; x_r = x_t - (t - r) u(x_t, t, r), and iMF's scale and interval."""
    x = noise[0]
    for step in range(steps, 0, -1):
        x = x - native(x, step / steps, LABELS, (step - 1) / steps, *told) / steps
    return x


LOOPS: dict[str, tuple[int, Callable[[Noise], Tensor]]] = {  # channels and loop
    "sit-xl-2-256-sde": (4, lambda noise: sit_sde(noise, 1.5)),
    "sit-xl-2-256-sde-cfg-1.0": (4, lambda noise: sit_sde(noise, 1.0)),
    "repa-xl-2-256": (4, lambda noise: repa_sde(noise, 1.8, 0.7)),
    "repa-xl-2-256-cfg-1.0": (4, lambda noise: repa_sde(noise, 1.0, 1.0)),
    "repa-e-sdvae-80-epochs": (4, lambda noise: repa_sde(noise, 2.2, 0.65)),
    "repa-e-vavae": (32, lambda noise: repa_sde(noise, 2.5, 0.75)),
    "repa-e-vavae-cfg-1.0": (32, lambda noise: repa_sde(noise, 1.0, 1.0)),
    "lightningdit-xl-1-256-800-epochs": (32, lambda noise: lightningdit(noise, 6.7, 0.125)),
    "lightningdit-xl-1-256-800-epochs-cfg-1.0": (32, lambda noise: lightningdit(noise, 1.0, 0.0)),
    "lightningdit-xl-1-256-64-epochs": (32, lambda noise: lightningdit(noise, 10.0, 0.1)),
    "lightningdit-xl-1-256-64-epochs-cfg-1.0": (32, lambda noise: lightningdit(noise, 1.0, 0.0)),
    "jit-b-16-256": (3, lambda noise: jit(noise, 3.0)),
    "jit-l-16-256": (3, lambda noise: jit(noise, 2.4)),
    "jit-h-16-256": (3, lambda noise: jit(noise, 2.2)),
    "ddt-xl-2-256": (4, lambda noise: ddt(noise, 2.0)),
    "ddt-xl-2-512": (4, lambda noise: ddt(noise, 3.0)),
    "rae-xl-256-cfg-1.0": (768, lambda noise: rae(noise, 1.0)),
    "rae-xl-256": (768, lambda noise: rae(noise, 1.42)),
    "repa-e-vavae-balanced": (32, lambda noise: repa_sde(noise, 2.4, 0.73)),
    "repa-e-vavae-balanced-cfg-1.0": (32, lambda noise: repa_sde(noise, 1.0, 1.0)),
    "raev2-xl-256": (1024, lambda noise: raev2(noise, 1.78)),
    "meanflow-xl-2-256": (4, lambda noise: jumps(noise, 1)),
    "imf-b-2-256": (4, lambda noise: jumps(noise, 1, 8.0, 0.4, 0.65)),
    "imf-l-2-256": (4, lambda noise: jumps(noise, 1, 10.5, 0.4, 0.6)),
    "imf-xl-2-256": (4, lambda noise: jumps(noise, 1, 8.0, 0.42, 0.62)),
    "imf-xl-2-256-2-steps": (4, lambda noise: jumps(noise, 2, 4.0, 0.36, 0.64)),
}


class Network:
    """`native` in the place of weights."""

    null_label = NULL

    def __call__(self, x: Tensor, t: Tensor, labels: Tensor, *more: Tensor, with_inner: bool = False) -> Tensor:
        t, *more = (one.double().view(-1, 1, 1, 1) for one in (t, *more))
        found = native(x, t, labels, *more)
        return torch.cat([found, inner(x, t, labels)], 1) if with_inner else found


def drawn(name: str, noise: Noise, *said: str) -> Tensor:
    """What the preset comes to, by the parts of a run that solve, guide and ask."""
    config = with_sampler(parse(["--preset", name, *said])[0])
    check_options(config)
    flow, sampler = Flow.of(config), SAMPLERS[config.sampler]
    told = (config.cfg_scale, *config.guidance_interval)
    network = asked(Network(), flow.spec, shared_timestep=True, told=told)
    weak = torch.full_like(LABELS, NULL)
    if config.guidance_by == INNER_HEAD:
        both = asked(Network(), flow.spec, shared_timestep=True, told=told, with_inner=True)
        weak = Inner(lambda *given: both(*given).chunk(2, dim=1))
    raw = guided(network, weak, LABELS, guidance_of(config))
    return flow.draw(raw, sampler, flow.grid(config, "cpu"), iter(noise), **config.sampler_options())


def noise_of(channels: int) -> Noise:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(2, channels, 2, 2, generator=generator, dtype=torch.float64) for _ in range(250)]


def apart(found: Tensor, expected: Tensor) -> float:
    return ((found - expected).abs().max() / expected.abs().max()).item()


def test_every_flow_has_a_loop():
    assert {name for name, row in ROWS.items() if row.family != "DiT"} - BY_SOLVER == set(LOOPS)


@pytest.mark.parametrize("name", LOOPS)
def test_a_preset_is_its_familys_loop(name):
    channels, loop = LOOPS[name]
    noise = noise_of(channels)
    assert apart(drawn(name, noise).double(), loop(noise)) < 1e-6


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("sit-xl-2-256-sde", ("--cfg-channels", "4")),
        ("sit-xl-2-256-sde", ("--grid", "places")),
        ("sit-xl-2-256-sde", ("--diffusion-form", "linear", "--last-step", "euler")),
        ("repa-xl-2-256", ("--guidance-interval", "0.3,1")),
        ("repa-xl-2-256", ("--diffusion-form", "sigma", "--diffusion-norm", "0.5")),
        ("lightningdit-xl-1-256-800-epochs", ("--grid", "places,shift=0.3")),
        ("lightningdit-xl-1-256-800-epochs", ("--guidance-interval", "0,0.125")),
        ("jit-b-16-256", ("--guidance-ends", "closed")),
        ("jit-b-16-256", ("--grid", "places")),
        ("jit-b-16-256", ("--least-time", "0")),
        ("ddt-xl-2-256", ("--grid", "places")),
        ("ddt-xl-2-256", ("--guidance-interval", "0.3,1")),
        ("rae-xl-256", ("--grid", "places,shift=sqrt(48)")),
        ("rae-xl-256", ("--cfg-channels", "3")),
        ("raev2-xl-256", ("--grid", "steps,shift=7")),
        ("raev2-xl-256", ("--guidance-interval", "0,1")),
        ("imf-xl-2-256", ("--guidance-interval", "0.4,0.62")),
    ],
)
def test_one_wrong_option_ends_elsewhere(name, said):
    channels, loop = LOOPS[name]
    noise = noise_of(channels)
    assert apart(drawn(name, noise, *said).double(), loop(noise)) > 1e-4
