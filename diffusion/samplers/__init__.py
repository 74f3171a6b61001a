"""Samplers: flat functions with one signature, from noise to latents, and a row of SAMPLERS for each.

Each takes `denoise`, which predicts image and noise at a place of its grid whatever the network puts out; x (N, C, H, W), pure
noise; its grid; and `noise`, an iterator of standard normal tensors. But for `dopri5` nothing in a step waits for the device.
Importing this needs no torch, so that options can be checked before it is loaded.
"""

from fiducial.diffusion.samplers.chain import (
    DDIM,
    DDPM,
    DPM_SOLVER,
    HEUN,
    UNIPC,
    sample_ddim,
    sample_ddpm,
    sample_dpm_solver,
    sample_heun,
    sample_unipc,
)
from fiducial.diffusion.samplers.dopri5 import DOPRI5, sample_dopri5
from fiducial.diffusion.samplers.dpm_solver import FLOW_DPM_SOLVER, sample_flow_dpm_solver
from fiducial.diffusion.samplers.euler import EULER, sample_euler
from fiducial.diffusion.samplers.euler_maruyama import EULER_MARUYAMA, SDE_HEUN, sample_euler_maruyama, sample_sde_heun
from fiducial.diffusion.samplers.heun import FLOW_HEUN, REPA_HEUN, sample_flow_heun, sample_repa_heun
from fiducial.diffusion.samplers.jump import JUMP, sample_jump
from fiducial.diffusion.samplers.row import Choice, Option, Sampler

SAMPLERS: dict[str, Sampler] = {
    "ddpm": DDPM,
    "ddim": DDIM,
    "dpm-solver++": DPM_SOLVER,
    "unipc": UNIPC,
    "heun": HEUN,
    "euler": EULER,
    "flow-heun": FLOW_HEUN,
    "repa-heun": REPA_HEUN,
    "euler-maruyama": EULER_MARUYAMA,
    "sde-heun": SDE_HEUN,
    "dopri5": DOPRI5,
    "flow-dpm-solver++": FLOW_DPM_SOLVER,
    "jump": JUMP,
}


def own_options() -> dict[str, Option | Choice]:
    """The options that single samplers take, by name."""
    return {name: option for row in SAMPLERS.values() for name, option in row.options.items()}


__all__ = [
    "SAMPLERS",
    "Choice",
    "Option",
    "Sampler",
    "own_options",
    "sample_ddim",
    "sample_ddpm",
    "sample_dopri5",
    "sample_dpm_solver",
    "sample_euler",
    "sample_euler_maruyama",
    "sample_flow_dpm_solver",
    "sample_flow_heun",
    "sample_heun",
    "sample_jump",
    "sample_repa_heun",
    "sample_sde_heun",
    "sample_unipc",
]
