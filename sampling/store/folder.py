"""Names of the files in a run's folder, and why the last session ended.

SAMPLE_DIR/RUN/000000.png ...            by index; from 100,000 on in folders of 100,000, from-0000100000/100000.png
SAMPLE_DIR/RUN/manifest.json             what the run is, and its history: see `manifest`
SAMPLE_DIR/RUN/ended.json                why the last session ended early, if it did
SAMPLE_DIR/RUN/progress.json             what its ranks do, every few seconds: see `progress`
SAMPLE_DIR/RUN/records.bin, records/     what each image must look like: see `records`
SAMPLE_DIR/RUN/lock                      while someone is drawing
SAMPLE_DIR/RUN.newest.png                a sheet of rank 0's newest images
SAMPLE_DIR/RUN.npz                       arr_0 (N, H, W, 3) uint8, arr_1 (N,) int64 labels: see `npz`
"""

from pathlib import Path

from fiducial import in_the_making, read_json

MANIFEST, ONLINE = "manifest.json", "online.json"
ENDED, RESERVE = "ended.json", ".reserve"
PROGRESS = "progress.json"
RESERVED = 1 << 16  # bytes kept free for `ended.json`
LONGEST_MESSAGE = 1000  # characters of why a run ended, where that is said again


def longest_path(folder: Path) -> Path:
    """Longer than which none is of what is written in a run's folder, temporary files among it."""
    return folder / "from-0000000000" / in_the_making(Path(MANIFEST))


def sheet_path(folder: Path) -> Path:
    """The sheet of a run's newest images; beside its folder, of which all PNGs are samples."""
    return folder.with_name(f"{folder.name}.newest.png")


def read_ended(folder: Path) -> dict | None:
    """Why the last session ended early, or None if it did not or nobody could say."""
    try:
        ended = read_json(folder / ENDED, RESERVED)
        found = {name: ended[name] for name in ("kind", "message", "rank", "host", "exit_code", "time")}
        return found | {"message": str(found["message"])[:LONGEST_MESSAGE]}
    except (OSError, ValueError, KeyError, TypeError):
        return None
