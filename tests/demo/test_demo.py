"""The demo itself, for real: two sites, their servers, machines that write; killed and gone on with; nothing left."""

from __future__ import annotations

import json
import os
import re
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from demo.demos import Demo, demo_in

MODES = [
    pytest.param(False, id="unprivileged"),
    pytest.param(
        True,
        id="root",
        marks=[pytest.mark.root, pytest.mark.skipif(os.geteuid() != 0, reason="namespaces and loop devices need root")],
    ),
]


@pytest.fixture(params=MODES)
def demo(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Demo]:
    with demo_in(tmp_path / "demo", request.param) as made:
        yield made


@pytest.mark.timeout(600)
def test_a_demo_that_is_killed_goes_on_and_shows_its_items(demo: Demo) -> None:
    assert demo.run_until_line("set-up: ", signal.SIGKILL, "--keep") == -signal.SIGKILL
    assert demo.run_until_line("protected: ", signal.SIGKILL, "--resume", "--keep") == -signal.SIGKILL
    assert demo.traces(), "a kill leaves everything running"
    printed = demo.run("--resume", "--until", "protected")
    says = r"^protected +\d+\.\d s  .* on the wire for the first copy and \d+ recovery points"
    assert re.search(says, printed, re.MULTILINE)
    assert "failback verified" not in printed
    assert f"backhaul demo clean --data-dir {demo.folder}" in printed
    items = json.loads(demo.client("item", "list", "--json"))
    assert sorted(item["properties"]["friendlyName"] for item in items) == ["alpha", "beta"]
    assert {item["properties"]["protectionState"] for item in items} == {"protected"}
    assert "Nothing" not in demo.client("recovery-point", "list", "alpha")


@pytest.mark.timeout(600)
def test_a_demo_that_is_interrupted_ends_all_that_it_started_and_goes_on_later(demo: Demo) -> None:
    assert demo.run_until_line("protected: ", signal.SIGTERM) == 130
    demo.assert_gone()
    demo.run("--resume", "--until", "protected")
