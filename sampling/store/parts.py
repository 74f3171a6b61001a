"""Checks of the parts of a run's manifest, which name the part and its value, not in Python's words."""

import itertools
import json

from fiducial import QUOTED

OBJECT, LIST, TEXT, COUNT, NUMBER = "an object", "a list", "text", "a whole number", "a number"
SWITCH, NUMBER_OR_NULL = "true or false", "a number or null"
KINDS = {
    OBJECT: (dict,),
    LIST: (list,),
    TEXT: (str,),
    COUNT: (int,),
    NUMBER: (int, float),
    SWITCH: (bool,),
    NUMBER_OR_NULL: (int, float, type(None)),
}
EACH, OPTIONAL = "[]", "?"  # at the end of a name: every entry of a list; what older runs lack, or none has yet
# Each after what it is in; a part of what is not there is none.
OF_EVERY_RUN = {
    "num_fid_samples": COUNT,
    "sessions": LIST,
    "sessions[]": OBJECT,
    "sessions[].world_size": COUNT,
    "sessions[].images_before": COUNT,
    "sessions[].hosts?": LIST,
    "sessions[].hosts[]": TEXT,
    "sessions[].png?": SWITCH,
    "sessions[].device?": TEXT,
    "sessions[].hardware?": OBJECT,
    "sessions[].mixed?": TEXT,
    "sessions[].packages?": OBJECT,
    "sessions[].fiducial?": OBJECT,
    "sessions[].images_drawn?": COUNT,
    "sessions[].seconds?": NUMBER,
    "sessions[].events?": LIST,
    "sessions[].finished?": TEXT,
    "fingerprint": TEXT,
    "identity": OBJECT,
    "identity.per_proc_batch_size": COUNT,
    "identity.image_size": COUNT,
    "identity.num_classes": COUNT,
    "identity.global_seed": COUNT,
    "identity.labels": TEXT,
    "paths?": OBJECT,
    "paths.ckpt?": TEXT,
    "paths.weights?": TEXT,
    "paths.vae?": TEXT,
    "paths.source?": TEXT,
    "class_names?": OBJECT,
    "class_names.source": TEXT,
    "class_names.sha256": TEXT,
    "class_names.names": LIST,
    "class_names.names[]": TEXT,
    "options?": OBJECT,
    "grid?": LIST,
    "grid[]": NUMBER,
    "published?": OBJECT,
    "probe?": OBJECT,
    "probe.correlation_at_999?": NUMBER_OR_NULL,
    "probe.size_at_999?": NUMBER_OR_NULL,
    "probe.correlation_at_500?": NUMBER_OR_NULL,
}
OF_FILES = {
    "records_format?": COUNT,
    "merged": COUNT,
    "npz": "an object or null",
    "npz.file": TEXT,
    "npz.count": COUNT,
    "npz.bytes": COUNT,
    "npz.pixels_sha256?": TEXT,
}
KINDS[OF_FILES["npz"]] = (dict, type(None))


def require_parts(content: dict, parts: dict[str, str]) -> None:
    """Raise ValueError if a part of `content` is missing, or is not of its kind, naming it and what it is."""
    for name, kind in parts.items():
        outer, dot, own = name.rpartition(".")
        for within, place in _at(content, outer) if dot else [(content, "")]:
            _require_part(within, place, own, kind)


def _require_part(within: object, place: str, own: str, kind: str) -> None:
    """One of an object, or each of a list in it."""
    if not isinstance(within, dict):  # null in the place of an object
        return
    field, is_each = own.removesuffix(OPTIONAL).removesuffix(EACH), own.endswith(EACH)
    if field not in within:
        if own.endswith(OPTIONAL) or is_each:
            return
        raise ValueError(f"{place or 'it'} has no {field}")
    called = f"{place}.{field}" if place else field
    entries = ((f"{called}[{n}]", entry) for n, entry in enumerate(within[field])) if is_each else [(called, within[field])]
    for where, value in entries:
        if not isinstance(value, KINDS[kind]) or (isinstance(value, bool) and kind != SWITCH):
            raise ValueError(f"{where} is {in_json(value)}, not {kind}")


def _at(content: dict, name: str) -> list[tuple[object, str]]:
    """The parts of that name, each with its place in words; none where it is not there. What is around it is as it is to be."""
    found: list[tuple[object, str]] = [(content, "")]
    for own in name.split("."):
        field = own.removesuffix(EACH)
        found = [(o[field], f"{place}.{field}".lstrip(".")) for o, place in found if isinstance(o, dict) and field in o]
        if own.endswith(EACH):
            found = [(entry, f"{place}[{n}]") for entries, place in found for n, entry in enumerate(entries)]
    return found


def in_json(value: object) -> str:
    """A value as a manifest has it, cut short."""
    pieces = "".join(itertools.islice(json.JSONEncoder().iterencode(value), QUOTED + 1))  # none of which is empty
    return pieces if len(pieces) <= QUOTED else f"{pieces[:QUOTED]}…"
