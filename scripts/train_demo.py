"""Trains the embedded digits: an extractor, an autoencoder, a DiT and a SiT on scikit-learn's 1,797 scans.

    python scripts/train_demo.py                 # everything in assets/digits, well over an hour on 2 cores
    python scripts/train_demo.py --stages dit    # one part of it; the parts before it are read from --out

One scan in ten is held out, by a fixed seed, and never trained on. Needs scikit-learn, which brings the scans.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # as a script, it is started from anywhere

if __name__ == "__main__":
    import fiducial.interrupts

import argparse
import json
import math
import time
from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import dataclass
from tempfile import TemporaryDirectory

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from safetensors.torch import save_file
from torch import Tensor

import fiducial
from fiducial import Parser, UserError, make_folder, nearest, say, unwritable, user_errors
from fiducial.diffusion.losses import hybrid_loss, velocity_loss
from fiducial.diffusion.schedule import NUM_TRAIN_TIMESTEPS, Schedule
from fiducial.evaluation.data.opening import open_images
from fiducial.evaluation.data.references import write_reference
from fiducial.evaluation.features.digits import DigitsNet
from fiducial.evaluation.features.load import load_extractor
from fiducial.evaluation.making import make_reference
from fiducial.evaluation.pictures import keep_beside
from fiducial.evaluation.settings import Settings
from fiducial.models import DiT_models
from fiducial.models.decoders.autoencoder import LATENT_SCALE
from fiducial.models.networks.sit import SiT_models

ROOT = Path(__file__).resolve().parent.parent
IMAGE_SIZE = 64
NUM_CLASSES = 10
STAGES = ("extractor", "reference", "vae", "dit", "sit")
HELD_OUT = 10  # one scan in so many
LABEL_DROPOUT = 0.1
# What tells its weights from a DiT's, as SiT's own training script calls it.
SAID = {"model": "SiT-XS/2", "path_type": "Linear", "prediction": "velocity"}
KL_WEIGHT = 5e-5  # against a mean squared error; keeps the latents smooth, costs no visible sharpness


def load_scans() -> tuple[Tensor, Tensor, Tensor]:
    """The scans as images (1797, 3, 64, 64) uint8, their labels (1797,) int64, and which are held out (1797,) bool.

    A scan has 8 x 8 pixels of 17 levels; it is enlarged bicubically, so that the images are smooth, not blocky.
    """
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise UserError("the scans come with scikit-learn, which is not installed (pip install scikit-learn)") from error

    scans, labels = load_digits(return_X_y=True)
    pixels = torch.from_numpy(scans).float().view(-1, 1, 8, 8) / 16
    images = F.interpolate(pixels, size=IMAGE_SIZE, mode="bicubic", align_corners=False).clamp(0, 1)
    images = (255 * images).round().to(torch.uint8).expand(-1, 3, -1, -1)
    order = np.random.Generator(np.random.Philox(key=2026)).permutation(len(labels))
    held_out = torch.zeros(len(labels), dtype=torch.bool)
    held_out[torch.from_numpy(order[: len(labels) // HELD_OUT])] = True
    return images, torch.from_numpy(labels).long(), held_out


def jitter(images: Tensor, degrees: float, zoom: float, pixels: float, random: torch.Generator) -> Tensor:
    """Each image (N, 3, H, W) float, black at its smallest value, turned, zoomed and shifted by at most so much."""

    def uniform(limit: float) -> Tensor:
        return (2 * torch.rand(len(images), generator=random) - 1) * limit

    angle, scale = uniform(math.radians(degrees)), 1 + uniform(zoom)
    cos, sin, shift = angle.cos() * scale, angle.sin() * scale, 2 * pixels / images.shape[-1]
    theta = torch.stack([cos, -sin, uniform(shift), sin, cos, uniform(shift)], dim=1).view(-1, 2, 3)
    grid = F.affine_grid(theta, list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, align_corners=False, padding_mode="border")


def share_of_rate(step: int, steps: int, flat: float) -> float:
    """Of the learning rate: a short warm-up, its whole for a share `flat` of the steps, then a cosine to zero."""
    progress = max(0.0, step / steps - flat) / (1 - flat)
    return min(1, (step + 1) / 200) * (1 + math.cos(math.pi * progress)) / 2


def train(
    network: torch.nn.Module,
    loss: Callable[[], Tensor],
    steps: int,
    rate: float,
    ema: torch.nn.Module | None = None,
    flat: float = 0.0,
) -> None:
    """AdamW at the rate of `share_of_rate`, with clipped gradients; optionally a running mean of the weights."""
    optimizer = torch.optim.AdamW(network.parameters(), lr=rate, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: share_of_rate(step, steps, flat))
    network.train()
    started, recent = time.time(), 0.0
    for step in range(1, steps + 1):
        value = loss()
        optimizer.zero_grad()
        value.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if ema is not None:
            decay = min(0.9995, (1 + step) / (10 + step))
            for mean, current in zip(ema.parameters(), network.parameters(), strict=True):
                mean.data.lerp_(current.data, 1 - decay)
        recent += value.item()
        if step % 250 == 0 or step == steps:
            print(f"  step {step:6d}/{steps}  loss {recent / (step % 250 or 250):.5f}  {time.time() - started:.0f} s", flush=True)
            recent = 0.0
    network.eval()


def train_extractor(images: Tensor, labels: Tensor, held_out: Tensor, out: Path, steps: int = 2500) -> None:
    """A classifier whose features become the extractor of FID-digits; prints what it gets right on the held-out scans."""
    random = torch.Generator().manual_seed(1)
    network = DigitsNet()
    known, answers = images[~held_out].float(), labels[~held_out]

    def loss() -> Tensor:
        pick = torch.randint(len(known), (128,), generator=random)
        batch = jitter(known[pick], degrees=12, zoom=0.1, pixels=4, random=random)
        return F.cross_entropy(network.fc2(network(batch)), answers[pick], label_smoothing=0.05)

    train(network, loss, steps, rate=2e-3)
    with torch.inference_mode():
        right = (network.fc2(network(images[held_out].float())).argmax(1) == labels[held_out]).float().mean()
    print(f"  held-out accuracy {100 * right:.1f} % of {int(held_out.sum())} scans")
    save_file(network.state_dict(), out / "extractor.safetensors")


def train_autoencoder(images: Tensor, held_out: Tensor, out: Path, steps: int = 1600) -> None:
    """A small AutoencoderKL of the Stable Diffusion kind: factor 8, 4 channels, latents of unit variance after the 0.18215."""
    random = torch.Generator().manual_seed(2)
    torch.manual_seed(2)
    vae = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(16, 32, 64, 64),
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=8,
        sample_size=IMAGE_SIZE,
        scaling_factor=LATENT_SCALE,
    )
    known = images[~held_out]

    def loss() -> Tensor:
        pick = torch.randint(len(known), (32,), generator=random)
        batch = jitter(known[pick].float() / 127.5 - 1, degrees=8, zoom=0.06, pixels=3, random=random)
        posterior = vae.encode(batch).latent_dist
        decoded = vae.decode(posterior.sample(generator=random)).sample
        return F.mse_loss(decoded, batch) + KL_WEIGHT * posterior.kl().mean() / posterior.mean[0].numel()

    train(vae, loss, steps, rate=2e-3)
    standardise_latents(vae, known)
    with torch.inference_mode():
        pixels = images[held_out].float() / 127.5 - 1
        error = (vae.decode(vae.encode(pixels).latent_dist.mean).sample - pixels) * 127.5
    print(f"  held-out reconstruction error {error.square().mean().sqrt():.2f} of 255 (root mean square)")
    vae.save_pretrained(out / "vae", safe_serialization=True)


@torch.inference_mode()
def standardise_latents(vae: AutoencoderKL, images: Tensor) -> None:
    """Fold a shift and scale of each latent channel into the 1 x 1 convolutions around the latent, so that
    `LATENT_SCALE` times a latent has mean 0 and variance 1 on `images`: what the noise schedule expects."""
    latents = torch.cat([vae.encode(batch.float() / 127.5 - 1).latent_dist.mean for batch in images.split(128)])
    shift, scale = latents.mean((0, 2, 3)), latents.std((0, 2, 3)) * LATENT_SCALE
    channels = len(shift)
    quant, post = vae.quant_conv, vae.post_quant_conv
    quant.weight[:channels] /= scale.view(-1, 1, 1, 1)
    quant.bias[:channels] = (quant.bias[:channels] - shift) / scale
    quant.bias[channels:] -= 2 * scale.log()
    post.bias += post.weight[:, :, 0, 0] @ shift
    post.weight *= scale.view(1, -1, 1, 1)


@dataclass(frozen=True)
class Latents:
    """Posteriors that the transformers are trained on, (M, 4, 8, 8) of M images and scaled, and labels (M,)."""

    mean: Tensor
    std: Tensor
    answers: Tensor

    def batch(self, size: int, null_label: int, random: torch.Generator) -> tuple[Tensor, Tensor]:
        """Latents (size, 4, 8, 8) and labels (size,), some of which are dropped."""
        pick = torch.randint(len(self.answers), (size,), generator=random)
        x0 = self.mean[pick] + self.std[pick] * torch.randn(self.mean[pick].shape, generator=random)
        dropped = torch.rand(len(pick), generator=random) < LABEL_DROPOUT
        return x0, torch.where(dropped, null_label, self.answers[pick])


@torch.inference_mode()
def encode(images: Tensor, labels: Tensor, held_out: Tensor, out: Path, copies: int, random: torch.Generator) -> Latents:
    """The scans that are not held out, each in `copies` slightly jittered forms: 1,618 alone are soon known by heart."""
    vae = AutoencoderKL.from_pretrained(out / "vae")
    known = images[~held_out].float() / 127.5 - 1
    jittered = torch.cat([known, *(jitter(known, 5, 0.04, 2, random) for _ in range(copies - 1))])
    posteriors = [vae.encode(batch).latent_dist for batch in jittered.split(128)]
    mean, std = (torch.cat(parts) * LATENT_SCALE for parts in zip(*((p.mean, p.std) for p in posteriors), strict=True))
    return Latents(mean, std, labels[~held_out].repeat(copies))


def train_dit(images: Tensor, labels: Tensor, held_out: Tensor, out: Path, steps: int = 10_000, copies: int = 16) -> None:
    """A DiT-XS/2 on latents of the scans."""
    random = torch.Generator().manual_seed(3)
    torch.manual_seed(3)
    latents = encode(images, labels, held_out, out, copies, random)
    network = DiT_models["DiT-XS/2"](input_size=IMAGE_SIZE // 8, num_classes=NUM_CLASSES)
    ema = deepcopy(network).eval()
    schedule = Schedule.create(str(NUM_TRAIN_TIMESTEPS))

    def loss() -> Tensor:
        x0, y = latents.batch(128, network.null_label, random)
        step = torch.randint(len(schedule), (len(x0),), generator=random)
        noise = torch.randn(x0.shape, generator=random)
        return hybrid_loss(lambda x, t: network(x, t, y), x0, step, noise, schedule).mean()

    train(network, loss, steps, rate=1e-3, ema=ema)
    save_transformer(ema, out / "dit.safetensors")


def train_sit(images: Tensor, labels: Tensor, held_out: Tensor, out: Path, steps: int = 8500, copies: int = 16) -> None:
    """A SiT-XS/2 on the latents that the DiT is trained on, from the same seed; it has no half of the output for a variance."""
    random = torch.Generator().manual_seed(3)
    latents = encode(images, labels, held_out, out, copies, random)
    torch.manual_seed(3)  # after the autoencoder, which draws weights of its own before it reads them
    network = SiT_models["SiT-XS/2"](input_size=IMAGE_SIZE // 8, num_classes=NUM_CLASSES, learn_sigma=False)
    ema = deepcopy(network).eval()

    def loss() -> Tensor:
        x0, y = latents.batch(64, network.null_label, random)
        t = torch.rand(len(x0), generator=random)
        noise = torch.randn(x0.shape, generator=random)
        return velocity_loss(lambda x, t: network(x, t, y), x0, t, noise).mean()

    train(network, loss, steps, rate=1e-3, ema=ema, flat=0.75)
    save_transformer(ema, out / "sit.safetensors", SAID)


def save_transformer(ema: torch.nn.Module, path: Path, said: dict[str, str] | None = None) -> None:
    """The weights, in the same file what is `said` of them, and beside it the names of the classes."""
    save_file(ema.state_dict(), path, metadata=said)
    path.with_name(f"{path.name}.classes.json").write_text(json.dumps([str(digit) for digit in range(NUM_CLASSES)]) + "\n")


def write_reference_statistics(images: Tensor, labels: Tensor, held_out: Tensor, out: Path) -> None:
    """Statistics of the scans that the models were trained on, as FID's reference is the training set."""
    with TemporaryDirectory() as folder:
        scans = Path(folder) / "digits-train.npz"
        np.savez(scans, arr_0=images[~held_out].permute(0, 2, 3, 1).numpy(), arr_1=labels[~held_out].numpy())
        group = fiducial.init("cpu")
        settings = Settings(cache_dir=Path(folder) / "features")
        reference = make_reference(open_images(scans), load_extractor("digits", None, group), group, settings, keep=len(images))
        write_reference(reference, out / "reference.npz")
        keep_beside(open_images(scans), out / "reference.npz")


def build_parser() -> Parser:
    parser = Parser(
        prog="scripts/train_demo.py",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--out", type=Path, default=ROOT / "assets" / "digits", help="folder to write (default: %(default)s)")
    parser.add_argument("--stages", nargs="+", choices=STAGES, default=STAGES, help="what to train (default: all)")
    return parser


def check(stages: Sequence[str], out: Path) -> None:
    """Raise UserError for what training would only end in."""
    if reason := unwritable(nearest(out)):
        raise UserError(f"--out {out}: {nearest(out)} cannot be written ({reason})")
    for stage in ("dit", "sit"):
        before = stages[: stages.index(stage)] if stage in stages else ["vae"]
        if "vae" not in before and not (out / "vae" / "config.json").is_file():
            raise UserError(f"--stages {stage}: {out} has no vae, whose latents it is trained on; give --stages vae {stage}")


def main() -> None:
    args = build_parser().parse_args()
    check(args.stages, args.out)
    images, labels, held_out = load_scans()
    make_folder(args.out)
    for stage in args.stages:
        say(f"{stage}: {torch.get_num_threads()} threads")
        torch.manual_seed(0)
        if stage == "extractor":
            train_extractor(images, labels, held_out, args.out)
        elif stage == "reference":
            write_reference_statistics(images, labels, held_out, args.out)
        elif stage == "vae":
            train_autoencoder(images, held_out, args.out)
        elif stage == "dit":
            train_dit(images, labels, held_out, args.out)
        else:
            train_sit(images, labels, held_out, args.out)


if __name__ == "__main__":
    with user_errors():
        main()
