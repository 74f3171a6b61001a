"""The check of a run's numerics before anything is drawn: on rank 0 against fp32, once a kind of device, network and block; then
every rank's fp32 against rank 0's, which names a device that multiplies wrongly.
"""

import base64
import hashlib
import json
import platform
import socket
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from types import MappingProxyType
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from fiducial import (
    Group,
    Stopped,
    UserError,
    about,
    default_cache,
    life,
    make_folder,
    one_line,
    read_json,
    say,
    warn,
    write_whole,
)
from fiducial.cache import VERIFIED
from fiducial.devices import driver_version
from fiducial.diffusion.samplers import SAMPLERS
from fiducial.models.networks.dit import DiT
from fiducial.precision import TF32_OVERRIDE, tf32_is_forced
from fiducial.sampling import memory
from fiducial.sampling.noise import NoiseStream
from fiducial.sampling.source import verification
from fiducial.sampling.source.failures import is_out_of_memory
from fiducial.sampling.source.latent_diffusion import LatentDiffusion
from fiducial.sampling.source.numerics import Numerics, cpu_flags
from fiducial.sampling.source.protocol import Unfit
from fiducial.sampling.source.verification import BOUNDS, IMAGES, RANKS_AGREE, WHOLE, Errors, Expected

NEAR_IMAGE = 0.02  # a time
FEW = 5  # steps, for inputs as they come while drawing
WHOLE_FROM = 500  # images to be drawn, for a block of which it pays to be drawn whole first
LARGEST = 1 << 20  # bytes of a verdict
EITHER_WAY = ("labels", "global_seed")  # of a run's identity, a verdict holds
TOLD_BYTES = 1 << 21  # of one evaluation, unless one image has more; the store takes about 8 MiB a value
Evaluations = list[tuple[Tensor, float, Tensor]]
Found = TypeVar("Found")


class FirstImages:
    """A `verification.Drawing` of the first images of a run.

    Args:
        count: how many are drawn at once.
        network: the one that draws.
        decode: latents (n, C, h, w) to images (m, H, W, 3) uint8, m >= n, of the same over and over.
    """

    def __init__(self, source: LatentDiffusion, count: int, network: DiT, decode: Callable[[Tensor], Tensor]):
        self._source, self._piece, self._network, self._decode = source, range(count), network, decode
        self._predict = source.guided(self._piece, network)

    def few_steps(self, look: Callable[[Tensor, float, Tensor], object]) -> Tensor:
        source, config = self._source, self._source.config
        own = SAMPLERS[config.sampler]
        sampler, options = (SAMPLERS[own.checked_by], {}) if own.checked_by else (own, config.sampler_options())
        # places may be one more than steps
        grids = (source.flow.grid(config, source.device, str(count), sampler) for count in (FEW, FEW + 1))
        grid = next(grid for grid in grids if len(grid) >= FEW)

        def model(x: Tensor, t: float, **beside: float) -> Tensor:
            life.sign()
            out = self._predict(x, t, **beside)
            look(x, t, out)
            return out

        draws = sampler.noises(len(grid), **options)
        with (
            NoiseStream(config.global_seed, [self._piece], source.shape, draws, source.device) as noise,
            source.networks.at_work(self._network, "model"),
        ):
            latents = source.flow.draw(model, sampler, grid, noise, **options)
            model(latents, NEAR_IMAGE)  # where the last step of some samplers is still far from it
            return latents

    def evaluate(self, x: Tensor, t: float) -> Tensor:
        life.sign()
        with self._source.networks.at_work(self._network, "model"):
            return self._predict(repeated(x, len(self._piece)), t)

    def latents(self) -> Tensor:
        with self._source.networks.at_work(self._network, "model"):
            return self._source.latents(self._piece, life.sign, self._network)

    def decode(self, latents: Tensor) -> Tensor:
        return self._decode(latents)


class Check:
    """The check of one run of this identity. `group` are its ranks."""

    def __init__(self, group: Group, identity: Mapping[str, object] = MappingProxyType({})):
        self._group, self._identity = group, identity
        self._expected: Evaluations | None = None  # of rank 0's reference, where other ranks will ask for them

    def on_main(self, source: LatentDiffusion, missing: int) -> None:
        """Verify a source that is loaded on rank 0, and say what was found.

        Args:
            missing: images that are to be drawn.

        Raises:
            Unfit: if it does not draw as fp32 does.
            UserError: if there is no fp32 here.
        """
        config, how = source.config, source.how
        if config.check == "off" or config.exact or (how.precision == "fp32" and not how.compile):
            return
        if tf32_is_forced(source.device):
            raise UserError(
                f"{TF32_OVERRIDE}=1 leaves no float32 to verify {in_words(how)} against; unset it, or give --check off"
            )
        whole = (config.check == "full" or missing >= WHOLE_FROM) and not SAMPLERS[config.sampler].is_joint
        verdict = None if config.check == "full" else recalled(verdict_path(source, self._identity), whole)
        if found := verdict:
            said = "found before on this device"
        else:
            began = time.monotonic()
            expected = fitting(source, lambda count: expect(source, whole, count))
            seconds = time.monotonic() - began
            if expected is None:
                return
            if self._group.world_size > 1:
                self._expected = expected.evaluations
            with source.compiling():
                found, how = errors_of(source, expected), source.how
            said = f"{seconds + found.seconds:.1f} s"
        if reason := found.why_not(BOUNDS[how.precision]):
            raise unfit(how, f"{reason} ({said})", "not verified", **record(how, found))
        if verdict is None:
            keep(verdict_path(source, self._identity), whole, found)
        source.networks.note(event="verified", **record(how, found))
        say(f"verified {in_words(how)} against fp32: {found.line()} ({said})")

    def on_all(self, source: LatentDiffusion, is_loaded: bool) -> None:
        """On every rank: compare this rank's fp32 with rank 0's.

        Args:
            is_loaded: this rank has blocks to draw.

        Raises:
            UserError: if it makes something else of the same inputs.
        """
        group = self._group
        if group.world_size == 1 or source.config.check == "off":
            return
        if group.is_main and self._expected is None and is_loaded:
            self._expected = fitting(source, lambda count: evaluations(source, count))
        count = group.once(lambda: len(self._expected or ()))
        given = [group.once(lambda place=place: told(*self._expected[place])) for place in range(count)]
        self._expected = None
        if not given or group.is_main or not is_loaded:
            return
        if tf32_is_forced(source.device):
            raise UserError(
                f"{TF32_OVERRIDE}=1 in the environment of rank {group.rank} on {socket.gethostname()} leaves no float32 to "
                "compare with rank 0's; unset it, or give --check off"
            )
        expected = [(unpacked(x), t, unpacked(out)) for x, t, out in given]
        worst = fitting(source, lambda count: apart(source, expected, count))
        if worst is not None and not worst <= RANKS_AGREE:
            raise UserError(
                f"{device_name(source.device)} of rank {group.rank} on {socket.gethostname()} does not multiply as rank 0's: the "
                f"network's output in fp32 is off by {worst:.2g} for the same input ({RANKS_AGREE:g} is allowed); one of the two "
                "is damaged or of another kind; leave it out, or give --check off"
            )


@contextmanager
def reference_of(source: LatentDiffusion, count: int = IMAGES) -> Iterator[FirstImages]:
    """The reference, drawing so many images, or a block if that is fewer; it is loaded, and let go unless it was there."""
    with source.networks.reference() as network:
        decode = source.networks.decode_in_fp32
        yield FirstImages(source, min(count, source.pieces.batch), network, lambda latents: decode(latents)[0].cpu())


def fitting(source: LatentDiffusion, work: Callable[[int], Found]) -> Found | None:
    """The result of `work` of the reference, for as many images as memory does for; warns and gives None if it does not do for
    one, as the run itself takes less."""
    for count in (IMAGES, 1):
        try:
            return work(count)
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            reason = f"memory does not do for fp32 beside it ({one_line(error)})"
        memory.release(source.device)
    source.networks.note(event="not verified", reason=reason, numerics=asdict(source.how))
    warn(f"warning: {in_words(source.how)} is not verified: {reason}; --check off says that this is known")
    return None


def expect(source: LatentDiffusion, whole: bool, count: int = IMAGES) -> Expected:
    """The first images of the run as the reference draws them, at most `count`."""
    with reference_of(source, count) as few, reference_of(source, min(count, WHOLE)) as some:
        return Expected.by(few, some if whole else None)


def evaluations(source: LatentDiffusion, count: int) -> Evaluations:
    """The reference's evaluations for the first images, at most `count`."""
    with reference_of(source, count) as reference:
        return verification.evaluated(reference)[0]


@torch.inference_mode()
def apart(source: LatentDiffusion, expected: Evaluations, count: int) -> float:
    """The largest relative error of this rank's reference for evaluations of rank 0's, at most `count` images at once."""
    found = []
    with reference_of(source, count) as by, verification.as_reference():
        for x, t, right in expected:
            out = by.evaluate(x[:count].to(source.device), t).cpu()
            found.append(verification.relative(out, right[: len(out)]))
    return verification.worst(found)


def repeated(x: Tensor, count: int) -> Tensor:
    """The first `count` of the rows of x, over and over."""
    return x.repeat(-(-count // len(x)), *[1] * (x.dim() - 1))[:count]


def decoder_of(source: LatentDiffusion) -> Callable[[Tensor], Tensor]:
    """The decoding of latents by a source that is loaded, as many at once as those of a block, on their stream."""
    networks, size = source.networks, min(source.pieces.decoded_at_once, source.pieces.batch)

    def decode(latents: Tensor) -> Tensor:
        while True:
            at_once = source.pieces.decoded_at_once
            found = source.pieces.decode(latents if source.how.vae_slicing else repeated(latents, size), networks.decode)
            if at_once == source.pieces.decoded_at_once:  # or its parts are of two sizes, and their last bits not the next call's
                return found

    return decode


def errors_of(source: LatentDiffusion, expected: Expected) -> Errors:
    """The errors of a source that is loaded, which is compiled for it; fewer images than a block where memory does not do for it.

    Raises:
        Unfit: if it cannot be compiled, and nobody has asked for that.
    """
    networks, size, twice = source.networks, source.pieces.batch, source.config.check == "full"
    try:
        source.warm_up()
    except (Stopped, UserError):
        raise
    except Exception as error:
        if not source.config.compile:
            raise unfit(source.how, f"torch.compile failed ({one_line(error)})", "not compiled") from None
        source.go_on_without(error)  # a person wants it compiled, and will be told; what draws in its place is verified
    while True:
        try:
            by = FirstImages(source, size, networks.network, decoder_of(source))
            return verification.compare(expected, by, expected.latents is not None, twice)
        except (Stopped, UserError):
            raise
        except Exception as error:  # such as a graph that cannot be recorded
            if not is_out_of_memory(error) or size == 1:
                raise unfit(source.how, f"it fails ({one_line(error)})", "not drawn with") from None
        size = -(-size // 2)
        memory.release(source.device)


def unfit(how: Numerics, reason: str, event: str, **figures: object) -> Unfit:
    return Unfit(f"{in_words(how)} is not drawn with here: {reason}", {"event": event, "reason": reason, **figures})


def in_words(how: Numerics) -> str:
    compiled = "compiled" if how.compile else "not compiled"
    return f"{how.precision}, {compiled}{', with CUDA graphs' if how.compile and how.cuda_tuning else ''}"


def record(how: Numerics, found: Errors) -> dict:
    """As it stands among a session's events."""
    return {"numerics": asdict(how), "errors": {name: value if value == value else None for name, value in asdict(found).items()}}


def told(x: Tensor, t: float, out: Tensor) -> list:
    """One evaluation for the other ranks, of as many images as the store takes in all."""
    rows = max(1, min(len(x), TOLD_BYTES // (4 * (x[0].numel() + out[0].numel()))))
    return [packed(x[:rows]), t, packed(out[:rows])]


def packed(values: Tensor) -> list:
    array = values.detach().cpu().float().contiguous().numpy()
    return [list(array.shape), base64.b64encode(array.tobytes()).decode()]


def unpacked(given: list) -> Tensor:
    shape, text = given
    return torch.from_numpy(np.frombuffer(base64.b64decode(text), dtype=np.float32).reshape(shape).copy())


def device_name(device: torch.device) -> str:
    return f"the GPU ({torch.cuda.get_device_name(device)})" if device.type == "cuda" else "the processor"


def verdict_path(source: LatentDiffusion, identity: Mapping[str, object]) -> Path:
    """The file of the verdict on a source, of a run of this identity, on this device."""
    config, device = source.config, source.device
    on = {"cpu": [platform.machine(), cpu_flags()], "torch": torch.__version__, "fiducial": about().get("version")}
    if device.type == "cuda":
        gpu = torch.cuda.get_device_properties(device)
        on |= {"gpu": [socket.gethostname(), gpu.name, str(getattr(gpu, "uuid", ""))]}
        on |= {"driver": driver_version(), "cudnn": torch.backends.cudnn.version()}
    about_run = {
        "run": {name: value for name, value in identity.items() if name not in EITHER_WAY},
        "offload": config.offload,
        "numerics": asdict(source.how),
        "bounds": asdict(BOUNDS[source.how.precision]),
    }
    key = hashlib.sha256(json.dumps(on | about_run, sort_keys=True).encode()).hexdigest()[:32]
    return default_cache() / VERIFIED / f"{key}.json"


def recalled(path: Path, whole: bool) -> Errors | None:
    """The errors that were found before, with those of a whole block if they are wanted."""
    with suppress(OSError, ValueError, TypeError, UserError):
        kept: Mapping = read_json(path, LARGEST)
        if kept["whole"] or not whole:
            return Errors(**kept["errors"])
    return None


def keep(path: Path, whole: bool, found: Errors) -> None:
    """Write a verdict down, where that can be."""
    with suppress(OSError, UserError):
        make_folder(path.parent)
        write_whole(path, lambda beside: beside.write_text(json.dumps({"whole": whole, "errors": asdict(found)})))
