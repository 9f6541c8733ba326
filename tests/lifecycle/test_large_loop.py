"""A machine with a disk of 2 TiB and 1 GiB of data on it goes the whole way round, as its users have it: configuration
server, sites, servers and agents as processes, a process server that is deployed for the way home, jobs by the API.

What the disk's size could be paid for is bounded by its data: room of replicas, layers, journal and maps, memory, and
what travels. The bounds are those of docs/performance.md.
"""

from __future__ import annotations

import random
import time
from pathlib import Path
from typing import Final

import psutil
import pytest

from backhaul.client.deployments import Deployments
from backhaul.client.lifecycle import Lifecycle
from backhaul.disks.opening import open_disk
from backhaul.replication.units import GRANULE, GiB, KiB, MiB, TiB
from backhaul.sites.local.client import LocalSite
from backhaul.sites.values import DiskRequest, MachineDisk, MachineRequest
from configuration_server.live import LiveServer, until
from lifecycle.real_sites import RealSite
from lifecycle.served import (
    SLEEPER,
    add_target,
    agent,
    protect,
    registered,
    reprotect_figures,
    server,
    sites,
    state,
    tell_sites,
)

__all__ = ["server", "sites"]

SIZE: Final = 2 * TiB
DATA: Final = GiB
PIECE: Final = 256 * KiB
CHANGED: Final = 4 * MiB
"""Written in the cloud: what travels home."""

ROOM: Final = DATA + DATA // 8
"""Of any disk image: its data, and what the file system needs to say where it is."""

KEPT: Final = 64 * MiB
"""Journal and maps of a replica, beside before-images: 16 KiB of hashes for each range of 16 MiB that holds any data,
and records of 4 KiB blocks: of blocks that were holes they have no before-image.
"""

MEMORY: Final = {"agent": 256 * MiB, "target": 256 * MiB, "process server": 256 * MiB, "control": 384 * MiB}
"""Most memory of each kind of process, ever (VmHWM)."""

POINTS_S: Final = 60.0
"""One point is enough for each step; with the tracker `scan` each further one reads the gibibyte again."""

LOOK_S: Final = 0.5

FORM: Final = {"user": "rescue", "password": "Correct-Horse-7", "register": True}


class Loop:
    """The machine on its way."""

    def __init__(self, server: LiveServer, sites: dict[str, RealSite], lifecycle: Lifecycle) -> None:
        self.server, self._sites, self.lifecycle = server, sites, lifecycle
        self.ids = add_target(server)
        self._began = time.monotonic()

    def site(self, name: str) -> LocalSite:
        client = self._sites[name].client
        assert client is not None
        return client

    def protect(self, seed: int) -> Path:
        """The machine at home, whose disk is protected; where that lies."""
        tell_sites(self.lifecycle, self._sites)
        home = self.site("home")
        disk = home.create_disk(DiskRequest("d0", "prod", SIZE), token="disk").id
        request = MachineRequest("web", "prod", "home-net", "default", SLEEPER, (MachineDisk(disk),))
        machine = home.create_machine(request, token="machine")
        path = home.attach_disk(disk, f"machine:{machine.id}", token="look").path
        scatter(Path(path), seed, DATA)
        home.power_on(machine.id, token="on")
        agent(self.server, "agent-home", machine.id, "", [path])
        self.server.vault().create_policy("slow", {"point_interval_s": POINTS_S})
        protect(self.server, self.lifecycle, machine, [disk], "slow", self.ids)
        self.reach("protected")
        return Path(path)

    def wait(self, job: str) -> None:
        self.server.vault().wait_job(job)

    def job(self, kind: str) -> str:
        """Run a job to its end; it succeeds. Its id."""
        job = self.lifecycle.begin(kind, ["web"], {})
        self.wait(job)
        self.passed(kind)
        return job

    def passed(self, what: str) -> None:
        """For whoever reads the output."""
        print(f"{time.monotonic() - self._began:6.1f} s  {what}")

    def reach(self, wanted: str) -> None:
        while state(self.server) != wanted:
            time.sleep(LOOK_S)
        self.passed(wanted)

    def wake_in_cloud(self) -> Path:
        """The agent of the machine in the cloud; where its disk lies. Something is written there."""
        plan = self.lifecycle.plan("web")
        (disk,) = plan["cloud"]["disks"]
        machine = plan["cloud"]["machine"]
        path = self.site("cloud").attach_disk(disk, f"machine:{machine}", token="own").path
        agent(self.server, "agent-cloud", machine, "cloud-net", [path])
        until(lambda: registered(self.server, "agents", "agent-cloud"))
        self.lifecycle.set_agent("web", "cloud", "agent-cloud")
        return Path(path)

    def actual_bytes(self, job: str) -> int:
        """What a reprotect found to differ."""
        return int(reprotect_figures(self.server, job)["actual"]["bytes"])

    def integrity(self) -> None:
        """The report passed, and every byte was compared."""
        shown = self.lifecycle.integrity("web")
        report = shown["report"]
        assert (shown["passed"], report["compared_bytes"], report["differing"]) == (True, SIZE, 0)
        assert report["compared_ranges"] == SIZE // (16 * MiB)

    def images(self) -> list[Path]:
        """All disks of both sites: old disks, replicas, layers."""
        return [path for site in self._sites.values() for path in site.folder.rglob("*.img")]

    def kept(self) -> int:
        """Bytes that targets keep of replicas beside the disks; some of a replica that there is."""
        targets = [self.server.folder / "mt-cloud", self.server.data_dir / "master-target"]
        files = [path for target in targets for path in (target / "target" / "items").rglob("*") if path.is_file()]
        return sum(on_disk(path) for path in files)

    def assert_bounded(self, *, replica: bool = True) -> None:
        """Room and memory, as they are now and were until now. `replica`: whether there is one now."""
        images, kept = [on_disk(path) for path in self.images()], self.kept()
        peaks = peaks_below(self.server)
        shown = {kind: f"{peak // MiB} MiB" for kind, peak in peaks.items()}
        print(f"          images {[image // MiB for image in images]} MiB, kept {kept // MiB} MiB, memory {shown}")
        assert max(images) < ROOM
        assert (kept > 0) is replica
        assert kept < KEPT
        assert peaks.keys() == MEMORY.keys()
        assert all(peak < MEMORY[kind] for kind, peak in peaks.items()), shown


def on_disk(path: Path) -> int:
    """Bytes that a file takes."""
    return path.stat().st_blocks * 512


KINDS: Final = {"agent": "agent", "master-target": "target", "process-server": "process server", "server": "control"}


def peaks_below(server: LiveServer) -> dict[str, int]:
    """Most memory that any process of each kind ever had, of those that have their data below the test's folder."""
    peaks: dict[str, int] = {}
    for process in psutil.process_iter(["cmdline"]):
        words = process.info["cmdline"] or []
        if "backhaul" not in words or "run" not in words or str(server.folder) not in " ".join([*words, cwd(process)]):
            continue
        kind = KINDS[words[words.index("backhaul") + 1]]
        lines = Path(f"/proc/{process.pid}/status").read_text().splitlines()
        peak = int(next(line for line in lines if line.startswith("VmHWM")).split()[1]) * 1024
        peaks[kind] = max(peak, peaks.get(kind, 0))
    return peaks


def cwd(process: psutil.Process) -> str:
    """A deployed server is started in its own folder."""
    try:
        return str(process.cwd())
    except psutil.Error:
        return ""


def scatter(image: Path, seed: int, total: int) -> None:
    """`total` bytes in pieces all over the disk, its first and last bytes among them; no two blocks are equal."""
    chance = random.Random(seed)
    places = {0, SIZE - PIECE}
    while len(places) < total // PIECE:
        places.add(chance.randrange(SIZE // PIECE) * PIECE)
    with image.open("r+b") as file:
        for place in places:
            file.seek(place)
            noise = chance.randbytes(1024)
            blocks = (noise + (place + offset).to_bytes(8, "big") + bytes(3064) for offset in range(0, PIECE, 4096))
            file.write(b"".join(blocks))


def differing(one: Path, other: Path) -> tuple[int, int]:
    """Bytes of granules that differ between two disks, and bytes of data in both; holes are not read."""
    compared: set[int] = set()
    total = 0
    with one.open("rb") as left, other.open("rb") as right:
        for image in (one, other):
            disk = open_disk(image, writable=False, direct=False)
            for offset, length in disk.data_ranges():
                first, end = offset // GRANULE, -(-(offset + length) // GRANULE)
                for granule in set(range(first, end)) - compared:
                    left.seek(granule * GRANULE)
                    right.seek(granule * GRANULE)
                    total += GRANULE * (left.read(GRANULE) != right.read(GRANULE))
                    compared.add(granule)
            disk.close()
    return total, len(compared) * GRANULE


@pytest.mark.timeout(1800)
def test_two_tebibytes_go_round_the_loop(server: LiveServer, sites: dict[str, RealSite], seed: int) -> None:
    assert server.profile is not None
    with Lifecycle(server.profile) as lifecycle, Deployments(server.profile) as deployments:
        loop = Loop(server, sites, lifecycle)
        old = loop.protect(seed)
        assert on_disk(old) >= DATA, "the data are there"
        loop.job("PlannedFailover")
        loop.integrity()
        loop.assert_bounded()
        loop.job("Commit")
        new = loop.wake_in_cloud()
        assert differing(old, new) == (0, DATA), "all of it arrived"
        scatter(new, seed + 1, CHANGED)
        changed, _ = differing(old, new)
        loop.wait(deployments.deploy("ps-cloud", FORM))
        loop.passed("process server deployed")
        assert loop.actual_bytes(loop.job("ReverseReplicate")) == changed, "only what differs travels home"
        loop.reach("protected-to-home")
        loop.assert_bounded()
        loop.job("PlannedFailover")
        loop.integrity()
        loop.job("Commit")
        assert lifecycle.plan("web")["state"] == "failed-back-committed"
        loop.assert_bounded(replica=False)
        (disk,) = lifecycle.plan("web")["home"]["disks"]
        machine = lifecycle.plan("web")["home"]["machine"]
        home = Path(loop.site("home").attach_disk(disk, f"machine:{machine}", token="look-again").path)
        assert differing(home, new)[0] == 0
        assert changed >= CHANGED
