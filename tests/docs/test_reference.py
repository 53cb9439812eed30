"""The generated pages have every operation, and every field of a spec with its default and bounds."""

import pytest

from handbook import __main__ as handbook
from handbook.schemas import in_words
from models.specs import JobSpec


@pytest.fixture(scope="module")
def pages() -> dict[str, str]:
    return handbook.pages()


def test_the_api_has_every_operation_with_its_scope_and_examples(pages: dict[str, str]) -> None:
    page = pages["api.md"]
    assert "### POST /jobs\n" in page
    assert "### DELETE /deployments/{name}/captures\n" in page
    assert "Scope: `jobs`." in page
    assert '"temperature": 2' in page


def test_a_page_links_to_nothing_that_it_has_not(pages: dict[str, str]) -> None:
    for name, page in pages.items():
        places = {line.removeprefix("## ").lower() for line in page.splitlines() if line.startswith("## ")}
        places |= {part.split("}")[0] for part in page.split("{#")[1:]}
        links = {part.split(")")[0] for part in page.split("](#")[1:]}
        assert links
        assert links <= places, name


def test_the_job_spec_has_every_field_of_every_part(pages: dict[str, str]) -> None:
    page = pages["job-spec.md"]
    schema = JobSpec.model_json_schema()
    for name, part in {"JobSpec": schema, **schema["$defs"]}.items():
        assert f"## {name}\n" in page
        section = page.split(f"## {name}\n")[1].split("\n## ")[0]
        for field in part["properties"]:
            assert part.get("additionalProperties") is True or f"| `{field}` |" in section, (name, field)
    assert "| `warmup` | number from 0 below 1 | `0.06` | Share of the steps in which the learning rate" in page


@pytest.mark.parametrize(
    ("schema", "words"),
    [
        ({"type": "integer", "minimum": 1, "maximum": 8}, "integer from 1 to 8"),
        ({"type": "array", "items": {"$ref": "#/$defs/Phase"}, "minItems": 1}, "list of at least 1 [Phase](Phase)"),
        ({"anyOf": [{"type": "string", "maxLength": 9}, {"type": "null"}]}, "string of 0 to 9 characters or null"),
        ({"enum": ["same", "averaged"]}, '`"same"`, `"averaged"`'),
        ({"type": "string", "pattern": "a|b"}, "string like `a\\|b`"),
        ({}, "any value"),
    ],
)
def test_a_schema_in_words(schema: dict[str, object], words: str) -> None:
    assert in_words(schema, lambda name: name) == words
