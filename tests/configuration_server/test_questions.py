"""The server's book of questions to agents: who may answer, and how it ends when nobody does."""

from __future__ import annotations

import threading
from collections.abc import Callable

import pytest

from backhaul.configuration_server import questions as q
from backhaul.configuration_server.errors import AgentMute
from backhaul.configuration_server.questions import Questions
from backhaul.replication.control import AgentReport, Answer, Question, QuestionKind
from backhaul.replication.ports import RealClock
from backhaul.replication.values import ItemId

QUESTION = Question("q1", ItemId("0" * 32), QuestionKind.LINK, "vm")


class HeldClock(RealClock):
    """Stands still until it is moved."""

    now_ns = 1

    def monotonic_ns(self) -> int:
        return self.now_ns


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(q, "LOOK_S", 0.01)


def report(*answers: Answer, machine: str = "vm", able: bool = True, agent: str = "a") -> AgentReport:
    return AgentReport(agent, machine, "1", 0, 0, (), answers, able)


class Asked:
    """`ask` in a thread, as a job does it."""

    def __init__(self, book: Questions, question: Question = QUESTION, told: Callable[[], None] = lambda: None) -> None:
        self.book, self.question, self._told = book, question, told
        self.answer: Answer | None = None
        self.error: AgentMute | None = None
        self.open = threading.Event()
        self.thread = threading.Thread(target=self._run)
        self.thread.start()
        assert self.open.wait(10)

    def _run(self) -> None:
        try:
            self.answer = self.book.ask("a", self.question, self._tell)
        except AgentMute as error:
            self.error = error
        self.open.set()

    def _tell(self) -> None:
        self._told()
        self.open.set()

    def ended(self) -> None:
        self.thread.join(10)
        assert not self.thread.is_alive()


def test_the_machine_that_was_asked_answers_and_nobody_else() -> None:
    book = Questions(HeldClock())
    asked = Asked(book)
    assert book.open("a") == (QUESTION,)
    assert book.open("b") == ()
    mine, other = Answer("q1", rates=(1.0,)), Answer("q1", rates=(2.0,))
    book.reported(report(other, machine="a-copy"))
    book.reported(report(other, agent="b"))
    book.reported(report(Answer("q0")))
    assert book.open("a") == (QUESTION,)
    book.reported(report(mine))
    book.reported(report(other))
    asked.ended()
    assert asked.answer == mine
    assert book.open("a") == ()


@pytest.mark.parametrize(
    ("heard", "after_s", "reason"),
    [
        (None, q.SILENT_S + 1, "does not report"),
        (report(able=False), 0, "version"),
        (report(), q.ANSWER_S + 1, "no answer"),
    ],
    ids=["silent", "old", "endless"],
)
def test_without_an_answer_it_ends_with_the_reason(heard: AgentReport | None, after_s: float, reason: str) -> None:
    clock = HeldClock()
    book = Questions(clock)
    asked = Asked(book)
    clock.now_ns += int(after_s * 1e9)
    if heard is not None:
        book.reported(heard)
    asked.ended()
    assert asked.error is not None
    assert asked.error.code == "BH-AGENT-MUTE"
    assert reason in asked.error.params["reason"]
    assert book.open("a") == (), "nothing is asked for any more"


def test_one_that_reports_may_take_its_time() -> None:
    clock = HeldClock()
    book = Questions(clock)
    asked = Asked(book)
    for _ in range(3):
        clock.now_ns += int((q.SILENT_S - 1) * 1e9)
        book.reported(report())
    book.reported(report(Answer("q1")))
    asked.ended()
    assert asked.answer == Answer("q1")


def test_an_agent_is_asked_only_so_much_at_once() -> None:
    clock = HeldClock()
    book = Questions(clock)
    many = [Asked(book, Question(f"q{at}", ItemId("0" * 32), "link", "vm")) for at in range(q.MAX_OPEN)]
    over = Asked(book, Question("over", ItemId("0" * 32), "link", "vm"))
    over.ended()
    assert over.error is not None
    book.reported(report(*(Answer(f"q{at}") for at in range(q.MAX_OPEN))))
    for asked in many:
        asked.ended()
        assert asked.answer is not None
