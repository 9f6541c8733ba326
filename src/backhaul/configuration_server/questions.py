"""What agents are asked right now, and the jobs' threads that wait for the answers.

In memory only: after a restart nothing is asked until a job's step, which is repeated then, asks again; an agent that
restarts is given the question again with its assignment. Invariants: an answer counts only from the machine that was
asked, as copies of it report under the same agent; a question that nobody answers ends, with the reason. `ask` in the
jobs' threads, the rest on the event loop.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

from backhaul.configuration_server.errors import AgentMute
from backhaul.replication.control import AgentReport, Answer, Question
from backhaul.replication.ports import Clock

MAX_OPEN: Final = 4
"""Questions to one agent at once: the job of its item, and a preflight or two beside it."""

SILENT_S: Final = 5.0
"""Agents report every second; one that is silent for so long is away: off with its machine, or cut off."""

ANSWER_S: Final = 300.0
"""Longest question: 1 GiB of a slow disk that is busy, several times over."""

LOOK_S: Final = 0.5


@dataclass
class _Open:
    question: Question
    asked_ns: int
    heard_ns: int
    answers: bool = True
    answer: Answer | None = None
    done: threading.Event = field(default_factory=threading.Event)


class Questions:
    """See the module."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._open: dict[str, dict[str, _Open]] = {}

    def ask(self, agent: str, question: Question, told: Callable[[], None]) -> Answer:
        """The answer, which may be a code; `told` has the agent fetch its assignment. Blocks.

        Raises AgentMute when there will be none: the agent is away, too old, or does not come to an end.
        """
        now = self._clock.monotonic_ns()
        asked = _Open(question, now, now)
        with self._lock:
            others = self._open.setdefault(agent, {})
            if len(others) >= MAX_OPEN:
                raise self._mute(agent, question, f"it has {MAX_OPEN} questions to answer already")
            others[question.id] = asked
        try:
            told()
            while not asked.done.wait(LOOK_S):
                if reason := self._given_up(asked):
                    raise self._mute(agent, question, reason)
        finally:
            with self._lock:
                del others[question.id]
                if not others:
                    self._open.pop(agent, None)
        assert asked.answer is not None, "it is done"
        return asked.answer

    def _given_up(self, asked: _Open) -> str:
        now = self._clock.monotonic_ns()
        if not asked.answers:
            return "its version cannot be asked"
        if now - asked.heard_ns > SILENT_S * 1e9:
            return "it does not report; an agent inside a machine is off with it"
        return f"no answer came within {ANSWER_S:g} s" if now - asked.asked_ns > ANSWER_S * 1e9 else ""

    @staticmethod
    def _mute(agent: str, question: Question, reason: str) -> AgentMute:
        return AgentMute(agent=agent, machine=question.machine, reason=reason)

    def open(self, agent: str) -> tuple[Question, ...]:
        """What an agent is asked now."""
        with self._lock:
            return tuple(asked.question for asked in self._open.get(agent, {}).values() if asked.answer is None)

    def reported(self, report: AgentReport) -> None:
        """An agent reported: it is there, and may have answered."""
        answers = {answer.id: answer for answer in report.answers}
        now = self._clock.monotonic_ns()
        with self._lock:
            for name, asked in self._open.get(report.agent, {}).items():
                if asked.question.machine != report.machine:
                    continue
                asked.heard_ns, asked.answers = now, report.answers_questions
                if name in answers and asked.answer is None:
                    asked.answer = answers[name]
                    asked.done.set()
