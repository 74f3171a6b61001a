"""Results made by hand, and pages read back."""

from html.parser import HTMLParser

import numpy as np

from fiducial.evaluation.data.runs import ClassNames, Run
from fiducial.evaluation.metrics.intervals import Estimate
from fiducial.evaluation.results.grid import Grid
from fiducial.evaluation.results.parts import ClassScore, Curve, Memorisation, Number, Pair
from fiducial.evaluation.results.result import Result

NASTY = '$x$ <script>alert(1)</script> & "q"'  # formulas, too, are text
VALUES = {  # value and standard error
    "fid": (2.5, 0.25),
    "precision": (0.75, 0.0625),
    "recall": (0.5, 0.03125),
    "density": (0.9, 0.05),
    "coverage": (0.625, 0.02),
    "fid-infinity": (1.25, 0.25),
    "authpct": (66.8, 1.0),
}
LABELS = {"fid": "FID", "fid-infinity": "FID-infinity", "authpct": "AuthPct", "kid": "KID", "is": "IS"}
IDENTITY = {"model": "DiT-XL/2", "cfg_scale": 1.5, "global_seed": 0, "guidance_interval": [0.0, 1.0]}


def metric(name: str, value: float, error: float | None, n: int = 1000) -> Number:
    """Whose interval is two errors to either side, so that it is easily told from another one."""
    low, high = (None, None) if error is None else (value - 2 * error, value + 2 * error)
    label = LABELS.get(name, name)
    return Number(name, label, value, error, low, high, None, n, 1618, "adm", f"what {name} is", ())


def made(values=None, identity=None, pixels="aa", grid=None, **changes) -> Result:
    """A result of 1,000 samples with these values and errors by metric."""
    values = VALUES if values is None else values
    identity = IDENTITY if identity is None else identity
    sessions = ({"images": 600, "seconds": 30.0, "ranks": 8, "device": "NVIDIA H100"},)
    fields = {
        "metrics": {name: metric(name, *pair) for name, pair in values.items()},
        "warnings": (),
        "left_out": {},
        "samples": {"path": "samples/run.npz", "count": 1000, "image_size": [64, 64], "pixels_sha256": pixels * 32},
        "reference": {"path": "ref.npz", "sha256": "bb" * 32},
        "extractor": {"name": "inception", "weights_sha256": "cc" * 32},
        "settings": {
            "protocol": "adm",
            "precision_recall_distances": "float32",
            "dtype": "float32",
            "kid_subset_size": 1000,
        },
        "packages": {"torch": "2.15.0"},
        "created": "2026-11-26T00:00:00+00:00",
        "grid": grid or filled([0, 1], 8),
        "run": Run("ff" * 32, identity, sessions) if identity else None,
        "training": {"path": "train", "count": 1618, "pixels_sha256": "dd" * 32},
    }
    return Result(**fields | changes)


def filled(labels: list[int], size: int) -> Grid:
    """A grid of noise, which no PNG makes smaller."""
    grid = Grid.choose(np.array(labels), len(labels), 10, 10)
    random = np.random.default_rng(0)
    grid.fill(lambda indices: {index: random.integers(0, 256, (size, size, 3), dtype=np.uint8) for index in indices})
    return grid


def whole(size: int = 8) -> Result:
    """With everything that a result can have."""
    random = np.random.default_rng(1)
    pairs = tuple(Pair(number, 100 + number, 0.5, (1 + number) / 16) for number in range(10))
    pictures = [tuple(random.integers(0, 256, (2, size, size, 3), dtype=np.uint8)) for _ in pairs]
    classes = [ClassScore(label, Estimate(10.0 + label, 1.0, 8.0 + label, 12.0 + label), 20, 30) for label in range(35)]
    return made(
        grid=filled([label for label in range(10) for _ in range(10)], size),
        curve=Curve((1000, 500, 333, 250), (2.5, 3.75, 5.0, 7.0), 1250.0, Estimate(1.25, 0.25, 0.75, 1.75)),
        classes=classes,
        class_names=ClassNames((NASTY, *(f"bird {number}" for number in range(1, 34)), NASTY), "ee" * 32),
        memorisation=Memorisation(Estimate(0.668, 0.01, 0.648, 0.688), 1000, 1618, pairs, pictures),
    )


class Page(HTMLParser):
    """`texts` by tag, `tables` by class as rows of cells, `attributes` of all elements, `tags` of all."""

    VOID = ("meta", "img", "br")

    def __init__(self, text: str):
        super().__init__()
        self.open, self.tags, self.attributes = [], [], []
        self.texts: dict[str, list[str]] = {}
        self.tables: dict[str, list[list[str]]] = {}
        self.feed(text)
        assert not self.open, f"not closed: {self.open}"

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes.append((tag, dict(attrs)))
        if tag == "table":
            self.table = self.tables.setdefault(dict(attrs)["class"], [])
        if tag == "tr":
            self.table.append([])
        if tag in ("th", "td"):
            self.table[-1].append("")
        if tag not in self.VOID:
            self.open.append(tag)
            self.texts.setdefault(tag, []).append("")

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        if tag not in self.VOID:
            assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open:
            self.texts[self.open[-1]][-1] += data
        if {"th", "td"} & set(self.open):
            self.table[-1][-1] += data
