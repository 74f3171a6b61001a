"""Names of classes, read from what people have. No torch.

A mapping of another order or count than the training's gives every image the wrong name, without any error. So wherever two
mappings are known they must be equal, and its hash is recorded with the run.
"""

import functools
import hashlib
import json
import os
import re
import unicodedata
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path

from fiducial.class_lists import in_order, parse, without_twins
from fiducial.console import UserError, quoted
from fiducial.files import CLASSES_BESIDE
from fiducial.opening import no_file, read_text
from fiducial.wings import ASSETS

IMAGENET = ASSETS / "imagenet" / "classes.json"
IMAGENET_CLASSES = 1000
GUESSED = "ImageNet"  # the source of names that nobody gave, for a thousand classes
FORMS = 'expected {"name": index}, {"0": "name"}, {"0": ["synset", "name"]} or a list of names'
TWINS = (("crane", 134), ("maillot", 639), ("missile", 744))  # names that WordNet gives these classes of ImageNet beside others
NEARLY_ALL = 950  # of ImageNet's classes: where a class has several names, some are lost among their twins
SYNSET = re.compile(r"n[0-9]+")
LARGEST_FILE = 1 << 24  # bytes; a hundred times ImageNet's
LONGEST_NAME = 200  # characters


@dataclass(frozen=True)
class ClassNames:
    """A name for each class, by index; no two are equal.

    `aliases` are second names, all or none: WordNet's synsets for ImageNet. `source` says in a few words where it was found.
    `others` are further names, each with an index, of which a name may have several.
    """

    names: tuple[str, ...]
    source: str
    aliases: tuple[str, ...] = ()
    others: tuple[tuple[str, int], ...] = ()

    @property
    def sha256(self) -> str:
        return names_sha256(self.names)

    def indices(self, name: str) -> list[int]:
        """The classes that are called so, ascending; several where a name, in WordNet too, is not one class's only."""
        name = unicodedata.normalize("NFC", name)
        known = (*zip(self.names, range(len(self.names)), strict=True), *self.others)
        return [self.aliases.index(name)] if name in self.aliases else sorted({index for own, index in known if own == name})

    def recorded(self) -> dict[str, str | int | list[str]]:
        """As it stands in a manifest."""
        return {"sha256": self.sha256, "count": len(self.names), "source": self.source, "names": list(self.names)}


def names_sha256(names: Sequence[str]) -> str:
    """SHA-256 of the names in order, as compact JSON in UTF-8."""
    return hashlib.sha256(json.dumps(list(names), ensure_ascii=False, separators=(",", ":")).encode()).hexdigest()


def difference(there: Sequence[str], here: Sequence[str]) -> str:
    """The first index at which two unequal mappings differ, and what they say, as a clause."""
    pairs = enumerate(zip_longest(there, here))
    index, names = next((index, names) for index, names in pairs if names[0] != names[1])
    one, other = ("nothing" if name is None else repr(name) for name in names)
    return f"index {index} is {one} there and {other} here"


@functools.cache
def imagenet() -> ClassNames:
    """ImageNet's 1,000 classes in the order of its training folder."""
    pairs = json.loads(IMAGENET.read_text(encoding="utf-8")).values()
    return ClassNames(tuple(name for _, name in pairs), GUESSED, tuple(synset for synset, _ in pairs), TWINS)


def read(path: Path, source: str) -> ClassNames:
    """Names from a training folder, a JSON file of one of `FORMS`, or a text file of a name a line, of a synset or an index
    before it, or of a dictionary or list as Python prints it. Of several names of a class the first is its name.

    A folder's classes are its subfolders in sorted order, whatever they hold, as torchvision's ImageFolder counts them.

    Raises:
        UserError: if it cannot be read, is not a gapless mapping of different names, or has ImageNet's classes in another order
            than its training.
    """
    try:
        if path.is_dir():
            names = sorted(entry.name for entry in os.scandir(path) if entry.is_dir())
            return _build(names, source, "has no subfolders, whose names would be the classes")
        if reason := no_file(path, "there is no such file or folder"):
            raise ValueError(reason)
        if path.stat().st_size > LARGEST_FILE:
            raise ValueError(f"has {path.stat().st_size:,} bytes, too many for a list of names")
        text = read_text(path, LARGEST_FILE, "utf-8-sig")
        if path.suffix.lower() == ".json":
            return _from_mapping(_decoded(text), source)
        return _from_mapping(parse(text), source)
    except OSError as error:
        reason = f"cannot be read ({error.strerror})"
    except UnicodeDecodeError as error:
        reason = f"is not UTF-8 (byte {error.start:,}); save it as such"
    except ValueError as error:
        reason = str(error)
    raise UserError(f"{source}: {reason}")


def names_of_checkpoint(option: Path | None, ckpt: Path, embedded: object, num_classes: int) -> ClassNames | None:
    """The names that hold for a checkpoint, or None if nobody knows any.

    Args:
        option: what `--class-names` gives.
        embedded: the checkpoint's own `class_to_idx`, as it was found in the file, or None.

    Raises:
        UserError: if one of the mappings is none, two of them differ, or there are not `num_classes` names.
    """
    own = [from_mapping(embedded, f"class_to_idx in {ckpt}")] if embedded is not None else []
    place = ckpt if ckpt.name else ckpt.absolute()  # "." has no name
    sidecar = place.with_name(place.name + CLASSES_BESIDE)
    if os.path.lexists(sidecar):
        own.append(read(sidecar, str(sidecar)))
    given = [] if option is None else [read(option, f"--class-names {option}")]
    if not (known := [*given, *own]):
        return imagenet() if num_classes == IMAGENET_CLASSES else None
    for names in known[:-1]:
        _check_equal(names, known[-1])
    if len(known[0].names) != num_classes:
        raise UserError(
            f"{known[0].source}: names {len(known[0].names)} classes, but --num-classes is {num_classes}, as in {ckpt}; "
            "give the mapping that it was trained with, a name for each class"
        )
    return known[0]


def names_alone(option: Path | None, num_classes: int) -> ClassNames | None:
    """The names that `--class-names` gives where there is no checkpoint to say any; without it ImageNet's for 1,000 classes.

    Raises:
        UserError: if it is no mapping, or not of `num_classes` names.
    """
    if option is None:
        return imagenet() if num_classes == IMAGENET_CLASSES else None
    names = read(option, f"--class-names {option}")
    if len(names.names) != num_classes:
        raise UserError(f"{names.source}: names {len(names.names)} classes, but --num-classes is {num_classes}")
    return names


def _check_equal(names: ClassNames, own: ClassNames) -> None:
    """Raise UserError if two mappings differ."""
    if names.names != own.names:
        raise UserError(
            f"{names.source}: its {len(names.names)} classes are not the {len(own.names)} of {own.source}, for "
            f"{difference(own.names, names.names)}; a folder that was added, removed or renamed since the training shifts those "
            "after it, so give the mapping that it was trained with"
        )


def from_mapping(content: object, source: str) -> ClassNames:
    """Names from one of `FORMS`, already decoded.

    Raises:
        UserError: if it is none, or has gaps or twins. ImageNet's classes may be in any order: it is the training's own.
    """
    try:
        if isinstance(content, str):  # a safetensors file holds nothing but text beside its tensors
            content = _decoded(content)
        return _from_mapping(content, source, any_order=True)
    except ValueError as error:
        raise UserError(f"{source}: {error}") from error


def _decoded(text: str) -> object:
    try:
        return json.loads(text, object_pairs_hook=without_twins)
    except RecursionError as error:
        raise ValueError(f"is nested too deeply; {FORMS}") from error
    except json.JSONDecodeError as error:
        raise ValueError(f"is not JSON ({error})") from error


def _from_mapping(content: object, source: str, any_order: bool = False) -> ClassNames:
    """Names from decoded content; `any_order` is whether ImageNet's classes may have other indices than in its training."""
    if isinstance(content, list):
        return _build(content, source, any_order=any_order)
    if not isinstance(content, dict):
        raise ValueError(f"is {type(content).__name__}; {FORMS}")
    if not content:
        raise ValueError("is empty")
    if all(type(value) is int for value in content.values()):
        named: dict[int, list[object]] = {}
        for name, index in content.items():
            named.setdefault(index, []).append(name)
        if (known := _as_imagenet(named, source, any_order)) is not None:
            return known
        names = [several if len(several) > 1 else several[0] for several in in_order(list(named.items()))]
        if any(isinstance(one, list) for one in names):
            names = [one if isinstance(one, list) else [one] for one in names]
        return _build(names, source, any_order=True)
    if all(isinstance(key, str) and re.fullmatch("[0-9]{1,9}", key) for key in content):
        return _build(in_order([(int(key), value) for key, value in content.items()]), source, any_order=any_order)
    key, value = next((key, value) for key, value in content.items() if type(value) is not int)
    raise ValueError(f"maps {quoted(key)} to {quoted(value)}; {FORMS}")


def _as_imagenet(named: Mapping[int, Sequence[object]], source: str, any_order: bool = False) -> ClassNames | None:
    """ImageNet's classes, if these are names or synsets of theirs by index, some lost where two classes share one; else None.

    Names may be those of other lists, of which a few lie elsewhere, but none in each other's places. A synset is one class's
    only, so that each has its own index. Where any order is allowed, names that lie elsewhere are the mapping's own.

    Raises:
        ValueError: if they are in another order than in the training, unless that is allowed.
    """
    if not (NEARLY_ALL <= len(named) <= IMAGENET_CLASSES and set(named) <= set(range(IMAGENET_CLASSES))):
        return None
    known, there, moved, by_synset, astray = imagenet(), 0, [], 0, False
    synsets = {synset: index for index, synset in enumerate(known.aliases)}
    places = {spelt(name): index for names in (known.names, known.aliases) for index, name in enumerate(names)}
    others = []

    def is_twin(index: int, parts: list[str]) -> bool:
        return any((part, index) in TWINS for part in parts)

    for index, names in named.items():
        parts = [part for name in names if isinstance(name, str) for part in (name, *name.split(", "))]
        found = {places[spelt(part)] for part in parts if spelt(part) in places}
        others += [(unicodedata.normalize("NFC", part), index) for part in parts]
        own = {synsets[part] for part in parts if part in synsets}
        elsewhere = index not in (own or found)
        by_synset, astray = by_synset + bool(own), astray or (bool(own) and elsewhere)
        there += not elsewhere
        moved += [(index, parts[0], min(own or found))] if (own or found) and elsewhere and not is_twin(index, parts) else []
    # One that lies elsewhere may be another list's word for a class, but not where that place is another one's that moved too.
    exchanged = {index for index, *_ in moved} & {place for *_, place in moved}
    another = astray or bool(exchanged) or len(moved) > there / 20
    if by_synset == len(named) < IMAGENET_CLASSES:  # nothing is lost of them, so these are a part
        return None
    if there + len(moved) < IMAGENET_CLASSES / 2 or (any_order and (another or moved)):
        return None
    if another:
        index, name, place = min(moved)
        raise _other_order(index, name, place)
    return ClassNames(known.names, source, known.aliases, tuple(dict.fromkeys((*TWINS, *others))))


def _other_order(index: int, name: str, place: int) -> ValueError:
    """A clause on the first class that has another index than in the training."""
    return ValueError(
        f"index {index} is {quoted(name)}, which has index {place} in ImageNet's training, whose classes are the sorted synsets; "
        "give a list in that order (a network that was trained in another one has its own as class_to_idx in the checkpoint)"
    )


def _build(entries: list[object], source: str, if_empty: str = "is empty", any_order: bool = False) -> ClassNames:
    """The mapping of entries in order of index, each a name, or a synset and a name, or several names."""
    if not entries:
        raise ValueError(if_empty)
    entries = [list(entry) if isinstance(entry, tuple) else entry for entry in entries]
    several = [entry if isinstance(entry, list) else [entry] for entry in entries]
    if (known := _as_imagenet(dict(enumerate(several)), source, any_order)) is not None:
        return known
    aliases: tuple[str, ...] = ()
    others: list[tuple[str, int]] = []
    pairs = all(isinstance(entry, list) and len(entry) == 2 and isinstance(entry[0], str) for entry in entries)
    if pairs and all(SYNSET.match(entry[0]) for entry in entries):
        aliases = _checked([alias for alias, _ in entries])
        entries = [name for _, name in entries]
        twins = {name for name, count in Counter(map(str, entries)).items() if count > 1}
        others = [(name, index) for index, name in enumerate(entries) if str(name) in twins]
        entries = [f"{name} ({aliases[index]})" if str(name) in twins else name for index, name in enumerate(entries)]
    elif all(isinstance(entry, list) and entry and all(isinstance(name, str) for name in entry) for entry in entries):
        others = [(unicodedata.normalize("NFC", name), index) for index, names in enumerate(entries) for name in names[1:]]
        entries = [names[0] for names in entries]
    names = _checked(entries)
    if not any_order:
        _check_synsets(aliases or names)
    return ClassNames(names, source, aliases, tuple(others))


def _check_synsets(names: Sequence[str]) -> None:
    """Raise ValueError if all are synsets of some of ImageNet's classes and not sorted, as folders of a training are."""
    known = imagenet().aliases
    if all(name in known for name in names) and list(names) != sorted(names):
        index, name = next((index, name) for index, name in enumerate(names) if name != sorted(names)[index])
        raise ValueError(
            f"index {index} is {quoted(name)}, but a training folder of these synsets numbers them sorted, where it has index "
            f"{sorted(names).index(name)}; give a list in that order, or class_to_idx of the training as JSON"
        )


def spelt(name: str) -> str:
    """A name in Unicode's composed form, as file systems differ in it, and with the spaces that folders have as underscores."""
    return unicodedata.normalize("NFC", name).replace("_", " ")


def _checked(names: list[object]) -> tuple[str, ...]:
    """The names in Unicode's composed form, as file systems differ in it. Raises ValueError for twins and what is no name."""
    seen: dict[str, int] = {}
    for index, name in enumerate(names):
        if not isinstance(name, str) or not name.strip():
            raise ValueError(f"index {index} is {quoted(name)}, which is no name")
        if len(name) > LONGEST_NAME:
            raise ValueError(f"the name of index {index} has {len(name):,} characters, more than {LONGEST_NAME}")
        categories = {unicodedata.category(letter) for letter in name}
        if {"Cc", "Cs"} & categories:
            why = "is not UTF-8 text" if "Cs" in categories else "has a tab, line break or other control character in it"
            raise ValueError(f"the name of index {index}, {quoted(name)}, {why}")
        name = unicodedata.normalize("NFC", name)
        if name in seen:
            raise ValueError(f"{quoted(name)} is the name of both {seen[name]} and {index}")
        seen[name] = index
    return tuple(seen)
