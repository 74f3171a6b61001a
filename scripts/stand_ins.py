"""Files of the real formats with random contents, to try commands where weights are missing: numbers made with them mean nothing.

    python scripts/stand_ins.py FOLDER

writes FOLDER/inception.pth (Inception's weights), FOLDER/dit.pt (a DiT), FOLDER/samples and FOLDER/reference (PNGs), and prints
the commands that take them. What they stand in for is trained, and cannot be shipped; tests and benchmarks use them too.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # as a script, it is started from anywhere

if __name__ == "__main__":
    import fiducial.interrupts  # noqa: F401 (before what takes time)

import argparse
import shlex

import numpy as np
import torch
from PIL import Image
from torch.nn import functional as F
from torch_fidelity import feature_extractor_inceptionv3 as fidelity

from fiducial import Parser, UserError, say, user_errors

CLASSES = 10


def pictures(count: int, seed: int, size: int = 64) -> np.ndarray:
    """Smooth coloured blobs (count, size, size, 3) uint8: unlike noise, they differ after Inception's resize."""
    random = np.random.default_rng(seed)
    small = torch.from_numpy(random.normal(0.5 + 0.1 * seed, 0.4, size=(count, 3, 5, 5)))
    large = F.interpolate(small, size=size, mode="bicubic").clamp(0, 1)
    return (255 * large).to(torch.uint8).permute(0, 2, 3, 1).numpy()


def write_pngs(folder: Path, images: np.ndarray) -> Path:
    """Make `folder` with one PNG an image, named by index."""
    folder.mkdir()
    for index, pixels in enumerate(images):
        Image.fromarray(pixels).save(folder / f"{index:06d}.png", compress_level=1)
    return folder


def score(logits: torch.Tensor) -> float:
    """exp(mean KL) of logits (N, classes) in one block."""
    p = logits.double().softmax(1)
    return float((p * (p / p.mean(0)).clamp_min(1e-30).log()).sum(1).mean().exp())


@torch.no_grad()
def write_inception(path: Path) -> Path:
    """A weights file in torch-fidelity's form, random but alive.

    At the default initialisation all features are near 0 and every Inception score is 1; here the batch norms know the
    statistics of some pictures, and the last layer is scaled until the score of some is 5. Its bias is large, so that
    keeping it would show.
    """
    torch.manual_seed(0)
    kept = fidelity.load_state_dict_from_url
    fidelity.load_state_dict_from_url = lambda *_, **__: None
    fidelity.FeatureExtractorInceptionV3.load_state_dict = lambda *_: None
    try:
        network = fidelity.FeatureExtractorInceptionV3("inception-v3-compat", ["logits_unbiased"])
    finally:
        fidelity.load_state_dict_from_url = kept
        del fidelity.FeatureExtractorInceptionV3.load_state_dict
    seen = torch.from_numpy(np.concatenate([pictures(8, 0), pictures(8, 1)])).permute(0, 3, 1, 2)
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = 1.0
            module.train()
    network(seen)
    network.eval()
    network.fc.bias.normal_(0, 2)
    (logits,) = network(seen)
    network.fc.weight *= next(scale for scale in range(1, 1000) if score(scale * logits) > 5)
    torch.save(network.state_dict(), path)
    return path


def write_dit(path: Path, model: str, image_size: int) -> Path:
    """An official checkpoint of a DiT of `CLASSES` classes, every parameter random: at the initialisation its output is 0."""
    from fiducial.models import DiT_models

    network = DiT_models[model](input_size=image_size // 8, num_classes=CLASSES)
    generator = torch.Generator().manual_seed(0)
    for name, parameter in network.named_parameters():
        if name != "pos_embed":
            parameter.data = 0.05 * torch.randn(parameter.shape, generator=generator)
    torch.save(network.state_dict(), path)
    return path


def build_parser() -> Parser:
    parser = Parser(
        prog="scripts/stand_ins.py",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("folder", type=Path, help="a new folder")
    parser.add_argument("--images", type=int, default=32, help="on each side (default %(default)s)")
    parser.add_argument("--image-size", type=int, default=64, help="of these and of the DiT, in pixels (default %(default)s)")
    parser.add_argument("--model", default="DiT-XS/8", help="the DiT: XS, S, B, L or XL with /2, /4 or /8 (default %(default)s)")
    return parser


def main() -> None:
    args = build_parser().parse_args()
    check(args)
    try:
        args.folder.mkdir()
    except OSError as error:
        raise UserError(f"{args.folder} cannot be made ({error.strerror}); give a new folder") from error
    for seed, name in enumerate(("samples", "reference")):
        write_pngs(args.folder / name, pictures(args.images, seed, args.image_size))
    write_dit(args.folder / "dit.pt", args.model, args.image_size)
    write_inception(args.folder / "inception.pth")
    reference = ["--ref", args.folder / "reference", "--inception-weights", args.folder / "inception.pth"]
    drawing = ["--model", args.model, "--ckpt", args.folder / "dit.pt", "--image-size", args.image_size]
    drawing += ["--num-classes", CLASSES, "--vae", "assets/digits/vae", "--no-probe", "--num-fid-samples", args.images]
    say(f"{args.folder} holds stand-ins; what they give means nothing:")
    for words in (["-m", "evaluation", "calc", args.folder / "samples"], ["sample_ddp.py", *drawing]):
        say(shlex.join(["python", *map(str, [*words, *reference])]))


def check(args: argparse.Namespace) -> None:
    """Raise UserError for what could not be written."""
    from fiducial.models import DiT_models

    if args.model not in DiT_models:
        raise UserError(f"--model {args.model}: no such model; choose from {', '.join(DiT_models)}")
    if args.images < 2:
        raise UserError(f"--images {args.images}: must be at least 2, or there is nothing to evaluate")
    if args.image_size < 1 or args.image_size % (step := 8 * int(args.model.partition("/")[2])):
        raise UserError(f"--image-size {args.image_size}: must be a multiple of {step} for {args.model}")


if __name__ == "__main__":
    with user_errors():
        main()
