"""Application scripts: `pre` makes the image, `post` is always run, and vouches for it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from backhaul.mobility.errors import ImageNotStill, QuiesceFailed, QuiesceTimedOut
from backhaul.mobility.quiesce import QuiescedApplication, QuiesceScripts
from backhaul.mobility.scripts import run_script
from backhaul.replication.ports import RealClock
from backhaul.replication.values import Consistency, StillKind


class SteppedClock:
    """A clock that the test moves."""

    def __init__(self) -> None:
        self.now_ns = 5_000_000_000

    def wall_ns(self) -> int:
        return self.now_ns

    def monotonic_ns(self) -> int:
        return self.now_ns


def _scripts(folder: Path, pre: str = "true", post: str = "true", script_limit_s: float = 20.0) -> QuiesceScripts:
    def script(name: str, then: str) -> tuple[str, ...]:
        return ("sh", "-c", f'echo {name} >> "$0"; {then}', str(folder / "ran"))

    return QuiesceScripts(script("pre", pre), script("post", post), script_limit_s, 30.0)


def _ran(folder: Path) -> list[str]:
    return (folder / "ran").read_text().split()


def test_a_quiesced_application_is_an_image(tmp_path: Path) -> None:
    clock = SteppedClock()
    with QuiescedApplication(_scripts(tmp_path), clock).hold() as still:
        assert _ran(tmp_path) == ["pre"]
        assert (still.kind, still.consistency) == (StillKind.FROZEN, Consistency.APPLICATION)
        assert (still.barrier_ns, still.limit_s) == (5_000_000_000, 30.0)
        clock.now_ns += 2_000_000_000
        still.confirm()
        assert still.frozen_us == 2_000_000
        with pytest.raises(ImageNotStill):
            still.confirm()
    assert _ran(tmp_path) == ["pre", "post"]


def test_pre_fails(tmp_path: Path) -> None:
    with (
        pytest.raises(QuiesceFailed, match="status 3: no database") as caught,
        QuiescedApplication(_scripts(tmp_path, "echo no database; exit 3"), RealClock()).hold(),
    ):
        pytest.fail("there is no image")
    assert caught.value.code == "BH-QUIESCE-FAILED"
    assert _ran(tmp_path) == ["pre", "post"]


def test_pre_takes_too_long_and_is_ended_with_its_children(tmp_path: Path) -> None:
    scripts = _scripts(tmp_path, "echo waiting; sleep 1000 & wait", script_limit_s=0.5)
    with (
        pytest.raises(QuiesceTimedOut, match="waiting") as caught,
        QuiescedApplication(scripts, RealClock()).hold(),
    ):
        pytest.fail("there is no image")
    assert caught.value.code == "BH-QUIESCE-TIMEOUT"
    assert _ran(tmp_path) == ["pre", "post"]


def test_pre_that_cannot_be_started(tmp_path: Path) -> None:
    scripts = QuiesceScripts((str(tmp_path / "missing"),), _scripts(tmp_path).post)
    with pytest.raises(QuiesceFailed, match="no start"), QuiescedApplication(scripts, RealClock()).hold():
        pytest.fail("there is no image")
    assert _ran(tmp_path) == ["post"]


def test_after_its_limit_the_application_has_resumed(tmp_path: Path) -> None:
    clock = SteppedClock()
    with QuiescedApplication(_scripts(tmp_path), clock).hold() as still:
        clock.now_ns += 30_000_001_000
        with pytest.raises(ImageNotStill, match="resumes by itself"):
            still.confirm()
    assert _ran(tmp_path) == ["pre", "post"]


def test_post_that_does_not_vouch_unmakes_the_point(tmp_path: Path) -> None:
    with (
        pytest.raises(QuiesceFailed, match="post"),
        QuiescedApplication(_scripts(tmp_path, post="exit 1"), RealClock()).hold() as still,
    ):
        still.confirm()
    assert _ran(tmp_path) == ["pre", "post"]


def test_post_runs_when_reading_fails_and_its_failure_is_noted(tmp_path: Path) -> None:
    with (
        pytest.raises(OSError, match="bad sector") as caught,
        QuiescedApplication(_scripts(tmp_path, post="exit 9"), RealClock()).hold(),
    ):
        raise OSError("bad sector")
    assert _ran(tmp_path) == ["pre", "post"]
    assert "status 9" in "".join(caught.value.__notes__)


class _Inner:
    """A freeze within; `lost` makes it fail to confirm."""

    kind = StillKind.FROZEN
    consistency = Consistency.FILE_SYSTEM
    barrier_ns = 77
    limit_s: float | None = 2.0
    frozen_us = 0

    def __init__(self, log: Path, lost: bool = False) -> None:
        self._log, self._lost = log, lost

    @contextlib.contextmanager
    def hold(self) -> Iterator[_Inner]:
        with self._log.open("a") as file:
            file.write("freeze\n")
        yield self

    def confirm(self) -> None:
        with self._log.open("a") as file:
            file.write("thaw\n")
        if self._lost:
            raise ImageNotStill(reason="limit")


def test_file_systems_are_frozen_within_and_thawed_before_post(tmp_path: Path) -> None:
    with QuiescedApplication(_scripts(tmp_path), RealClock(), _Inner(tmp_path / "ran")).hold() as still:
        assert still.barrier_ns == 77
        still.confirm()
    assert _ran(tmp_path) == ["pre", "freeze", "thaw", "post"]


def test_a_freeze_that_was_lost_within_is_no_image_and_post_runs(tmp_path: Path) -> None:
    with (
        pytest.raises(ImageNotStill),
        QuiescedApplication(_scripts(tmp_path), RealClock(), _Inner(tmp_path / "ran", lost=True)).hold() as still,
    ):
        still.confirm()
    assert _ran(tmp_path) == ["pre", "freeze", "thaw", "post"]


def test_a_script_that_prints_for_ever_takes_no_memory_and_ends() -> None:
    result = run_script(["sh", "-c", "head -c 3000000 /dev/zero | tr '\\0' x; echo end"], 20.0)
    assert result.status == 0
    assert result.output.endswith("xend")
    assert len(result.output) <= 2048


def test_a_child_that_lives_on_with_the_output_open_keeps_nobody_waiting() -> None:
    result = run_script(["sh", "-c", "sleep 1 & echo started"], 20.0)
    assert (result.status, result.output) == (0, "started")
