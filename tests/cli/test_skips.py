"""In CI nothing is skipped but what may be: where a test found a reason to prove nothing, the run fails and says so.

Runs pytest on a folder with this suite's own conftest.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

CONFTEST = Path(__file__).parents[1] / "conftest.py"
HEAD = "import pytest\n"
PASSES = "def test_passes():\n    pass\n"
SKIPS = "def test_finds_a_reason():\n    pytest.skip('no control group is writable here')\n"
MAY = """
@pytest.mark.deep
def test_long():
    raise AssertionError

@pytest.mark.skipif(True, reason="root may open everything")
def test_of_others():
    raise AssertionError

@pytest.mark.xfail
def test_known():
    raise AssertionError
"""
CONFIG = "[pytest]\naddopts = -ra -p no:cacheprovider\nmarkers =\n    deep: x\n    root: x\n"


def run(folder: Path, source: str, *arguments: str, ci: str = "true") -> subprocess.CompletedProcess[str]:
    shutil.copyfile(CONFTEST, folder / "conftest.py")
    (folder / "pytest.ini").write_text(CONFIG)
    (folder / "test_some.py").write_text(HEAD + source)
    command = [sys.executable, "-m", "pytest", *arguments, str(folder)]
    environment = os.environ | {"CI": ci}
    return subprocess.run(command, capture_output=True, text=True, check=False, cwd=folder, env=environment)


@pytest.mark.root
@pytest.mark.parametrize("workers", [(), ("-n", "2")], ids=["alone", "side by side"])
def test_a_test_that_finds_a_reason_fails_the_run(tmp_path: Path, workers: tuple[str, ...]) -> None:
    done = run(tmp_path, PASSES + SKIPS, *workers)
    assert done.returncode == 1, done.stdout
    named = done.stdout.split("skipped in CI, where nothing may be")[1]
    assert named.count("test_some.py::test_finds_a_reason: Skipped: no control group is writable here") == 1
    assert "SKIPPED [1]" in done.stdout, "counted, with its reason"


@pytest.mark.root
def test_a_whole_file_that_finds_a_reason_fails_the_run(tmp_path: Path) -> None:
    done = run(tmp_path, PASSES + "pytest.importorskip('no_such_thing')\n")
    assert "skipped in CI, where nothing may be" in done.stdout
    assert done.returncode != 0


@pytest.mark.root
def test_what_may_be_skipped_may_be(tmp_path: Path) -> None:
    done = run(tmp_path, PASSES + MAY)
    assert (done.returncode, "where nothing may be" in done.stdout) == (0, False), done.stdout
    assert "1 passed, 2 skipped, 1 xfailed" in done.stdout


def test_elsewhere_a_skip_is_counted_and_said_and_no_failure(tmp_path: Path) -> None:
    done = run(tmp_path, PASSES + SKIPS, ci="")
    assert done.returncode == 0, done.stdout
    assert "SKIPPED [1] test_some.py:5: no control group is writable here" in done.stdout
