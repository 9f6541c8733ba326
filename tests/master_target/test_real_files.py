"""On the machine's own files: raw images, threads that read a view while epochs are applied and thinned."""

from __future__ import annotations

import threading
from pathlib import Path

from backhaul.disks.raw_file import RawFile, create_raw_file
from backhaul.master_target.replica import Replica
from backhaul.replication.ports import RealFiles
from backhaul.replication.units import MiB
from backhaul.replication.values import Extent

from .source import KEY, Setup, descriptor
from .worlds import SteppingClock

SIZE = 8 * MiB


def test_views_read_their_point_while_epochs_are_applied_and_thinned(tmp_path: Path) -> None:
    path = tmp_path / "disk"
    create_raw_file(path, SIZE)
    disk = RawFile(path, writable=True)
    setup = Setup(sizes=(SIZE,))
    setup.replica = replica = Replica.create(
        tmp_path / "replica", descriptor((SIZE,)), [disk], KEY, RealFiles(), SteppingClock(), fresh=True
    )

    def epoch(fill: int) -> None:
        replica.begin(setup.begin())
        for offset in range(0, SIZE, MiB):
            replica.stage(Extent(0, offset, MiB), bytes([fill]) * MiB, fill * 100 + offset // MiB)
        replica.complete(setup.end(), fill * 100 + 50)

    epoch(1)
    view = replica.view(1)
    wrong: list[str] = []
    rounds = [0, 0]
    done = threading.Event()

    def read(reader: int) -> None:
        buffer = bytearray(MiB)
        while not done.is_set() and not wrong:
            for offset in range(reader * 4096, SIZE - MiB, MiB):
                view.read_into(0, offset, buffer)
                if buffer != b"\x01" * MiB:
                    wrong.append(f"reader {reader} at {offset}")
            rounds[reader] += 1

    readers = [threading.Thread(target=read, args=(n,)) for n in range(2)]
    for thread in readers:
        thread.start()
    for fill in range(2, 12):
        epoch(fill)
        replica.thin([])
    done.set()
    for thread in readers:
        thread.join()
    assert wrong == []
    assert all(rounds)
    assert [point.number for point in replica.points()] == [1, 11]
    view.close()
    replica.go_to(1)
    replica.close()
    disk.close()
    disk = RawFile(path, writable=True)
    replica = Replica.open(tmp_path / "replica", [disk], RealFiles(), SteppingClock())
    assert replica.findings == ()
    assert path.read_bytes() == b"\x01" * SIZE
    replica.close()
    disk.close()
