"""Published rows of flows: SiT, REPA and REPA-E, LightningDiT, JiT, DDT, RAE, RAEv2, MeanFlow and iMF. No torch.

Intervals of guidance are noise levels here, 0 the image and 1 noise, whatever the family's own clock.
"""

from collections.abc import Mapping
from typing import Any

from fiducial.sampling.options.rows import (
    ADM_512,
    BALANCED,
    BY_FIDELITY,
    BY_JAX,
    HALF_EVEN,
    JIT_256,
    OF_256,
    OF_512,
    TRUNCATE,
    Choices,
    Row,
)

SD_EMA, SD_MSE = "sd-vae-ft-ema, latents times 0.18215", "sd-vae-ft-mse, latents times 0.18215"
LINEAR, WITH_TAIL = "linear", "places,tail=0.04"
SDE = {"sampler": "euler-maruyama", "num_sampling_steps": "250", "grid": WITH_TAIL, "last_step": "mean"}
SDE_GRID = "250 places from noise to 0.04, and a last step of 0.04"


def _sit(name: str, solver: str, grid: str, scale: float, numbers: dict[str, str], own: Mapping[str, Any], **more: Any) -> Row:
    guidance = f"cfg {scale:g} on the first 3 of 4 channels of the velocity" if scale != 1.0 else "none"
    return Row(
        name,
        "SiT",
        Choices("SiT-XL/2, velocity", LINEAR, grid, solver, guidance, SD_EMA),
        {"model": "SiT-XL/2", "vae": "ema", **OF_256, "cfg_channels": 3, "cfg_scale": scale, **own},
        numbers,
        **more,
    )


SIT_SDE = SDE | {"diffusion_form": "sigma", "diffusion_norm": 1.0}
BY_SDE, BY_ODE = "Euler-Maruyama, diffusion sigma, last step its mean", "dopri5, atol 1e-6, rtol 1e-3"
SIT_ODE = {"sampler": "dopri5", "num_sampling_steps": "250", "atol": 1e-6, "rtol": 1e-3}
SIT = (
    _sit(
        "sit-xl-2-256-sde",
        BY_SDE,
        SDE_GRID,
        1.5,
        {"fid": "2.06", "sfid": "4.50", "is": "270.27", "precision": "0.82", "recall": "0.59"},
        SIT_SDE,
        source="SiT's README and paper, arXiv 2401.08740",
        from_memory=("sfid", "precision", "recall"),
    ),
    _sit("sit-xl-2-256-ode", BY_ODE, "chosen by the solver", 1.5, {"fid": "2.15"}, SIT_ODE, source="SiT's README"),
    _sit(
        "sit-xl-2-256-sde-cfg-1.0", BY_SDE, SDE_GRID, 1.0, {"fid": "8.3"}, SIT_SDE, source="SiT's paper, and its issue 31",
        notes=("the ODE of SiT's README gives 9.35 to 9.5 without guidance",),
    ),
)  # fmt: skip


def _repa(
    name: str, model: str, scale: float, high: float, numbers: dict[str, str], codec: str, own: Mapping[str, Any], **more: Any
) -> Row:
    guided = scale != 1.0
    channels = 32 if "vavae" in name else 4
    return Row(
        name,
        "REPA",
        Choices(
            f"{model}, velocity",
            LINEAR,
            SDE_GRID,
            "Euler-Maruyama, g^2 = 2t, last step without noise, the state in float64",
            f"cfg {scale:g} on all channels, {high:g} and below" if guided else "none",
            codec,
        ),
        {
            "model": model,
            **OF_256,
            "cfg_channels": channels,
            "cfg_scale": scale,
            **({"guidance_interval": (0.0, high)} if guided else {}),
            **SDE,
            "diffusion_form": "linear",
            "state": "float64",
            **own,
        },
        numbers,
        rounding=TRUNCATE,
        **more,
    )


REPA_README, REPA_E_README = "REPA's README, arXiv 2410.06940", "REPA-E's README, arXiv 2504.10483"
EMA = {"vae": "ema"}
E2E = "E2E-VAVAE f16d32, latents by channel (e2e-vavae-400k-latents-stats.pt)"
ANEW = {  # its authors drew their released weights once more
    "source": "REPA-E's README of 2025-10-21, arXiv 2504.10483",
    "labels": BALANCED,
    "notes": ("the weights of the row repa-e-vavae, whose 1.26 and 1.83 are of an earlier README, with random labels",),
}
REPA = (
    _repa("repa-xl-2-256", "REPA-XL/2", 1.8, 0.7, {"fid": "1.42"}, SD_EMA, EMA, source=REPA_README),
    _repa("repa-xl-2-256-cfg-1.0", "REPA-XL/2", 1.0, 1.0, {"fid": "5.90"}, SD_EMA, EMA, source=REPA_README),
    _repa("repa-e-sdvae-80-epochs", "REPA-XL/2", 2.2, 0.65, {"fid": "1.67"}, "E2E-SD-VAE f8d4", {}, source=REPA_E_README),
    _repa("repa-e-vavae", "REPA-XL/1", 2.5, 0.75, {"fid": "1.26"}, E2E, {}, source=REPA_E_README),
    _repa("repa-e-vavae-cfg-1.0", "REPA-XL/1", 1.0, 1.0, {"fid": "1.83"}, E2E, {}, source=REPA_E_README),
    _repa("repa-e-vavae-balanced", "REPA-XL/1", 2.4, 0.73, {"fid": "1.12"}, E2E, {}, **ANEW),
    _repa("repa-e-vavae-balanced-cfg-1.0", "REPA-XL/1", 1.0, 1.0, {"fid": "1.69"}, E2E, {}, **ANEW),
)


def _lightningdit(name: str, epochs: int, scale: float, high: float, fid: str) -> Row:
    guided = scale != 1.0
    return Row(
        name,
        "LightningDiT",
        Choices(
            "LightningDiT-XL/1, velocity",
            LINEAR,
            "250 places, 249 steps, shifted by 0.3 on its own clock, which begins at noise",
            "Euler",
            f"cfg {scale:g} on the first 3 of 32 channels, {high:g} and below" if guided else "none",
            "VA-VAE f16d32, latents by channel (latents_stats.pt)",
        ),
        {
            "model": "LightningDiT-XL/1",
            **OF_256,
            "cfg_channels": 3,
            "cfg_scale": scale,
            **({"guidance_interval": (0.0, high)} if guided else {}),
            "sampler": "euler",
            "num_sampling_steps": "250",
            "grid": "places,shift=1/0.3",
        },
        {"fid": fid},
        f"LightningDiT's README, {epochs} epochs, arXiv 2501.01423",
    )


LIGHTNINGDIT = (
    _lightningdit("lightningdit-xl-1-256-800-epochs", 800, 6.7, 0.875, "1.35"),
    _lightningdit("lightningdit-xl-1-256-800-epochs-cfg-1.0", 800, 1.0, 1.0, "2.17"),
    _lightningdit("lightningdit-xl-1-256-64-epochs", 64, 10.0, 0.9, "2.11"),
    _lightningdit("lightningdit-xl-1-256-64-epochs-cfg-1.0", 64, 1.0, 1.0, "5.14"),
)


def _jit(size: str, scale: float, fid: str) -> Row:
    return Row(
        f"jit-{size.lower()}-16-256",
        "JiT",
        Choices(
            f"JiT-{size}/16, the image, the first EMA (0.9999)",
            LINEAR,
            "50 steps",
            "Heun, the last step Euler; velocity (x - image) / max(t, 0.05)",
            f"cfg {scale:g} on all channels, below 0.9",
            "none: pixels",
        ),
        {
            "model": f"JiT-{size}/16",
            "vae": "pixels",
            "weights_key": "model_ema1",
            **OF_256,
            "cfg_channels": 3,
            "cfg_scale": scale,
            "guidance_interval": (0.0, 0.9),
            "guidance_ends": "open",
            "sampler": "flow-heun",
            "num_sampling_steps": "50",
            "grid": "steps",
        },
        {"fid": fid},
        "JiT's README, arXiv 2511.13720",
        labels=BALANCED,
        reference=JIT_256,
        rounding=HALF_EVEN,
        evaluator=BY_FIDELITY,
    )


JIT = (_jit("B", 3.0, "3.66"), _jit("L", 2.4, "2.36"), _jit("H", 2.2, "1.86"))


def _ddt(size: int, scale: float, fid: str) -> Row:
    return Row(
        f"ddt-xl-2-{size}",
        "DDT",
        Choices("DDT-XL/2, velocity", LINEAR, SDE_GRID, "Euler", f"cfg {scale:g} on all channels, below 0.7", SD_EMA),
        {
            "model": "DDT-XL/2",
            "vae": "ema",
            **(OF_256 if size == 256 else OF_512),
            "cfg_channels": 4,
            "cfg_scale": scale,
            "guidance_interval": (0.0, 0.7),
            "guidance_ends": "open",
            "sampler": "euler",
            "num_sampling_steps": "250",
            "grid": WITH_TAIL,
        },
        {"fid": fid},
        "DDT's README, arXiv 2504.05741",
        labels=BALANCED,
        **({} if size == 256 else {"reference": ADM_512}),
        notes=("its labels are 50 of each class, sorted, and its noise has no seed",),
    )


DDT = (_ddt(256, 2.0, "1.26"), _ddt(512, 3.0, "1.28"))


def _rae(name: str, scale: float, fid: str, guidance: str) -> Row:
    return Row(
        name,
        "RAE",
        Choices(
            "DiT^DH-XL, velocity",
            LINEAR,
            "50 places from 1 to 0.001, 49 steps, shifted by sqrt(48): they end at 0.0069",
            "Euler",
            guidance,
            "RAE's ViT decoder of DINOv2-B's features, latents by element (stat.pt)",
        ),
        {
            "model": "RAE-XL/1",
            **OF_256,
            "cfg_channels": 768,
            "cfg_scale": scale,
            "sampler": "euler",
            "num_sampling_steps": "50",
            "grid": "places,end=0.001,shift=sqrt(48)",
        },
        {"fid": fid},
        "RAE's abstract, arXiv 2510.11690",
        labels=BALANCED,
        rounding=TRUNCATE,
        notes=("float32 is advised",),
    )


RAE = (
    _rae("rae-xl-256-cfg-1.0", 1.0, "1.51", "none"),
    _rae(
        "rae-xl-256",
        1.42,
        "1.13",
        "away from DiT^DH-S of 14 epochs by 1.42, on all channels",
    ),
)


RAEV2 = (
    Row(
        "raev2-xl-256",
        "RAEv2",
        Choices(
            "DiT^DH 1440 wide with an inner head after block 8, the image",
            LINEAR,
            "100 steps, shifted by 8",
            "Euler; velocity (x - image) / max(t, 0.05)",
            "away from the inner head by 1.78, on all channels, 0.1 and above",
            "RAEv2's ViT decoder of the sum of 7 layers of DINOv3-L, latents by element (stats.pt)",
        ),
        {
            "model": "RAEv2-XL/1",
            **OF_256,
            "cfg_channels": 1024,
            "cfg_scale": 1.78,
            "guidance_by": "inner-head",
            "guidance_interval": (0.1, 1.0),
            "sampler": "euler",
            "num_sampling_steps": "100",
            "grid": "steps,shift=8",
        },
        {"fid": "1.06"},
        "RAEv2's abstract, arXiv 2605.18324; the choices are those of its repository's configuration for sampling",
        labels=BALANCED,
        reference=JIT_256,
        rounding=TRUNCATE,
        evaluator=BY_FIDELITY,
        notes=(
            "its own sampling is in bfloat16",
            "its labels are those of ImageNet's validation images, which are 50 of each class",
        ),
    ),
)


def _jump(family: str, model: str, steps: int, guidance: str, codec: str, own: Mapping[str, Any], fid: str, **more: Any) -> Row:
    name = f"{model.lower().replace('/', '-')}-256" + ("" if steps == 1 else f"-{steps}-steps")
    return Row(
        name,
        family,
        Choices(f"{model}, the average velocity", LINEAR, f"{steps} steps", "the jump of MeanFlow", guidance, codec),
        {"model": model, "vae": "mse", **OF_256, "sampler": "jump", "num_sampling_steps": str(steps), "grid": "steps", **own},
        {"fid": fid},
        evaluator=BY_JAX,
        **more,
    )


IMF_STATS = "mean=0.865:-0.278:0.216:0.374,std=4.855:5.319:3.937:3.987"
IMF_CODEC = "sd-vae-ft-mse, latents by channel"
IMF_NOTE = "the statistics of the latents are iMF's to three decimals"


def _imf(size: str, steps: int, omega: float, low: float, high: float, fid: str) -> Row:
    own = {"cfg_channels": 4, "cfg_scale": omega, "guidance_interval": (low, high), "latent_stats": IMF_STATS}
    told = f"told to the network: {omega:g} from {low:g} to {high:g}"
    of = {"source": "iMF's README", "labels": BALANCED, "reference": "imf-imagenet-256", "notes": (IMF_NOTE,)}
    return _jump("iMF", f"iMF-{size}/2", steps, told, IMF_CODEC, own, fid, **of)


MEANFLOW = (
    _jump(
        "MeanFlow",
        "MeanFlow-XL/2",
        1,
        "trained into the weights",
        SD_MSE,
        {"cfg_channels": 4, "cfg_scale": 1.0},
        "3.43",
        source="MeanFlow's README, arXiv 2505.13447",
        reference="MeanFlow's own statistics of ImageNet",
    ),
)
IMF = (
    _imf("B", 1, 8.0, 0.4, 0.65, "3.39"),
    _imf("L", 1, 10.5, 0.4, 0.6, "1.86"),
    _imf("XL", 1, 8.0, 0.42, 0.62, "1.72"),
    _imf("XL", 2, 4.0, 0.36, 0.64, "1.54"),
)
FLOWS = (*SIT, *REPA, *LIGHTNINGDIT, *JIT, *DDT, *RAE, *RAEV2, *MEANFLOW, *IMF)
