"""Hardware and versions that a pixel's last bits depend on, beside a run's identity: those of each rank, and of each session.

Ranks are compared with rank 0, and rank 0 with the sessions that have drawn something. With `--exact` a difference is refused,
and without it another kind of GPU beside rank 0's.
"""

import os
import platform
import socket
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import torch

from fiducial import UserError, warn
from fiducial.precision import TF32_OVERRIDE
from fiducial.sampling.identity import Identity
from fiducial.sampling.source.numerics import cpu_flags
from fiducial.sampling.store.manifest import Manifest, Session

PACKAGES = ("torch", "diffusers", "numpy", "pillow", "safetensors")
CALCULATING = ("torch", "diffusers", "numpy")  # those of them that make pixels
LIBRARIES = {"cuda": "CUDA", "cudnn": "cuDNN"}
COUNTING = ("avx", "amx", "fma", "sse4", "f16c")  # beginnings of instructions that products and sums are made of
SHOWN = 100  # characters of a value in a message


def own(device: torch.device) -> dict:
    """The hardware and versions of this rank, as a `Session` has them, and its host; as JSON."""
    on_gpu = device.type == "cuda"
    return {
        "host": socket.gethostname(),
        "device": device_name(device),
        "packages": {name: version(name) for name in PACKAGES},
        "hardware": of_gpu(device) if on_gpu else {"instructions": instructions()},
    }


def device_name(device: torch.device) -> str:
    """The name of the GPU, or of the processor."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else cpu_name()


def of_gpu(device: torch.device) -> dict:
    found = {
        "cpu": cpu_name(),
        "capability": ".".join(map(str, torch.cuda.get_device_capability(device))),
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),
    }
    return found | ({"tf32_override": os.environ[TF32_OVERRIDE]} if os.environ.get(TF32_OVERRIDE) else {})


def cpu_name() -> str:
    """The processor's name where Linux tells it, else its architecture."""
    try:
        names = (
            line.partition(":")[2].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line
        )
        return next(names, platform.machine())
    except OSError:
        return platform.machine()


def instructions() -> str:
    """The vector instructions that the processor has, or the kind of them that torch uses."""
    return " ".join(sorted(flag for flag in cpu_flags().split() if flag.startswith(COUNTING))) or (
        torch.backends.cpu.get_cpu_capability()
    )


@dataclass
class Ranks:
    """Hardware of all ranks; `mixed` is what differs among them, or from the sessions before, once they are compared."""

    told: Sequence[Mapping]  # by each rank, as `own` gives it
    allow_mixed: bool
    mixed: str | None = None

    def compare(self, identity: Identity, manifest: Manifest | None, folder: Path, images: int) -> None:
        """Compare before anything is drawn; once.

        Args:
            images: that are there.

        Raises:
            UserError: if images would have other bytes than `--exact` promises, or a rank has another kind of GPU than rank 0,
                unless that is allowed.
        """
        exact = bool(identity.values.get("exact"))
        self._require_float32(identity, exact)
        if self.mixed is not None:
            return
        of_ranks = self._of_ranks()
        found = [*of_ranks.values(), *self._of_sessions(manifest, folder, images)]
        self.mixed = "; ".join(found)
        if not found or self.allow_mixed:
            return
        more = f" (and {len(found) - 1} more such difference{'s' * (len(found) > 2)})" if found[1:] else ""
        if exact:
            raise UserError(
                f"--exact: {found[0]}{more}, which need not give the same bytes; make them alike, or give --allow-mixed"
            )
        foreign = [said for rank, said in of_ranks.items() if self._has_other_gpu(rank)]
        if foreign:
            raise UserError(
                f"{foreign[0]}, which draws other pixels and at another speed; give one kind of GPU to all, or --allow-mixed"
            )
        warn(f"warning: {found[0]}{more}, so pixels may differ in the last bits; --allow-mixed says that this is known")

    def _require_float32(self, identity: Identity, exact: bool) -> None:
        for rank, told in enumerate(self.told):
            if told["hardware"].get("tf32_override") == "1" and (exact or identity.values.get("precision") == "fp32"):
                option = "--exact" if exact else "--precision fp32"
                raise UserError(
                    f"{TF32_OVERRIDE}=1 in the environment of rank {rank} on {told['host']} makes TF32 of every float32 product, "
                    f"which {option} excludes; unset it"
                )

    def _has_other_gpu(self, rank: int) -> bool:
        own, first = self.told[rank], self.told[0]
        return own["device"] != first["device"] and "capability" in own["hardware"]

    def _of_ranks(self) -> dict[int, str]:
        """The ranks that differ from rank 0, with what is said of it."""
        first = self.told[0]
        found = ((rank, told, *differing(facts(told), facts(first))) for rank, told in enumerate(self.told))
        return {
            rank: f"rank {rank} on {told['host']} has {here}, and rank 0 on {first['host']} {there}"
            for rank, told, here, there in found
            if here
        }

    def _of_sessions(self, manifest: Manifest | None, folder: Path, images: int) -> list[str]:
        known, found = set(), []
        for number, session in fruitful(manifest.sessions if manifest else [], images):
            there, here = differing(facts(vars(session)), facts(self.told[0]))
            if there and there not in known:
                found.append(f"session {number} of {folder} had {there}, and this one has {here}")
            known.add(there)
        return found


def facts(told: Mapping) -> dict[str, str]:
    """The facts that are compared, by name: of a rank, or of a session, of which older ones tell less."""
    packages, hardware = told["packages"] or {}, told["hardware"] or {}
    found = {"device": told["device"], "instructions": hardware.get("instructions")}
    found |= {name: packages.get(name) for name in CALCULATING}
    found |= {word: hardware.get(name) for name, word in LIBRARIES.items()}
    return {name: str(value) for name, value in found.items() if value is not None}


def differing(one: Mapping[str, str], other: Mapping[str, str]) -> tuple[str, str]:
    """The facts of both that differ, each side's in words; empty where none does."""
    names = [name for name in one if name in other and one[name] != other[name]]
    if {"device", "instructions"}.issubset(names):
        names.remove("instructions")  # which follow from the processor
    return tuple(", ".join(_in_words(name, *pair) for name in names) for pair in ((one, other), (other, one)))


def _in_words(name: str, own: Mapping[str, str], other: Mapping[str, str]) -> str:
    if name == "instructions":
        mine, others = (set(side[name].split()) for side in (own, other))
        beyond = " ".join(sorted(mine - others) or sorted(others - mine))
        return f"{'' if mine - others else 'not '}the instructions {beyond[:SHOWN]}"
    return own[name][:SHOWN] if name == "device" else f"{name} {own[name][:SHOWN]}"


def fruitful(sessions: Sequence[Session], images: int) -> list[tuple[int, Session]]:
    """The sessions that have drawn something, and their numbers from 1; `images` are there now."""
    after = [session.images_before for session in sessions[1:]] + [images]
    return [
        (number, session)
        for number, (session, then) in enumerate(zip(sessions, after, strict=False), start=1)
        if session.images_drawn or then > session.images_before
    ]
