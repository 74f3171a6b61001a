"""The command that narrows a grid of configurations down: `fiducial sweep` (docs/sweeps.md)."""

import argparse
from pathlib import Path

from fiducial import Parser, UserError, make_folder, say, unwritable, user_errors
from fiducial.studies.sweeps import slurm
from fiducial.studies.sweeps.drawing import draw, processes
from fiducial.studies.sweeps.page import round_table, write_report
from fiducial.studies.sweeps.specification import Specification, checked, parsed_over, run_of, valued_options
from fiducial.studies.sweeps.state import Sweep, opened

DESCRIPTION = """Finds the best of a grid of configurations: each is a run of its own for each seed, all with the same seeds,
labels and noise. A few images first; what paired intervals decide to be worse is dropped; the rest grows, to all of them.

    fiducial sweep --out sweeps/cfg --over cfg-scale=1,1.25,1.5,2 --over sampler=ddpm,ddim --seeds 0,1 --ref digits \\
        --preset digits --start 500 --num-fid-samples 2000

Any option of fiducial sample that takes a value can be swept, and any other is given as there. The same command continues.
"""
METRIC_NAMES = ("fid", "is", "precision", "recall", "density", "coverage", "fid-infinity")  # of every evaluation of `sample`


def build_parser() -> Parser:
    parser = Parser(
        prog="fiducial sweep",
        usage="fiducial sweep --out FOLDER --over NAME=VALUE,VALUE [--over ...] --ref REF [options] [options of fiducial sample]",
        description=DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("--out", type=Path, required=True, metavar="FOLDER", help="of the sweep: its runs, sweep.json and sweep.html")
    add(
        "--over",
        action="append",
        metavar="NAME=VALUE,...",
        help="an option of fiducial sample and its values, with semicolons between them where they have commas in them "
        "(guidance-interval=0,1;0.2,0.7); several options make a grid",
    )
    add("--seeds", default="0", metavar="N,...", help="of each configuration (default %(default)s)")
    add("--start", type=int, default=1000, help="images of each run in the first round (default %(default)s)")
    add("--num-fid-samples", type=int, default=50_000, help="images of each run that is left (default %(default)s)")
    add("--growth", type=float, default=3.0, help="by which a round has more images than the last (default %(default)s)")
    add("--metric", choices=METRIC_NAMES, default="fid", help="by which is decided (default %(default)s)")
    add("--ref", help="what runs are evaluated against, as for fiducial sample")
    add("--nproc-per-node", type=int, metavar="K", help="processes of each run (default: one a GPU, or one)")
    add("--dry-run", action="store_true", help="check everything, list the runs and the images of each round, and draw nothing")
    add("--slurm", metavar="OPTIONS", help='draw as an array of SLURM; options of sbatch, as --slurm="--gpus-per-node=8"')
    add("--slurm-most", type=int, metavar="M", help="tasks of the array that run at once (default: no limit)")
    add("--task", type=int, help=argparse.SUPPRESS)  # of the array
    add("--decide", action="store_true", help=argparse.SUPPRESS)  # after it
    add("--latex", type=Path, metavar="FILE", help="write a table of what is left for booktabs there")
    add("--csv", type=Path, metavar="FILE", help="write all numbers of all rounds there, unrounded")
    add("--plots", type=Path, metavar="DIR", help="write each plot of the page there, as SVG")
    return parser


def main() -> None:
    with user_errors():
        args, options = build_parser().parse_known_args()
        sweep = opened(args.out, specification(args, options))
        if args.task is not None:
            return task(sweep, args)
        if args.dry_run:
            return say(*planned(sweep))
        if why := unwritable(args.out):
            raise UserError(f"--out {args.out}: {why}")
        make_folder(args.out)
        if not (args.out / "sweep.json").exists():
            sweep.write()
        go_on(sweep, args)


def specification(args: argparse.Namespace, options: list[str]) -> Specification | None:
    """The sweep that a command line asks for, checked; None where it only names a folder.

    Raises:
        UserError: for the first mistake.
    """
    if not args.over and not options:
        return None
    if not args.over:
        raise UserError("--over: is missing; give at least one, such as --over cfg-scale=1,1.25,1.5")
    if args.ref is None:
        raise UserError("--ref: is missing; a sweep decides by what it measures against a reference")
    try:
        seeds = tuple(int(text) for text in args.seeds.split(","))
    except ValueError as error:
        raise UserError(f"--seeds {args.seeds}: must be whole numbers such as 0,1,2") from error
    if len(set(seeds)) < len(seeds):
        raise UserError(f"--seeds {args.seeds}: one is there twice")
    if not 2 <= args.start <= args.num_fid_samples:
        raise UserError(f"--start {args.start}: must be 2 to --num-fid-samples, {args.num_fid_samples:,}")
    if not 1.5 <= args.growth <= 100:
        raise UserError(f"--growth {args.growth:g}: must be 1.5 to 100")
    over = parsed_over(args.over, valued_options())
    options = [text for text in options if text != "--"] + [f"--ref={args.ref}"]
    return checked(Specification(over, seeds, args.start, args.num_fid_samples, args.growth, args.metric, tuple(options)))


def planned(sweep: Sweep) -> list[str]:
    """The runs, and the images of each round at most, in lines."""
    spec = sweep.spec
    lines = [f"{run_of(one, seed)}: {one.name}, seed {seed}" for one in spec.configurations for seed in spec.seeds]
    runs = len(lines)
    lines += [f"round {place + 1}: {size:,} images a run, {runs * size:,} at most" for place, size in enumerate(spec.sizes)]
    return lines


def task(sweep: Sweep, args: argparse.Namespace) -> None:
    """Of an array: one run of the round."""
    if not 0 <= args.task < len(sweep.jobs):
        raise UserError(f"--task {args.task}: the round has {len(sweep.jobs)} runs, counted from 0")
    if args.task in sweep.pending():
        draw(sweep, [args.task], processes(args.nproc_per_node))


def go_on(sweep: Sweep, args: argparse.Namespace) -> None:
    """Draw and decide, round by round, here or by SLURM; then write what was found."""
    while not sweep.is_done:
        places = sweep.pending()
        if args.decide and places:  # or what fails would be submitted for ever
            raise UserError(
                f"{len(places)} of {len(sweep.jobs)} runs have no result; see {sweep.folder / 'jobs'}; the command that began "
                "the sweep continues it"
            )
        if args.slurm is not None and places:
            return slurm.submit(sweep, args.slurm, args.slurm_most, args.nproc_per_node)
        if places:
            draw(sweep, places, processes(args.nproc_per_node))
        sweep.decide()
        say(*round_table(sweep))
        args.decide = False  # what comes next is another round
    write_report(sweep, args.latex, args.csv, args.plots)
