"""Labels of the names in `--labels`. No torch."""

import difflib
import re

from fiducial import UserError, quoted
from fiducial.classes import ClassNames
from fiducial.sampling.plan import LABEL_MODES

CLOSEST = 3  # names that are suggested for a misspelt one
COMMA = re.compile(r"(?<!\\),")
NUMBERS = re.compile(r"[0-9]+(-[0-9]*)?")  # an index or a range of them, also one that lacks its end


def has_names(spec: str) -> bool:
    """Whether a value of `--labels` holds more than a mode or numbers, so that it cannot be understood without a mapping."""
    return spec not in LABEL_MODES and not all(NUMBERS.fullmatch(part.strip()) for part in COMMA.split(spec))


def numbered(spec: str, classes: ClassNames | None) -> str:
    """A value of `--labels` with each name in it replaced by its index, and all else as it was.

    Numbers are indices, also where a class is called by a number. A comma within a name is written `\\,`.

    Raises:
        UserError: for what is not a name.
    """
    if not has_names(spec):
        return spec
    return ",".join(_numbered(part, classes) for part in COMMA.split(spec))


def _numbered(part: str, classes: ClassNames | None) -> str:
    text = part.strip()
    if NUMBERS.fullmatch(text):
        return part
    said = f"--labels {quoted(text)} is neither random, balanced, null, a number such as 7 or 3-5,"
    if classes is None:
        raise UserError(f"{said} nor a name, for no class names are known; give them with --class-names")
    name = text.replace("\\,", ",")
    if not (indices := classes.indices(name)):
        raise UserError(f"{said} nor one of the {len(classes.names):,} names of {classes.source}{_closest(name, classes)}")
    if len(indices) > 1:
        called = [
            f"{index} ({', '.join(known[index] for known in (classes.names, classes.aliases) if known)})" for index in indices
        ]
        remedy = "give the number or the synset" if classes.aliases else "give the number"
        raise UserError(f"--labels {quoted(text)} is a name of several classes, {' and '.join(called)}; {remedy}")
    return part.replace(text, str(indices[0]))


def _closest(name: str, classes: ClassNames) -> str:
    """A remark on the names that may have been meant, as they would be given."""
    folded = {known.casefold(): known for known in (*classes.aliases, *classes.names)}
    close = difflib.get_close_matches(name.casefold(), folded, CLOSEST)
    if not close:  # such as one word of several
        close = [text for text in folded if name and name.casefold() in text][:CLOSEST]
    names = " or ".join(repr(folded[text].replace(",", "\\,")).replace("\\\\", "\\") for text in close)
    return f"; the closest: {names}" if names else ""
