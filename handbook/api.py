"""The reference of the HTTP API: every operation of the OpenAPI document with its scope, parameters and examples."""

import json
from collections.abc import Iterator, Mapping
from typing import Any

from handbook.schemas import Json, cell, fields, in_words, reached

_INTRODUCTION = (
    "Made from the application's OpenAPI document, which `GET /openapi.json` answers with. Every call but those of the "
    "health probes needs a key, `Authorization: Bearer lk_…`, with the scope that the operation names. What is not a "
    "success is a problem with a [stable code](../errors.md)."
)
_SCOPE = "x-limbeck-scope"


def page(document: Json) -> str:
    """The page of an OpenAPI document, as Markdown."""
    schemas: Mapping[str, Json] = document["components"]["schemas"]
    parts = ["# HTTP API", "", _INTRODUCTION, ""]
    for tag, operations in _by_tag(document).items():
        parts += [f"## {tag.capitalize()}", ""]
        for method, path, operation in operations:
            parts += _operation(method, path, operation)
    parts += ["## Objects", ""]
    for name in sorted(reached(document["paths"], schemas)):
        parts += _object(name, schemas[name])
    return "\n".join(parts)


def _by_tag(document: Json) -> dict[str, list[tuple[str, str, Json]]]:
    found: dict[str, list[tuple[str, str, Json]]] = {}
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            tag = (operation.get("tags") or ["more"])[0]
            found.setdefault(tag, []).append((method.upper(), path, operation))
    return found


def _operation(method: str, path: str, operation: Json) -> list[str]:
    scope = operation.get(_SCOPE)
    lines = [f"### {method} {path}", "", operation.get("description", operation["summary"]), ""]
    lines += [f"Scope: `{scope}`." if scope else "Needs no key.", ""]
    parameters = operation.get("parameters", ())
    if parameters:
        lines += ["| parameter | in | | default | |", "|---|---|---|---|---|"]
        lines += [_parameter(parameter) for parameter in parameters]
        lines += [""]
    for kind, content in operation.get("requestBody", {}).get("content", {}).items():
        lines += _content(f"Body, {kind}", content)
    for status, answer in operation["responses"].items():
        if status == "default":
            continue
        contents = answer.get("content", {})
        if not contents:
            lines += [f"Answers {status}, without a body." if status == "204" else f"Answers {status}.", ""]
        for kind, content in contents.items():
            lines += _content(f"Answers {status}, {kind}", content)
    return lines


def _parameter(parameter: Json) -> str:
    schema = parameter["schema"]
    default = "required" if parameter.get("required") else f"`{schema['default']}`" if "default" in schema else ""
    told = cell(parameter.get("description", ""))
    return f"| `{parameter['name']}` | {parameter['in']} | {in_words(schema, _place)} | {default} | {told} |"


def _content(heading: str, content: Json) -> list[str]:
    schema = content.get("schema", {})
    named = "" if schema.get("type") == "object" else f": {in_words(schema, _place)}"
    return [f"{heading}{named}", "", *fields(schema, _place), *_example(content)]


def _example(content: Json) -> Iterator[str]:
    if "example" in content:
        yield '??? example "Example"'
        yield ""
        yield "    ```json"
        yield from (f"    {line}" for line in _json(content["example"]).splitlines())
        yield "    ```"
        yield ""


def _object(name: str, schema: Json) -> list[str]:
    description = schema.get("description", "")
    table = fields(schema, _place) or [in_words(schema, _place), ""]
    return [f"### {name} {{#{_place(name)[1:]}}}", "", *([description, ""] if description else []), *table]


def _place(name: str) -> str:
    return f"#object-{name.strip('_').lower()}"


def _json(value: Any) -> str:
    return json.dumps(value, indent=2, ensure_ascii=False)
