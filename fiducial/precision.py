"""The precision of float32 products, by torch's `fp32_precision` switches.

Torch refuses to read its older switches (`allow_tf32`, `get_float32_matmul_precision`) once they and these disagree, so each
switch here is put back to exactly what it was. A switch that nobody has set follows those above it, and cannot be brought back to
that once it is set: so those above are set, and others only where they do not follow.
"""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch

from fiducial.console import UserError

TF32_OVERRIDE = "NVIDIA_TF32_OVERRIDE"  # in the environment; "1" and "0" go before every switch, in NVIDIA's own libraries
BACKENDS = torch.backends
GPU_SWITCHES = BACKENDS.cuda.matmul, BACKENDS.cudnn.conv, BACKENDS.cudnn.rnn
SWITCHES = *GPU_SWITCHES, BACKENDS.mkldnn.matmul, BACKENDS.mkldnn.conv  # a CPU may multiply float32 in bfloat16 as well
ABOVE = BACKENDS, BACKENDS.cudnn  # of all, and of those of a GPU; mkldnn's own sets that of all
UNSET = "none"


@contextmanager
def float32_products(tf32: bool) -> Iterator[None]:
    """Have float32 multiplied in TF32 on a GPU in here, or in IEEE float32 everywhere, whatever was set before; as before
    afterwards."""
    before = _own()
    _set(ABOVE, ["ieee", "tf32" if tf32 else UNSET])
    wanted = ["tf32" if tf32 and switch in GPU_SWITCHES else "ieee" for switch in SWITCHES]
    obstinate = [place for place, switch in enumerate(SWITCHES) if switch.fp32_precision != wanted[place]]
    try:
        _set([SWITCHES[place] for place in obstinate], [wanted[place] for place in obstinate])
        yield
    finally:
        _set([SWITCHES[place] for place in obstinate], [before[len(ABOVE) + place] for place in obstinate])
        _set(ABOVE, before[: len(ABOVE)])


def _own() -> list[str]:
    """The values of ABOVE and SWITCHES, of each without those above it."""
    found: list[str] = []
    for switch in ABOVE:
        found.append(switch.fp32_precision)
        switch.fp32_precision = UNSET
    found += [switch.fp32_precision for switch in SWITCHES]
    _set(ABOVE, found[: len(ABOVE)])
    return found


def _set(switches: Sequence, values: Sequence[str]) -> None:
    for switch, value in zip(switches, values, strict=True):
        switch.fp32_precision = value


@contextmanager
def plain_float32() -> Iterator[None]:
    """No TF32 in here, and no kernel that a race has chosen: a number must not depend on what else the process does, or on
    torch's defaults. Also a decorator."""
    before = BACKENDS.cudnn.benchmark
    try:
        BACKENDS.cudnn.benchmark = False
        with float32_products(tf32=False):
            yield
    finally:
        BACKENDS.cudnn.benchmark = before


def tf32_is_forced(device: torch.device) -> bool:
    """Whether the environment has float32 multiplied in TF32 on this device, whatever the switches say."""
    return device.type == "cuda" and os.environ.get(TF32_OVERRIDE) == "1"


def require_plain_float32(device: torch.device) -> None:
    """Raise UserError if the environment has float32 multiplied in TF32 on this device, whatever the switches say."""
    if tf32_is_forced(device):
        raise UserError(
            f"{TF32_OVERRIDE}=1 in the environment makes TF32 of every float32 product, which moves metrics; unset it"
        )
