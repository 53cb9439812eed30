"""A call from its inputs to its answer: by the arm that it goes to, with the fallback where that is not sure, and
counted. It knows no database and no HTTP.

A candidate never stands in the way. Whatever is wrong with a canary, the stable student answers; whatever is wrong with
a fallback, the answer of the student stands. Counts take the time of the work, without the wait for a core: the wait
says how busy the service is, and a copy, which waits longer, must be comparable with a call.
"""

import asyncio
import random
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace

import structlog
from starlette.concurrency import run_in_threadpool

from app.serving import routing
from app.serving.batching import Answer, CallerLeft, Pool, Timing
from app.serving.counts import Counts
from app.serving.routing import Arm
from app.serving.shadowing import Copy
from app.serving.shelf import Loaded, Pointer, Shelf
from models import answers as decoded
from models.answers import Parameters
from models.errors import Overloaded
from models.inputs import Input

log = structlog.get_logger("limbeck.answering")


@dataclass(frozen=True)
class Call:
    """What a caller asks of a deployment."""

    inputs: Sequence[Input]
    single: bool
    """They came as one, and not as a list."""
    parameters: Parameters
    sticky: str | None
    gone: Callable[[], Awaitable[bool]]
    """Whether the caller has left."""


@dataclass(frozen=True)
class Served:
    """What the caller gets, and from whom."""

    answers: list[decoded.Answer]
    """One for each input."""
    student: Loaded
    arm: Arm
    answered_by: str | None
    """`student`, the fallback's name (`teacher`, or the id of a student) or `mixed`; None: there is no fallback."""
    timing: Timing
    """Of student and fallback together."""
    copy: Copy | None
    """For `Shadows`, once the caller has the answer."""


class Answering:
    """To be used on one event loop."""

    def __init__(self, shelf: Shelf, pool: Pool, counts: Counts) -> None:
        self._shelf = shelf
        self._pool = pool
        self._counts = counts
        self._fetching: dict[str, asyncio.Task[Loaded]] = {}

    async def pointer(self, owner: str, name: str) -> Pointer:
        """Where a deployment points. Raises `Missing` if there is none."""
        known = self._shelf.pointer(owner, name)
        return known if known is not None else await run_in_threadpool(self._shelf.find, owner, name)

    async def answer(self, pointer: Pointer, call: Call) -> Served:
        """Raises `Invalid` for what the student does not take, `Unavailable` if it cannot serve, `Overloaded` if the
        queue is full, `CallerLeft`, and what the student raises."""
        stable = await self._stable(pointer, call)
        if pointer.is_plain:
            found = await self._ask(pointer, "stable", stable, call)
            return Served(found.answers, stable, "stable", None, found.timing, None)
        arm, student, found = await self._by_arm(pointer, stable, call)
        served = Served(found.answers, student, arm, None, found.timing, _copy(pointer, arm, call, found))
        return await self._with_fallback(pointer, call, served, found.sureness)

    async def loaded(self, student_id: str, call: Call) -> Loaded:
        """A student as the shelf names it, which takes what is asked, whatever points at it. Raises as `answer`."""
        student = await self._fetch(student_id)
        student.runtime.check(call.inputs, call.parameters, single=call.single)
        return student

    async def alone(self, student: Loaded, call: Call) -> Answer:
        """Its answers, which nobody counts."""
        return await self._pool.answer(student.runtime, call.inputs, call.parameters, call.gone)

    async def _stable(self, pointer: Pointer, call: Call) -> Loaded:
        try:
            stable = await self._fetch(pointer.student_id)
        except Exception:
            self._failed(pointer, "stable", pointer.student_id)
            raise
        stable.runtime.check(call.inputs, call.parameters, single=call.single)
        return stable

    async def _by_arm(self, pointer: Pointer, stable: Loaded, call: Call) -> tuple[Arm, Loaded, Answer]:
        canary = pointer.traffic.canary
        draw = random.random()  # noqa: S311 - a share of the calls, and no secret
        if canary is not None and routing.arm(canary, pointer.deployment_id, call.sticky, draw) == "canary":
            student = self._candidate(pointer, canary.student)
            if student is not None:
                try:
                    return "canary", student, await self._ask(pointer, "canary", student, call)
                except (CallerLeft, Overloaded):
                    raise
                except Exception as error:  # noqa: BLE001 - whatever is wrong with it, the stable one answers
                    log.warning(
                        "a canary failed", deployment=pointer.name, student=canary.student, error=type(error).__name__
                    )
        return "stable", stable, await self._ask(pointer, "stable", stable, call)

    def _candidate(self, pointer: Pointer, student_id: str) -> Loaded | None:
        """A canary's student, if it is in memory. To be still on its way is no error, to be damaged is one."""
        student = self._shelf.at_hand(student_id)
        if student is None and not self._shelf.ask_for(student_id):
            self._failed(pointer, "canary", student_id)
        return student

    async def _ask(self, pointer: Pointer, arm: Arm, student: Loaded, call: Call) -> Answer:
        """The answer of the student of an arm, counted; as much beside it as the deployment's traffic needs."""
        traffic = pointer.traffic
        try:
            if arm == "canary":
                student.runtime.check(call.inputs, call.parameters)
            found = await self._pool.answer(
                student.runtime,
                call.inputs,
                call.parameters,
                call.gone,
                plain=arm == "canary" or traffic.shadow is not None,
                sureness=traffic.fallback is not None,
            )
        except (CallerLeft, Overloaded):
            raise  # neither says anything of the student
        except Exception:
            self._failed(pointer, arm, student.student_id)
            raise
        self._counts.note(pointer, arm, student.student_id, inputs=len(call.inputs), seconds=found.timing.work)
        return found

    async def _with_fallback(self, pointer: Pointer, call: Call, served: Served, sureness: Sequence[float]) -> Served:
        """`served`, with the fallback's answers to the inputs of which its student is not sure enough.

        The fallback is the deployment's, and so a canary has the same one, at the same threshold.
        """
        fallback, student_id = pointer.traffic.fallback, pointer.fallback_id
        if fallback is None or fallback.threshold is None or student_id is None:
            return served
        places = routing.unsure(sureness, fallback.threshold)
        served = replace(served, answered_by="student")
        if not places:
            return served
        inputs = [call.inputs[place] for place in places]
        try:
            larger = await self._fetch(student_id)
            larger.runtime.check(inputs, call.parameters)
            found = await self._pool.answer(larger.runtime, inputs, call.parameters, call.gone)
        except CallerLeft:
            raise
        except Exception as error:  # noqa: BLE001 - whatever is wrong with it, there is an answer
            log.warning("a fallback failed", deployment=pointer.name, student=student_id, error=type(error).__name__)
            self._counts.note(pointer, "fallback", student_id, error=True)
            return served
        self._counts.note(pointer, "fallback", student_id, inputs=len(inputs), seconds=found.timing.work)
        instead = dict(zip(places, found.answers, strict=True))
        return replace(
            served,
            answers=[instead.get(place, answer) for place, answer in enumerate(served.answers)],
            answered_by="mixed" if len(instead) < len(call.inputs) else fallback.to,
            timing=served.timing + found.timing,
        )

    async def _fetch(self, student_id: str) -> Loaded:
        """A student, loaded if need be; of many callers on this loop one waits in a thread."""
        student = self._shelf.at_hand(student_id)
        if student is not None:
            return student
        task = self._fetching.get(student_id)
        if task is None:
            task = asyncio.create_task(run_in_threadpool(self._shelf.fetch, student_id))
            self._fetching[student_id] = task
            task.add_done_callback(lambda done: self._fetched(student_id, done))
        return await asyncio.shield(task)

    def _fetched(self, student_id: str, task: "asyncio.Task[Loaded]") -> None:
        del self._fetching[student_id]
        if not task.cancelled():
            task.exception()  # its callers may all have left

    def _failed(self, pointer: Pointer, arm: Arm, student_id: str) -> None:
        self._counts.note(pointer, arm, student_id, error=True)


def _copy(pointer: Pointer, arm: Arm, call: Call, found: Answer) -> Copy | None:
    """What is to be asked of the student of the other arm, if anything."""
    canary, shadow = pointer.traffic.canary, pointer.traffic.shadow
    if arm == "canary":
        if canary is None:
            return None
        return Copy(pointer, "canary", canary.student, pointer.student_id, call.inputs, found.plain)
    if shadow is None or random.random() >= shadow.fraction:  # noqa: S311 - a share of the calls, and no secret
        return None
    return Copy(pointer, "shadow", shadow.student, shadow.student, call.inputs, found.plain)
