"""Files that were given for a checkpoint and are none: the kind by its first bytes, and what to do about it."""

import zipfile
from pathlib import Path

from fiducial import open_regular
from fiducial.models.checkpoints.unpickling import BoundedFile

AT_MOST = 512  # bytes that are looked at
OLDER = b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19."  # what torch.save began files with before its zip format
RESAVE = "re-save it with torch.save(torch.load(OLD, weights_only=False), NEW), where you trust it"
NEEDED = "a checkpoint is a .pt, a .safetensors or a folder of diffusers'"
BEGINNINGS = {
    OLDER: f"in torch's format of before 1.6; {RESAVE}",
    b"\x89PNG": f"a PNG image; {NEEDED}",
    b"\xff\xd8\xff": f"a JPEG image; {NEEDED}",
    b"\x93NUMPY": f"an array of numpy's; {NEEDED}",
    b"\x89HDF": f"an HDF5 file; {NEEDED}",
    b"\x1f\x8b": "packed by gzip; unpack it, and give what is in it",
    b"\xfd7zXZ": "packed by xz; unpack it, and give what is in it",
    b"BZh": "packed by bzip2; unpack it, and give what is in it",
    b"(\xb5/\xfd": "packed by zstd; unpack it, and give what is in it",
    b"7z\xbc\xaf": "packed by 7-Zip; unpack it, and give what is in it",
    b"GGUF": f"a GGUF file; {NEEDED}",
    b"version https://git-lfs": "a pointer of Git LFS, and not the file itself; fetch that by git lfs pull",
    b"<": "a page or other text in tags, as a proxy or a login may send in the place of a file; fetch it again",
}
PICKLE = (
    "a bare pickle, as EDM's and EDM2's .pkl are, which runs code when it is read; only DiT's networks are drawn from, and of "
    "one its state_dict() is saved by torch.save"
)


def what_else(path: Path) -> str | None:
    """The kind of file at `path`, as far as its bytes tell, with what to do; None if torch.save may have written it."""
    with open_regular(path) as file:
        begin = file.read(AT_MOST)
    if not begin:
        return "empty; fetch or save it again"
    for letters, what in BEGINNINGS.items():
        if begin.startswith(letters):
            return what
    if begin[257:262] == b"ustar":
        return "a tar archive; unpack it, and give what is in it"
    if begin[:1] == b"\x80" and len(begin) > 1 and begin[1] in range(2, 6):
        return PICKLE
    if not zipfile.is_zipfile(path):
        return None
    return _other_zip(path)


def _other_zip(path: Path) -> str | None:
    """The same of an archive."""
    try:
        with BoundedFile(path) as file, zipfile.ZipFile(file) as archive:
            names = archive.namelist()
    except (zipfile.BadZipFile, ValueError, OSError, NotImplementedError):
        return None  # which whoever reads it says
    if any(name.endswith("/constants.pkl") for name in names):
        return "a TorchScript archive, which is code; save the state_dict() of the network it is made from by torch.save"
    if any(name.endswith("/data.pkl") for name in names):
        return None
    if names and all(name.endswith(".npy") for name in names):
        return f"an .npz of numpy's, such as samples or a reference; {NEEDED}"
    return "a zip archive of something else than torch.save writes; unpack it, and give what is in it"
