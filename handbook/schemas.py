"""JSON schemas in words: what a field may be, and a table of an object's fields."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

Json = Mapping[str, Any]
Link = Callable[[str], str]
"""From a definition's name to where it stands, such as `#job`."""


def referenced(reference: str) -> str:
    """The name in `#/$defs/Name` or `#/components/schemas/Name`."""
    return reference.rpartition("/")[2]


def in_words(schema: Json, link: Link) -> str:
    """What a value may be, as Markdown for a cell of a table."""
    match schema:
        case {"$ref": str(reference)}:
            name = referenced(reference)
            return f"[{name}]({link(name)})"
        case {"anyOf": list(choices)} | {"oneOf": list(choices)}:
            return " or ".join(dict.fromkeys(in_words(choice, link) for choice in choices))
        case {"const": value}:
            return f"`{_json(value)}`"
        case {"enum": list(values)}:
            return ", ".join(f"`{_json(value)}`" for value in values)
        case {"type": list(kinds)}:
            return " or ".join(str(kind) for kind in kinds)
        case {"type": str(kind)}:
            return _of_type(kind, schema, link)
        case _:
            return "any value"


def _of_type(kind: str, schema: Json, link: Link) -> str:
    match kind:
        case "array" if "prefixItems" in schema:
            return f"pair of {' and '.join(in_words(part, link) for part in schema['prefixItems'])}"
        case "array":
            return f"list of {_range(schema, 'Items', '')}{in_words(schema.get('items', {}), link)}"
        case "object" if isinstance(values := schema.get("additionalProperties"), dict) and values:
            return f"object of {in_words(values, link)}"
        case "string" if schema.get("format") == "date-time":
            return "time"
        case "string" if "pattern" in schema:
            return f"string like `{cell(schema['pattern'])}`"
        case "string":
            return f"string of {length}" if (length := _range(schema, "Length", "characters")) else "string"
        case _:
            return f"{kind} {_bounds(schema)}".strip()


def _range(schema: Json, what: str, unit: str) -> str:
    """How many, such as `1 to 200 characters`; nothing where any number will do."""
    least, most = schema.get(f"min{what}", 0), schema.get(f"max{what}")
    if most is None:
        return f"at least {least} {unit}" if least else ""
    return f"{least} {unit}" if least == most else f"{least} to {most} {unit}"


def _bounds(schema: Json) -> str:
    """The bounds of a number, such as `from 0 to below 1`."""
    words = {"minimum": "from", "exclusiveMinimum": "above", "maximum": "to", "exclusiveMaximum": "below"}
    return " ".join(f"{word} {_json(schema[name])}" for name, word in words.items() if name in schema)


def fields(schema: Json, link: Link) -> list[str]:
    """The lines of a table of an object's fields; empty where it has none."""
    properties: Mapping[str, Json] = schema.get("properties", {})
    if not properties:
        return []
    required = set(schema.get("required", ()))
    rows = [_row(name, field, link, is_required=name in required) for name, field in properties.items()]
    return ["| field | | default | |", "|---|---|---|---|", *rows, ""]


def _row(name: str, field: Json, link: Link, *, is_required: bool) -> str:
    default = "required" if is_required else f"`{_json(field['default'])}`" if "default" in field else ""
    return f"| `{name}` | {in_words(field, link)} | {default} | {cell(field.get('description', ''))} |"


def cell(text: str) -> str:
    """Text on one line, with nothing that would end a cell."""
    return " ".join(text.split()).replace("|", "\\|")


def reached(schema: Json, definitions: Mapping[str, Json]) -> Iterable[str]:
    """The names of all definitions that a schema leads to, in the order of a reader who follows each link at once."""
    found: dict[str, None] = {}
    waiting = [schema]
    while waiting:
        fresh = [name for name in _references(waiting.pop(0)) if name not in found and name in definitions]
        found.update(dict.fromkeys(fresh))
        waiting[:0] = [definitions[name] for name in fresh]
    return found


def _references(value: Any) -> list[str]:
    match value:
        case {"$ref": str(reference)}:
            return [referenced(reference)]
        case dict():
            return [name for inner in value.values() for name in _references(inner)]
        case list():
            return [name for inner in value for name in _references(inner)]
        case _:
            return []


def _json(value: Any) -> str:
    match value:
        case None | True | False:
            return {None: "null", True: "true", False: "false"}[value]
        case str():
            return f'"{value}"'
        case dict():
            return "{" + ", ".join(f'"{name}": {_json(inner)}' for name, inner in value.items()) + "}"
        case list():
            return "[" + ", ".join(map(_json, value)) + "]"
        case _:
            return str(value)
