"""A deployment that moves under load: each call is answered, by the student that it names, and soon by the new one."""

import threading
import time
from pathlib import Path

from tests.app.conftest import Api

MOVES = 10
CALLERS = 4


def test_no_call_is_lost_and_the_move_takes_a_second(api: Api, student_folder: Path, other_folder: Path) -> None:
    students = [api.deployed(student_folder, "live"), api.student(other_folder)]
    stop = threading.Event()
    answers: list[tuple[float, int, str, str]] = []

    def call() -> None:
        while not stop.is_set():
            answer = api.client.post("/predict/live", json={"inputs": "a great day"})
            answers.append(
                (time.monotonic(), answer.status_code, answer.headers.get("x-limbeck-student", ""), answer.text)
            )
            time.sleep(0.01)

    callers = [threading.Thread(target=call) for _ in range(CALLERS)]
    for caller in callers:
        caller.start()
    moved: list[tuple[float, str]] = []
    try:
        for number in range(MOVES):
            student = students[(number + 1) % 2]
            assert api.client.put("/deployments/live", json={"student": student}).status_code == 200
            moved.append((time.monotonic(), student))
            time.sleep(1.2)
    finally:
        stop.set()
        for caller in callers:
            caller.join()
    assert {status for _, status, _, _ in answers} == {200}
    # A student answers one text always alike: whoever is named has computed it.
    assert {
        student: len({text for _, _, by, text in answers if by == student}) for student in students
    } == dict.fromkeys(students, 1)
    for at, student in moved:
        late = [by for when, _, by, _ in answers if at + 1.0 < when < at + 1.2]
        assert set(late) <= {student}
    print(f"{len(answers)} calls over {MOVES} moves, none failed")
