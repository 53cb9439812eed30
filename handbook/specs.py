"""The reference of a spec: every field with its default, its bounds, and the docstring that stands beside it."""

from pydantic import BaseModel

from handbook.schemas import Json, fields, in_words, reached

_INTRODUCTION = (
    "Made from the models in `models/specs`. Fields without *required* may be left out; a field that is not here is "
    "refused with `unknown_field`."
)


def page(title: str, spec: type[BaseModel]) -> str:
    """The page of a spec and of all that it is made of, as Markdown."""
    schema = spec.model_json_schema()
    definitions: dict[str, Json] = schema.get("$defs", {})
    parts = [f"# {title}", "", _INTRODUCTION, "", *_part(spec.__name__, schema)]
    for name in reached({"properties": schema["properties"]}, definitions):
        parts += _part(name, definitions[name])
    return "\n".join(parts)


def _part(name: str, schema: Json) -> list[str]:
    description = schema.get("description", "")
    table = fields(schema, _place)
    if schema.get("additionalProperties") is True:
        description = "Named in the contract, and refused by this version with `not_available_yet`."
    elif not table:
        table = [in_words(schema, _place), ""]
    return [f"## {name}", "", *([description, ""] if description else []), *table]


def _place(name: str) -> str:
    return f"#{name.lower()}"
