"""Image files as people have them: which are read, that their pixels are right, and what is said of those that are not."""

import contextlib
import io
import os
import struct
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pytest
from conftest import run_command
from PIL import Image, ImageCms, PngImagePlugin

from fiducial import UserError
from fiducial.evaluation.data import image_files
from fiducial.evaluation.data.image_files import image_header, kind_of, read_image
from fiducial.evaluation.data.opening import open_images
from fiducial.sampling.store import npz as archive
from fiducial.sampling.store.png import read_png

PIXELS = np.random.default_rng(0).integers(0, 256, (12, 16, 3), dtype=np.uint8)
PICTURE = Image.fromarray(PIXELS)
OTHER = Image.fromarray(255 - PIXELS)
PROFILE = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


def encoded(kind: str, image: Image.Image = PICTURE, **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def frames(kind: str, **options) -> bytes:
    """A file of two pictures."""
    return encoded(kind, save_all=True, append_images=[OTHER], **options)


def zipped(files: dict[str, bytes], path: Path) -> Path:
    with zipfile.ZipFile(path, "w") as whole:
        for name, data in files.items():
            whole.writestr(name, data)
    return path


def in_a_folder(files: dict[str, bytes], path: Path) -> Path:
    for name, data in files.items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(data)
    return path


LOSSLESS = {
    "0.png": encoded("PNG"),
    "1.webp": encoded("WEBP", lossless=True),
    "2.WebP": encoded("WEBP", lossless=True, icc_profile=PROFILE),
    "3.bmp": encoded("BMP"),
    "4.tif": encoded("TIFF"),
    "5.tiff": encoded("TIFF", compression="tiff_lzw"),
    "6.ppm": encoded("PPM"),
    "7.pnm": b"P3\n# by hand\n16 12\n255\n" + " ".join(map(str, PIXELS.ravel())).encode(),
    "8.PNG": encoded("PNG", icc_profile=PROFILE),
    "n02119789_10": encoded("PNG"),
    "img.000012": encoded("BMP"),
    "val/COCO": encoded("WEBP", lossless=True),
    "val/tiff": encoded("TIFF", big_tiff=True),
    "val/p6": encoded("PPM"),
}
LOSSY = {
    "a.jpg": ("JPEG", encoded("JPEG")),
    "b.jfif": ("JPEG", encoded("JPEG")),
    "c.jpe": ("JPEG", encoded("JPEG")),
    "d.png": ("JPEG", encoded("JPEG")),
    "e": ("JPEG", encoded("JPEG")),
    "f.webp": ("lossy WebP", encoded("WEBP")),
    "g.webp": ("lossy WebP", encoded("WEBP", icc_profile=PROFILE)),
    "h.webp": ("lossy WebP", frames("WEBP")),
    "i.tif": ("lossy TIFF", encoded("TIFF", compression="jpeg")),
}
NOT_READ = {
    "a.gif": encoded("GIF"),
    "b.GIF": encoded("GIF"),
    "gif": encoded("GIF"),
    "c.avif": b"\0\0\0\x20ftypavif",
    "heic": b"\0\0\0\x18ftypheic",
    "d.jxl": b"\xff\x0a",
    "e.png.bak": encoded("PNG"),
    "f.bak": encoded("JPEG"),
}
# Each is counted, under this name; by its ending, and where it has none by its first bytes.
OF_PILLOW = {
    **{kind: encoded(kind) for kind in ("DDS", "DIB", "ICNS", "ICO", "IM", "PCX", "SGI", "TGA")},
    "JPEG 2000": encoded("JPEG2000"),
    "QOI": b"qoif" + bytes(30),
    "XBM": encoded("XBM", PICTURE.convert("1")),
    "MSP": encoded("MSP", PICTURE.convert("1")),
    "BLP": encoded("BLP", PICTURE.convert("P")),
    "XPM": b"/* XPM */\nstatic char *picture[] = {",
    "SUN": b"\x59\xa6\x6a\x95" + bytes(28),
    "CUR": b"\0\0\2\0\1\0" + bytes(16),
    "PAM": b"P7\nWIDTH 16\nHEIGHT 12\nDEPTH 3\nMAXVAL 255\nTUPLTYPE RGB\nENDHDR\n",
    "PFM": b"PF\n16 12\n-1.0\n",
    "Radiance": b"#?RADIANCE\nFORMAT=32-bit_rle_rgbe\n",
    "OpenEXR": b"v/1\1" + bytes(16),
    "FITS": b"SIMPLE  =                    T",
}
ALSO_NO_IMAGES = {
    "a.pdf": b"%PDF-1.7",
    "b.eps": b"%!PS-Adobe-3.0 EPSF-3.0",
    "figure": b"%!PS-Adobe-3.0 EPSF-3.0",
    "c.mpg": b"\0\0\1\xb3",
    "d.h5": b"\x89HDF\r\n\x1a\n",
    "e.grib": b"GRIB\0\0\0\1",
    "film": b"\0\0\1\xb3" + bytes(20),
    "f.h": b"#define SIDE 16",
    "g.bin": b"\x28\0\0\0" + bytes(60),
    "zeros": bytes(64),
    "h.txt": encoded("SGI"),
    "lines": b"\n\n\nthree empty lines",
}
NO_IMAGES = {
    "notes": b"no image",
    "P1 is a plan": b"P1 is the plan",
    "BM": b"BM is not a bitmap, but a long enough text",
    "labels.txt": b"P6 1",
    ".hidden.png": encoded("PNG"),
    "__MACOSX/0.png": b"nothing",
    "empty": b"",
    "a.json": b"{}",
}


@pytest.mark.parametrize("place", [in_a_folder, zipped])
def test_every_lossless_format_is_read_to_the_bit(place, tmp_path):
    images = open_images(place(LOSSLESS | NO_IMAGES, tmp_path / "images"))
    assert set(images.names) == set(LOSSLESS)
    assert (np.concatenate(list(images.batches(5))) == PIXELS).all()
    assert not images.headers.lossy
    assert images.not_read is None


@pytest.mark.parametrize("place", [in_a_folder, zipped])
def test_what_is_lossy_is_told_by_its_bytes(place, tmp_path):
    images = open_images(place({name: data for name, (_, data) in LOSSY.items()} | LOSSLESS, tmp_path / "images"))
    assert images.count == len(LOSSY) + len(LOSSLESS)
    assert images.headers.lossy == {"JPEG": 5, "lossy WebP": 3, "lossy TIFF": 1}
    for name, (kind, data) in LOSSY.items():
        assert image_header(io.BytesIO(data), name).lossy == kind, name


@pytest.mark.parametrize("place", [in_a_folder, zipped])
def test_what_only_looks_like_an_image_is_counted(place, tmp_path):
    files = {"0.png": LOSSLESS["0.png"]} | NOT_READ | NO_IMAGES
    images = open_images(place(files, tmp_path / "images"))
    assert images.names == ("0.png",)
    assert images.not_read == "3 GIF, 1 AVIF, 1 HEIC, 1 JPEG XL, 1 JPEG of the ending .bak, 1 PNG of the ending .bak"


@pytest.mark.parametrize("place", [in_a_folder, zipped])
@pytest.mark.parametrize("kind", OF_PILLOW)
def test_each_format_of_pillows_is_counted_with_an_ending_and_without(kind, place, tmp_path):
    registered = image_files.endings_not_read()
    files = {f"a{ending}": b"anything" for ending, of in registered.items() if of == kind}
    assert files
    found = {"0.png": LOSSLESS["0.png"], "bare": OF_PILLOW[kind], "b.old": OF_PILLOW[kind]} | files
    images = open_images(place(found, tmp_path / "images"))
    assert images.names == ("0.png",)
    assert images.not_read == f"{2 + len(files)} {kind}"


def test_every_ending_that_pillow_knows_is_read_counted_or_no_picture(tmp_path):
    endings = Image.registered_extensions()
    images = open_images(in_a_folder({f"0{ending}": LOSSLESS["0.png"] for ending in endings if ending != ".pfm"}, tmp_path))
    counted = sum(int(part.split()[0]) for part in images.not_read.split(", "))
    no_pictures = sum(kind in image_files.NO_PICTURES for kind in endings.values())
    assert images.count + counted + no_pictures == len(endings) - 1
    assert {endings[Path(name).suffix] for name in images.names} == {*image_files.FORMATS, "MPO"}
    assert 5 < no_pictures < 20


def test_the_formats_that_pillow_writes_are_known_by_their_bytes():
    """Whatever version it is; but for two that have no signature, and documents."""
    for kind in Image.SAVE.keys() - {"PALM", "SPIDER", "PDF", "EPS", "BUFR", "GRIB", "HDF5", "WMF"}:
        for mode in ("RGB", "P", "1"):
            with contextlib.suppress(OSError, ValueError):
                data = encoded(kind, PICTURE.resize((64, 64)).convert(mode))
                assert kind_of(data[: image_files.BEGINNING]) or (kind, mode) == ("TGA", "1"), (kind, mode)
                break
        else:
            pytest.fail(f"{kind} was not written")


@pytest.mark.parametrize("place", [in_a_folder, zipped])
def test_documents_films_and_other_files_are_no_images(place, tmp_path):
    files = {"0.png": LOSSLESS["0.png"]} | ALSO_NO_IMAGES
    assert open_images(place(files, tmp_path / "images")).not_read is None


def test_a_class_in_a_format_of_its_own_is_a_class(tmp_path):
    files = {f"{name}/{index}.{ending}": LOSSLESS[of] for name, ending, of in CLASSES for index in range(3)}
    images = open_images(in_a_folder(files, tmp_path))
    assert images.classes.tolist() == [0] * 3 + [1] * 3 + [2] * 3


CLASSES = (("ant", "png", "0.png"), ("bee", "webp", "1.webp"), ("cat", "tif", "4.tif"))


def test_a_folder_of_what_is_not_read_says_so(tmp_path):
    in_a_folder(NOT_READ, tmp_path)
    with pytest.raises(UserError, match=r"what is there is not read \(3 GIF, 1 AVIF, .*\): convert it to PNG"):
        open_images(tmp_path)


@pytest.mark.parametrize(
    ("name", "data", "first"),
    [
        ("a.png", frames("PNG"), PIXELS),
        ("a.webp", frames("WEBP", lossless=True), PIXELS),
        ("a.tif", frames("TIFF"), PIXELS),
        ("a.jpg", frames("MPO", quality=100, subsampling=0), None),
    ],
)
def test_of_several_pictures_the_first_is_taken_and_that_is_said(name, data, first, tmp_path):
    images = open_images(in_a_folder({name: data, "b.png": LOSSLESS["0.png"]}, tmp_path))
    assert images.headers.several == 1
    (pixels,) = images.pick([0]).values()
    assert (pixels == first).all() if first is not None else np.abs(pixels.astype(int) - PIXELS).mean() < 40
    assert image_header(io.BytesIO(LOSSLESS["0.png"]), "b.png").several is False


def with_text(kind: str) -> bytes:
    """The picture with 3 MB of text, which Pillow refuses."""
    text = PngImagePlugin.PngInfo()
    if kind == "zTXt":
        text.add_text("prompt", "x" * 3_000_000, zip=True)
    elif kind == "iTXt":
        text.add_itxt("prompt", "x" * 3_000_000, zip=True)
    elif kind == "many":
        for number in range(70):
            text.add_text(str(number), "x" * 1_000_000, zip=True)
    plain = encoded("PNG", pnginfo=text, **({"icc_profile": bytes(3_000_000)} if kind == "iCCP" else {}))
    if kind != "at the end":
        return plain
    return plain[:-12] + chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(3_000_000))) + plain[-12:]


def chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


@pytest.mark.parametrize("kind", ["zTXt", "iTXt", "many", "iCCP", "at the end"])
@pytest.mark.parametrize("place", [in_a_folder, zipped])
def test_a_png_with_much_text_is_read_without_it(kind, place, tmp_path):
    data = with_text(kind)
    with pytest.raises(ValueError, match=r"too large|Too much"), Image.open(io.BytesIO(data)) as image:
        image.load()
    images = open_images(place({"0.png": data}, tmp_path / "images"))
    assert images.headers.several == 0
    assert (images.pick([0])[0] == PIXELS).all()


def sixteen_bits(kind: str) -> bytes:
    values = PIXELS.astype(np.uint16) * 257
    if kind == "PPM":
        return b"P6\n16 12\n65535\n" + values.astype(">u2").tobytes()
    if kind == "PGM":
        return b"P5\n16 12\n65535\n" + values[..., 0].astype(">u2").tobytes()
    planes = kind == "TIFF in planes"
    data = (values.transpose(2, 0, 1) if planes else values).astype("<u2").tobytes()
    part, bits = len(data) // 3, 8 + len(data) + 2 + 12 * 10 + 4
    at = (3, bits + 6, part) if planes else (1, 8, len(data))
    tags = [(256, 4, 1, 16), (257, 4, 1, 12), (258, 3, 3, bits), (259, 3, 1, 1), (262, 3, 1, 2), (273, 4, at[0], at[1])]
    tags += [(277, 3, 1, 3), (278, 4, 1, 12), (279, 4, at[0], bits + 18 if planes else at[2]), (284, 3, 1, 2 if planes else 1)]
    directory = b"".join(struct.pack("<HHII", *tag) for tag in tags)
    tail = struct.pack("<3H", 16, 16, 16) + struct.pack("<6I", 8, 8 + part, 8 + 2 * part, part, part, part)
    return struct.pack("<2sHI", b"II", 42, 8 + len(data)) + data + struct.pack("<H", 10) + directory + bytes(4) + tail


@pytest.mark.parametrize("kind", ["PPM", "PGM", "TIFF", "TIFF in planes"])
@pytest.mark.parametrize("crop", [None, 8])
def test_sixteen_bits_are_refused_in_every_format(kind, crop):
    """Which Pillow rounds, clips, or, in planes, takes the wrong bytes of, without a word."""
    for read in (read_image, image_header):
        with pytest.raises(UserError, match="more than 8 bits"):
            read(io.BytesIO(sixteen_bits(kind)), "it", crop)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA", "CMYK"])
def test_other_colours_need_a_crop_and_then_are_converted_as_for_training(mode, tmp_path):
    kind = "JPEG" if mode == "CMYK" else "PNG"
    image = PICTURE.convert(mode)
    if mode == "RGBA":
        image.putalpha(Image.fromarray(PIXELS[..., 0]))
    images = in_a_folder({"0.png": encoded(kind, image)}, tmp_path)
    with pytest.raises(UserError, match=rf"its mode is {mode}\); python -m evaluation calc and ref make .* fit by --image-size"):
        open_images(images)
    with Image.open(tmp_path / "0.png") as again:
        expected = np.asarray(again.convert("RGB"))[:, 2:14]
    assert (open_images(images, 12).pick([0])[0] == expected).all()


def test_a_palette_with_transparency_and_a_photograph_turned_by_exif_are_read_as_stored(tmp_path):
    """As ADM's and torchvision's loaders do, and as networks were trained."""
    turned = PICTURE.getexif()
    turned[274] = 6
    images = open_images(in_a_folder({"0.jpg": encoded("JPEG", exif=turned)}, tmp_path / "turned"))
    assert (images.height, images.width) == (12, 16)
    palette = encoded("PNG", PICTURE.convert("P"), transparency=bytes(range(256)))
    with Image.open(io.BytesIO(palette)) as image:
        expected = np.asarray(image.convert("RGB"))[:, 2:14]
    assert (open_images(in_a_folder({"0.png": palette}, tmp_path / "palette"), 12).pick([0])[0] == expected).all()


def test_images_are_in_the_order_of_their_names_letter_by_letter(tmp_path):
    """10 before 2, in a folder as in a zip, whatever order the disk has; and so the hash of their pixels is one."""
    files = {f"{name}.png": encoded("PNG", Image.new("RGB", (4, 4), (name, 0, 0))) for name in (2, 10, 1, 33, 3)}
    for place in (in_a_folder, zipped):
        images = open_images(place(files, tmp_path / place.__name__))
        assert [int(pixels[0, 0, 0]) for pixels in np.concatenate(list(images.batches(2)))] == [1, 10, 2, 3, 33]


def test_an_npz_of_more_than_4_gb_is_read_to_its_end(tmp_path):
    """Where nothing was written it is a hole, so that it takes no room."""
    count, size = 6000, 512
    head, tail = archive.frame(np.arange(count) % 7, size, np.zeros(count, np.uint32))
    picture = np.random.default_rng(1).integers(0, 256, (size, size, 3), dtype=np.uint8)
    with open(tmp_path / "large.npz", "wb") as file:
        file.write(head)
        file.seek(archive.slot(count - 2, size))
        file.write(picture.tobytes())
        file.seek(archive.slot(count, size))
        file.write(tail)
    assert (tmp_path / "large.npz").stat().st_size > 1 << 32
    images = open_images(tmp_path / "large.npz")
    assert images.count == count
    assert images.labels[-1] == (count - 1) % 7
    found = images.pick([3, count - 2])
    assert (found[count - 2] == picture).all()
    assert not found[3].any()


def one_colour(side: int, rows: int) -> bytes:
    """A large PNG, a thousandth of its pixels in size, of which there are so many rows."""
    row, packer = b"\0" + bytes([9, 80, 200]) * side, zlib.compressobj(1)
    rows = b"".join(packer.compress(row) for _ in range(rows)) + packer.flush()
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", struct.pack(">II5B", side, side, 8, 2, 0, 0, 0))
        + chunk(b"IDAT", rows)
        + chunk(b"IEND", b"")
    )


LOOK = """
import sys
from pathlib import Path
from fiducial.evaluation.data.image_files import image_header, read_image
path = Path(sys.argv[1])
print(image_header(path, "it", 64).several, read_image(path, "it", 64).reshape(-1, 3).mean(0).tolist())
"""


def test_a_photograph_of_90_megapixels_is_cropped_and_pillow_is_silent(tmp_path):
    (tmp_path / "0.png").write_bytes(one_colour(9_500, 9_500))
    with pytest.raises(UserError, match=r"9500 x 9500, more than 80,000,000 pixels; .* --image-size"):
        open_images(tmp_path)
    done = run_command("-c", LOOK, tmp_path / "0.png")
    assert done.stdout == "False [9.0, 80.0, 200.0]\n", done.stderr
    assert done.stderr == ""


def test_above_pillows_own_bound_nothing_is_decoded():
    with pytest.raises(UserError, match=r"it cannot be read as an image \(Image size \(182250000 pixels\) exceeds limit"):
        image_header(io.BytesIO(one_colour(13_500, 1)), "it", 64)


@pytest.mark.parametrize("kind", ["gif", "PostScript", "TIFF", "text"])
def test_what_is_called_png_and_is_none_is_named(kind, tmp_path, monkeypatch):
    monkeypatch.setattr("subprocess.Popen", lambda *_, **__: pytest.fail("another program was started"))
    eps = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\nshowpage\n"
    data = {"gif": encoded("GIF"), "PostScript": eps, "TIFF": b"II*\0" + bytes(40), "text": b"no image"}[kind]
    (tmp_path / "0.png").write_bytes(data)
    said = {
        "gif": "it is GIF, and read are PNG, JPEG",
        "PostScript": "it is PostScript, and read are",
        "TIFF": "it begins as TIFF does",
        "text": "it is none of PNG",
    }
    with pytest.raises(UserError, match=rf"0\.png cannot be read as an image \({said[kind]}"):
        open_images(tmp_path)
    assert read_png(tmp_path / "0.png", 8) is None


def test_a_pipe_is_never_waited_for(tmp_path):
    """One that is called an image is told; what is called nothing is looked into only if it is a file."""
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "1").symlink_to(tmp_path / "pipe")
    (tmp_path / "2.png").write_bytes(LOSSLESS["0.png"])
    assert open_images(tmp_path).names == ("2.png",)
    (tmp_path / "0.png").symlink_to(tmp_path / "pipe")
    with pytest.raises(UserError, match=r"0\.png cannot be read as an image \(it is a named pipe"):
        open_images(tmp_path)


def test_the_beginnings_of_files_are_told_apart():
    for data in (*LOSSLESS.values(), *(data for _, data in LOSSY.values())):
        assert kind_of(data[: image_files.BEGINNING]) in image_files.READ_BY_BYTES
    assert [kind_of(data) for name, data in NO_IMAGES.items() if not name.endswith(("png", "txt"))] == [None] * 5


FLOATS = PIXELS[None].astype(np.float32)
# What an array holds, and the expression that the sentence gives, of which the right pixels come.
ARRAYS = {
    "0 to 1": (FLOATS / 255, "(images * 255).round().clip(0, 255).astype('uint8')"),
    "0 to 1 in halves": ((FLOATS / 255).astype(np.float16), "(images * 255).round().clip(0, 255).astype('uint8')"),
    "-1 to 1": (FLOATS / 127.5 - 1, "((images + 1) * 127.5).round().clip(0, 255).astype('uint8')"),
    "-1 to 1 of another byte order": (
        (FLOATS / 127.5 - 1).astype(">f8"),
        "((images + 1) * 127.5).round().clip(0, 255).astype('uint8')",
    ),
    "0 to 255": (FLOATS + 0.25, "images.round().clip(0, 255).astype('uint8')"),
    "int64": (PIXELS[None].astype(np.int64), "images.astype('uint8')"),
    "uint16": (PIXELS[None].astype(np.uint16) * 257, "(images / 257).round().astype('uint8')"),
    "channels first": (
        (FLOATS / 255).transpose(0, 3, 1, 2).copy(),
        "(images.transpose(0, 2, 3, 1) * 255).round().clip(0, 255).astype('uint8')",
    ),
}


@pytest.mark.parametrize("kind", ARRAYS)
@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_the_remedy_for_an_array_of_another_kind_makes_the_right_pixels(kind, save, tmp_path):
    images, expected = ARRAYS[kind]
    save(tmp_path / "a.npz", arr_0=images)
    with pytest.raises(
        UserError, match=r"arr_0 expected as uint8 \(N, H, W, 3\); found .*: save|, as those of 16 bits: save"
    ) as said:
        open_images(tmp_path / "a.npz")
    remedy = str(said.value).rpartition("save ")[2]
    assert remedy == expected
    np.savez(tmp_path / "b.npz", arr_0=eval(remedy, {"images": images, "numpy": np}))
    assert (open_images(tmp_path / "b.npz").pick([0])[0] == PIXELS).all()


@pytest.mark.parametrize(
    ("values", "said"),
    [
        (np.array([-2.1, 2.6]), "which is none of 0 to 1, -1 to 1 and 0 to 255: undo the normalisation first"),
        (np.array([0, np.nan]), "hold NaN or infinity"),
        (np.array([0, 1]), "0 to 1, so that no levels are left: save them times 255"),
        (np.array([-1, 0, 1]), "-1 to 1, so that no levels are left"),
        (np.array([-300, 300]), "-300 to 300, and levels are 0 to 255"),
        (np.array([False, True]), "save images.astype('uint8') * 255"),
        (np.array([1j]), "found complex128 (4, 8, 8, 3)"),
        (np.array(["a"]), "found <U1 (4, 8, 8, 3)"),
        (np.array([None]), "found object (4, 8, 8, 3)"),
    ],
)
def test_what_no_expression_makes_levels_of_is_told(values, said, tmp_path):
    np.savez(tmp_path / "a.npz", arr_0=np.resize(values, (4, 8, 8, 3)))
    with pytest.raises(UserError) as error:
        open_images(tmp_path / "a.npz")
    assert str(error.value).endswith(said) if values.dtype.kind in "cUOb" else said in str(error.value)


@pytest.mark.parametrize(
    ("name", "data", "said"),
    [
        ("ref.pkl", b"\x80\x04\x95", "is a pickle, as EDM2's references are, and pickles are not read"),
        ("samples.npy", b"\x93NUMPY\1\0", r"is a single array; numpy\.savez"),
        ("shard.tar", bytes(257) + b"ustar\x0000", r"is a tar archive; unpack it \(tar -xf\)"),
        ("shard.tar.gz", b"\x1f\x8b\x08", "is a compressed file; unpack it"),
        ("one.png", encoded("PNG"), "is a single image; give a folder or a zip of images"),
        ("set.h5", b"\x89HDF\r\n\x1a\n", "is an HDF5 file"),
        ("noise.bin", b"noise", "cannot be read as an npz or zip"),
    ],
)
def test_what_is_no_set_of_images_says_what_to_do(name, data, said, tmp_path):
    (tmp_path / name).write_bytes(data)
    with pytest.raises(UserError, match=said):
        open_images(tmp_path / name)
    if said.startswith("is a"):
        what = said.split(";")[0].split(",")[0]
        if name != "one.png":
            with pytest.raises(UserError, match=rf"holds no images .*; {name} {what}"):
                open_images(tmp_path)
