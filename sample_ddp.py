"""The command that draws images from a class-conditional model, and evaluates them: see `sampling/options/parser.py`."""

if __name__ == "__main__":
    import fiducial.interrupts  # noqa: F401 (which hears Ctrl-C from here on)

from fiducial.sampling.options.parser import build_parser, parse
from fiducial.studies.sample import main

__all__ = ["build_parser", "main", "parse"]

if __name__ == "__main__":
    main()
