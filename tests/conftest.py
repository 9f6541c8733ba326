"""What all tests share: the `--deep` switch, the printed seed, the skips with their reasons, and none in CI."""

from __future__ import annotations

import os
import random

import pytest

SEED = int(os.environ.get("BACKHAUL_SEED", "0")) or random.SystemRandom().randrange(1, 1 << 31)
os.environ["BACKHAUL_SEED"] = str(SEED)  # for the workers that run the tests side by side

LONG = "part of a long matrix: scripts/test --deep runs it"
SKIPPED_IN_CI = (LONG, "root may open everything")
"""Skips that CI, which runs as root with everything installed, may have; any other is a test that proved nothing."""

IN_CI = os.environ.get("CI", "").lower() in ("1", "true", "yes") and os.geteuid() == 0
_unproved: list[str] = []


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--deep", action="store_true", help="run the long matrices whole, not as seeded samples")


def pytest_report_header(config: pytest.Config) -> str:
    return f"backhaul: seed {SEED} (BACKHAUL_SEED={SEED} repeats it), deep: {config.getoption('--deep')}"


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    for item in items:
        if item.get_closest_marker("root") and os.geteuid() != 0:
            item.add_marker(pytest.mark.skip(reason="needs root: loop devices, freezing, namespaces"))
        if item.get_closest_marker("deep") and not config.getoption("--deep"):
            item.add_marker(pytest.mark.skip(reason=LONG))


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    _note(report)


def pytest_collectreport(report: pytest.CollectReport) -> None:
    _note(report)


def _note(report: pytest.TestReport | pytest.CollectReport) -> None:
    if IN_CI and report.skipped and not hasattr(report, "wasxfail"):
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
        if not any(allowed in reason for allowed in SKIPPED_IN_CI):
            _unproved.append(f"{report.nodeid}: {reason}")


def pytest_sessionfinish(session: pytest.Session) -> None:
    if _unproved and session.exitstatus == pytest.ExitCode.OK:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if _unproved:
        terminalreporter.section("skipped in CI, where nothing may be")
        for line in sorted(set(_unproved)):
            terminalreporter.line(line)


@pytest.fixture
def seed() -> int:
    """The run's seed, printed in its header: samples drawn from it can be repeated."""
    return SEED


@pytest.fixture
def deep(request: pytest.FixtureRequest) -> bool:
    """Whether the long matrices run whole."""
    return bool(request.config.getoption("--deep"))
