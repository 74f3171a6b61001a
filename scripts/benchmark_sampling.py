"""Benchmarks of drawing for scripts/benchmark.py: ours as it comes, ours --exact, and diffusers, all with random weights.

Compilation and loading are left out of `seconds`; what they take stands beside.
"""

import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

if TYPE_CHECKING:
    from diffusers import AutoencoderKL, DiTTransformer2DModel

    from fiducial.sampling.source.latent_diffusion import LatentDiffusion

from fiducial import UserError

ROOT = Path(__file__).resolve().parent.parent
CFG_SCALE = 1.5
CLASSES = 1000
LATENT = 4  # channels of the VAE
FACTOR = 8  # pixels a latent pixel of the VAE
SHAPES = {"LightningDiT": (32, 16), "JiT": (3, 1)}  # the same of the families whose latents are others
STEPS_TIMED = 7  # evaluations of the network, after one that warms up
MATRIX = 2048  # whose product is the ceiling on a CPU; on a GPU four times as wide
BLOCKS = 2  # drawn one after the other, so that PNGs of one are written beside the next
LATENT_STEPS = 50  # after which latents are compared
DIGITS = 1000  # images that FID-digits is of
SEEDS = range(5)
SAMPLERS = ("ddpm", "ddim", "dpm-solver++", "unipc", "heun")
STEP_COUNTS = (250, 50, 20, 10)
OFF_PLAIN = {torch.float32: 1e-4, torch.bfloat16: 0.5}  # of a step relative to that in fp32; more is another network
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


@dataclass(frozen=True)
class Drawing:
    """A network and how many images it draws at once; `folder` holds what `write_networks` left."""

    folder: Path
    model: str
    images: int
    steps: int
    device: str
    image_size: int = 256
    options: tuple[str, ...] = ()  # for Fiducial as it comes

    @property
    def side(self) -> int:
        """Height and width of a latent."""
        return self.image_size // self._shape[1]

    @property
    def channels(self) -> int:
        """Of a latent."""
        return self._shape[0]

    @property
    def _shape(self) -> tuple[int, int]:
        return SHAPES.get(self.model.partition("-")[0], (LATENT, FACTOR))

    def build(self) -> "torch.nn.Module":
        """The network, as it comes."""
        from fiducial.models.networks.table import spec_of

        return spec_of(self.model).build[self.model](input_size=self.side, in_channels=self.channels, num_classes=CLASSES)

    def noise(self) -> torch.Tensor:
        """Latents (N, C, H, W) of so many images."""
        return torch.randn(self.images, self.channels, self.side, self.side, device=self.place)

    @property
    def place(self) -> torch.device:
        return torch.device(self.device)


def check(work: Drawing, only: Iterable[str]) -> None:
    """Raise UserError for a network that there is not or that one of these benchmarks has no peer of, a GPU that is not here, or
    options that sample_ddp.py does not take."""
    import sample_ddp
    from fiducial.models import DiT_models
    from fiducial.models.networks.table import models
    from scripts.plain_networks import of_model

    known = [name for name in models() if of_model(name)] if set(only) == {"plain"} else DiT_models
    if work.model not in known:
        raise UserError(f"--model {work.model}: no such model; choose from {', '.join(known)}")
    if work.image_size % (multiple := work.image_size // work.side * int(work.model.rpartition("/")[2])):
        raise UserError(f"--image-size {work.image_size}: must be a multiple of {multiple} for {work.model}")
    if work.device == "cuda" and not torch.cuda.is_available():
        raise UserError("--device cuda: no GPU can be seen here; use --device cpu")
    sample_ddp.parse(arguments(work, *work.options))


def write_networks(folder: Path, model: str, image_size: int) -> None:
    """A network and a VAE of Stable Diffusion's shape, random, in the files that sample_ddp.py takes."""
    from safetensors.torch import save_file

    torch.manual_seed(0)
    network = Drawing(folder, model, 1, 1, "cpu", image_size).build()
    fixed = {"pos_embed": network.pos_embed.data} | dict(network.named_buffers())
    state = {name: 0.05 * torch.randn_like(value) for name, value in network.state_dict().items() if name not in fixed}
    state |= {
        name: 1 + value
        for name, value in state.items()
        if name.rpartition(".")[0].endswith(("norm", "norm1", "norm2", "norm_final"))
    }
    save_file(state | fixed, folder / "dit.safetensors")
    make_vae().save_pretrained(folder / "vae")


def make_vae() -> "AutoencoderKL":
    from diffusers import AutoencoderKL

    blocks = {"down_block_types": ("DownEncoderBlock2D",) * 4, "up_block_types": ("UpDecoderBlock2D",) * 4}
    return AutoencoderKL(
        **blocks, block_out_channels=(128, 256, 512, 512), layers_per_block=2, latent_channels=LATENT, sample_size=256
    )


def arguments(work: Drawing, *options: str) -> list[str]:
    """Of sample_ddp.py."""
    from fiducial.models.networks.table import spec_of

    files = ["--ckpt", work.folder / "dit.safetensors", "--vae", work.folder / "vae"]
    files += ["--model", work.model, "--image-size", work.image_size, "--num-classes", CLASSES]  # there may be no files yet
    sizes = ["--per-proc-batch-size", work.images, "--num-sampling-steps", work.steps]
    sampler = "ddim" if (spec := spec_of(work.model)).needs_variance else spec.sampler
    return [str(part) for part in (*files, *sizes, "--sampler", sampler, "--device", work.device, "--no-probe", *options)]


@contextmanager
def ours(work: Drawing, *options: str) -> Iterator["LatentDiffusion"]:
    """Fiducial's own networks, loaded and compiled as a run with these options, or those of `work`, has them; in here torch's
    switches are as there."""
    import sample_ddp
    from fiducial.models.decoders.autoencoder import Autoencoder
    from fiducial.models.latent import LatentShape
    from fiducial.sampling.source import numerics
    from fiducial.sampling.source.latent_diffusion import LatentDiffusion
    from fiducial.sampling.source.networks import Networks

    config, _ = sample_ddp.parse(arguments(work, *(options or work.options)))
    numerics.ready_torch()
    how = numerics.choices(config, work.place)[0]
    networks = Networks(config, work.place, how, LatentShape(work.channels, work.side), lambda: Autoencoder(work.folder / "vae"))
    drawer = LatentDiffusion(networks)
    with drawer.switched():
        drawer.load()
        yield drawer


def finish(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def timed(step: Callable[[], object], device: torch.device, times: int = STEPS_TIMED) -> float:
    """Median seconds of a call, after one that warms up."""
    step()
    found = []
    for _ in range(times):
        finish(device)
        started = time.perf_counter()
        step()
        finish(device)
        found.append(time.perf_counter() - started)
    return statistics.median(found)


def ceiling(dtype: torch.dtype, device: torch.device) -> float:
    """Floating-point operations a second of one large matrix product."""
    width = MATRIX if device.type == "cpu" else 4 * MATRIX
    a, b = (torch.randn(width, width, device=device, dtype=dtype) for _ in range(2))
    return 2 * width**3 / min(timed(lambda: a @ b, device) for _ in range(3))


def operations(work: Drawing) -> float:
    """Floating-point operations of one guided evaluation of the network, multiplications and additions counted each."""
    from torch.utils.flop_counter import FlopCounterMode

    rows = 2 * work.images
    with torch.device("meta"), FlopCounterMode(display=False) as counter, torch.no_grad():
        network, x = work.build().to("meta"), torch.zeros(rows, work.channels, work.side, work.side)
        network(x, torch.zeros(rows), torch.zeros(rows, dtype=torch.int64))
    return counter.get_total_flops()


def share_of_ceiling(seconds: float, dtype: torch.dtype, work: Drawing) -> dict[str, float]:
    """Speed, and what part it is of a matrix product's by as many threads: `--exact` takes one."""
    speed, most = operations(work) / seconds, ceiling(dtype, work.place)
    return {"seconds": seconds, "TFLOP/s": speed / 1e12, "of ceiling": speed / most}


def denoise_ours(work: Drawing, *options: str) -> dict[str, float]:
    started = time.perf_counter()
    x = work.noise()
    with ours(work, *options) as drawer, torch.inference_mode():
        loading = time.perf_counter() - started
        guided = drawer.guided(range(work.images))
        seconds = timed(lambda: guided(x, 0.5), work.place)
    return share_of_ceiling(seconds, drawer.how.dtype, work) | {"loading": loading}


def step_ours(work: Drawing, *options: str) -> dict[str, float]:
    """As `denoise_ours`, and how far the step is from that of the plain writing, relative to its size."""
    x = work.noise()
    with ours(work, *options) as drawer, torch.inference_mode():
        guided, plain = drawer.guided(range(work.images)), plain_step(work, drawer, "fp32")
        found = share_of_ceiling(timed(lambda: guided(x, 0.5), work.place), drawer.how.dtype, work)
        return found | {"off the plain": off_plain(guided(x, 0.5), plain(x), drawer.how.dtype)}


def step_plainly(work: Drawing, precision: str) -> dict[str, float]:
    """The plain writing, in fp32 or with all weights in bfloat16, guided as a loop of a sampling script does it."""
    x = work.noise()
    with ours(work, "--precision", "fp32", "--no-compile") as drawer, torch.inference_mode():
        expected = drawer.guided(range(work.images))(x, 0.5)
        step = plain_step(work, drawer, precision)
    with torch.inference_mode():
        found = share_of_ceiling(timed(lambda: step(x), work.place), DTYPES[precision], work)
        return found | {"off the plain": off_plain(step(x), expected, DTYPES[precision])}


def off_plain(found: torch.Tensor, expected: torch.Tensor, dtype: torch.dtype) -> float:
    """The norm of the difference by that of what is expected.

    Raises:
        UserError: if it is so large that they are not the same network.
    """
    off = ((found - expected).norm() / expected.norm()).item()
    if not off < OFF_PLAIN[dtype]:
        raise UserError(f"the plain writing computes otherwise than Fiducial does: off by {off:.2g}")
    return off


def plain_step(work: Drawing, drawer: "LatentDiffusion", precision: str) -> Callable[[torch.Tensor], torch.Tensor]:
    """One guided evaluation by the plain writing for the same labels and weights, at t = 0.5: x (N, C, H, W) -> as ours."""
    from safetensors.torch import load_file

    from fiducial.models.networks.table import spec_of
    from fiducial.sampling import plan
    from scripts.plain_networks import of_model

    config, spec, network, dtype = drawer.config, spec_of(work.model), of_model(work.model), DTYPES[precision]
    state = {name: value.to(work.place, dtype) for name, value in load_file(work.folder / "dit.safetensors").items()}
    labels = plan.labels(config.labels, CLASSES, config.global_seed, 0, work.images)
    y = torch.cat([torch.from_numpy(labels), torch.full((work.images,), CLASSES)]).to(work.place)
    t = torch.full((len(y),), spec.clock(0.5), device=work.place)
    sign = -1 if spec.predicts == "velocity" and spec.clock(1.0) < spec.clock(0.0) else 1
    channels, scale = drawer.guidance.channels, drawer.guidance.scale

    def step(x: torch.Tensor) -> torch.Tensor:
        out = sign * network(state, torch.cat([x, x]).to(dtype), t, y).float()
        conditional, unconditional = out.chunk(2)
        guided = unconditional + scale * (conditional - unconditional)
        return guided if channels is None else torch.cat([guided[:, :channels], conditional[:, channels:]], dim=1)

    return lambda x: step(x) if spec.predicts == "noise" else step(x)[:, : work.channels]


def their_network(work: Drawing, precision: str) -> "DiTTransformer2DModel":
    from diffusers import DiTTransformer2DModel

    from fiducial.models.networks.dit import DIT_SIZES

    size, patch = work.model.removeprefix("DiT-").split("/")
    hidden, depth, heads = DIT_SIZES[size]
    network = DiTTransformer2DModel(
        **{"num_attention_heads": heads, "attention_head_dim": hidden // heads, "num_layers": depth, "sample_size": work.side},
        **{"patch_size": int(patch), "out_channels": 2 * LATENT},
    )
    return network.to(work.place, DTYPES[precision]).eval().requires_grad_(False)


def compile_theirs(network: "DiTTransformer2DModel") -> None:
    """As ours is."""
    import torch._inductor.config

    torch._inductor.config.freezing = network.device.type == "cpu"
    network.compile(dynamic=False)


def denoise_theirs(work: Drawing, precision: str, compiled: bool = False) -> dict[str, float]:
    """As DiTPipeline calls its network, guidance around it."""
    started = time.perf_counter()
    network, dtype = their_network(work, precision), DTYPES[precision]
    if compiled:
        compile_theirs(network)
    x = torch.randn(2 * work.images, LATENT, work.side, work.side, device=work.place, dtype=dtype)
    t, y = torch.full((2 * work.images,), 500, device=work.place), torch.arange(2 * work.images, device=work.place)

    def step() -> torch.Tensor:
        noise = network(x, timestep=t, class_labels=y).sample[:, :LATENT]
        conditional, unconditional = noise.chunk(2)
        return unconditional + CFG_SCALE * (conditional - unconditional)

    with torch.inference_mode():
        step()
        loading = time.perf_counter() - started
        return share_of_ceiling(timed(step, work.place), dtype, work) | {"loading": loading}


def decode_ours(work: Drawing, *options: str) -> dict[str, float]:
    x = torch.randn(work.images, LATENT, work.side, work.side, device=work.place)
    with ours(work, "--no-compile", *options) as drawer, torch.inference_mode():
        return {"seconds": timed(lambda: drawer.networks.decode(x), work.place, 2)}


def decode_theirs(work: Drawing, precision: str) -> dict[str, float]:
    dtype = DTYPES[precision]
    vae = make_vae().to(work.place, dtype).eval().requires_grad_(False)
    x = torch.randn(work.images, LATENT, work.side, work.side, device=work.place, dtype=dtype)
    with torch.inference_mode():
        return {"seconds": timed(lambda: vae.decode(x).sample, work.place, 2)}


def pipeline_ours(work: Drawing, *options: str, with_png: bool = True) -> dict[str, float]:
    """Blocks from noise to pixels, and with `with_png` into the npz and PNGs, as a run writes them; the time of one."""
    from fiducial.sampling.identity import Identity
    from fiducial.sampling.run import trunk
    from fiducial.sampling.run.image_files import ImageFiles
    from fiducial.sampling.run.sinks import RunFolder
    from fiducial.sampling.store import npz as archive
    from fiducial.sampling.store.task import Task

    started = time.perf_counter()
    with ours(work, *options) as drawer:
        loading = time.perf_counter() - started
        run = work.folder / f"run-{os.getpid()}"
        run.mkdir()
        part, count = archive.part_path(run), BLOCKS * work.images
        part.touch()
        os.truncate(part, archive.slot(count, work.image_size))
        list(drawer.blocks([0], count, lambda: None))
        started = time.perf_counter()
        if with_png:
            import fiducial

            identity = Identity(drawer.config.identity())
            task, group = Task(run, 1, "", identity, np.zeros(count, dtype=bool), npz=part), fiducial.init(work.device)
            sink = ImageFiles()
            sink.open(place := RunFolder(task, group, None, 0.0), group)
            trunk.draw(task.plan, drawer, sink, place, task.plan.starts(task.done), ~task.done, lambda _: None)
        else:
            for _ in drawer.blocks(range(0, count, work.images), count, lambda: None):
                pass
        return per_block((time.perf_counter() - started) / BLOCKS, loading, work)


def pipeline_theirs(work: Drawing, precision: str, compiled: bool = False) -> dict[str, float]:
    """diffusers' DiTPipeline, from noise to PIL images."""
    from diffusers import DDIMScheduler, DiTPipeline

    from fiducial.models.decoders.autoencoder import LATENT_SCALE

    started = time.perf_counter()
    vae = make_vae().to(work.place, DTYPES[precision]).eval().requires_grad_(False)
    vae.register_to_config(scaling_factor=LATENT_SCALE)
    network = their_network(work, precision)
    if compiled:
        compile_theirs(network)
        vae.to(memory_format=torch.channels_last)
    pipeline = DiTPipeline(network, vae, DDIMScheduler(clip_sample=False))
    pipeline.set_progress_bar_config(disable=True)
    draw = partial(pipeline, list(range(work.images)), guidance_scale=CFG_SCALE)
    draw(num_inference_steps=1)
    loading = time.perf_counter() - started
    started = time.perf_counter()
    draw(num_inference_steps=work.steps)
    return per_block(time.perf_counter() - started, loading, work)


def per_block(seconds: float, loading: float, work: Drawing) -> dict[str, float]:
    from fiducial.sampling import memory

    hours = seconds / work.images * 50_000 / 3600
    return {"seconds": seconds, "loading": loading, "hours to 50,000": hours, "peak GB": memory.peak(work.place) / 1e9}


def ranks(work: Drawing, count: int) -> dict[str, float]:
    """Seconds of drawing by so many ranks of one thread each, without their start: images are the digits'."""
    images = 200 * work.images
    options = ["--preset", "digits", "--num-fid-samples", images, "--per-proc-batch-size", 20, "--sample-dir", work.folder]
    if work.device == "cuda" and torch.cuda.device_count() < count:
        raise UserError(f"{count} ranks need {count} GPUs")
    manifest = draw_digits(work, f"{count}-ranks", *options, ranks=count)
    return {"seconds": manifest["sessions"][-1]["seconds"], "images/s": images / manifest["sessions"][-1]["seconds"]}


def draw_digits(work: Drawing, name: str, *options: object, ranks: int = 1) -> dict:
    """A run of digits of the command line's; returns its manifest."""
    name = f"{name}-{os.getpid()}"
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={ranks}"]
    command = [*torchrun, "sample_ddp.py", *map(str, options), "--run-name", name, "--device", work.device]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=environment)
    if done.returncode:
        said = next((line for line in done.stderr.splitlines() if line.startswith("error")), done.stderr[-300:])
        raise UserError(said.removeprefix("error: "))
    return json.loads((work.folder / name / "manifest.json").read_text())


def fid_digits(work: Drawing, *options: object) -> dict[str, float]:
    """FID-digits of 1,000 digits, and what drawing them took on two ranks of one thread each, or one if there is but one GPU."""
    given = ["--preset", "digits", "--num-fid-samples", DIGITS, "--sample-dir", work.folder, "--ref", "digits", *options]
    manifest = draw_digits(work, "digits", *given, ranks=min(2, torch.cuda.device_count()) if work.device == "cuda" else 2)
    result = next(path for path in work.folder.glob(f"digits-{os.getpid()}.json"))
    found = json.loads(result.read_text())["metrics"]["fid-digits"]["value"]
    return {"seconds": manifest["sessions"][-1]["seconds"], "FID-digits": found}


def latents(work: Drawing, *options: str) -> dict[str, float]:
    """How far latents are from those in fp32, not compiled, after 50 DDIM steps, relative to their size."""
    work = replace(work, steps=LATENT_STEPS)
    with ours(work, *options) as drawer:
        started = time.perf_counter()
        drawn = drawer.latents(range(work.images), lambda: None)
        seconds = time.perf_counter() - started
    with ours(work, "--precision", "fp32", "--no-compile") as drawer:
        reference = drawer.latents(range(work.images), lambda: None)
    return {"seconds": seconds, "relative error": ((drawn - reference).norm() / reference.norm()).item()}
