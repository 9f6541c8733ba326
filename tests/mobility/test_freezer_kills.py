"""Whatever ends or stops, wherever it happens to be, the file systems accept writes again (design section 3).

Each case names the n-th call to the system at which a process is killed, and fails if it was not killed there.
"""

from __future__ import annotations

import os
import select
import signal
import subprocess
import threading
from pathlib import Path

import pytest

from backhaul.mobility.errors import FreezeFailed, FreezeHeld, FreezerLost, FreezeUnavailable, StillError
from backhaul.mobility.freezer_client import Freezer, thaw_held
from backhaul.mobility.freezing import StateFile
from mobility.conftest import PATIENCE_S, Volumes, eventually
from mobility.doomed import command

FREEZER_STEPS = range(1, 15)
"""Ready of the guard, ready; freeze, arm, armed, two FIFREEZE, frozen; thaw, two FITHAW, idle, thawed; end."""

GUARD_STEPS = range(1, 6)
"""Ready; arm, armed, idle; end."""

HOLD_FREEZER_STEPS = range(9, 16)
"""From the receipt of `hold` on: two questions to the kernel, hold, held, held; end."""

HOLD_GUARD_STEPS = range(4, 7)


def _freezer(volumes: Volumes, victim: str, step: int, by: int = signal.SIGKILL) -> Freezer:
    commands = {
        role: command(role, fake=volumes.fake, fatal=step if role == victim else 0, by=by)
        for role in ("freezer", "guard")
    }
    return Freezer(state_folder=volumes.state, freezer_command=commands["freezer"], guard_command=commands["guard"])


def _victim(client: Freezer, role: str) -> subprocess.Popen[bytes]:
    return client._children[0 if role == "freezer" else 1].process


def _watch_victims(client: Freezer, monkeypatch: pytest.MonkeyPatch) -> dict[str, subprocess.Popen[bytes]]:
    """The processes, kept here since the client forgets those it has lost."""
    seen: dict[str, subprocess.Popen[bytes]] = {}
    launch = client._launch

    def launch_and_keep(state: StateFile) -> None:
        launch(state)
        seen.update({role: _victim(client, role) for role in ("freezer", "guard")})

    monkeypatch.setattr(client, "_launch", launch_and_keep)
    return seen


CASES = [("freezer", step) for step in FREEZER_STEPS] + [("guard", step) for step in GUARD_STEPS]


@pytest.mark.parametrize(("victim", "step"), CASES)
def test_killed_at_every_step_of_a_freeze(
    any_volumes: Volumes, victim: str, step: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = _freezer(any_volumes, victim, step)
    processes = _watch_victims(client, monkeypatch)
    still = False
    try:
        client.freeze(any_volumes.points, 1.0)
        still = client.thaw().lost == ""
    except (FreezerLost, FreezeUnavailable, FreezeFailed):
        pass
    any_volumes.accept_writes()
    client.close()
    assert processes[victim].returncode == -signal.SIGKILL
    assert StateFile(str(any_volumes.state / "backhaul-freezer.state")).read() == ("", [])
    if victim == "freezer":
        assert still == (step > 13), "an image is still only if the freezer could say so"


HOLD_CASES = [("freezer", step) for step in HOLD_FREEZER_STEPS] + [("guard", step) for step in HOLD_GUARD_STEPS]


@pytest.mark.parametrize(("victim", "step"), HOLD_CASES)
def test_killed_at_every_step_of_a_hold(
    any_volumes: Volumes, victim: str, step: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = _freezer(any_volumes, victim, step)
    processes = _watch_victims(client, monkeypatch)
    held = False
    try:
        client.freeze(any_volumes.points, 20.0)
        held = client.hold().lost == ""
    except FreezerLost:
        pass
    if held:
        client.close()
        assert any_volumes.frozen() == [True, True]
        with monkeypatch.context() as patch:
            patch.setattr(client, "_mounts", [])
            with pytest.raises(FreezeHeld):
                client.start()
        thaw_held(any_volumes.state)
    any_volumes.accept_writes()
    client.close()
    assert processes[victim].returncode == -signal.SIGKILL


def _stopped(pid: int) -> bool:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "T"


@pytest.mark.parametrize(
    "step",
    [
        pytest.param(6, id="before the first FIFREEZE"),
        pytest.param(7, id="before the second"),
        pytest.param(8, id="before it says frozen"),
    ],
)
def test_stopped_freezer_is_thawed_by_the_guard_and_freezes_nothing_afterwards(any_volumes: Volumes, step: int) -> None:
    client = _freezer(any_volumes, "freezer", step, signal.SIGSTOP)
    errors: list[BaseException] = []

    def freeze() -> None:
        try:
            client.freeze(any_volumes.points, 1.0)
            assert client.thaw().lost == "limit"
            errors.append(FreezeFailed())
        except StillError as error:
            errors.append(error)

    client.start()
    pid = client._children[0].process.pid
    caller = threading.Thread(target=freeze)
    caller.start()
    eventually(lambda: _stopped(pid), "the freezer is stopped")
    if step == 6:
        any_volumes.freeze(any_volumes.points[0])  # thawed by the guard only: proves that the limit is over
        any_volumes.accept_writes()
        any_volumes.freeze(any_volumes.points[0])  # as the stopped freezer might, late: the guard goes on thawing
    any_volumes.accept_writes()
    os.kill(pid, signal.SIGCONT)
    caller.join(PATIENCE_S)
    any_volumes.accept_writes()
    assert [type(error) for error in errors] == [FreezeFailed]
    client.close()
    assert any_volumes.frozen() == [False, False]


@pytest.mark.parametrize("step", [pytest.param(2, id="before it is armed"), pytest.param(0, id="while armed")])
def test_stopped_guard_does_not_keep_the_freezer_from_thawing(any_volumes: Volumes, step: int) -> None:
    client = _freezer(any_volumes, "guard", step, signal.SIGSTOP)
    client.start()
    guard = client._children[1].process
    if step == 2:
        with pytest.raises(FreezerLost, match="guard did not answer"):
            client.freeze(any_volumes.points, 0.2)
        assert guard.poll() is not None, "both start anew"
    else:
        client.freeze(any_volumes.points, 2.0)
        assert any_volumes.frozen() == [True, True]
        os.kill(guard.pid, signal.SIGSTOP)
        eventually(lambda: _stopped(guard.pid), "the guard is stopped")
        any_volumes.accept_writes()
        assert client.thaw().lost in {"limit", "thawed-by-another"}
        os.kill(guard.pid, signal.SIGCONT)
    client.close()
    any_volumes.accept_writes()


@pytest.mark.parametrize("victim", ["freezer", "guard"])
def test_each_thaws_when_the_other_ends_though_the_agent_does_nothing(any_volumes: Volumes, victim: str) -> None:
    """The limit is far away, and the client is not called before the file systems accept writes again."""
    client = _freezer(any_volumes, "nobody", 0)
    client.freeze(any_volumes.points, 60.0)
    assert any_volumes.frozen() == [True, True]
    process = _victim(client, victim)
    process.kill()
    any_volumes.accept_writes()
    if victim == "guard":
        assert client.thaw().lost == "guard-ended"
    else:
        with pytest.raises(FreezerLost):
            client.thaw()
    client.close()
    assert process.returncode == -signal.SIGKILL


def _agent(volumes: Volumes, acts: str, step: int = 0) -> subprocess.Popen[bytes]:
    arguments = [acts, str(volumes.state), *map(str, volumes.points)]
    return subprocess.Popen([*command("agent", fake=volumes.fake, fatal=step), *arguments], stdout=subprocess.PIPE)


def _said_done(agent: subprocess.Popen[bytes]) -> bool:
    assert agent.stdout is not None
    ready, _, _ = select.select([agent.stdout], [], [], PATIENCE_S)
    return bool(ready) and agent.stdout.readline() == b"done\n"


@pytest.mark.root
@pytest.mark.parametrize("step", [2, 3, 4], ids=["before it asks", "before it hears the answer", "before it thaws"])
def test_killed_agent(volumes: Volumes, step: int) -> None:
    with _agent(volumes, "freeze,thaw", step) as agent:
        assert agent.wait(PATIENCE_S) == -signal.SIGKILL
    volumes.accept_writes()
    eventually(lambda: not (volumes.state / "backhaul-freezer.state").exists(), "the freezer has thawed and ended")


@pytest.mark.root
def test_stopped_agent(volumes: Volumes) -> None:
    with _agent(volumes, "freeze") as agent:
        assert _said_done(agent)
        os.kill(agent.pid, signal.SIGSTOP)
        eventually(lambda: _stopped(agent.pid), "the agent is stopped")
        volumes.accept_writes()
        agent.kill()
    assert agent.returncode == -signal.SIGKILL


@pytest.mark.root
def test_killed_agent_does_not_end_a_hold_and_its_successor_knows(volumes: Volumes) -> None:
    with _agent(volumes, "freeze,hold") as agent:
        assert _said_done(agent)
        agent.kill()
    assert volumes.frozen() == [True, True]
    successor = Freezer(state_folder=volumes.state)
    with pytest.raises(FreezeHeld, match=str(volumes.points[0])):
        successor.freeze(volumes.points)
    assert volumes.frozen() == [True, True]
    assert thaw_held(volumes.state) == [str(point) for point in volumes.points]
    volumes.accept_writes()
    successor.freeze(volumes.points)
    assert successor.thaw().lost == ""
    successor.close()


@pytest.mark.root
def test_all_three_killed_at_once_and_the_next_start_thaws(volumes: Volumes) -> None:
    """No process is left that could: the file of state names what to thaw."""
    client = _freezer(volumes, "nobody", 0)
    client.freeze(volumes.points, 60.0)
    state = volumes.state / "backhaul-freezer.state"
    left_behind = state.read_bytes()
    client.thaw()
    client.close()
    subprocess.run(["fsfreeze", "-f", str(volumes.points[0])], check=True)
    state.write_bytes(left_behind)
    with Freezer(state_folder=volumes.state) as successor:
        successor.start()
        volumes.accept_writes()
