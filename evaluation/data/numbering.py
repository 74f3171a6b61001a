"""Which class of a reference is which of the samples: by name, or by number where something vouches for the number.

Labels of one set are not those of another: folders are counted in the order of their names, an empty or hidden one shifts those
after it, and what is in them may be shards and no classes. A distance between two different classes looks like any other number.
"""

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import PurePosixPath

import numpy as np

from fiducial import printable
from fiducial.classes import IMAGENET_CLASSES, imagenet, spelt

MOST_CLASSES = 1 << 15  # of folders or in a file; more folders than that are no classes
LONGEST = 255  # characters of a folder's name
SHOWN = 3  # names in a sentence


@dataclass(frozen=True)
class Numbering:
    """The meaning of the labels of a set of images: `names` by label, none where they are not known.

    `own` labels are the set's own, as an npz and a dataset have them; others only count its folders.
    """

    names: tuple[str, ...] = ()
    own: bool = True

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def parse(cls, text: str) -> "Numbering":
        """Read what `to_json` wrote.

        Raises:
            ValueError: if it is something else.
        """
        try:
            given = json.loads(text)
            names, own = given["names"], given["own"]
            known = isinstance(names, list) and all(isinstance(name, str) and len(name) <= LONGEST for name in names)
        except (KeyError, TypeError, RecursionError) as error:
            raise ValueError("what its classes are is not said as expected") from error
        if not (known and type(own) is bool and len(names) <= MOST_CLASSES and (own or len(set(names)) == len(names))):
            raise ValueError("the names of its classes are not as expected")
        return cls(tuple(names), own)


OWN = Numbering()


def labels_of_folders(files: Sequence[str]) -> np.ndarray | None:
    """(N,) int64: classes are the outermost folders, in the order of their names, if every image lies in one of several."""
    found = numbering_of_folders(files)
    labels = {folder: label for label, folder in enumerate(found.names)} if found else {}
    return np.array([labels[_outermost(file)] for file in files], dtype=np.int64) if found else None


def numbering_of_folders(files: Sequence[str]) -> Numbering | None:
    """The meaning of those labels; None where there are none."""
    folders = {_outermost(file) for file in files}
    return None if None in folders or not 2 <= len(folders) <= MOST_CLASSES else Numbering(tuple(sorted(folders)), own=False)


def _outermost(file: str) -> str | None:
    return PurePosixPath(file).parts[0] if "/" in file else None


@dataclass(frozen=True)
class Pairing:
    """`labels` of the reference by those of the samples. `why` there are none, in a clause; `lacking` are the samples' classes
    that have none, in words."""

    labels: dict[int, int]
    why: str = ""
    lacking: tuple[str, ...] = ()


UNPAIRED = Pairing({})


def pair(labels: np.ndarray, names: Sequence[str], theirs: Numbering | None, reference: str) -> Pairing:
    """The classes of a reference that are those of samples.

    Args:
        labels: of the samples, (N,) int64.
        names: of the samples' classes by label, none where they are not known; labels beyond them, as the null label, have no
            class.
        theirs: what the labels of the reference mean; None where the file does not say.
        reference: what it is called.
    """
    found = np.unique(labels).tolist()
    if theirs is None:
        why = "keeps labels without what they mean, which FID by class needs; make it anew with python -m evaluation ref"
        return Pairing({}, f"{reference} {why}")
    if names and theirs.names:
        if not (known := _by_name(names, theirs.names)):
            why = f"no class of {reference} ({_some(theirs.names)}) is called as one of the samples' ({_some(names)})"
            return Pairing({}, f"{why}, which FID by class needs")
        lacking = (printable(names[label]) for label in found if label < len(names) and label not in known)
        return Pairing({label: known[label] for label in found if label in known}, lacking=tuple(lacking))
    if theirs.own:
        return Pairing({label: label for label in found})
    known = _by_number(theirs.names)
    if not known.keys() >= set(found):
        why = f"the classes of {reference} are folders ({_some(theirs.names)}), and nothing says which of the samples' they are"
        return Pairing({}, f"{why}, which FID by class needs; --class-names gives what those of the samples are called")
    return Pairing({label: known[label] for label in found})


def mispaired(astray: int, count: int, reference: str) -> Pairing:
    """No pairs, as so many of all classes are, by their features, others than those that they were paired with."""
    why = f"{astray:,} of {count:,} classes of the samples lie nearer to another class of {reference} than to their own"
    return Pairing({}, f"{why}, so that its folders or labels are not their classes, which FID by class needs")


def within_one_folder(files: Sequence[str], reference: str) -> Pairing:
    """No pairs for a reference without labels; and why, where its files lie in folders within a single one."""
    if len({_outermost(file) for file in files}) != 1 or not (
        inner := {PurePosixPath(file).parts[1:-1] for file in files} - {()}
    ):
        return UNPAIRED
    first, (outer, *_) = min(inner)[0], PurePosixPath(files[0]).parts
    within = f"{printable(repr(outer)[:60])}, and in folders within ({_some([first])}, ...)"
    why = f"all images of {reference} lie in its folder {within}"
    return Pairing({}, f"{why}, of which FID by class needs those that are the classes; give that folder as the reference")


def _by_name(ours: Sequence[str], theirs: Sequence[str]) -> dict[int, int]:
    """Their label by ours, of names that both sides have, each for one class. ImageNet's names stand for its synsets too."""
    known, first = imagenet(), _meanings(theirs)
    meant = {spelt(name): spelt(synset) for name, synset in zip(known.names, known.aliases, strict=True)}
    synsets = meant if tuple(ours) == known.names else {}
    return {
        label: first[called] for name, label in _meanings(ours).items() for called in (name, synsets.get(name)) if called in first
    }


def _meanings(names: Sequence[str]) -> dict[str, int]:
    """The label of each name and, of several in one, of each of them, as far as it is one class's only."""
    parts_of = [{spelt(part) for part in (name, *name.split(", "))} for name in names]
    often = Counter(part for parts in parts_of for part in parts)
    return {part: label for label, parts in enumerate(parts_of) for part in parts if often[part] == 1}


def _by_number(folders: Sequence[str]) -> dict[int, int]:
    """Their label by the samples', where folders vouch for it themselves; else nothing.

    Those called 0, 1, 2 and so on do, as long as their order as text is that of the numbers (10 comes before 2), and so do all
    of ImageNet's.
    """
    if list(folders) == [str(number) for number in range(len(folders))]:
        return {label: label for label in range(len(folders))}
    known = _by_name(imagenet().names, folders) if len(folders) == IMAGENET_CLASSES else {}
    return known if len(known) == IMAGENET_CLASSES else {}


def _some(names: Sequence[str]) -> str:
    """The first names, as a sentence has them."""
    return ", ".join([*(printable(repr(name)[:60]) for name in names[:SHOWN]), *(["..."] if len(names) > SHOWN else [])])
