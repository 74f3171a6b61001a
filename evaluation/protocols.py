"""What each number is: the protocols, in words and in the constants that differ."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fiducial.evaluation.features import Extractor

ADM_IS_BLOCK = 5000
FIDELITY_IS_SPLITS = 10
FIDELITY_SEED = 2020
KID_SUBSETS, KID_SUBSET_SIZE = 100, 1000
SHUFFLE_SEED = 0
PUBLISHED_COUNT = 50_000

LABELS = {
    "fid": "FID",
    "sfid": "sFID",
    "is": "IS",
    "is-shuffled": "shuffled IS",
    "precision": "precision",
    "recall": "recall",
    "kid": "KID",
    "density": "density",
    "coverage": "coverage",
    "fid-infinity": "FID-infinity",
    "vendi": "Vendi score",
    "authpct": "AuthPct",
}
METRICS = tuple(name for name in LABELS if name not in ("is-shuffled", "authpct"))  # which come with IS and training images
UNITS = {"authpct": "%"}  # of the metrics that have one
SHARES = ("precision", "recall", "density", "coverage")  # by neighbours, all from one pass over the distances
FROM_FEATURES = (*SHARES, "kid")  # these need the reference's images, statistics are not enough

# Metrics that people ask for and that are not offered, and what to take instead.
REFUSED = {
    "cmmd": "CMMD hangs on CLIP's weights and a bandwidth chosen for them, and tables of class-conditional models lack it; kid "
    "with --protocol dino is an unbiased MMD over another network than Inception as well",
}
WITHOUT_REFERENCE = ("is", "vendi")

FID = "Fréchet distance on {features}, covariance with n - 1"
SFID = "Fréchet distance on 7 channels of Mixed_6d's first branch, 17 x 17, flattened as height, width, channel (2,023)"
IS = "on {logits}"
PRECISION = "share of samples within a reference image's distance to its 3rd neighbour, on {features}"
RECALL = "share of reference images within a sample's distance to its 3rd neighbour, on {features}"
KID = f"unbiased squared MMD on {{features}}, kernel (x.y / D + 1)^3, {KID_SUBSETS} subsets by RandomState({FIDELITY_SEED})"

# Metrics that no protocol defines, by their papers. All but Vendi are computed unless others are asked for.
COMMON = {
    "density": "mean number, over 5, of reference images with the sample nearer than their 5th neighbour, on {features} "
    "(arXiv 2002.09797)",
    "coverage": "share of reference images with a sample nearer than their 5th neighbour, on {features} (arXiv 2002.09797)",
    "fid-infinity": "Fréchet distance on {features} at infinitely many samples, by a line in 1 / N through those of all samples, "
    "of halves and of thirds (arXiv 1911.07023, which draws random subsets)",
    "vendi": "exp of the entropy of the eigenvalues of cosine similarities, on {features} (arXiv 2210.02410)",
    "authpct": "share of samples that are farther from their nearest training image than that one is from its nearest fellow, "
    "on {features} (arXiv 2102.08921)",
}
BY_DEFAULT = ("density", "coverage", "fid-infinity")

# What the extractors' outputs are called in these sentences.
OUTPUTS = {
    "inception": {"features": "pool3 (2,048)", "logits": "1,008 logits without bias"},
    "inception-clean": {
        "features": "pool3 (2,048) of images resized by clean-fid's bicubic rule",
        "logits": "1,008 logits without bias of images resized by clean-fid's bicubic rule",
    },
    "dinov2": {"features": "the class token of DINOv2's ViT-L/14 (1,024), images resized to 224", "logits": "no logits"},
    "digits": {
        "features": "the 64 features of the embedded digit classifier",
        "logits": "the 10 logits of the embedded digit classifier",
    },
}


@dataclass(frozen=True)
class Protocol:
    """`own` has the definitions of its metrics; `borrowed` those of metrics that only another protocol defines.

    `extractor` is the one that it stands for; None where the reference says, or else Inception.
    """

    name: str
    own: dict[str, str]
    borrowed: dict[str, str]
    extractor: str | None = None

    def definition(self, metric: str, extractor: str) -> str:
        return (COMMON | self.own | self.borrowed)[metric].format(**OUTPUTS[extractor])


PROTOCOLS = {
    "adm": Protocol(
        "adm",
        {
            "fid": FID,
            "sfid": SFID,
            "is": f"{IS}, mean over blocks of {ADM_IS_BLOCK:,} in file order, a short last one counting like the others",
            "precision": PRECISION,
            "recall": RECALL,
        },
        {
            "is-shuffled": f"{IS}, blocks of {ADM_IS_BLOCK:,} after a seeded shuffle",
            "kid": KID,
        },
    ),
    "torch-fidelity": Protocol(
        "torch-fidelity",
        {
            "fid": FID,
            "is": f"{IS}, mean over {FIDELITY_IS_SPLITS} splits after RandomState({FIDELITY_SEED}).permutation",
            "kid": KID,
            "precision": PRECISION,
            "recall": RECALL,
        },
        {"sfid": SFID},
    ),
}


def _with_extractor(name: str, own: tuple[str, ...], extractor: str) -> Protocol:
    """A protocol of another extractor than Inception: it defines `own` as the others do, and takes the rest from them."""
    known = {metric: text for other in PROTOCOLS.values() for metric, text in (other.borrowed | other.own).items()}
    known |= PROTOCOLS["adm"].own
    rest = {metric: text for metric, text in known.items() if metric not in own}
    return Protocol(name, {metric: known[metric] for metric in own}, rest, extractor)


PROTOCOLS |= {
    "clean": _with_extractor("clean", ("fid", "kid"), "inception-clean"),
    "dino": _with_extractor("dino", ("fid", "precision", "recall"), "dinov2"),
}


def called(metric: str, extractor: "Extractor") -> tuple[str, str]:
    """The key and the label of a metric in a result: FID over other features than Inception's never goes by that name alone."""
    key = metric.replace("fid", extractor.distance.lower())
    label = LABELS[metric].replace("FID", extractor.distance)
    return key + extractor.suffix.lower(), label + extractor.suffix
