"""Fiducial: samples class-conditional generative models, and tells how good the samples are.

    fiducial sample --preset digits --ref digits
    torchrun --nproc_per_node=8 -m fiducial sample --preset dit-xl-2-256 --ref adm-imagenet-256
    fiducial evaluate samples/RUN.npz --ref reference.npz --html report.html
    fiducial inspect DiT-XL-2-256x256.pt

commands:
{commands}

fiducial COMMAND --help tells the options of one.
"""

import argparse
import importlib
import sys
from dataclasses import dataclass

from fiducial import Parser, user_errors
from fiducial.spelling import spell_as_typed


@dataclass(frozen=True)
class Command:
    """A subcommand: the module whose `main` it is, and the words that this takes in the place of its name."""

    module: str
    words: tuple[str, ...]
    help: str


COMMANDS = {
    "sample": Command("fiducial.studies.sample", (), "draw images, and evaluate them"),
    "evaluate": Command("fiducial.evaluation.__main__", ("calc",), "metrics of images"),
    "ref": Command("fiducial.evaluation.__main__", ("ref",), "make a reference of images"),
    "compare": Command("fiducial.evaluation.__main__", ("compare",), "which differences between results are decided"),
    "diagnose": Command("fiducial.studies.diagnose.__main__", (), "why two sets of images have different FIDs"),
    "inspect": Command("fiducial.models.__main__", ("inspect",), "what a checkpoint or an autoencoder is"),
    "convert": Command("fiducial.models.__main__", ("convert",), "change the form that a checkpoint is in"),
    "fetch": Command("fiducial.evaluation.__main__", ("fetch",), "download what a preset or an evaluation needs"),
    "status": Command("fiducial.sampling.__main__", ("status",), "whether a run is complete"),
    "verify": Command("fiducial.sampling.__main__", ("verify",), "whether its images are what was drawn"),
    "doctor": Command("fiducial.studies.doctor", ("doctor",), "what a run will meet on this machine"),
    "prune": Command("fiducial.evaluation.__main__", ("prune",), "remove old files of the cache"),
}


def chosen(words: list[str]) -> Command | None:
    """The subcommand that a command line begins with; None where it begins with none."""
    command = COMMANDS.get(words[0]) if words else None
    if words[:1] == ["fetch"]:
        from fiducial.models.checkpoints.catalogue import CATALOGUE

        if set(words) & set(CATALOGUE):  # a preset, whose weights are a model's
            return Command("fiducial.models.__main__", ("fetch",), command.help)
    return command


def run() -> int | None:
    """Do what the command line says. Return the exit code, None for 0."""
    spell_as_typed()
    command = chosen(sys.argv[1:])
    if command is None:
        listed = "\n".join(f"    {name:<10}{one.help}" for name, one in COMMANDS.items())
        parser = Parser(
            prog="fiducial",
            usage="fiducial [-h] [--version] COMMAND ...",
            description=__doc__.format(commands=listed),
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )
        parser.add_argument("command", choices=COMMANDS, metavar="COMMAND", help=argparse.SUPPRESS)
        parser.parse_args(sys.argv[1:])
        raise AssertionError("a command that is known was not chosen")
    sys.argv[1:2] = command.words
    return importlib.import_module(command.module).main()


def main() -> None:
    with user_errors():
        sys.exit(run())


if __name__ == "__main__":
    main()
