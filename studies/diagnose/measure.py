"""FID of both sides as they are, and with each cause undone."""

import argparse

import numpy as np
import torch

import fiducial
from fiducial import UserError
from fiducial.evaluation.data.references import Reference, find_reference
from fiducial.evaluation.features import DEFAULT, parse_extractors, parse_weights
from fiducial.evaluation.features.extractor import Extractor
from fiducial.evaluation.features.load import load_extractor
from fiducial.evaluation.metrics.gaussians import frechet_distance
from fiducial.evaluators import ALIASES
from fiducial.precision import plain_float32
from fiducial.studies.diagnose.causes import SEEN
from fiducial.studies.diagnose.pixels import are_paired
from fiducial.studies.diagnose.side import open_side

NOTHING = 1e-3  # of FID, an effect below which is none


@torch.inference_mode()
@plain_float32()
def fid(images: np.ndarray, extractor: Extractor, reference: Reference) -> float:
    """FID of images (N, H, W, 3) uint8."""
    batches = [extractor.run(images[start : start + 64])[0].double().cpu() for start in range(0, len(images), 64)]
    features = torch.cat(batches).numpy()
    return float(frechet_distance(features.mean(0), np.cov(features, rowvar=False), reference.mu, reference.sigma))


def diagnose(args: argparse.Namespace) -> dict:
    """FIDs of A and B and the causes in order of size, as `--json` has them.

    Raises:
        UserError: if sides or references are missing or do not fit.
    """
    with fiducial.init(args.device) as group:
        a, b = open_side(args.a), open_side(args.b)
        if a.images.shape[1:] != b.images.shape[1:]:
            sizes = " and ".join(f"{side.images.shape[1]}x{side.images.shape[2]}" for side in (a, b))
            raise UserError(f"{args.a} and {args.b} are of {sizes} pixels, so their FIDs need not agree; resize one first")
        given = parse_extractors(args.extractor)
        refs = [find_reference(name, group, args.cache_dir) for name in (args.ref, args.ref_b or args.ref)]
        if any(ref.mu is None for ref in refs):
            raise UserError(f"--ref {args.ref}: holds images alone; make statistics of it with fiducial ref")
        name = given[0] if given else str(refs[0].provenance.extractor or DEFAULT).split("-")[0]
        weights = parse_weights(args.weights, **{one: getattr(args, f"{one}_weights") for one in ALIASES})
        extractor = load_extractor(name, weights, group, args.dtype, args.cache_dir)
        own, other = fid(a.images, extractor, refs[0]), fid(b.images, extractor, refs[1])
        causes = []
        if not (np.array_equal(refs[0].mu, refs[1].mu) and np.array_equal(refs[0].sigma, refs[1].sigma)):
            undone = fid(a.images, extractor, refs[1])
            seen = f"{args.ref} and {args.ref_b} have other statistics"
            causes.append(_row("reference", seen, "Use one reference.", own - other, undone - other, own))
        paired = len(a.images) == len(b.images) and are_paired(a.images, b.images)
        for cause in (one for see in SEEN for one in see(a, b, paired)):
            gap = None
            if cause.undone:
                sides = zip((a, b), cause.undone, (own, other), refs, strict=True)
                values = [known if new is side.images else fid(new, extractor, ref) for side, new, known, ref in sides]
                gap = values[0] - values[1]
            causes.append(_row(cause.name, cause.seen, cause.advice, own - other, gap, own))
        rest = min((abs(row["gap_undone"]) for row in causes if row["gap_undone"] is not None), default=abs(own - other))
        for row in causes:
            if row["gap_undone"] is None:  # at most what the others leave
                row["effect"] = min(rest, abs(row["effect"]))
        causes.sort(key=lambda row: -abs(row["effect"]))
        return {"fid_a": own, "fid_b": other, "paired": paired, "causes": causes}


def _row(name: str, seen: str, advice: str, gap: float, undone: float | None, own: float) -> dict:
    """A cause with its effect: the gap of FIDs less the gap where it is undone, or all of it, at first, where it cannot be."""
    effect = gap - (0 if undone is None else undone)
    effect = 0.0 if abs(effect) < NOTHING * abs(own) else effect
    return {"cause": name, "seen": seen, "advice": advice, "gap": gap, "gap_undone": undone, "effect": effect}


def table(found: dict) -> str:
    """The text that is printed."""
    lines = [f"FID {found['fid_a']:.3f} of A, {found['fid_b']:.3f} of B"]
    for number, row in enumerate(found["causes"], 1):
        if row["gap_undone"] is None:
            effect = f"not undone; A's FID is {row['gap']:+.3f} from B's"
        elif row["effect"]:
            effect = f"undone, A's FID is {row['gap_undone']:+.3f} from B's instead of {row['gap']:+.3f}"
        else:
            effect = "seen, without effect on FID"
        lines.append(f"{number}. {row['cause']}: {row['seen']}; {effect}. {row['advice']}")
    return "\n".join(lines if found["causes"] else [*lines, "nothing found"])
