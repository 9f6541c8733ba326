"""An agent that is not root freezes through the door: its own disks only, and nothing stays frozen whatever ends."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from backhaul.demo.plan import readable_folders
from backhaul.sites.local import launcher
from mobility.conftest import Volumes, eventually
from shared_mounts import shared

pytestmark = pytest.mark.root

UID, STRANGER = 61003, 61004
AGENT = """
import sys
from pathlib import Path
from backhaul.mobility.freezer_client import Freezer
from backhaul.replication.errors import BackhaulError
freezer = Freezer(door=Path(sys.argv[1]))
for line in sys.stdin:
    word, *points = line.split()
    try:
        if word == "freeze":
            freezer.freeze([Path(point) for point in points], 20.0)
            status = freezer.status()
            print("frozen", status.freezer_pid, status.guard_pid, flush=True)
        elif word == "hold":
            print("held", freezer.hold().lost or "still", flush=True)
        else:
            print("thawed", freezer.thaw().lost or "still", flush=True)
    except BackhaulError as error:
        print(error.code, error.message, flush=True)
"""


@dataclass
class House:
    """A door over two volumes: the first lies on a device of UID, the second is somebody else's."""

    folder: Path
    volumes: Volumes
    points: list[Path]
    processes: list[subprocess.Popen[str]] = field(default_factory=list)

    @property
    def socket(self) -> Path:
        return self.folder / "freezer.sock"

    def door(self) -> subprocess.Popen[str]:
        """Open it, as root."""
        self.socket.unlink(missing_ok=True)
        command = [sys.executable, "-m", "backhaul.mobility.freezer_door", str(self.socket), str(UID)]
        self.processes.append(subprocess.Popen(command, text=True))
        eventually(lambda: self.socket.exists() and self.socket.stat().st_uid == UID, "the door is open")
        return self.processes[-1]

    def agent(self, uid: int = UID) -> subprocess.Popen[str]:
        command = [sys.executable, "-c", AGENT, str(self.socket)]

        def become() -> None:  # in a mount namespace of its own, as a site's services are
            launcher.open_ways(list(readable_folders()))
            launcher.become_user(uid)

        made = subprocess.Popen(
            command, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE, preexec_fn=become, cwd=self.folder
        )
        self.processes.append(made)
        return made

    def mine_is_frozen(self) -> bool:
        return self.volumes.frozen()[0]


def tell(agent: subprocess.Popen[str], *words: object) -> list[str]:
    """One order, and its answer."""
    assert agent.stdin is not None
    assert agent.stdout is not None
    agent.stdin.write(" ".join(map(str, words)) + "\n")
    agent.stdin.flush()
    return agent.stdout.readline().split()


@pytest.fixture
def house(volumes: Volumes) -> Iterator[House]:
    with tempfile.TemporaryDirectory(dir="/tmp") as name:
        folder = Path(name)
        folder.chmod(0o755)
        with shared(folder):
            points = []
            for index, point in enumerate(volumes.points):
                points.append(folder / str(index))
                points[-1].mkdir()
                subprocess.run(["mount", "--bind", str(point), str(points[-1])], check=True)
            device = Path(volumes.loops[0])
            owner = device.stat().st_uid
            os.chown(device, UID, -1)
            made = House(folder, volumes, points)
            try:
                yield made
            finally:
                os.chown(device, owner, -1)
                for process in reversed(made.processes):
                    process.kill()
                    process.communicate()
                eventually(lambda: not made.mine_is_frozen(), "nothing is left frozen")
                for bound in points:
                    subprocess.run(["umount", str(bound)], check=True)


def test_an_agent_that_is_not_root_freezes_its_own_disk(house: House) -> None:
    house.door()
    agent = house.agent()
    for _ in range(2):
        assert tell(agent, "freeze", house.points[0])[0] == "frozen"
        assert house.volumes.frozen() == [True, False]
        assert tell(agent, "thaw") == ["thawed", "still"]
        assert house.volumes.frozen() == [False, False]


def test_what_lies_on_somebody_elses_device_is_not_frozen(house: House) -> None:
    house.door()
    agent = house.agent()
    for points in (house.points[1:], house.points, [Path("/")]):
        assert tell(agent, "freeze", *points)[0] in ("BH-FREEZE-UNAVAILABLE", "BH-FREEZE-FAILED")
        assert house.volumes.frozen() == [False, False]
    assert tell(agent, "freeze", house.points[0])[0] == "frozen", "it is of use still"


def test_nobody_else_is_let_in(house: House) -> None:
    house.door()
    house.socket.chmod(0o666)  # whatever the file's mode: the kernel says who connects
    assert tell(house.agent(STRANGER), "freeze", house.points[0])[0] == "BH-FREEZER-LOST"
    assert not house.mine_is_frozen()
    assert tell(house.agent(), "freeze", house.points[0])[0] == "frozen"


def test_a_killed_agent_leaves_nothing_frozen_and_the_next_one_freezes(house: House) -> None:
    house.door()
    agent = house.agent()
    assert tell(agent, "freeze", house.points[0])[0] == "frozen"
    assert house.mine_is_frozen()
    agent.kill()
    assert agent.wait() == -signal.SIGKILL
    eventually(lambda: not house.mine_is_frozen(), "thawed")
    assert tell(house.agent(), "freeze", house.points[0])[0] == "frozen"


def test_with_freezer_and_guard_killed_the_door_thaws(house: House) -> None:
    house.door()
    agent = house.agent()
    _, freezer, guard = tell(agent, "freeze", house.points[0])
    for pid in (freezer, guard):
        os.kill(int(pid), signal.SIGKILL)
    eventually(lambda: not house.mine_is_frozen(), "thawed")
    assert tell(agent, "thaw")[0] == "BH-FREEZER-LOST"
    assert tell(agent, "freeze", house.points[0])[0] == "frozen", "a new pair was given"


def test_with_all_killed_the_next_door_thaws(house: House) -> None:
    door = house.door()
    agent = house.agent()
    _, freezer, guard = tell(agent, "freeze", house.points[0])
    for pid in (door.pid, int(guard), int(freezer)):
        os.kill(pid, signal.SIGKILL)
    door.wait()
    house.mine_is_frozen()
    house.door()
    eventually(lambda: not house.mine_is_frozen(), "thawed")


def test_what_is_held_stays_so_until_its_machine_is_off(house: House) -> None:
    house.door()
    agent = house.agent()
    assert tell(agent, "freeze", house.points[0])[0] == "frozen"
    assert tell(agent, "hold") == ["held", "still"]
    agent.kill()
    agent.wait()
    second = house.agent()
    assert tell(second, "freeze", house.points[0])[0] == "BH-FREEZE-UNAVAILABLE"
    assert house.mine_is_frozen()
    house.volumes.thaw(house.points[0])
    for point in (house.points[0], house.volumes.points[0]):
        subprocess.run(["umount", str(point)], check=True)
    subprocess.run(["mount", house.volumes.loops[0], str(house.volumes.points[0])], check=True)
    subprocess.run(["mount", "--bind", str(house.volumes.points[0]), str(house.points[0])], check=True)
