"""Options from a file, YAML or the manifest of a run, and the options that a manifest records.

A file says `cfg-scale: 2.0` or `cfg_scale: 2.0`, `compile: false` or `no-compile: true`, `labels: [7, 7, 3-5]`. Its entries
become command line arguments, so that there is one way to check them.
"""

import argparse
import difflib
import json
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path

import yaml

from fiducial import UserError, decode_json, read_text
from fiducial.sampling.identity import Identity
from fiducial.sampling.options.choices import overruled
from fiducial.sampling.options.config import OF_NETWORKS, SamplingConfig
from fiducial.sampling.plan import LONGEST_SPEC
from fiducial.sampling.store.manifest import MANIFEST_BYTES, MANIFEST_FORMAT, MANIFEST_KIND, load
from fiducial.sampling.store.parts import in_json

NOT_IN_A_FILE = ("help", "config", "dry_run", "allow_mixed", "tensorboard", "step")  # what one call does, not what a run is
NULL, BOOL = "tag:yaml.org,2002:null", "tag:yaml.org,2002:bool"
LONGEST = 1 << 18  # characters of YAML, which takes seconds to be read
MOST_ENTRIES = 256  # of a manifest's options, and of a list among them
SHOWN = 80  # characters in a message
TRUE = ("true", "yes", "on")  # as YAML spells it, in any case

# Options of the command line that leave those of a file without meaning.
SETTLED_BY = {
    "ckpt": ("weights_key",),
    "tf32": ("precision",),
    "precision": ("tf32",),
    "exact": ("precision", "tf32", "compile", "cuda_tuning"),
}


def given_options(parser: argparse.ArgumentParser, arguments: list[str] | None) -> dict:
    """The options on the command line, and those of its `--config` that it does not give itself.

    Raises:
        UserError: if there is a mistake in either; the file and its key are named.
    """
    given = vars(parser.parse_args(arguments))
    path = given.pop("config", None)
    if path is None:
        return given
    try:
        from_file = vars(parser.parse_args(read(path, parser)))
    except UserError as error:
        raise UserError(f"--config {path}: {error}") from error
    settled = {name for option in given if given[option] or option == "tf32" for name in SETTLED_BY.get(option, ())}
    settled |= overruled(given)
    return {name: value for name, value in from_file.items() if name not in settled} | given


def read(path: Path, parser: argparse.ArgumentParser) -> list[str]:
    """The options in a file, as arguments for `parser`.

    Raises:
        UserError: naming the key, if there is one.
    """
    try:
        text = read_text(path, MANIFEST_BYTES)
        options = _of_manifest(path, text)
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot be read ({getattr(error, 'strerror', None) or error})") from error
    if options is None and len(text) > LONGEST:
        raise UserError(f"has {len(text):,} characters, more than the {LONGEST:,} that options can have")
    return to_arguments(text if options is None else json.dumps(options, ensure_ascii=False), parser)


def to_arguments(text: str, parser: argparse.ArgumentParser) -> list[str]:
    """A YAML mapping of options as arguments for `parser`."""
    try:
        root = yaml.compose(text, Loader=yaml.SafeLoader)
    except (yaml.YAMLError, RecursionError) as error:
        raise UserError(f"is not YAML ({' '.join(str(error).split())[:200]})") from error
    if not isinstance(root, yaml.MappingNode) or not root.value:
        raise UserError("holds no options; write one a line, such as cfg-scale: 1.5")
    actions = {
        text.removeprefix("--"): action
        for action in parser._actions
        for text in action.option_strings
        if action.dest not in NOT_IN_A_FILE
    }
    arguments, said = [], {}
    for key, value in root.value:
        name = str(key.value).replace("_", "-")
        if name not in actions:
            closest = difflib.get_close_matches(name, actions, 1)
            raise UserError(f"{str(key.value)[:80]}: no such option" + (f"; the closest is {closest[0]}" if closest else ""))
        action = actions[name]
        if action.dest in said:
            raise UserError(f"{key.value}: given twice, before as {said[action.dest]}")
        said[action.dest] = key.value
        if action.nargs == 0:
            arguments += _flag(name, value, actions)
        else:
            arguments.append(f"--{name}={_text(name, value, action)}")
    return arguments


def _flag(name: str, value: yaml.Node, actions: Mapping[str, argparse.Action]) -> list[str]:
    """An option that is on or off."""
    if value.tag != BOOL:
        raise UserError(f"{name}: must be true or false, not {_shown(value)}")
    opposite = name.removeprefix("no-") if name.startswith("no-") else f"no-{name}"
    if value.value.lower() in TRUE:
        return [f"--{name}"]
    return [f"--{opposite}"] if opposite in actions else []


def _text(name: str, value: yaml.Node, action: argparse.Action) -> str:
    """The text as it would stand on the command line: what was written, so that no number is rounded and no name taken for a
    date."""
    is_number = action.type in (int, float)
    if isinstance(value, yaml.SequenceNode) and not is_number and all(isinstance(one, yaml.ScalarNode) for one in value.value):
        entries = [one.value for one in value.value]
        return ",".join(entry.replace(",", "\\,") for entry in entries) if name == "labels" else ",".join(entries)
    if not isinstance(value, yaml.ScalarNode):
        raise UserError(f"{name}: must be {'a number' if is_number else 'text, a number or a list of them'}, not {_shown(value)}")
    if value.tag == NULL and (name, value.value) != ("labels", "null"):  # which YAML takes for nothing
        raise UserError(f"{name}: has no value; give one, or leave the line out")
    if is_number and (value.style is not None or value.tag == BOOL):
        raise UserError(f"{name}: must be a number, not {_shown(value)}")
    return value.value


def _shown(value: yaml.Node) -> str:
    kinds = {yaml.SequenceNode: "a list", yaml.MappingNode: "a mapping"}
    return kinds.get(type(value)) or (repr(value.value[:80]) if value.style else value.value[:80] or "nothing")


def _of_manifest(path: Path, text: str) -> dict | None:
    """The options of the run whose manifest this is, or None if it is none."""
    try:
        content = decode_json(text)
        if not str(content["format"]).startswith(MANIFEST_KIND):
            return None
    except (ValueError, KeyError, TypeError):
        return None
    try:
        manifest = load(path)
        if manifest.options is None:
            raise ValueError("it has no options")
        options = dict(manifest.options)
        _check_plain(options)
    except ValueError as error:
        raise UserError(f"is not a whole manifest of format {MANIFEST_FORMAT} ({error})") from error
    if "generator" in options:
        options.pop("sampler", None)  # which once was recorded of every run, and a generator has none
    if options.get("per_proc_batch_size") == "auto":  # which could be asked for once, and named the folder
        options["per_proc_batch_size"] = manifest.identity.block_size
        if Path(str(options.get("sample_dir"))).resolve() == path.resolve().parent.parent:
            options["run_name"] = path.resolve().parent.name
    return options


def _check_plain(options: dict) -> None:
    """Raise ValueError for what was never recorded, which as YAML might take minutes to read."""
    for name, value in options.items():
        entries = value if isinstance(value, list) else [value]
        if len(entries) > MOST_ENTRIES or not all(isinstance(entry, str | int | float | bool) for entry in entries):
            raise ValueError(f"options.{name[:SHOWN]} is {in_json(value)}, not text, a number, true or false, or a list of those")
    if len(options) > MOST_ENTRIES or sum(len(str(value)) for value in options.values()) > 2 * LONGEST_SPEC:
        raise ValueError("its options are too many, or too long")


def recorded(config: SamplingConfig, identity: Identity, beside: Mapping) -> dict[str, str | int | float | bool | list]:
    """Every option of a run as a person would give it, with what `auto` came to here; for its manifest.

    Args:
        identity: of the run, as resolved.
        beside: options that no sample depends on.
    """
    values = {field.name: getattr(config, field.name) for field in fields(config) if field.name != "own"}
    values |= config.recorded_options() | dict(beside)
    values |= {name: identity.values[name] for name in values if name in identity.values}
    if "device_type" in identity.values:
        values["device"] = identity.values["device_type"]
    unused = (*OF_NETWORKS, *config.recorded_options()) if config.generator else ()
    kept = {name: value for name, value in values.items() if value is not None and name not in (*NOT_IN_A_FILE, *unused)}
    return {name: str(value) if isinstance(value, Path) else value for name, value in kept.items()}
