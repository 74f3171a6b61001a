"""Options that commands share, and checks of them."""

import argparse
import os
from collections.abc import Callable, Sequence
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING

import fiducial
from fiducial import STDOUT, Group, UserError, require_ending, tensorboard
from fiducial.evaluation.features import DEFAULT, EXTRACTORS, SEVERAL, WEIGHTS, file_of, parse_extractors, parse_weights
from fiducial.evaluators import ALIASES

if TYPE_CHECKING:
    from fiducial.evaluation.report import Others
    from fiducial.evaluation.settings import Settings

OUTPUTS = {  # options of files to write, and what these end in
    "json": (".json",),
    "html": (".html", ".htm"),
    "out": (".npz",),
    "latex": (".tex",),
    "csv": (".csv",),
}
TO_STDOUT = ("json", "latex", "csv")  # those that standard output takes, one at a time
PLOT_FORMATS = ("svg", "pdf", "png")


BATCH = (64, "images read at once; features do not depend on it")  # the usual batch size, and what it is


def add_common(
    parser: argparse.ArgumentParser, several: bool = False, batch: tuple[int, str] = BATCH, lower: bool = True
) -> None:
    """Options of networks, devices and caches.

    Args:
        several: `--extractor` takes several, in one pass over the images.
        batch: the default of `--batch-size`, and what it is.
        lower: whether Inception may run in lower precision.
    """
    parser.add_argument(
        "--extractor",
        metavar="NAME",
        help=f"{', '.join(EXTRACTORS)}, or timm:NAME for any model of timm's (default: "
        + (
            f"{DEFAULT}); several with commas between, or {' or '.join(SEVERAL)}, are computed in one pass over the images"
            if several
            else "the protocol's, or what the reference was made with, or inception)"
        ),
    )
    parser.add_argument(
        "--weights",
        action="append",
        metavar="NAME=FILE",
        help=f"an extractor's weights: {', or '.join(f'{one.name}=FILE, {one.form}' for one in WEIGHTS.values())}, or "
        "timm:NAME=FILE, timm's (default: downloaded, see --cache-dir)",
    )
    for name in ALIASES:
        parser.add_argument(f"--{name}-weights", type=Path, metavar="FILE", help=f"the same as --weights {name}=FILE")
    if lower:
        parser.add_argument(
            "--dtype",
            choices=["float32", "bfloat16"],
            default="float32",
            help="of Inception's convolutions; bfloat16 prints what it does to FID; not run on a GPU yet (default %(default)s)",
        )
    parser.add_argument("--batch-size", type=int, default=batch[0], help=f"{batch[1]} (default %(default)s)")
    parser.add_argument(
        "--device",
        choices=["auto", "cuda", "cpu"],
        default="auto",
        help="auto takes CUDA where there is one; not run on a GPU yet",
    )
    add_cache_dir(parser)
    parser.add_argument("--no-cache", action="store_true", help="neither use nor leave features there")


def add_cache_dir(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--cache-dir",
        type=Path,
        metavar="DIR",
        help="where features, references fetched by name and the extractors' weights are kept, seen by all ranks "
        "(default ~/.cache/fiducial, and torch's hub cache for the weights)",
    )


def listed(names: Sequence[str], word: str = "and") -> str:
    """Names as a sentence has them, `word` before the last."""
    *others, last = names
    return f"{', '.join(others)} {word} {last}" if others else last


def add_outputs(parser: argparse.ArgumentParser, whole: str, page: str, with_events: bool = False) -> None:
    """Options of files to write; `whole` and `page` say what JSON and page hold, `with_events` adds TensorBoard's."""
    alone = "; - is standard output, on which nothing else is then"
    parser.add_argument("--json", type=Path, metavar="FILE", help=f"write {whole} there{alone} (docs/results.md has its keys)")
    parser.add_argument("--html", type=Path, metavar="FILE", help=f"write {page} there")
    parser.add_argument(
        "--latex", type=Path, metavar="FILE", help=f"write a table for booktabs there, below a comment on the protocol{alone}"
    )
    parser.add_argument("--csv", type=Path, metavar="FILE", help=f"write all numbers there, unrounded{alone}")
    parser.add_argument("--plots", type=Path, metavar="DIR", help="write each plot of the page there, a file each")
    parser.add_argument("--plot-format", choices=PLOT_FORMATS, default="svg", help="of those (default %(default)s)")
    if with_events:
        tensorboard.add_options(parser, "each number with its interval, and a sheet of samples,")


def others(args: argparse.Namespace) -> "Others":
    """The files beside JSON and page that are asked for."""
    from fiducial.evaluation.report import Others

    return Others(args.latex, args.csv, args.plots, args.plot_format)


def _check_plots(folder: Path) -> None:
    """Raise UserError if plots could not be written there."""
    if folder.is_dir() and os.access(folder, os.W_OK):
        return
    if os.path.lexists(folder):
        raise UserError(f"--plots {folder}: it is no folder, or is write-protected")
    if not (folder.resolve().parent.is_dir() and os.access(folder.resolve().parent, os.W_OK)):
        raise UserError(f"--plots {folder}: there is no folder {folder.resolve().parent}, or it is write-protected")


def check_outputs(args: argparse.Namespace, inputs: list[Path]) -> None:
    """Raise UserError if one of the files to write could not be in the end, would replace something else, or is misnamed."""
    taken = [path.resolve() for path in inputs]
    piped = [option for option in TO_STDOUT if getattr(args, option, None) == STDOUT]
    if len(piped) > 1:
        raise UserError(f"--{piped[0]} - and --{piped[1]} -: only one of them can go to standard output")
    if getattr(args, "plots", None):
        _check_plots(args.plots)
    for option, endings in OUTPUTS.items():
        path = getattr(args, option, None)
        if path is None or option in piped:
            continue
        if option == "out" and len(args.extractor or ()) > 1:  # a folder of files
            if path.suffix == ".npz" or path.is_file():
                raise UserError(f"--out {path}: several extractors make a file each, in a folder; name that")
            path = path / file_of(args.extractor[0])
            if not path.parent.exists():
                path = path.parent.parent / path.name
        if path == STDOUT:
            raise UserError(f"--{option} -: is written to a file; only --json, --latex or --csv can go to standard output")
        if path.resolve() in taken:
            raise UserError(f"{path} is named twice: it cannot be written as well")
        taken.append(path.resolve())
        if path.is_symlink() and (path.is_file() or not path.exists()):
            raise UserError(f"{path} cannot be written: it is a link; give the file that it leads to, or another name")
        if path.exists() and not (path.is_file() or path.is_dir()):
            raise UserError(f"{path} cannot be written: it is no ordinary file")
        folder = path.resolve().parent
        if not folder.is_dir():
            raise UserError(f"{path} cannot be written: there is no folder {folder}")
        if path.is_dir() or not os.access(folder, os.W_OK):
            raise UserError(f"{path} cannot be written: it is a folder, or its folder is write-protected")
        require_ending(f"--{option}", path, *endings)


def check_image_size(size: int | None) -> None:
    if size is not None and not 8 <= size <= 4096:
        raise UserError(f"--image-size {size}: must be 8 to 4,096")


def with_ranks(args: argparse.Namespace, work: "Callable[[argparse.Namespace, Settings, Group], None]") -> None:
    """Check the options, and does `work` with the ranks."""
    fiducial.launched()  # before torch is imported
    from fiducial.evaluation.settings import Settings

    names = [field.name for field in fields(Settings) if field.name != "metrics" and hasattr(args, field.name)]
    settings = {name: getattr(args, name) for name in names} | {"keep_features": not args.no_cache}
    if getattr(args, "metrics", None) is not None:
        settings["metrics"] = tuple(name.strip() for name in args.metrics.split(",") if name.strip())
    settings = Settings(**settings)
    settings.check()
    args.extractor = parse_extractors(args.extractor)
    args.weights = parse_weights(args.weights, **{name: getattr(args, f"{name}_weights") for name in ALIASES})
    inputs = [Path(path) for name in ("samples", "images", "ref", "train") if (path := getattr(args, name, None))]
    check_outputs(args, [*inputs, *args.weights.values()])
    tensorboard.check(getattr(args, "tensorboard", None), getattr(args, "step", None))
    with fiducial.init(args.device) as group:
        work(args, settings, group)
