"""Whether a run's files can stand in their places."""

from pathlib import Path

from fiducial import UserError, require_place
from fiducial.sampling.store import records
from fiducial.sampling.store.folder import ENDED, MANIFEST, ONLINE, RESERVE
from fiducial.sampling.store.lock import LOCK
from fiducial.sampling.store.npz import npz_path, part_path


def check_places(folder: Path) -> None:
    """Raise UserError if there is a link, a folder or the like in the place of a file that a run writes, but for its images."""
    npz, inside = npz_path(folder), (MANIFEST, ONLINE, ENDED, RESERVE, LOCK)
    beside = npz, part_path(folder), *(npz.with_suffix(ending) for ending in (".json", ".html", ".influences.f32"))
    for path in (*beside, *(folder / name for name in inside), records.table_path(folder)):
        try:
            require_place(path)
        except OSError as error:
            raise UserError(f"{path}: {error.strerror}; move it away, or choose another --run-name") from error
    if (parts := records.part_path(folder, 0, 0).parent).exists() and not parts.is_dir():
        raise UserError(f"{parts}: it is no folder; move it away, or choose another --run-name")
