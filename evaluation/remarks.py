"""What a reader has to know of the files that images came from: how many should be there, what is left out, what was lost."""

from typing import TYPE_CHECKING

from distributed import Group, warn
from evaluation.images import Images
from evaluation.runs import count_of_run

if TYPE_CHECKING:
    from evaluation.online import Seen

SAMPLES = "samples"


def look_at(images: Images | None, whose: str, group: Group) -> None:
    """Reads all headers on rank 0, the others waiting, and says at once what is missing among the files.

    Args:
        whose: what the images are called, such as `SAMPLES`.

    Raises:
        UserError: naming the first file that is damaged, or not like the others.
    """

    def look() -> str:
        for remark in missing(images, whose):
            warn(f"warning: {remark}")
        return str(images.headers)

    if images is not None:
        group.once(look)


def remarks(images: "Images | Seen | None", whose: str) -> list[str]:
    """Sentences on the files of a set of images, which is called `whose`; none on images that were never in files."""
    if not isinstance(images, Images):
        return []
    found, count, headers = missing(images, whose), f"{images.count:,}", images.headers
    lossy = sum(headers.lossy.values())
    if lossy and (whose == SAMPLES or not images.crop):  # not of training photographs that are scaled down
        which = "The" if lossy == images.count else f"{lossy:,} of the {count}"
        are = f"{whose} are {' and '.join(sorted(headers.lossy))} files"
        found.append(f"{which} {are}; compression moves every metric, so write PNG.")
    if headers.several:
        found.append(f"{headers.several:,} of the {count} {whose} are files of several pictures, of which the first was taken.")
    return found


def missing(images: Images, whose: str) -> list[str]:
    """Sentences on images that are not there, or not among those that are read."""
    found, count, whole = [], f"{images.count:,}", count_of_run(images.path) if images.names else None
    if whole is not None and images.count < whole:
        found.append(f"The {whose} are {count} of the {whole:,} images that the run in this folder is to have.")
    elif whole is not None and images.count > whole:
        found.append(f"The {whose} are {count} images in the folder of a run of {whole:,}; what else lies there?")
    if images.not_read:
        found.append(f"Beside the {count} {whose} lie files that look like images and are not read: {images.not_read}.")
    return found
