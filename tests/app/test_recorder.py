"""What is kept of calls: which, with which ids, without what is personal, and never at the cost of a call."""

import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pytest

from app.serving.recorder import Recorder
from app.serving.redaction import MARK, Redaction
from app.serving.shelf import Pointer
from models.answers import Answer, Entity, Label, Span
from models.captures import Kept
from models.inputs import Input, Pair, Question, Words
from models.specs import Capture, Traffic
from tests.app.conftest import eventually

ANSWER: Answer = [Label(label="4", score=0.9), Label(label="5", score=0.1)]


def pointer(**capture: Any) -> Pointer:
    return Pointer("dep_1", "default", "stars", "st_1", 3, Traffic(capture=Capture(**capture)))


@contextmanager
def recording(written: list[Kept], **options: Any) -> Iterator[Recorder]:
    recorder = Recorder(written.extend, interval=0.01, **options)
    recorder.start()
    yield recorder
    recorder.close()


class TestKeep:
    def test_one_input_has_the_id_of_the_call_and_several_have_its_places(self) -> None:
        written: list[Kept] = []
        with recording(written) as recorder:
            one = recorder.keep(pointer(), "canary", "st_2", ["a"], [ANSWER])
            several = recorder.keep(pointer(), "stable", "st_1", [Pair("b", "c"), Pair("d", "e")], [ANSWER, ANSWER])
        assert [(kept.id, kept.arm, kept.student_id) for kept in written] == [
            (one, "canary", "st_2"),
            (f"{several}.0", "stable", "st_1"),
            (f"{several}.1", "stable", "st_1"),
        ]
        assert [kept.input for kept in written] == [
            "a",
            {"text": "b", "text_pair": "c"},
            {"text": "d", "text_pair": "e"},
        ]
        assert {(kept.owner, kept.deployment_id) for kept in written} == {("default", "dep_1")}

    def test_without_capture_nothing(self) -> None:
        written: list[Kept] = []
        with recording(written) as recorder:
            assert (
                recorder.keep(Pointer("dep_1", "default", "stars", "st_1", 3), "stable", "st_1", ["a"], [ANSWER])
                is None
            )
        assert written == []

    def test_a_sample(self) -> None:
        written: list[Kept] = []
        with recording(written) as recorder:
            ids = [recorder.keep(pointer(sample=0.3), "stable", "st_1", ["a"], [ANSWER]) for _ in range(1000)]
        kept = [id_ for id_ in ids if id_ is not None]
        assert 200 < len(kept) < 400  # six standard deviations
        assert [one.id for one in written] == kept

    def test_what_has_no_room_is_dropped_and_counted_at_once(self) -> None:
        held, taken = threading.Event(), threading.Event()
        written: list[Kept] = []

        def write(kept: Sequence[Kept]) -> None:
            taken.set()
            held.wait(20)
            written.extend(kept)

        recorder = Recorder(write, most_waiting=3000, interval=0.01)
        recorder.start()
        first = recorder.keep(pointer(), "stable", "st_1", ["a" * 1000], [ANSWER])
        assert taken.wait(20)
        second = recorder.keep(pointer(), "stable", "st_1", ["a" * 900], [ANSWER])
        began = time.perf_counter()
        assert recorder.keep(pointer(), "stable", "st_1", ["a" * 900] * 2, [ANSWER] * 2) is None
        assert time.perf_counter() - began < 1
        assert recorder.dropped == 2
        held.set()
        recorder.close()
        assert [one.id for one in written] == [first, second]

    def test_room_comes_back(self) -> None:
        written: list[Kept] = []
        with recording(written, most_waiting=2000) as recorder:
            for count in range(1, 4):
                assert recorder.keep(pointer(), "stable", "st_1", ["a" * 1400], [ANSWER]) is not None
                eventually(lambda expected=count: len(written) == expected and recorder._waiting == 0)  # type: ignore[misc]
        assert recorder.dropped == 0

    def test_what_cannot_be_written_ends_nothing(self) -> None:
        written: list[Kept] = []

        def write(kept: Sequence[Kept]) -> None:
            if kept[0].input == "bad":
                raise OSError
            written.extend(kept)

        recorder = Recorder(write, interval=0.0)
        recorder.start()
        recorder.keep(pointer(), "stable", "st_1", ["bad"], [ANSWER])
        eventually(lambda: recorder.dropped == 1)
        recorder.keep(pointer(), "stable", "st_1", ["good"], [ANSWER])
        recorder.close()
        assert [kept.input for kept in written] == ["good"]

    def test_a_pattern_without_end_keeps_nobody_waiting_and_nothing_as_it_came(self) -> None:
        """`(a|aa)+$` takes exponential time; meanwhile other threads have the interpreter."""
        written: list[Kept] = []
        with recording(written) as recorder:
            recorder.keep(pointer(redact=["(a|aa)+$"]), "stable", "st_1", ["a" * 80 + "!"], [ANSWER])
            longest, before = 0.0, time.perf_counter()
            while recorder.dropped == 0:
                time.sleep(0.001)
                now = time.perf_counter()
                longest, before = max(longest, now - before), now
            assert longest < 0.2
            recorder.keep(pointer(redact=["(a|aa)+$"]), "stable", "st_1", ["b"], [ANSWER])
        assert [kept.input for kept in written] == ["b"]


class TestRedaction:
    @pytest.mark.parametrize(
        ("pattern", "text", "kept"),
        [
            ("email", "to ann.b+c@mail.example.co.uk.", "to [redacted]."),
            ("email", "no@body and @nobody", "no@body and @nobody"),
            ("phone", "call +49 (170) 123-45 67!", "call [redacted]!"),
            ("phone", "(555) 123-4567", "[redacted]"),
            ("phone", "in 2024 or 12.5", "in 2024 or 12.5"),
            ("number", "4,000.50 of 7", "[redacted] of [redacted]"),
            (r"(?i)\bsecret\w*", "a Secretary", "a [redacted]"),
            (r"x*", "axxb", "a[redacted]b"),
        ],
    )
    def test_patterns(self, pattern: str, text: str, kept: str) -> None:
        assert Redaction.of((pattern,)).kept(text, ANSWER) == (kept, ANSWER)

    def test_matches_that_overlap_are_one(self) -> None:
        text = "write a7@b8.de"
        assert Redaction.of(("number", "email")).kept(text, []) == (f"write {MARK}", [])

    def test_every_text_of_an_input(self) -> None:
        redaction = Redaction.of(("number",))
        assert redaction.kept({"text": "1", "text_pair": "a 2"}, [])[0] == {"text": MARK, "text_pair": f"a {MARK}"}

    def test_labels_are_the_students_own(self) -> None:
        """They are numbers here, and say nothing about anybody."""
        assert Redaction.of(("number",)).kept("4", ANSWER)[1] == ANSWER

    def test_places_in_an_answer_are_those_of_the_text_that_is_kept(self) -> None:
        text = "7 is Ann of 12 Main Street"
        entities = [
            Entity(entity_group="person", score=0.9, word="Ann", start=5, end=8),
            Entity(entity_group="place", score=0.9, word="12 Main Street", start=12, end=26),
        ]
        given, answer = Redaction.of(("number",)).kept(text, entities)
        assert given == f"{MARK} is Ann of {MARK} Main Street"
        assert [given[one["start"] : one["end"]] for one in answer] == ["Ann", f"{MARK} Main Street"]
        assert [one["word"] for one in answer] == ["Ann", f"{MARK} Main Street"]

    def test_an_answer_that_begins_or_ends_inside_a_match(self) -> None:
        context = "ask bob@example.com now"
        spans = [Span(answer="example", score=0.5, start=8, end=15), Span(answer="", score=0.1, start=0, end=0)]
        given, answer = Redaction.of(("email",)).kept({"question": "who", "context": context}, spans)
        assert given["context"] == f"ask {MARK} now"
        assert answer[0] == {"answer": MARK, "score": 0.5, "start": 4, "end": 14}
        assert answer[1] == spans[1]

    def test_through_the_recorder(self) -> None:
        written: list[Kept] = []
        inputs: list[Input] = [Words(("call", "+4917012345")), Question("of 7", "a@b.de")]
        answers: list[Answer] = [[], Span(answer="a@b.de", score=1.0, start=0, end=6)]
        with recording(written) as recorder:
            for item, answer in zip(inputs, answers, strict=True):
                recorder.keep(pointer(redact=["phone", "email"]), "stable", "st_1", [item], [answer])
        assert [kept.input for kept in written] == [f"call {MARK}", {"question": "of 7", "context": MARK}]
        assert written[1].answer == {"answer": MARK, "score": 1.0, "start": 0, "end": 10}

    @pytest.mark.parametrize("pattern", ["email", "phone", "number"])
    def test_the_named_ones_take_linear_time(self, pattern: str) -> None:
        for piece in ("a", "1", "1 ", "a.", "1.", "a@"):
            Redaction.of((pattern,)).kept(piece * (100_000 // len(piece)), [])
