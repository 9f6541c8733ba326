"""One job for many items: K at once, a child each, and one failure stops no other."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

TESTS = Path(__file__).parent.parent


def test_many_items_are_one_job_and_one_failure_stops_no_other(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "lifecycle.batch_process", str(tmp_path), "4", "2", "1"]
    environment = {**os.environ, "PYTHONPATH": str(TESTS)}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["state"] == "Failed"
    assert found["failures"] == ["1 of 4 items failed: vm1."]
    assert found["done"] == [0, 2, 3]
    assert found["most"] == 2, "as many at once as asked for, and no more"
    assert found["children"] == ["Failed", "Succeeded", "Succeeded", "Succeeded"]
    assert found["wishes"] == [7, 7, 7, 7]
