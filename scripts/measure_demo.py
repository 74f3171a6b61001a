"""Measures the embedded digits and prints what the README states of them, as Markdown.

    python scripts/measure_demo.py
    python scripts/measure_demo.py --preset digits-flow --scales 1.5 --sampler euler-maruyama --num-sampling-steps 250

Draws 1,000 digits at each of several guidance scales and, where 1.0 is one of them, without labels. Needs scikit-learn, which
brings the real scans.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # as a script, it is started from anywhere

if __name__ == "__main__":
    import fiducial.interrupts

import argparse
import tempfile

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

import fiducial
from fiducial import Parser, UserError, require_ending, say, unwritable, user_errors
from fiducial.evaluation.data.references import DIGITS, open_reference
from fiducial.evaluation.features.load import load_extractor
from fiducial.evaluation.metrics.gaussians import frechet_distance
from fiducial.sampling.options.config import SamplingConfig
from fiducial.sampling.options.presets import PRESETS
from fiducial.sampling.run import session
from fiducial.sampling.run.image_files import ImageFiles
from scripts.train_demo import load_scans

COUNT = 1000
SCALES = (1.0, 1.25, 1.5, 2.0, 4.0)
GRID = DIGITS.with_name("grid.png")


def draw(settings: dict, labels: str, cfg_scale: float) -> tuple[Tensor, Tensor]:
    """Images (COUNT, 3, 64, 64) uint8 and labels, by the settings of a run."""
    settings = settings | {"num_fid_samples": COUNT, "labels": labels, "cfg_scale": cfg_scale}
    with np.load(session.draw(SamplingConfig(**settings), fiducial.init("cpu"), ImageFiles())) as arrays:
        return torch.from_numpy(arrays["arr_0"]).permute(0, 3, 1, 2), torch.from_numpy(arrays["arr_1"])


@torch.inference_mode()
def features(images: Tensor) -> tuple[np.ndarray, Tensor]:
    """The extractor's features (N, 64) and the digits that it reads (N,)."""
    extractor = load_extractor("digits", None, fiducial.init("cpu"))
    pool, _ = extractor.apply(images)
    return pool.double().numpy(), extractor.logits(pool).argmax(1)


def distance(a: np.ndarray, b: np.ndarray) -> float:
    """FID-digits between two sets of features."""
    return frechet_distance(a.mean(0), np.cov(a, rowvar=False), b.mean(0), np.cov(b, rowvar=False))


def nearest(images: Tensor, others: Tensor) -> Tensor:
    """Root mean square distance in grey levels from each image to the nearest of `others`."""
    a, b = (x[:, 0].flatten(1).float() for x in (images, others))
    return torch.cdist(a, b).min(dim=1).values / a.shape[1] ** 0.5


def save_grid(images: Tensor, labels: Tensor, path: Path) -> None:
    """The first twelve images of each class, a row a class, with gaps between."""
    grey = F.pad(images[:, 0], (4, 4, 4, 4), value=255)
    rows = [torch.cat(list(grey[labels == label][:12]), dim=1) for label in range(10)]
    Image.fromarray(torch.cat(rows).numpy()).save(path, optimize=True)


def build_parser() -> Parser:
    parser = Parser(
        prog="scripts/measure_demo.py",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    embedded = [name for name in PRESETS if name.startswith("digits")]
    parser.add_argument("--preset", choices=embedded, default="digits", help="what draws (default: %(default)s)")
    parser.add_argument("--sampler", help="in the place of the preset's")
    parser.add_argument("--num-sampling-steps", help="in the place of the preset's")
    parser.add_argument(
        "--scales", type=float, nargs="+", default=SCALES, help=f"guidance (default: {' '.join(map(str, SCALES))})"
    )
    parser.add_argument(
        "--grid", type=Path, help=f"a picture of what the preset's own scale draws (default for digits: {GRID}, the README's)"
    )
    return parser


def check(grid: Path | None) -> None:
    """Raise UserError for a picture that could not be written after all is drawn."""
    if grid is None:
        return
    require_ending("--grid", grid, ".png")
    if grid.is_dir() or not grid.absolute().parent.is_dir():
        raise UserError(f"--grid {grid}: it is a folder, or its folder is not there")
    if reason := unwritable(grid.absolute().parent):
        raise UserError(f"--grid {grid}: its folder cannot be written ({reason})")


def main() -> None:
    args = build_parser().parse_args()
    grid = args.grid or (GRID if args.preset == "digits" else None)
    check(grid)
    settings = PRESETS[args.preset] | {
        name: value for name in ("sampler", "num_sampling_steps") if (value := getattr(args, name)) is not None
    }
    SamplingConfig(**settings).validate()
    images, labels, held_out = load_scans()
    train = images[~held_out]
    real, read = features(images)
    order = np.random.default_rng(0).permutation(len(real))
    half = len(real) // 2
    one, other = real[order[:half]], real[order[half : 2 * half]]
    reference = open_reference(DIGITS)
    right = (read == labels)[held_out].float().mean()
    lines = [
        f"Held-out accuracy of the classifier: {100 * right:.1f} % of {int(held_out.sum())} scans",
        f"FID-digits ({real.shape[1]} dimensions) of {half} real scans against {half} others: {distance(one, other):.3f}",
        "",
        f"| cfg | read as asked | FID-digits ({COUNT:,} drawn) | {half} drawn against {half} real | nearest training scan |",
        "|---|---|---|---|---|",
    ]
    with tempfile.TemporaryDirectory() as folder:
        settings |= {"sample_dir": Path(folder)}
        for scale in args.scales:
            drawn, asked = draw(settings, "balanced", scale)
            pool, seen = features(drawn)
            if grid and scale == settings["cfg_scale"]:
                save_grid(drawn, asked, grid)
            fid = frechet_distance(pool.mean(0), np.cov(pool, rowvar=False), reference.mu, reference.sigma)
            lines.append(
                f"| {scale} | {100 * (seen == asked).float().mean():.1f} % | {fid:.3f} | "
                f"{distance(pool[:half], one):.3f} | {spread(nearest(drawn, train))} |"
            )
        shares = []
        if 1.0 in args.scales:
            drawn, _ = draw(settings, "null", 1.0)
            shares = torch.bincount(features(drawn)[1], minlength=10) * 100 / COUNT
    lines += [f"| held-out real scans | | | | {spread(nearest(images[held_out], train))} |"]
    if len(shares):
        lines += ["", f"Without labels, digits 0 to 9 in %: {', '.join(f'{share:.1f}' for share in shares)}"]
    say(*lines)


def spread(distances: Tensor) -> str:
    """Median and fifth percentile."""
    return f"{distances.median():.1f} (5 %: {distances.quantile(0.05):.1f})"


if __name__ == "__main__":
    with user_errors():
        main()
