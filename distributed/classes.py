"""What classes are called: read from what people have. No torch.

A mapping of another order or count than the training's gives every image the wrong name, without any error. So wherever two
mappings are known they must be equal, and its hash is recorded with the run.
"""

import functools
import hashlib
import json
import os
import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path

from distributed.console import UserError, quoted
from distributed.opening import NO_FILE, no_file, read_text

IMAGENET = Path(__file__).resolve().parent.parent / "assets" / "imagenet" / "classes.json"
IMAGENET_CLASSES = 1000
GUESSED = "ImageNet"  # the source of names that nobody gave, for a thousand classes
FORMS = 'expected {"name": index}, {"0": "name"}, {"0": ["synset", "name"]} or a list of names'
LARGEST_FILE = 1 << 24  # bytes; a hundred times ImageNet's
LONGEST_NAME = 200  # characters


@dataclass(frozen=True)
class ClassNames:
    """A name for each class, by index; no two are equal.

    `aliases` are second names, all or none: WordNet's synsets for ImageNet. `source` says in a few words where it was found.
    """

    names: tuple[str, ...]
    source: str
    aliases: tuple[str, ...] = ()

    @property
    def sha256(self) -> str:
        return names_sha256(self.names)

    def index(self, name: str) -> int | None:
        """The class that is called so, by its name or else its alias."""
        name = unicodedata.normalize("NFC", name)
        return next((known.index(name) for known in (self.names, self.aliases) if name in known), None)

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
    return ClassNames(tuple(name for _, name in pairs), GUESSED, tuple(synset for synset, _ in pairs))


def read(path: Path, source: str) -> ClassNames:
    """Names from a training folder, a JSON file of one of `FORMS`, or a text file of a name a line.

    A folder's classes are its subfolders in sorted order, whatever they hold, as torchvision's ImageFolder counts them.

    Raises:
        UserError: if it cannot be read, or is not a gapless mapping of different names.
    """
    try:
        if path.is_dir():
            names = sorted(entry.name for entry in os.scandir(path) if entry.is_dir())
            return _build(names, source, "has no subfolders, whose names would be the classes")
        if reason := no_file(path):
            raise ValueError("there is no such file or folder" + (f", {reason}" if reason != NO_FILE else ""))
        if path.stat().st_size > LARGEST_FILE:
            raise ValueError(f"has {path.stat().st_size:,} bytes, too many for a list of names")
        text = read_text(path, LARGEST_FILE, "utf-8-sig")
        if path.suffix.lower() == ".json":
            return _from_mapping(_decoded(text), source)
        return _build([line.strip() for line in text.rstrip().splitlines()], source, "is empty")
    except OSError as error:
        reason = f"cannot be read ({error.strerror})"
    except UnicodeDecodeError as error:
        reason = f"is not UTF-8 (byte {error.start:,}); save it as such"
    except ValueError as error:
        reason = str(error)
    raise UserError(f"{source}: {reason}")


def from_mapping(content: object, source: str) -> ClassNames:
    """Names from one of `FORMS`, already decoded.

    Raises:
        UserError: if it is none, or has gaps or twins.
    """
    try:
        if isinstance(content, str):  # a safetensors file holds nothing but text beside its tensors
            content = _decoded(content)
        return _from_mapping(content, source)
    except ValueError as error:
        raise UserError(f"{source}: {error}") from error


def _decoded(text: str) -> object:
    try:
        return json.loads(text, object_pairs_hook=_without_twins)
    except RecursionError as error:
        raise ValueError(f"is nested too deeply; {FORMS}") from error
    except json.JSONDecodeError as error:
        raise ValueError(f"is not JSON ({error})") from error


def _without_twins(pairs: list[tuple[str, object]]) -> dict[str, object]:
    """A JSON object, of which Python would keep only the last of two equal keys."""
    seen: set[str] = set()
    for key, _ in pairs:
        if key in seen:
            raise ValueError(f"{quoted(key)} stands there twice")
        seen.add(key)
    return dict(pairs)


def _from_mapping(content: object, source: str) -> ClassNames:
    if isinstance(content, list):
        return _build(content, source, "is empty")
    if not isinstance(content, dict):
        raise ValueError(f"is {type(content).__name__}; {FORMS}")
    if not content:
        raise ValueError("is empty")
    if all(type(value) is int for value in content.values()):
        return _build(_in_order([(index, name) for name, index in content.items()]), source)
    if all(isinstance(key, str) and re.fullmatch("[0-9]{1,9}", key) for key in content):
        return _build(_in_order([(int(key), value) for key, value in content.items()]), source)
    key, value = next((key, value) for key, value in content.items() if type(value) is not int)
    raise ValueError(f"maps {quoted(key)} to {quoted(value)}; {FORMS}")


def _in_order(entries: list[tuple[int, object]]) -> list[object]:
    """The second of each pair, sorted by the first, which are to be 0, 1, 2 and so on."""
    indices = sorted(index for index, _ in entries)
    for expected, index in enumerate(indices):
        if index != expected:
            found, twice = quoted(index), index < expected
            raise ValueError(f"index {found} stands there twice" if twice else f"index {expected} is missing, before {found}")
    return [value for _, value in sorted(entries, key=lambda entry: entry[0])]


def _build(entries: list[object], source: str, if_empty: str = "is empty") -> ClassNames:
    """The mapping of entries in order of index, each a name, or a synset and a name."""
    if not entries:
        raise ValueError(if_empty)
    aliases: tuple[str, ...] = ()
    if all(isinstance(entry, list) and len(entry) == 2 for entry in entries):
        aliases = _checked([alias for alias, _ in entries])
        entries = [name for _, name in entries]
    names = _checked(entries)
    if len(names) == IMAGENET_CLASSES and names in ((known := imagenet()).aliases, known.names):
        return ClassNames(known.names, source, known.aliases)  # a folder of synsets means the same as their names
    return ClassNames(names, source, aliases)


def _checked(names: list[object]) -> tuple[str, ...]:
    """The names in Unicode's composed form, as file systems differ in it. Raises ValueError for twins and what is no name."""
    seen: dict[str, int] = {}
    for index, name in enumerate(names):
        if not isinstance(name, str) or not name.strip():
            raise ValueError(f"index {index} is {quoted(name)}, which is no name")
        if len(name) > LONGEST_NAME:
            raise ValueError(f"the name of index {index} has {len(name):,} characters, more than {LONGEST_NAME}")
        if any(unicodedata.category(letter) in ("Cc", "Cs") for letter in name):
            raise ValueError(f"the name of index {index}, {quoted(name)}, is not UTF-8 text in one line")
        name = unicodedata.normalize("NFC", name)
        if name in seen:
            raise ValueError(f"{quoted(name)} is the name of both {seen[name]} and {index}")
        seen[name] = index
    return tuple(seen)
