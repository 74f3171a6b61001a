"""Folders of the Hugging Face hub, fetched by its own client: it continues what was cut, and honours HF_HOME and the like."""

import re
from pathlib import Path

from distributed import UserError
from models.checkpoint import CONFIG_FILE, INDEX_FILE, WEIGHTS_FILES

WEIGHTS = WEIGHTS_FILES[0].removesuffix(".safetensors")
DIFFUSERS_FILES = (CONFIG_FILE, WEIGHTS_FILES[0], f"{WEIGHTS}-*-of-*.safetensors", INDEX_FILE)


def is_hub_id(source: str) -> bool:
    """Whether `source` has the form owner/name, and not that of a path."""
    return re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", source) is not None


def cache_folder(cache_dir: Path | None) -> Path:
    """Where the hub's client keeps its files: in Fiducial's cache if a person says where that is, else as it always does."""
    from huggingface_hub import constants

    return cache_dir / "hub" if cache_dir else Path(constants.HF_HUB_CACHE)


def snapshot(repository: str, option: str, cache_dir: Path | None = None, folders: tuple[str, ...] = ("",)) -> Path:
    """The local folder of a model of diffusers', which is downloaded if the cache does not have it.

    Args:
        option: as it was given, for the error.
        folders: of the repository, each ending in a slash, in which the files may be; "" is its top.

    Raises:
        UserError: if the hub does not give it.
    """
    from huggingface_hub import snapshot_download

    kept = cache_folder(cache_dir)
    patterns = [folder + name for folder in folders for name in DIFFUSERS_FILES]
    try:
        return Path(snapshot_download(repository, allow_patterns=patterns, cache_dir=kept))
    except Exception as error:  # the hub's client raises its own, requests', httpx' and OS errors alike
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        place = kept / f"models--{repository.replace('/', '--')}"
        raise UserError(
            f"{option}: {repository} is neither in the local hub cache nor could it be downloaded ({reason.rstrip('.')}); "
            f"fetch https://huggingface.co/{repository} where there is internet and give its folder, or copy {place} from there"
        ) from error
