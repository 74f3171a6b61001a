"""Facts that a checkpoint records of its training beside the weights: classes, model, image size, in arguments of any nesting."""

import argparse
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from numbers import Integral

from fiducial import UserError
from fiducial.classes import from_mapping

ARGUMENTS = ("args", "hyper_parameters", "config", "cfg", "opt", "model_args")  # as training scripts call them, and Lightning
OPTIMIZER = {"state", "param_groups"}  # what `opt` is in others
CLASSES = ("num_classes", "n_classes", "nb_classes", "num_class", "n_class", "nclass", "class_num", "label_dim")
LARGEST_NUMBER = 1 << 62  # of steps or classes; what is beyond says nothing
LONGEST_DIGITS = 18  # of a number that is written as text
MOST_OPTIONS = 10_000
DEEPEST = 4  # dictionaries in the arguments


@dataclass(frozen=True)
class Said:
    """Recorded facts, the outermost first where there are several, which need not be true of the weights."""

    num_classes: tuple[int, ...] = ()
    named: int | None = None  # classes in class_to_idx
    never_dropped: bool = False  # class_dropout_prob is 0, so no null label was trained
    models: tuple[str, ...] = ()
    image_sizes: tuple[int, ...] = ()

    def classes(self, rows: int | None) -> int | None:
        """The number of classes that is said and fits a label table of so many rows; None if none is."""
        if (found := next((n for n in self.num_classes if rows is None or n in (rows, rows - 1)), None)) is not None:
            return found
        if self.never_dropped and rows is not None:
            return rows
        return self.named if self.named is not None and self.named in (rows, (rows or 0) - 1) else None

    def contradictions(self, rows: int, model: str, sizes: tuple[int, ...]) -> list[str]:
        """Recorded facts, in words, that are not so of weights with so many rows of labels.

        Args:
            sizes: what may be called the image size, in pixels or latent ones.
        """
        has = f"the label table has {rows} rows"
        doubts = [f"num_classes {self.num_classes[0]}, but {has}"] if self.num_classes and self._is_off(rows) else []
        if self.never_dropped and rows - 1 in self.num_classes and rows not in self.num_classes:
            doubts.append(f"class_dropout_prob 0, but {has} for {rows - 1} classes, so that its null label was never trained")
        models = [name for name in self.models if name.partition("-")[0] == model.partition("-")[0]]
        if models and model not in models:
            doubts.append(f"model {models[0]}, but the weights are of {model}")
        if self.image_sizes and not set(sizes) & set(self.image_sizes):
            doubts.append(f"image_size {self.image_sizes[0]}, but the weights are of {sizes[0]}")
        return doubts

    def _is_off(self, rows: int) -> bool:
        return not {rows, rows - 1} & set(self.num_classes)


def read(content: object, mapping: object, known_models: object) -> Said:
    """The facts in the content of a file.

    Args:
        mapping: its `class_to_idx`, unchecked, or None.
        known_models: names of models; what else is called `model` says nothing.
    """
    found: dict[str, list] = {"num_classes": [], "model": [], "image_size": [], "class_dropout_prob": []}
    for name, value in options_of(content):
        name = CLASSES[0] if name in CLASSES else name
        if name in found:
            found[name].append(value)
    dropped = found["class_dropout_prob"]
    return Said(
        tuple(n for n in map(number, found["num_classes"]) if n is not None),
        _named(mapping),
        bool(dropped) and _is_zero(dropped[0]),
        tuple(one for one in found["model"] if isinstance(one, str) and one in known_models),
        tuple(n for n in map(number, found["image_size"]) if n is not None),
    )


def options_of(content: object, deepest: int = DEEPEST) -> Iterator[tuple[object, object]]:
    """Name and value of the arguments in a file, the outermost first: numbers and texts at its top too."""
    top = content if isinstance(content, dict) else {}
    yield from ((name, value) for name, value in islice(top.items(), MOST_OPTIONS) if isinstance(value, str | int | float))
    waiting = [(top.get(name), 1) for name in ARGUMENTS]
    seen = 0
    for options, depth in waiting:
        options = vars(options) if isinstance(options, argparse.Namespace) else options
        if not isinstance(options, dict) or options.keys() == OPTIMIZER:
            continue
        for name, value in options.items():
            if (seen := seen + 1) > MOST_OPTIONS:
                return
            yield name, value
            if depth < deepest and isinstance(value, dict | argparse.Namespace):
                waiting.append((value, depth + 1))


def number(value: object) -> int | None:
    """A count that someone may have meant, also as text or with a decimal point."""
    if isinstance(value, str) and len(value) <= LONGEST_DIGITS and value.isascii():
        value = int(digits) if (digits := value.strip().removesuffix(".0")).isdigit() else value
    if isinstance(value, float) and value.is_integer() and abs(value) < LARGEST_NUMBER:
        return int(value) if value >= 0 else None
    is_whole = isinstance(value, Integral) and not isinstance(value, bool)
    return int(value) if is_whole and 0 <= value < LARGEST_NUMBER else None


def _is_zero(value: object) -> bool:
    try:
        return isinstance(value, int | float | str) and not isinstance(value, bool) and float(value) == 0
    except (ValueError, OverflowError):
        return False


def _named(mapping: object) -> int | None:
    """How many classes a mapping names, if it is one."""
    try:
        return None if mapping is None else len(from_mapping(mapping, "class_to_idx").names)
    except UserError:
        return None
