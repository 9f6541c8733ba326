"""Checks and what they find.

A check has a stable code, a rule that yields what is wrong, and what to do about it. A checklist runs its checks
over one value of plain facts and returns every finding at once, passes included. Invariant: a code belongs to one
check, and the codes of source, documents and tests are equal sets. Pure; called before every job, from API and
command line alike.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Final, Generic, TypeVar

import msgspec

from backhaul.recovery.errors import ChecksFailed

Facts = TypeVar("Facts")

Problem = str | tuple[str, str]
"""A reason; or a reason and what to do in this very case."""


class Severity(enum.StrEnum):
    """What a finding means for the job: go on, go on knowingly, do not start."""

    PASS = "pass"  # noqa: S105
    WARN = "warn"
    FAIL = "fail"


class Finding(msgspec.Struct, frozen=True):
    """What one check found. `field`: the field of the form, or the part of the item, that it is about."""

    code: str
    severity: Severity
    reason: str
    fix: str
    field: str


class Check(Generic[Facts]):
    """A rule with its code. `needs`: checks without whose pass this one cannot be judged and is left out."""

    def __init__(
        self, code: str, rule: Callable[[Facts], Iterator[Problem]], *, severity: Severity, field: str, fix: str,
        needs: tuple[Check[Facts], ...],
    ) -> None:  # fmt: skip
        self.code = code
        self.title = " ".join((rule.__doc__ or "").split())
        self.severity = severity
        self.field = field
        self.fix = fix
        self.needs = tuple(check.code for check in needs)
        self._rule = rule

    def findings(self, facts: Facts) -> list[Finding]:
        """One finding per problem; a single pass when there is none."""
        found = [self._finding(problem) for problem in self._rule(facts)]
        return found or [Finding(self.code, Severity.PASS, self.title, "", self.field)]

    def _finding(self, problem: Problem) -> Finding:
        reason, fix = (problem, self.fix) if isinstance(problem, str) else problem
        return Finding(self.code, self.severity, reason, fix, self.field)


REGISTRY: Final[dict[str, Check[Any]]] = {}
"""Every check that was defined, by its code. Complete once `catalogue` is imported."""


def check(
    code: str, *, field: str, fix: str, severity: Severity = Severity.FAIL, needs: tuple[Check[Any], ...] = ()
) -> Callable[[Callable[[Facts], Iterator[Problem]]], Check[Facts]]:
    """Make a rule a check. The rule's docstring says what holds when it passes."""

    def make(rule: Callable[[Facts], Iterator[Problem]]) -> Check[Facts]:
        made = Check(code, rule, severity=severity, field=field, fix=fix, needs=needs)
        assert code not in REGISTRY  # two checks with one code could not be told apart
        REGISTRY[code] = made
        return made

    return make


class Checklist(Generic[Facts]):
    """The checks before one job, in the order in which they are shown."""

    def __init__(self, name: str, title: str, checks: Iterable[Check[Facts]]) -> None:
        self.name = name
        self.title = title
        self.checks = tuple(checks)

    def run(self, facts: Facts) -> list[Finding]:
        """All findings at once, passes included; a check that cannot be judged has none."""
        findings: list[Finding] = []
        unmet: set[str] = set()
        for item in self.checks:
            if unmet.intersection(item.needs):
                unmet.add(item.code)
                continue
            found = item.findings(facts)
            if found[0].severity is not Severity.PASS:
                unmet.add(item.code)
            findings += found
        return findings


def problems(findings: Iterable[Finding]) -> list[Finding]:
    """The findings that are no passes."""
    return [finding for finding in findings if finding.severity is not Severity.PASS]


def require(findings: Iterable[Finding], action: str) -> None:
    """Raise `ChecksFailed` with the codes when a finding forbids the action."""
    failed = [finding.code for finding in findings if finding.severity is Severity.FAIL]
    if failed:
        raise ChecksFailed(action=action, codes=", ".join(dict.fromkeys(failed)))
