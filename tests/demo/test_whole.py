"""The whole demo without root, as a newcomer runs it: every stage, what it says, and what it leaves behind."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from demo.demos import LAST_LINE, NAMES, demo_in

SAYS = {
    "set-up": r"alpha and beta write to 4 disks at home",
    "protected": r"[\d.]+ MiB on the wire for .* \d+ recovery points, .*; RPO \d+\.\d s$",
    "failed-over": r"alpha, hung, .* lost \d+\.\d s of work, .*loses \d+ s.* beta, .* down \d+\.\d s, integrity passed",
    "committed": r"both stay in the cloud",
    "process-servers": r"ps-vnet-a in vnet-a registered by itself, ps-vnet-b in vnet-b .*; both are healthy$",
    "reprotected": r"killed at (?P<part>\d+)% of .* (?P<again>[\d.]+ [KM]iB) were sent again, .*; RPO \d+\.\d s$",
    "failed-back": r"cancelled, .* nothing lost, down \d+\.\d s, integrity passed$",
    "home-again": r"committed, and protected to the cloud again.*RPO \d+\.\d s$",
    "cleaned-up": r"both process servers are deleted",
}
"""What the one line of each finished stage must say."""


@pytest.mark.timeout(600)
def test_the_whole_demo_without_root(tmp_path: Path) -> None:
    assert list(SAYS) == NAMES
    with demo_in(tmp_path / "demo", as_root=False) as demo:
        printed = demo.run()
        demo.assert_gone()
        assert not demo.folder.exists(), "nothing of it is kept"
    lines = printed.splitlines()
    assert lines[-1] == LAST_LINE
    finished = [line for line in lines if re.match(rf"({'|'.join(NAMES)}) +\d+\.\d s  ", line)]
    assert [line.split()[0] for line in finished] == NAMES, "one line per stage, in their order"
    for line, (name, says) in zip(finished, SAYS.items(), strict=True):
        assert re.search(says, line), f"{name}: {line}"
    reprotected = re.search(SAYS["reprotected"], printed, re.MULTILINE)
    assert reprotected is not None
    assert 25 <= int(reprotected["part"]) <= 75
    assert reprotected["again"] not in ("0 B", "0.0 KiB", "0.0 MiB")
