"""The engine: rank 0 checks everything and writes the manifest, every rank draws its blocks, rank 0 packs the npz.

No collective is called. Ranks meet in the process group's store: rank 0 publishes what is to be done, each rank counts its
images there as they are written and leaves when its own share is done, and rank 0 waits for the count alone.
"""

import base64
import json
import os
import platform
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch

from diffusion.samplers import SAMPLERS, noise_draws
from diffusion.schedule import Schedule, spaced_timesteps
from distributed import Group, UserError, file_sha256, progress_bar
from models import autoencoder, checkpoint
from models.dit import DiT_models, guided_model
from sampling import output, plan
from sampling.config import SamplingConfig, fingerprint
from sampling.noise import NOISE_VERSION, NoiseStream, check_stream

PACKAGES = ("torch", "diffusers", "numpy", "pillow", "safetensors")
IMAGES_DRAWN = "images"  # the store's counter of images on disk
POLL_SECONDS = 0.2


@dataclass(frozen=True)
class Task:
    """What rank 0 found to be done, in the form in which it is published to every rank."""

    folder: Path
    input_size: int
    in_channels: int
    checkpoint_sha256: str
    vae_sha256: str
    done: np.ndarray  # (N,) bool

    def to_json(self) -> str:
        bits = base64.b64encode(np.packbits(self.done)).decode()
        return json.dumps(vars(self) | {"folder": str(self.folder), "count": len(self.done), "done": bits})

    @classmethod
    def from_json(cls, text: str) -> "Task":
        fields = json.loads(text)
        bits = np.frombuffer(base64.b64decode(fields["done"]), dtype=np.uint8)
        done = np.unpackbits(bits, count=fields["count"]).astype(bool)
        del fields["count"]
        return cls(**fields | {"folder": Path(fields["folder"]), "done": done})

    @property
    def missing(self) -> int:
        return int((~self.done).sum())


def run(config: SamplingConfig, group: Group) -> Path | None:
    """Draws what is missing of the run and packs it. Returns the npz on rank 0, None on the others, which do not wait for it.

    Raises:
        UserError: before any weights are loaded, if something given cannot be used.
    """
    check_stream()
    precision = set_precision(config, group.device)
    if group.is_main:
        task = prepare(config, group, precision)
        group.publish("task", task.to_json())
    else:
        task = Task.from_json(group.receive("task"))
    blocks = plan.share(plan.pending_blocks(task.done, config.per_proc_batch_size), group.rank, group.world_size)

    started = time.monotonic()
    with progress(task, group):
        if len(blocks):
            draw(config, group, task, blocks)
        if not group.is_main:
            return None
        while group.store.add(IMAGES_DRAWN, 0) < task.missing:
            time.sleep(POLL_SECONDS)
    return finish(config, task, time.monotonic() - started)


def set_precision(config: SamplingConfig, device: torch.device) -> str:
    """Sets torch's global switches; returns the resolved precision, `fp32` or `tf32`.

    With `exact`, a CPU process uses one thread, because how many share a sum changes its last bits: start more ranks instead.
    """
    tf32 = config.tf32 and not config.exact and device.type == "cuda" and torch.cuda.get_device_capability(device)[0] >= 8
    torch.backends.cuda.matmul.allow_tf32 = tf32
    torch.backends.cudnn.allow_tf32 = tf32
    if config.exact:
        os.environ["CUBLAS_WORKSPACE_CONFIG"] = ":4096:8"
        torch.use_deterministic_algorithms(True)
        torch.backends.cudnn.benchmark = False
        if device.type == "cpu":
            torch.set_num_threads(1)
    return "tf32" if tf32 else "fp32"


def prepare(config: SamplingConfig, group: Group, precision: str) -> Task:
    """Rank 0's part before anything is drawn: checks every file against every option, then claims the run folder."""
    config.check()
    if config.model not in DiT_models:
        raise UserError(f"--model {config.model}: no such model; choose from {', '.join(DiT_models)}")
    try:
        spaced_timesteps(config.num_sampling_steps)
    except ValueError as error:
        raise UserError(f"--num-sampling-steps: {error}") from error
    weights, kind = checkpoint.read_weights(config.ckpt)
    vae = autoencoder.inspect(Path(group.once_per_node("vae", lambda: str(autoencoder.resolve(config.vae)))))
    if config.image_size % vae.factor:
        raise UserError(f"--image-size {config.image_size}: must be a multiple of {vae.factor}, the VAE's reduction")
    if config.cfg_channels > vae.latent_channels:
        raise UserError(f"--cfg-channels {config.cfg_channels}: the VAE {config.vae} has {vae.latent_channels} latent channels")
    input_size, in_channels = config.image_size // vae.factor, vae.latent_channels
    checkpoint.check(weights, config.ckpt, config.model, config.num_classes, input_size, in_channels)

    identity = {
        **config.identity(),
        "checkpoint_sha256": file_sha256(config.ckpt),
        "vae_sha256": vae.sha256,
        "vae_config_sha256": vae.config_sha256,
        "noise": NOISE_VERSION,
        "precision": precision,
        "compile": False,
        **({"device_type": group.device.type} if config.exact else {}),
    }
    folder = config.sample_dir / config.named_run(fingerprint(identity))
    if not (folder / output.MANIFEST).exists():
        autoencoder.load(
            vae.folder, torch.device("cpu")
        )  # so that a VAE that does not fit its config.json leaves no folder behind
    manifest = claim(folder, config, identity)
    done = output.existing(folder, config.num_fid_samples)
    manifest["paths"] = {"ckpt": str(config.ckpt), "weights": kind, "vae": config.vae}
    manifest["sessions"].append(describe_session(group, int(done.sum())))
    output.write_manifest(folder, manifest)
    print(f"{folder}: {done.sum():,} of {len(done):,} images are there", flush=True)
    return Task(folder, input_size, in_channels, identity["checkpoint_sha256"], vae.sha256, done)


def claim(folder: Path, config: SamplingConfig, identity: dict) -> dict:
    """The folder's manifest, new or continued.

    Raises:
        UserError: if the folder belongs to another configuration, or cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--sample-dir {config.sample_dir}: cannot create {folder} ({error.strerror})") from error
    if npz_path(folder).is_dir():
        raise UserError(f"{npz_path(folder)} is a folder, where the npz is to go; choose another --run-name")
    if not os.access(folder, os.W_OK):
        raise UserError(f"--sample-dir {config.sample_dir}: {folder} cannot be written")
    manifest = output.read_manifest(folder)
    if manifest is None:
        if any(output.PNG_NAME.fullmatch(name) for name in os.listdir(folder)):
            raise UserError(f"{folder} holds images but no {output.MANIFEST}, so what they are is unknown; choose another folder")
        manifest = {"format": output.MANIFEST_FORMAT, "sessions": [], "npz": None}
    elif manifest["identity"] != identity:
        old = manifest["identity"]
        fields = [name for name in sorted({*old, *identity}) if old.get(name) != identity.get(name)]
        said = ", ".join(f"{name} is {old.get(name)} there and {identity.get(name)} here" for name in fields)
        raise UserError(f"{folder} belongs to a different configuration: {said}; choose another --run-name or --sample-dir")
    elif manifest["num_fid_samples"] > config.num_fid_samples:
        raise UserError(
            f"--num-fid-samples {config.num_fid_samples}: {folder} is a run of {manifest['num_fid_samples']}, which can grow "
            "but not shrink; choose another --run-name or --sample-dir"
        )
    output.remove_leftovers(folder)
    return {**manifest, "fingerprint": fingerprint(identity), "identity": identity, "num_fid_samples": config.num_fid_samples}


def npz_path(folder: Path) -> Path:
    """Where a run's npz stands: beside its folder."""
    return folder.parent / f"{folder.name}.npz"


def describe_session(group: Group, images_before: int) -> dict:
    """What is recorded of where and when a run was worked on; none of it changes what is drawn."""
    return {
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "images_before": images_before,
        "world_size": group.world_size,
        "host": socket.gethostname(),
        "device": torch.cuda.get_device_name(group.device) if group.device.type == "cuda" else cpu_name(),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "packages": {name: version(name) for name in PACKAGES},
    }


def cpu_name() -> str:
    """The processor's name where Linux tells it, else its architecture."""
    try:
        names = (
            line.partition(":")[2].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line
        )
        return next(names, platform.machine())
    except OSError:
        return platform.machine()


@torch.inference_mode()
def draw(config: SamplingConfig, group: Group, task: Task, blocks: np.ndarray) -> None:
    """Draws this rank's blocks, each whole and in its fixed composition, and writes the images that are missing."""
    device, size = group.device, config.per_proc_batch_size
    vae = autoencoder.load(Path(group.once_per_node("vae", lambda: find_weights(config, task))), device)
    model = checkpoint.load_dit(config.ckpt, config.model, config.num_classes, task.input_size, task.in_channels, device)
    schedule = Schedule.create(config.num_sampling_steps, device)
    sampler = partial(SAMPLERS[config.sampler], **({"eta": config.eta} if config.sampler == "ddim" else {}))
    draws = noise_draws(config.sampler, config.eta, len(schedule))
    shape = (task.in_channels, task.input_size, task.input_size)
    count_one = partial(group.store.add, IMAGES_DRAWN, 1)

    with (
        output.PngWriter(task.folder, count_one, room=4 * size) as writer,
        NoiseStream(config.global_seed, blocks * size, size, shape, draws, device) as noise,
    ):
        for start in blocks * size:
            labels = plan.labels(config.labels, config.num_classes, config.global_seed, start, start + size)
            y = torch.from_numpy(labels).to(device)
            latents = sampler(guided_model(model, y, config.cfg_scale, config.cfg_channels), next(noise), schedule, noise)
            if not latents.isfinite().all():
                raise UserError(
                    f"the model gave NaN or infinity within images {start} to {start + size - 1}; they were not written"
                )
            pixels = autoencoder.decode(vae, latents, config.rounding).cpu().numpy()
            # Indices beyond N fill up the last block, so that a run that grows finds its images as they were.
            for index, image in zip(range(start, min(start + size, len(task.done))), pixels, strict=False):
                if not task.done[index]:
                    writer.submit(index, image)


def find_weights(config: SamplingConfig, task: Task) -> str:
    """The VAE's folder on this node, after making sure that the node's files are those that rank 0 checked.

    Raises:
        UserError: if one differs.
    """
    folder = autoencoder.resolve(config.vae)
    for path, expected in ((config.ckpt, task.checkpoint_sha256), (folder / autoencoder.WEIGHTS_FILE, task.vae_sha256)):
        if not path.is_file() or file_sha256(path) != expected:
            raise UserError(f"{path} on {socket.gethostname()} is missing or another file than on the first node")
    return str(folder)


@contextmanager
def progress(task: Task, group: Group) -> Iterator[None]:
    """On rank 0, one bar for the images of all ranks, read from the store's counter by a thread of its own."""
    if not group.is_main or not task.missing:
        yield
        return
    stopped = threading.Event()
    bar = progress_bar(total=len(task.done), initial=int(task.done.sum()), desc="sampling", smoothing=0)

    def advance() -> None:
        if news := bar.initial + group.store.add(IMAGES_DRAWN, 0) - bar.n:
            bar.update(news)

    def follow() -> None:
        while not stopped.wait(POLL_SECONDS):
            advance()

    thread = threading.Thread(target=follow, name="progress", daemon=True)
    thread.start()
    try:
        yield
    finally:
        stopped.set()
        thread.join()
        advance()
        bar.close()


def finish(config: SamplingConfig, task: Task, seconds: float) -> Path:
    """Packs the npz unless it is there already, and completes the manifest."""
    path = npz_path(task.folder)
    manifest = output.read_manifest(task.folder)
    session = manifest["sessions"][-1]
    session |= {"images_drawn": task.missing, "seconds": round(seconds, 3)}
    count = len(task.done)
    packed = manifest["npz"]
    if task.missing or not (packed and packed["count"] == count and path.exists() and path.stat().st_size == packed["bytes"]):
        labels = plan.labels(config.labels, config.num_classes, config.global_seed, 0, count)
        with progress_bar(total=count, desc="packing") as bar:
            output.pack_npz(task.folder, path, labels, config.image_size, bar.update)
        manifest["npz"] = {"file": path.name, "count": count, "bytes": path.stat().st_size, "sha256": file_sha256(path)}
    session["finished"] = datetime.now(UTC).isoformat(timespec="seconds")
    output.write_manifest(task.folder, manifest)
    print(f"{path}: {count:,} images", flush=True)
    return path
