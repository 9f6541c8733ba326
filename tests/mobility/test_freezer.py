"""The freezer while nothing is killed: all or none, the limit, who else thaws, what it says."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from backhaul.mobility import freezer_client
from backhaul.mobility.cgroups import hierarchies
from backhaul.mobility.errors import FreezeFailed, FreezerLost, FreezeUnavailable
from backhaul.mobility.freezer_client import Freezer
from backhaul.mobility.freezing import StateFile
from backhaul.replication.ports import RealClock
from mobility.conftest import SHORT_S, Volumes, eventually
from mobility.doomed import command


def _freezer(volumes: Volumes) -> Freezer:
    freezer, guard = (command(role, fake=volumes.fake) for role in ("freezer", "guard"))
    return Freezer(state_folder=volumes.state, freezer_command=freezer, guard_command=guard)


def test_freeze_and_thaw(any_volumes: Volumes) -> None:
    clock = RealClock()
    with _freezer(any_volumes) as freezer:
        assert freezer.status().phase == "idle"
        before_ns = clock.wall_ns()
        barrier_ns = freezer.freeze(any_volumes.points, 20.0)
        assert before_ns < barrier_ns <= clock.wall_ns()
        assert any_volumes.frozen() == [True, True]
        assert freezer.status().phase == "frozen"
        assert StateFile(str(any_volumes.state / "backhaul-freezer.state")).read() == (
            "freezing",
            [str(point) for point in any_volumes.points],
        )
        released = freezer.thaw()
        assert released.lost == ""
        assert released.frozen_us > 0
        assert any_volumes.frozen() == [False, False]
        assert freezer.thaw().lost == "nothing-frozen"


def test_a_file_system_that_cannot_be_synced_is_let_go_of(
    any_volumes: Volumes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As one whose machine's plug was pulled: what stays open there cannot be unmounted."""

    def refuse(descriptor: int) -> None:
        raise FreezeFailed(mount="somewhere", reason="I/O error")

    with _freezer(any_volumes) as freezer:
        before = sorted(os.listdir("/proc/self/fd"))
        with monkeypatch.context() as broken:
            broken.setattr(freezer_client, "_sync_file_system", refuse)
            freezer.start()
            running = len(os.listdir("/proc/self/fd"))
            with pytest.raises(FreezeFailed):
                freezer.freeze(any_volumes.points, 20.0)
            assert len(os.listdir("/proc/self/fd")) == running > len(before)
        freezer.freeze(any_volumes.points, 20.0)
        assert freezer.thaw().lost == ""


def test_one_freezer_freezes_again_and_again(any_volumes: Volumes) -> None:
    with _freezer(any_volumes) as freezer:
        pids = set()
        for _ in range(3):
            freezer.freeze(any_volumes.points, 20.0)
            assert freezer.thaw().lost == ""
            pids.add(freezer.status().freezer_pid)
        assert len(pids) == 1


def test_after_the_limit_it_has_thawed_and_says_so(any_volumes: Volumes) -> None:
    with _freezer(any_volumes) as freezer:
        freezer.freeze(any_volumes.points, SHORT_S)
        any_volumes.accept_writes()
        assert freezer.thaw().lost in {"limit", "thawed-by-another"}  # whoever was first, freezer or guard
        freezer.freeze(any_volumes.points, SHORT_S)
        any_volumes.accept_writes()
        assert freezer.hold().lost in {"limit", "thawed-by-another"}
        assert any_volumes.frozen() == [False, False]


@pytest.mark.parametrize("who", ["freezer", "guard"])
def test_after_one_of_the_two_was_killed_at_rest_both_start_anew(any_volumes: Volumes, who: str) -> None:
    with _freezer(any_volumes) as freezer:
        freezer.freeze(any_volumes.points, 20.0)
        assert freezer.thaw().lost == ""
        status = freezer.status()
        pids = {"freezer": status.freezer_pid, "guard": status.guard_pid}
        os.kill(pids[who], signal.SIGKILL)
        eventually(lambda: Path(f"/proc/{pids[who]}/stat").read_text().rsplit(")", 1)[1].split()[0] in "ZX", "killed")
        with pytest.raises(FreezerLost):
            freezer.freeze(any_volumes.points, 20.0)
        assert any_volumes.frozen() == [False, False]
        freezer.freeze(any_volumes.points, 20.0)
        assert freezer.thaw().lost == ""
        assert pids["guard"] != freezer.status().guard_pid


@pytest.mark.parametrize("request_name", ["thaw", "hold"])
def test_thawed_by_somebody_else_is_no_still_image(any_volumes: Volumes, request_name: str) -> None:
    with _freezer(any_volumes) as freezer:
        freezer.freeze(any_volumes.points, 20.0)
        assert any_volumes.thaw(any_volumes.points[1])
        assert getattr(freezer, request_name)().lost == "thawed-by-another"
        assert any_volumes.frozen() == [False, False]


def test_a_partial_freeze_is_thawed(any_volumes: Volumes) -> None:
    """The second is frozen by somebody else: the first is given back, the second is left as it was."""
    any_volumes.freeze(any_volumes.points[1])
    with _freezer(any_volumes) as freezer:
        with pytest.raises(FreezeFailed, match=str(any_volumes.points[1])):
            freezer.freeze(any_volumes.points, 20.0)
        assert any_volumes.frozen() == [False, True]
        any_volumes.thaw(any_volumes.points[1])
        freezer.freeze(any_volumes.points, 20.0)
        assert freezer.thaw().lost == ""


def test_hold_outlives_its_limit_until_thaw(any_volumes: Volumes) -> None:
    with _freezer(any_volumes) as freezer:
        freezer.freeze(any_volumes.points, 1.0)
        held = freezer.hold()
        assert held.lost == ""
        deadline_ns = RealClock().monotonic_ns() + 1_100_000_000
        eventually(lambda: RealClock().monotonic_ns() > deadline_ns, "the limit is over")
        assert any_volumes.frozen() == [True, True]
        assert freezer.status().phase == "held"
        with pytest.raises(FreezeUnavailable, match="frozen already"):
            freezer.freeze(any_volumes.points)
        assert freezer.thaw().lost == ""
        assert any_volumes.frozen() == [False, False]


def test_closing_thaws(any_volumes: Volumes) -> None:
    freezer = _freezer(any_volumes)
    freezer.freeze(any_volumes.points, 60.0)
    freezer.close()
    assert any_volumes.frozen() == [False, False]
    freezer.close()


@pytest.mark.parametrize("limit_s", [0.0, -1.0, 60.1])
def test_limits_have_a_bound(fake_volumes: Volumes, limit_s: float) -> None:
    with _freezer(fake_volumes) as freezer, pytest.raises(FreezeUnavailable, match="limit"):
        freezer.freeze(fake_volumes.points, limit_s)


def test_a_mount_point_that_is_not_there(fake_volumes: Volumes) -> None:
    with _freezer(fake_volumes) as freezer:
        with pytest.raises(FreezeFailed, match="nowhere"):
            freezer.freeze([fake_volumes.points[0], Path("/nowhere")])
        with pytest.raises(FreezeUnavailable, match="0 file systems"):
            freezer.freeze([])
        assert fake_volumes.frozen() == [False, False]


def test_state_on_a_disk_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(freezer_client, "is_in_memory", lambda folder: False)
    with pytest.raises(FreezeUnavailable, match="not in memory"):
        Freezer(state_folder=tmp_path).start()


@pytest.mark.root
def test_a_file_system_that_cannot_be_frozen(volumes: Volumes) -> None:
    """tmpfs has nothing to freeze; the ext4 named before it is given back."""
    with Freezer(state_folder=volumes.state) as freezer:
        with pytest.raises(FreezeUnavailable, match="/dev/shm"):
            freezer.freeze([volumes.points[0], volumes.state])
        volumes.accept_writes()


@pytest.mark.root
def test_two_mounts_of_one_file_system_are_one(volumes: Volumes) -> None:
    other = volumes.state / "bound"
    other.mkdir()
    subprocess.run(["mount", "--bind", str(volumes.points[0]), str(other)], check=True)
    try:
        with Freezer(state_folder=volumes.state) as freezer:
            freezer.freeze([volumes.points[0], other], 20.0)
            assert freezer.thaw().lost == ""
    finally:
        subprocess.run(["umount", str(other)], check=True)


@pytest.mark.root
def test_without_the_right_to_freeze_it_is_unavailable(volumes: Volumes) -> None:
    drop = ("setpriv", "--bounding-set", "-sys_admin", "--inh-caps", "-sys_admin")
    commands = [(*drop, sys.executable, "-m", f"backhaul.mobility.{role}") for role in ("freezer", "guard")]
    with Freezer(state_folder=volumes.state, freezer_command=commands[0], guard_command=commands[1]) as freezer:
        with pytest.raises(FreezeUnavailable, match="Operation not permitted"):
            freezer.freeze(volumes.points)
        volumes.accept_writes()


@pytest.mark.root
def test_without_the_right_to_lock_memory_it_is_unavailable(volumes: Volumes) -> None:
    drop = ("setpriv", "--bounding-set", "-ipc_lock", "--inh-caps", "-ipc_lock", "prlimit", "--memlock=0")
    commands = [(*drop, sys.executable, "-m", f"backhaul.mobility.{role}") for role in ("freezer", "guard")]
    with (
        Freezer(state_folder=volumes.state, freezer_command=commands[0], guard_command=commands[1]) as freezer,
        pytest.raises(FreezeUnavailable, match="lock its memory"),
    ):
        freezer.start()


@pytest.mark.root
def test_each_has_control_groups_of_its_own_and_locked_memory(volumes: Volumes) -> None:
    with Freezer(state_folder=volumes.state) as freezer:
        freezer.start()
        status = freezer.status()
        groups = {
            Path(f"/proc/{pid}/cgroup").read_text() for pid in (os.getpid(), status.freezer_pid, status.guard_pid)
        }
        if not any(os.access(root, os.W_OK) for root in hierarchies()):
            pytest.skip("no control group is writable here")
        assert len(groups) == 3
        assert len(status.places) >= 2
        for pid in (status.freezer_pid, status.guard_pid):
            locked = [line for line in Path(f"/proc/{pid}/status").read_text().splitlines() if line.startswith("VmLck")]
            assert int(locked[0].split()[1]) > 1000
    assert not [place for place in status.places if Path(place).exists()]
