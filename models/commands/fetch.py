"""`python -m models fetch`: everything that a run and its evaluation need, for nodes without internet."""

import argparse
import shlex
import subprocess
import sys
from pathlib import Path

from fiducial import MIRROR, UserError, download, fetch_each, say
from fiducial.models.checkpoints.catalogue import CATALOGUE
from fiducial.wings import IS_CHECKOUT, ROOT


def add_parser(commands: argparse._SubParsersAction) -> None:
    parser = commands.add_parser(
        "fetch",
        help="download all that a run needs, for nodes without internet",
        description="Downloads a preset's checkpoint, an autoencoder, Inception's weights and the reference of published "
        "numbers, each unless it is there; a download that was cut is continued. The command that draws and evaluates without "
        f"internet is printed in the end. {MIRROR}=http://host/folder has files come from there, under the paths that they have "
        "on their own hosts; HF_ENDPOINT does that for the autoencoder, which is the Hugging Face hub's.",
        allow_abbrev=False,
    )
    parser.add_argument("preset", choices=CATALOGUE, metavar="PRESET", help=", ".join(CATALOGUE))
    parser.add_argument("--vae", default="ema", metavar="ID", help="ema, mse, or a hub id (default %(default)s)")
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
    failed = fetch_each(
        {
            "checkpoint": lambda: download(published.url, published.path(cache_dir)),
            f"VAE {args.vae}": lambda: autoencoder.resolve(args.vae, cache_dir),
        }
    )
    where = ["--cache-dir", str(cache_dir)] if cache_dir else []
    evaluation = ["-m", "fiducial.evaluation", "fetch", published.reference, *where]
    if subprocess.run([sys.executable, *evaluation], cwd=ROOT if IS_CHECKOUT else None, check=False).returncode:
        failed.append("what the evaluation needs")
    if failed:
        raise UserError(f"not fetched: {', '.join(failed)}; what stands above says why and what to do")
    vae = [] if args.vae == "ema" else ["--vae", args.vae]
    options = ["--preset", args.preset, *vae, "--ref", published.reference, *where]
    command = f"HF_HUB_OFFLINE=1 torchrun --nproc_per_node=auto sample_ddp.py {shlex.join(options)}"
    say("all is there; without internet, this draws and evaluates:", command)
    return 0
