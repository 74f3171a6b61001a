"""One image file: whether it is one that is read, what its header says, its pixels; by Pillow's decoders of `FORMATS` alone."""

import io
import re
import struct
import threading
import warnings
from collections import Counter
from collections.abc import Callable, Iterable
from contextlib import nullcontext
from dataclasses import dataclass
from functools import cache
from pathlib import Path, PurePosixPath
from typing import BinaryIO, TypeVar

import numpy as np
from PIL import Image, UnidentifiedImageError

from fiducial import UserError, one_line, open_regular
from fiducial.evaluation.data.damage import DAMAGED_ARCHIVE

# What Pillow raises on damaged images.
DAMAGED_IMAGE = (Image.DecompressionBombError, AssertionError, AttributeError, ZeroDivisionError, *DAMAGED_ARCHIVE)
FORMATS = ("PNG", "JPEG", "WEBP", "TIFF", "BMP", "PPM")  # Pillow's names; not PostScript, for which it starts other programs
READ = "PNG, JPEG, WebP, TIFF, BMP or PPM"
ENDINGS = {
    *(".png", ".apng", ".jpg", ".jpeg", ".jpe", ".jfif", ".mpo", ".webp", ".tif", ".tiff", ".bmp"),
    *(".ppm", ".pgm", ".pbm", ".pnm"),
}
# Of images that Pillow does not know, or calls otherwise than people do; what else it knows is in `endings_not_read`.
ENDINGS_NOT_READ = {
    **{
        ".avif": "AVIF",
        ".avifs": "AVIF",
        ".qoi": "QOI",
        ".heic": "HEIC",
        ".heif": "HEIC",
        ".jxl": "JPEG XL",
        ".exr": "OpenEXR",
        ".hdr": "Radiance",
        ".svg": "SVG",
    },
    **{".pfm": "PFM", ".pam": "PAM", ".dng": "DNG", ".jxr": "JPEG XR", ".xcf": "GIMP", ".jph": "JPEG 2000", ".jpt": "JPEG 2000"},
}
CALLED = {"JPEG2000": "JPEG 2000", "PSD": "Photoshop"}  # Pillow's names, as people say them
# What Pillow knows and is no picture: documents, films, drawings, and measurements in a grid.
NO_PICTURES = ("PDF", "EPS", "MPEG", "HDF5", "BUFR", "GRIB", "WMF", "IPTC")
# Of files that stand beside images by the thousand, and are not looked into.
ENDINGS_OF_OTHERS = {
    *(".txt", ".json", ".jsonl", ".csv", ".tsv", ".xml", ".yaml", ".yml", ".md", ".html", ".log", ".py", ".sh", ".db", ".ini"),
    *(".npz", ".npy", ".pkl", ".pt", ".pth", ".ckpt", ".safetensors", ".parquet", ".arrow", ".zip", ".tar", ".gz", ".mat"),
}
# How image files begin.
BEGINNINGS = {
    "PNG": rb"\x89PNG\r\n\x1a\n",
    "JPEG": rb"\xff\xd8\xff",
    "WebP": rb"RIFF....WEBP",
    "TIFF": rb"II[*+]\x00|MM\x00[*+]",
    "BMP": rb"BM.{4}\x00{4}.{4}[\x0c\x28\x34\x38\x40\x6c\x7c]\x00{3}",
    "PPM": rb"P[1-6]\s+[\d#]",
    "PFM": rb"P[fF]\s+\d",
    "GIF": rb"GIF8[79]a",
    "PAM": rb"P7\n(?:#|WIDTH|HEIGHT|DEPTH|MAXVAL|TUPLTYPE)",
    "AVIF": rb".{4}ftypavi[fs]",
    "HEIC": rb".{4}ftyp(?:hei|hev|mif1|msf1)",
    "JPEG XL": rb"\xff\x0a|\x00{3}\x0cJXL ",
    "JPEG 2000": rb"\x00{3}\x0cjP  |\xff\x4f\xff\x51",
    "Photoshop": rb"8BPS\x00[\x01\x02]",
    "OpenEXR": rb"v/1\x01",
    "QOI": rb"qoif",
    "PostScript": rb"%!PS-Adobe|\xc5\xd0\xd3\xc6",
    "Radiance": rb"#\?RADIANCE|#\?RGBE",
    "GIMP": rb"gimp xcf ",
    "IM": rb"Image type: ",
    "XBM": rb"\s*#define\s+\w*width\s+\d",
    "PCX": rb"\n[\x00\x02-\x05]\x01[\x01\x02\x04\x08]",
    "DIB": rb"[\x28\x34\x38\x40\x6c\x7c]\x00{3}.{8}\x01\x00[\x01\x04\x08\x10\x18\x20]\x00",
    "TGA": rb"\x00[\x00\x01][\x01-\x03\x09-\x0b].{13}[\x08\x0f\x10\x18\x20][\x00\x08\x20\x28]",
    "GBR": rb".{4}\x00{3}\x02.{8}\x00{3}[\x01\x04]GIMP",
    "XVTHUMB": rb"P7 332",
}
READ_BY_BYTES = ("PNG", "JPEG", "WebP", "TIFF", "BMP", "PPM")
CROPS = "python -m evaluation calc and ref make images of any size and colour fit by --image-size"
BEGINNING = 64  # bytes that tell them apart
SIGNATURE = 16  # of those, which Pillow looks at
BITS_PER_SAMPLE = 258  # a tag of TIFF
LOSSY_IN_TIFF = ("tiff_jpeg", "jpeg", "webp")  # Pillow's names of compressions
MAX_PIXELS = 80_000_000  # of one image
MAX_PHOTOGRAPH = 178_956_970  # of one that is cropped to less; above it Pillow refuses
MAX_FILE = 1 << 30  # bytes of one image file
TEXT = (
    b"tEXt",
    b"zTXt",
    b"iTXt",
    b"iCCP",
)  # chunks of a PNG that no pixel depends on; Pillow refuses large ones

ONE_LARGE = threading.Lock()  # of several photographs at once, each above `MAX_PIXELS`, memory would run out

# In the place of catching them one by one, which Python cannot do in threads. They speak of metadata, of which nothing is used.
warnings.filterwarnings("ignore", module=r"PIL\.")

Found = TypeVar("Found")


class NeedsCrop(UserError):
    """Images of another size or colour than is needed, which a crop would mend. `fact` is the sentence without the remedy."""

    def __init__(self, fact: str):
        super().__init__(f"{fact}; {CROPS}")
        self.fact = fact


@dataclass(frozen=True)
class Header:
    """The header of an image file, known before it is decoded; sizes in pixels.

    `lossy` names the compression, if it is of a kind that loses; `several` is whether there are more pictures in the file, of
    which the first is read.
    """

    width: int
    height: int
    lossy: str | None
    several: bool


def sort_out(names: Iterable[str], beginning: Callable[[str], bytes]) -> tuple[tuple[str, ...], dict[str, int]]:
    """The files that are read as images, and how many only look like some, by their kind.

    An ending that is known decides, else the first bytes do. What systems and half-finished writes leave beside images, hidden
    files, is nothing; images in hidden folders are counted.

    Args:
        beginning: the first bytes of the file of a name; none where it cannot be read.
    """
    taken, others = [], Counter()
    for name in names:
        ending = ending_of(name)
        if is_hidden(name):
            folder, _, own = name.rpartition("/")
            if ending in ENDINGS and not own.startswith(".") and "__MACOSX" not in PurePosixPath(folder).parts:
                others["in hidden folders"] += 1
            continue
        if ending in ENDINGS_OF_OTHERS:
            continue
        if ending in ENDINGS:
            taken.append(name)
        elif kind := endings_not_read().get(ending):
            others[kind] += 1
        elif ending in endings_of_no_pictures():
            continue
        elif (kind := kind_of(beginning(name))) and kind != "PostScript":
            if kind in READ_BY_BYTES and not ending:
                taken.append(name)
            else:
                others[f"{kind} of the ending {ending}" if kind in READ_BY_BYTES else kind] += 1
    return tuple(taken), dict(others)


def ending_of(name: str) -> str:
    """The ending of a name from its last dot on, in small letters; a number there is no ending."""
    ending = PurePosixPath(name).suffix.lower()
    return ending if ending[1:2].isalpha() else ""


def is_hidden(name: str) -> bool:
    parts = PurePosixPath(name).parts
    return any(part.startswith(".") and part != ".." for part in parts) or "__MACOSX" in parts


@cache
def endings_not_read() -> dict[str, str]:
    """The kind of image, by ending, of files that are not read: all that Pillow knows, and more."""
    known = {ending: CALLED.get(kind, kind) for ending, kind in Image.registered_extensions().items() if kind not in NO_PICTURES}
    return {ending: kind for ending, kind in (known | ENDINGS_NOT_READ).items() if ending not in ENDINGS}


@cache
def endings_of_no_pictures() -> frozenset[str]:
    """The endings of files that Pillow knows and that are no pictures."""
    return frozenset(ending for ending, kind in Image.registered_extensions().items() if kind in NO_PICTURES)


def kind_of(beginning: bytes) -> str | None:
    """The format of an image file by its first `BEGINNING` bytes, in words; None if it is none that is known.

    After the patterns, Pillow's own signatures say, of those formats that have no pattern.
    """
    if found := next((kind for kind, pattern in BEGINNINGS.items() if re.match(pattern, beginning, re.DOTALL)), None):
        return found
    return next((CALLED.get(kind, kind) for kind, accepts in _signatures() if _accepted(accepts, beginning)), None)


@cache
def _signatures() -> tuple[tuple[str, Callable[[bytes], bool | str]], ...]:
    """Pillow's formats of pictures that have signatures, except for those with patterns of ours, whose are the stricter."""
    Image.init()
    known = {*NO_PICTURES, *FORMATS, *(kind for kind in Image.OPEN if CALLED.get(kind, kind) in BEGINNINGS)}
    return tuple((kind, accepts) for kind, (_, accepts) in Image.OPEN.items() if accepts and kind not in known)


def _accepted(accepts: Callable[[bytes], bool | str], beginning: bytes) -> bool:
    """Whether one of Pillow's signatures fits; those that read beyond the end of a short file do not."""
    try:
        return accepts(beginning[:SIGNATURE]) is True
    except (IndexError, struct.error):
        return False


def read_image(source: Path | BinaryIO, where: str, crop: int | None = None) -> np.ndarray:
    """One image as (H, W, 3) uint8; with `crop`, of any size and colour, cropped as by `centre_crop`.

    Raises:
        UserError: if it is damaged, too large, or (without `crop`) not 8-bit RGB.
    """

    def pixels(image: Image.Image, _: BinaryIO) -> np.ndarray:
        if crop is None:
            return np.array(image)
        with ONE_LARGE if image.width * image.height > MAX_PIXELS else nullcontext():
            return centre_crop(image if image.mode == "RGB" else image.convert("RGB"), crop)

    return _opened(source, where, crop, pixels)


def image_header(source: Path | BinaryIO, where: str, crop: int | None = None) -> Header:
    """The header of an image file; raises UserError for what `read_image` would refuse by that."""

    def header(image: Image.Image, file: BinaryIO) -> Header:
        several = image.is_animated if hasattr(image, "is_animated") else False
        size = (crop, crop) if crop else image.size
        return Header(*size, _lossy(image, file), several)

    return _opened(source, where, crop, header)


def _opened(source: Path | BinaryIO, where: str, crop: int | None, use: Callable[[Image.Image, BinaryIO], Found]) -> Found:
    """The value of `use` for an opened image, which is one that may be read, and for its file."""
    try:
        with open_regular(source, MAX_FILE) if isinstance(source, Path) else nullcontext(source) as file:
            try:
                return _used(file, where, crop, use)
            except ValueError:
                if (plain := without_text(file)) is None:
                    raise
                return _used(plain, where, crop, use)
    except UnidentifiedImageError as error:
        raise UserError(f"{where} cannot be read as an image ({_unknown(source)})") from error
    except DAMAGED_IMAGE as error:
        raise UserError(f"{where} cannot be read as an image ({one_line(error)})") from error


def _used(file: BinaryIO, where: str, crop: int | None, use: Callable[[Image.Image, BinaryIO], Found]) -> Found:
    with Image.open(file, formats=FORMATS) as image:
        most = MAX_PIXELS if crop is None else MAX_PHOTOGRAPH
        if image.width * image.height > most:
            raise (NeedsCrop if crop is None else UserError)(
                f"{where} is {image.width} x {image.height}, more than {most:,} pixels"
            )
        if _is_deeper(image):
            raise UserError(f"{where} has more than 8 bits a channel; convert it first, so that the rounding is yours")
        if crop is None and image.mode != "RGB":
            raise NeedsCrop(f"{where} is not an 8-bit RGB image (its mode is {image.mode})")
        return use(image, file)


def _is_deeper(image: Image.Image) -> bool:
    """Whether a channel has more than 8 bits, which Pillow would round or clip."""
    if image.mode.startswith(("I", "F")):
        return True
    if image.format == "TIFF":
        return max(image.tag_v2.get(BITS_PER_SAMPLE, (1,))) > 8
    arguments = [tile[3] for tile in image.tile]
    if image.format == "PPM":
        return any(isinstance(part, tuple) and part[-1] > 255 for part in arguments)
    return image.format == "PNG" and any(";16" in str(part) for part in arguments)


def _lossy(image: Image.Image, file: BinaryIO) -> str | None:
    """The compression of an image file, if it loses; whatever the file is called."""
    if image.format in ("JPEG", "MPO"):
        return "JPEG"
    if image.format == "WEBP":
        return "lossy WebP" if _is_lossy_webp(file) else None
    return "lossy TIFF" if image.info.get("compression") in LOSSY_IN_TIFF else None


def _is_lossy_webp(file: BinaryIO) -> bool:
    """By the kind of its first chunk of pixels."""
    file.seek(12)
    while len(head := file.read(8)) == 8:
        kind, length = head[:4], int.from_bytes(head[4:], "little")
        if kind in (b"VP8 ", b"VP8L"):
            return kind == b"VP8 "
        file.seek(16 if kind == b"ANMF" else length + length % 2, io.SEEK_CUR)  # a frame's chunks stand inside it
    return True


def without_text(file: BinaryIO) -> BinaryIO | None:
    """A PNG without its text and colour profile; None if it is no PNG, or has none of either."""
    file.seek(0)
    if kind_of(file.read(BEGINNING)) != "PNG":
        return None
    file.seek(0)
    data = file.read(MAX_FILE)
    parts, at = [data[:8]], 8
    while chunk := data[at : at + 12 + int.from_bytes(data[at : at + 4], "big")]:
        at += len(chunk)
        if chunk[4:8] not in TEXT:
            parts.append(chunk)
    plain = b"".join(parts)
    return io.BytesIO(plain) if len(plain) < len(data) else None


def _unknown(source: Path | BinaryIO) -> str:
    """Why Pillow finds no image in a file."""
    if isinstance(source, Path):
        with open_regular(source) as file:
            beginning = file.read(BEGINNING)
    else:
        source.seek(0)
        beginning = source.read(BEGINNING)
    kind = kind_of(beginning)
    if kind in READ_BY_BYTES:
        return f"it begins as {kind} does, and is damaged or of a rare kind"
    return f"it is {kind}, and read are {READ}" if kind else f"it is none of {READ}"


def centre_crop(image: Image.Image, size: int) -> np.ndarray:
    """ADM's preparation of training images: halved by box averages while twice as large as needed, scaled bicubically until
    the short side is `size`, and cut out of the middle. (size, size, 3) uint8.

    Raises:
        ValueError: if it is so narrow that scaling it would take more than `MAX_PIXELS`.
    """
    while min(image.size) >= 2 * size:
        image = image.resize(tuple(side // 2 for side in image.size), resample=Image.Resampling.BOX)
    scale = size / min(image.size)
    if max(image.size) * scale * size > MAX_PIXELS:
        raise ValueError(f"it is {image.width} x {image.height}, too long to be scaled to {size}")
    image = image.resize(tuple(round(side * scale) for side in image.size), resample=Image.Resampling.BICUBIC)
    pixels = np.array(image)
    top, left = (pixels.shape[0] - size) // 2, (pixels.shape[1] - size) // 2
    return pixels[top : top + size, left : left + size]
