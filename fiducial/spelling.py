"""How a command is called, in what it says itself: `python -m evaluation calc` in a checkout, `fiducial evaluate` for who
installed Fiducial or typed that.
"""

import re

from fiducial.wings import IS_CHECKOUT

# As they are typed in a checkout, and what `fiducial.__main__` takes; the longer ones first.
SPELLINGS = (
    (r"(torchrun [^\n]*?)-m evaluation calc\b", r"\1-m fiducial evaluate"),
    (r"(torchrun [^\n]*?)-m (?:evaluation|models|sampling)\b", r"\1-m fiducial"),
    (r"(torchrun [^\n]*?)sample_ddp\.py", r"\1-m fiducial sample"),
    (r"python -m evaluation calc\b", "fiducial evaluate"),
    (r"python -m (?:evaluation|models|sampling)\b", "fiducial"),
    (r"(?:python )?\bsample_ddp\.py", "fiducial sample"),
)
_chosen = [not IS_CHECKOUT]


def spell_as_typed() -> None:
    """Have commands called as `fiducial` takes them, also in a checkout."""
    _chosen[0] = True


def spelled(text: str) -> str:
    """The same text with commands as this user types them."""
    if _chosen[0]:
        for written, typed in SPELLINGS:
            text = re.sub(written, typed, text)
    return text
