"""What the classes of samples are called, by the manifest of the run that drew them."""

import json
from dataclasses import dataclass
from pathlib import Path

MANIFEST = "manifest.json"
LARGEST_MANIFEST = 1 << 28  # bytes
LONGEST_NAME = 200  # characters that are shown


@dataclass(frozen=True)
class ClassNames:
    """Names by label, and the hash by which the run knows them."""

    names: tuple[str, ...]
    sha256: str

    def __getitem__(self, label: int) -> str | None:
        """The name of a label; None for one beyond them, as is the null label."""
        return self.names[label] if label < len(self.names) else None


def find_names(samples: Path, pixels_sha256: str) -> ClassNames | None:
    """The names in RUN/manifest.json for RUN.npz or RUN, if it is the manifest of these very pixels; else None.

    Nobody vouches for what stands beside a file, so whatever is not as expected counts as absent.
    """
    path = samples.parent / samples.name.removesuffix(".npz") / MANIFEST
    try:
        if not path.is_file() or path.stat().st_size > LARGEST_MANIFEST:
            return None
        manifest = json.loads(path.read_text(encoding="utf-8"))
        known, npz = manifest["class_names"], manifest["npz"]
        names, sha256 = known["names"], known["sha256"]
        if npz["pixels_sha256"] != pixels_sha256 or not isinstance(names, list):
            return None
        if not all(isinstance(name, str) and 0 < len(name) <= LONGEST_NAME for name in (*names, sha256)):
            return None
        "".join((*names, sha256)).encode()  # half a character, which no file can hold, raises
        return ClassNames(tuple(names), sha256)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None
