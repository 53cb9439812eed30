"""What a process counts of each arm, and what it asks to be put down."""

import threading
import time

from app.serving.counts import Counts
from app.serving.shelf import Pointer
from models.figures import BOUNDS, Total, bucket


def pointer(version: int = 1, deployment_id: str = "dep_1") -> Pointer:
    return Pointer(deployment_id, "default", "live", "st_1", version)


def by_arm(totals: list[Total]) -> dict[tuple[str, int, str], Total]:
    return {(total.deployment_id, total.version, total.arm): total for total in totals}


def test_calls_inputs_errors_and_latencies_add_up() -> None:
    counts = Counts()
    counts.note(pointer(), "stable", "st_1", inputs=3, seconds=0.002)
    counts.note(pointer(), "stable", "st_1", inputs=1, seconds=100.0)
    counts.note(pointer(), "stable", "st_1", inputs=5, error=True)
    (total,) = counts.totals()
    assert (total.calls, total.inputs, total.errors, sum(total.latency)) == (3, 4, 1, 2)
    assert total.latency[bucket(0.002)] == 1
    assert total.latency[len(BOUNDS)] == 1
    assert total.student_id == "st_1"


def test_a_comparison_is_no_call_but_to_a_shadow_it_is() -> None:
    counts = Counts()
    counts.note(pointer(), "canary", "st_2", inputs=2, seconds=0.01)
    counts.note(pointer(), "canary", "st_2", compared=2, agreed=1)
    counts.note(pointer(), "shadow", "st_3", compared=2, agreed=2)
    counts.note(pointer(), "shadow", "st_3", error=True)
    found = by_arm(counts.totals())
    canary, shadow = found["dep_1", 1, "canary"], found["dep_1", 1, "shadow"]
    assert (canary.calls, canary.inputs, canary.compared, canary.agreed) == (1, 2, 2, 1)
    assert (shadow.calls, shadow.inputs, shadow.compared, shadow.agreed, shadow.errors) == (2, 0, 2, 2, 1)


def test_totals_are_those_that_changed_and_stay_absolute() -> None:
    counts = Counts()
    counts.note(pointer(), "stable", "st_1", inputs=1)
    counts.note(pointer(), "canary", "st_2", inputs=1)
    assert len(counts.totals()) == 2
    assert counts.totals() == []
    counts.note(pointer(), "canary", "st_2", inputs=1)
    (total,) = counts.totals()
    assert (total.arm, total.inputs) == ("canary", 2)


def test_what_was_not_written_is_asked_for_again_with_what_came_since() -> None:
    counts = Counts()
    counts.note(pointer(), "stable", "st_1", inputs=1)
    failed = counts.totals()
    counts.note(pointer(), "stable", "st_1", inputs=1)
    counts.unwritten(failed)
    (total,) = counts.totals()
    assert total.inputs == 2
    assert failed[0].inputs == 1, "a total that was handed out does not change any more"


def test_an_earlier_version_is_forgotten_when_it_was_written_and_is_quiet() -> None:
    now = [0.0]
    counts = Counts(forget_after=10, clock=lambda: now[0])
    counts.note(pointer(1), "stable", "st_1", inputs=5)
    counts.totals()
    counts.note(pointer(2), "stable", "st_1", inputs=1)
    now[0] = 9.0
    counts.totals()
    counts.note(pointer(1), "stable", "st_1", inputs=1)
    now[0] = 18.0
    (late,) = counts.totals()
    assert (late.version, late.inputs) == (1, 6)
    now[0] = 20.0
    assert counts.totals() == []
    # Gone by now: it would begin again at nothing.
    counts.note(pointer(1), "stable", "st_1", inputs=1)
    assert [total.inputs for total in counts.totals()] == [1]


def test_the_newest_version_is_kept_however_quiet_it_is() -> None:
    now = [0.0]
    counts = Counts(forget_after=10, clock=lambda: now[0])
    counts.note(pointer(), "stable", "st_1", inputs=5)
    counts.totals()
    now[0] = 1e6
    counts.totals()
    counts.note(pointer(), "stable", "st_1", inputs=1)
    assert [total.inputs for total in counts.totals()] == [6]


def test_deleted_deployments_are_forgotten() -> None:
    counts = Counts()
    for name in ("dep_1", "dep_2"):
        counts.note(pointer(deployment_id=name), "stable", "st_1", inputs=1)
    counts.forget(["dep_1"])
    assert [total.deployment_id for total in counts.totals()] == ["dep_2"]


def test_no_note_of_many_threads_is_lost() -> None:
    counts = Counts()
    last: dict[tuple[str, int, str], Total] = {}
    done = threading.Event()

    def ask() -> None:
        while not done.is_set():
            last.update(by_arm(counts.totals()))

    def note(arm_of: int) -> None:
        for number in range(5000):
            counts.note(pointer(), "stable" if (number + arm_of) % 2 else "canary", "st_1", inputs=2, seconds=0.01)

    asking = threading.Thread(target=ask)
    noting = [threading.Thread(target=note, args=(number,)) for number in range(4)]
    for thread in [asking, *noting]:
        thread.start()
    for thread in noting:
        thread.join()
    done.set()
    asking.join()
    last.update(by_arm(counts.totals()))
    for arm in ("stable", "canary"):
        total = last["dep_1", 1, arm]
        assert (total.calls, total.inputs, sum(total.latency)) == (10_000, 20_000, 10_000)


def test_a_note_costs_microseconds() -> None:
    counts = Counts()
    began = time.perf_counter()
    for _ in range(20_000):
        counts.note(pointer(), "stable", "st_1", inputs=1, seconds=0.003)
    each = (time.perf_counter() - began) / 20_000
    print(f"{each * 1e6:.1f} µs a note")
    assert each < 1e-4
