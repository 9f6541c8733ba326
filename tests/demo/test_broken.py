"""A promise that is broken ends the demo badly, and says which: the oracle is listened to."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from backhaul.demo.errors import PromiseBroken
from demo.demos import TAMPERED, demo_in


@pytest.mark.timeout(600)
def test_bits_that_rot_in_a_replica_end_the_demo_with_the_oracles_finding(tmp_path: Path) -> None:
    with demo_in(tmp_path / "demo", as_root=False) as demo:
        code, printed = demo.run_badly(program=TAMPERED)
        flipped = re.search(r"flipped (\d+) bits", printed)
        assert flipped is not None, "the fault happened"
        assert int(flipped[1]) > 0, "the fault happened"
        assert code == 1
        assert PromiseBroken.code in printed.splitlines()[-1] or PromiseBroken.code in printed
        assert "machine alpha at point" in printed
        assert "failback verified" not in printed
        demo.assert_gone()
        assert demo.judge()[0] == 1, "it is found again in what was kept"
