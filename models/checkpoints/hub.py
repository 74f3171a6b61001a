"""Folders of the Hugging Face hub, fetched by its own client: it continues what was cut, and honours HF_HOME and the like."""

import json
import os
import re
from pathlib import Path

from fiducial import OFFLINE, UserError, no_file, one_line, read_text

WEIGHTS_FILES = ("diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.bin")  # the latter in older repositories
CONFIG_FILE = "config.json"
JSON_BYTES = 1 << 24  # of a configuration or an index
INDEX_FILE = f"{WEIGHTS_FILES[0]}.index.json"
WEIGHTS = WEIGHTS_FILES[0].removesuffix(".safetensors")
DIFFUSERS_FILES = (CONFIG_FILE, WEIGHTS_FILES[0], f"{WEIGHTS}-*-of-*.safetensors", INDEX_FILE)
OLDER_FILES = (CONFIG_FILE, WEIGHTS_FILES[1])


def is_hub_id(source: str) -> bool:
    """Whether `source` has the form owner/name, and not that of a path."""
    return re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", source) is not None


def cache_folder(cache_dir: Path | None) -> Path:
    """Where the hub's client keeps its files: in Fiducial's cache if a person says where that is, else as it always does."""
    from huggingface_hub import constants

    return cache_dir / "hub" if cache_dir else Path(constants.HF_HUB_CACHE)


def is_whole(folder: Path) -> bool:
    """Whether a folder has a configuration and all weights, in one file or in the shards that its index names."""
    if (index := folder / INDEX_FILE).is_file():
        names = set(json.loads(read_text(index, JSON_BYTES))["weight_map"].values())
    else:
        names = {name for name in WEIGHTS_FILES if (folder / name).is_file()}
    return bool(names) and all((folder / name).is_file() for name in (CONFIG_FILE, *names))


def lacking(folder: Path, name: str) -> str:
    """That there is no file of that name in a folder, or what there is in its place, in words."""
    reason = no_file(folder / name, "")
    return f"its {name} cannot be read ({reason})" if reason else f"it has no {name}"


def kept_at(repository: str, cache_dir: Path | None) -> Path:
    """The folder in which the hub's client keeps a repository, there or not."""
    return cache_folder(cache_dir) / f"models--{repository.replace('/', '--')}"


def cached(repository: str, name: str, cache_dir: Path | None = None, revision: str | None = None) -> Path | None:
    """The local path of a file of a repository, if the cache has it; None otherwise. Asks nobody."""
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(repository, name, cache_dir=cache_folder(cache_dir), revision=revision)
    return Path(found) if isinstance(found, str) else None


def is_here(repository: str, cache_dir: Path | None) -> bool:
    """Whether the cache has a model of diffusers' whole, at the top of its repository."""
    config = cached(repository, CONFIG_FILE, cache_dir)
    return config is not None and is_whole(config.parent)


def file(repository: str, name: str, option: str, cache_dir: Path | None = None, revision: str | None = None) -> Path:
    """The local path of one file of a repository, which is downloaded if the cache does not have it.

    Args:
        name: its path in the repository.
        option: which asks for it, for the error.

    Raises:
        UserError: if the hub does not give it.
    """
    if found := cached(repository, name, cache_dir, revision):
        return found
    if os.environ.get(OFFLINE):
        raise UserError(_unavailable(option, repository, cache_dir, None, name))
    from huggingface_hub import hf_hub_download

    try:
        return Path(hf_hub_download(repository, name, revision=revision, cache_dir=cache_folder(cache_dir)))
    except Exception as error:  # the hub's client raises its own, requests', httpx' and OS errors alike
        raise UserError(_unavailable(option, repository, cache_dir, error, name)) from error


def _unavailable(option: str, repository: str, cache_dir: Path | None, error: Exception | None, name: str = "") -> str:
    """That a file of a repository, or without a name a model in it, cannot be had."""
    reason = "nothing is downloaded now" if os.environ.get(OFFLINE) or error is None else one_line(error)
    what, where = (f"{name} of {repository}", f"{repository}/blob/main/{name}") if name else (repository, repository)
    return (
        f"{option}: {what} is neither in the local hub cache nor could it be downloaded ({reason.rstrip('.')}); "
        f"fetch https://huggingface.co/{where} where there is internet and give {'it' if name else 'its folder'}, or copy "
        f"{kept_at(repository, cache_dir)} from there"
    )


def snapshot(
    repository: str, option: str, cache_dir: Path | None = None, folders: tuple[str, ...] = ("",), older: bool = False
) -> Path:
    """The local folder of a model of diffusers', which is downloaded if the cache does not have it.

    Args:
        option: as it was given, for the error.
        folders: of the repository, each ending in a slash, in which the files may be; "" is its top.
        older: weights may also be a `.bin`, if there are no others.

    Raises:
        UserError: if the hub does not give it, or only a part of it is in the cache.
    """
    from huggingface_hub import snapshot_download

    kept = cache_folder(cache_dir)
    try:
        for files in (DIFFUSERS_FILES, OLDER_FILES) if older else (DIFFUSERS_FILES,):
            patterns = [folder + name for folder in folders for name in files]
            found = Path(snapshot_download(repository, allow_patterns=patterns, cache_dir=kept))
            if any(is_whole(found / folder) for folder in folders):
                return found
    except Exception as error:  # as of `file`
        raise UserError(_unavailable(option, repository, cache_dir, error)) from error
    raise UserError(
        f"{option}: {found}, which is what is here of {repository}, has no {CONFIG_FILE} with all of its {WEIGHTS}.safetensors; "
        "give the same command where there is internet"
    )
