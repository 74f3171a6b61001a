"""Remarks on images and their files: how many should be there, what is left out, what was lost, what repeats.

Before anything is computed, what can be no images of a model is refused.
"""

from pathlib import Path

from fiducial import Group, UserError, warn
from fiducial.evaluation.data import levels
from fiducial.evaluation.data.images import Images, Seen
from fiducial.evaluation.data.opening import open_images
from fiducial.evaluation.data.references import Reference, holds_statistics
from fiducial.evaluation.data.runs import count_of_run
from fiducial.evaluation.features.extraction import Features
from fiducial.evaluation.features.extractor import Extractor

SAMPLES, REFERENCE = "samples", "reference images"
REPEATED = 0.01  # of a training set's images, from which on repeats are told


def open_samples(path: Path, crop: int | None = None) -> Images:
    """Images that are to be evaluated; see `open_images`.

    Raises:
        UserError: also if they are a reference.
    """
    if holds_statistics(path):
        raise UserError(f"{path} holds mu and sigma, so it is a reference and no samples; were samples and --ref exchanged?")
    return open_images(path, crop)


def look_at(images: Images | None, whose: str, group: Group) -> tuple[str, ...]:
    """Read all headers on rank 0, the others waiting, and say at once what is missing among the files; the sentences said.

    Args:
        whose: what the images are called, such as `SAMPLES`.

    Raises:
        UserError: naming the first file that is damaged, or not like the others.
    """

    said: list[str] = []

    def look() -> str:
        said.extend(tell(*missing(images, whose)))
        return str(images.headers)

    if images is not None:
        group.once(look)
    return tuple(said)


def tell(*sentences: str) -> tuple[str, ...]:
    """Say what a reader has to know before anything is computed; the sentences that could be said."""
    return tuple(sentence for sentence in sentences if warn(f"warning: {sentence}"))


def require_levels(images: Images | None, whose: str, group: Group) -> None:
    """Raise UserError if images look cast from [0, 1] or [-1, 1]; rank 0 looks, at as few of them as tell it."""

    def look() -> None:
        levels.require(images.levels.found, f"{images.path}: the {images.count:,} {whose}")

    if images is not None:
        group.once(look)


def remarks(images: Images | Seen | None, whose: str) -> list[str]:
    """Sentences on the files of a set of images, which is called `whose`; none on images that were never in files."""
    if not isinstance(images, Images):
        return []
    found, count, headers = missing(images, whose), f"{images.count:,}", images.headers
    lossy = sum(headers.lossy.values())
    if lossy and (whose == SAMPLES or not images.crop):  # not of training photographs that are scaled down
        which = "The" if lossy == images.count else f"{lossy:,} of the {count}"
        are = f"{whose} are {' and '.join(sorted(headers.lossy))} files"
        found.append(f"{which} {are}; compression moves every metric, so write PNG.")
    if images.levels.casts:
        among = f"the {count}" if images.levels.count == images.count else f"the first {images.levels.count:,}"
        found.append(f"{images.levels.casts:,} of {among} {whose} are black, or values of 0 to 1 or -1 to 1 made uint8.")
    if headers.several:
        found.append(f"{headers.several:,} of the {count} {whose} are files of several pictures, of which the first was taken.")
    return found


def weights_unlike_published(extractor: Extractor, given: Path | None) -> str | None:
    """A sentence on weights that are not known to be those that published numbers are made with; None where nothing is to say.

    Args:
        given: the file that they were to be read from, instead of the published one.
    """
    digest = f"SHA-256 {extractor.weights_sha256[:12]}"
    if extractor.as_published is False:
        return f"The weights of {extractor.name} ({digest}) are not the published file: compare no number with published ones."
    if extractor.as_published is None and given:
        return f"Whether {given.name} ({digest}) is {extractor.name}'s published file is not known here: compare the hash."
    return None


def repeats(own: Features, theirs: Features | None, reference: Reference | None) -> list[str]:
    """Sentences on images of either side that are equal pixel by pixel, or the same on both.

    Args:
        theirs: of the reference's images, where those were extracted.
    """
    different, count = len(own.first_of_each()), len(own.rows)
    found = [repeated(different, count, SAMPLES)] if different < count else []
    if reference is None:
        return found
    provenance = reference.provenance
    known = (len(theirs.first_of_each()), len(theirs.rows)) if theirs else (provenance.different, provenance.count)
    if None not in known and known[0] < (1 - REPEATED) * known[1]:
        found.append(repeated(*known, REFERENCE))
    if own.pixels_sha256 == (theirs.pixels_sha256 if theirs else provenance.pixels_sha256):
        found.append("The samples are the reference's own images, one for one: every distance is that of a set to itself.")
    return found


def repeated(different: int, count: int, whose: str) -> str:
    """A sentence on so many images that are fewer different ones."""
    return f"The {count:,} {whose} are {different:,} different {'image' if different == 1 else 'images'}, the rest exact repeats."


def missing(images: Images, whose: str) -> list[str]:
    """Sentences on images that are not there, or not among those that are read."""
    found, count, whole = [], f"{images.count:,}", count_of_run(images.path) if images.names else None
    where = "zip" if images.path.is_file() else "folder"
    if whole is not None and whose == REFERENCE:
        found.append("The reference images are those of a run, as the manifest with them says; were samples and --ref exchanged?")
    if whole is not None and images.count < whole:
        found.append(f"The {whose} are {count} of the {whole:,} images that the run in this {where} is to have.")
    elif whole is not None and images.count > whole:
        found.append(f"The {whose} are {count} images in the {where} of a run of {whole:,}; what else lies there?")
    if images.not_read:
        found.append(f"Beside the {count} {whose} lie files that look like images and are not read: {images.not_read}.")
    return found
