"""`python -m models fetch`: everything that a run and its evaluation need, for nodes without internet."""

import argparse
import shlex
import subprocess
import sys
from functools import partial
from pathlib import Path

from fiducial import MIRROR, UserError, fetch_each, say
from fiducial.models.checkpoints.catalogue import CATALOGUE
from fiducial.wings import IS_CHECKOUT, ROOT

TITLES = {"ckpt": "checkpoint", "vae": "codec", "latent_stats": "statistics of latents", "guidance_ckpt": "second network"}
NO_CODEC = "pixels"


def add_parser(commands: argparse._SubParsersAction) -> None:
    parser = commands.add_parser(
        "fetch",
        help="download all that a run needs, for nodes without internet",
        description="Downloads a preset's checkpoint, its codec, statistics of latents and second network where it has them, "
        "Inception's weights and the reference of published numbers, each unless it is there; a download that was cut is "
        "continued, and of what no program can fetch it says where it is. The command that draws and evaluates without "
        f"internet is printed in the end. {MIRROR}=http://host/folder has files come from there, under the paths that they have "
        "on their own hosts; HF_ENDPOINT does that for those of the Hugging Face hub.",
        allow_abbrev=False,
    )
    parser.add_argument("preset", choices=CATALOGUE, metavar="PRESET", help=", ".join(CATALOGUE))
    parser.add_argument("--vae", metavar="ID", help="ema, mse, or a hub id (default: as the preset)")
    parser.add_argument(
        "--cache-dir",
        type=Path,
        metavar="DIR",
        help="where to put it, a folder that the nodes see (default: ~/.cache/fiducial, and the caches of the hub and torch)",
    )


def run(args: argparse.Namespace) -> int:
    """Fetch one after the other, and say of each where it is.

    Raises:
        UserError: in the end, if some failed.
    """
    from fiducial.models.decoders import autoencoder

    published, cache_dir = CATALOGUE[args.preset], args.cache_dir and args.cache_dir.absolute()
    places = {name: place for name, place in published.places().items() if name != "vae" or args.vae is None}
    wanted = {TITLES[name]: partial(place.find, f"--{name.replace('_', '-')}", cache_dir) for name, place in places.items()}
    vae = args.vae or published.vae
    if isinstance(vae, str) and vae != NO_CODEC:
        wanted[f"VAE {vae}"] = partial(autoencoder.resolve, vae, cache_dir)
    failed = fetch_each(wanted)
    where = ["--cache-dir", str(cache_dir)] if cache_dir else []
    reference = [] if " " in published.reference else [published.reference]  # else it is said in words, and nowhere to be had
    evaluation = ["-m", "fiducial.evaluation", "fetch", *reference, *where]
    if subprocess.run([sys.executable, *evaluation], cwd=ROOT if IS_CHECKOUT else None, check=False).returncode:
        failed.append("what the evaluation needs")
    if failed:
        raise UserError(f"not fetched: {', '.join(failed)}; what stands above says why and what to do")
    own = [] if args.vae in (None, published.vae) else ["--vae", args.vae]
    options = ["--preset", args.preset, *own, *(("--ref", *reference) if reference else ()), *where]
    command = f"HF_HUB_OFFLINE=1 torchrun --nproc_per_node=auto sample_ddp.py {shlex.join(options)}"
    say(f"all is there; without internet, this draws{' and evaluates' if reference else ''}:", command)
    return 0
