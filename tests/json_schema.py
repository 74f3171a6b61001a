"""Validation against a JSON Schema, as far as ours goes; a keyword that it does not know is an error, not passed over."""

import re

KINDS = {
    "object": dict,
    "array": list,
    "string": str,
    "null": type(None),
    "boolean": bool,
    "integer": int,
    "number": (int, float),
}
KNOWN = {
    *("$ref", "type", "const", "enum", "oneOf", "minimum", "pattern", "items", "minItems", "maxItems"),
    *("properties", "required", "additionalProperties", "patternProperties", "description", "$schema", "title", "$defs"),
}


def faults(schema: dict, value: object, whole: dict, where: str = "$") -> list[str]:
    """Where and why `value` does not fit a part of the schema `whole`; empty where it does."""
    assert schema.keys() <= KNOWN, f"{where}: unknown keywords {schema.keys() - KNOWN}"
    found = []
    if "$ref" in schema:
        found += faults(whole["$defs"][schema["$ref"].removeprefix("#/$defs/")], value, whole, where)
    kinds = schema.get("type", list(KINDS))
    if not any(_is(kind, value) for kind in ([kinds] if isinstance(kinds, str) else kinds)):
        return [*found, f"{where}: {value!r} is no {kinds}"]
    if "const" in schema and value != schema["const"]:
        found.append(f"{where}: {value!r} is not {schema['const']!r}")
    if "enum" in schema and value not in schema["enum"]:
        found.append(f"{where}: {value!r} is none of {schema['enum']}")
    if "oneOf" in schema and sum(not faults(one, value, whole, where) for one in schema["oneOf"]) != 1:
        found.append(f"{where}: fits not just one of {len(schema['oneOf'])} forms")
    if "minimum" in schema and isinstance(value, int | float) and value < schema["minimum"]:
        found.append(f"{where}: {value} is too small")
    if "pattern" in schema and isinstance(value, str) and not re.search(schema["pattern"], value):
        found.append(f"{where}: {value!r} is not like {schema['pattern']}")
    if isinstance(value, list):
        found += _of_list(schema, value, whole, where)
    if isinstance(value, dict):
        found += _of_object(schema, value, whole, where)
    return found


def _is(kind: str, value: object) -> bool:
    return isinstance(value, KINDS[kind]) and (kind == "boolean") == isinstance(value, bool)


def _of_list(schema: dict, value: list, whole: dict, where: str) -> list[str]:
    fits = schema.get("minItems", 0) <= len(value) <= schema.get("maxItems", len(value))
    found = [] if fits else [f"{where}: has {len(value)} items"]
    return found + [
        text for place, one in enumerate(value) for text in faults(schema.get("items", {}), one, whole, f"{where}[{place}]")
    ]


def _of_object(schema: dict, value: dict, whole: dict, where: str) -> list[str]:
    found = [f"{where}: has no {name}" for name in schema.get("required", ()) if name not in value]
    for name, one in value.items():
        known = schema.get("properties", {}).get(name)
        if known is None:
            known = next((part for like, part in schema.get("patternProperties", {}).items() if re.search(like, name)), None)
        if known is None:
            known = schema.get("additionalProperties", {})
        if known is False:
            found.append(f"{where}: {name} is not in the schema")
        else:
            found += faults(known, one, whole, f"{where}.{name}")
    return found
