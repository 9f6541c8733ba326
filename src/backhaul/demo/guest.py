"""The guest: the program that a local site starts for a machine, as a hypervisor starts what boots from its disks.

`python -m backhaul.demo.guest`, in the machine's working folder, which is its memory: nothing of it goes to the other
side. Its writers overwrite the disks all the time, on whichever side it runs.

    acknowledged/   the writers' logs, outside of the disks: what the oracle judges by
    found/N/        the database as boot N found it; none at the first boot of all
    boots           one JSON line per boot: which incarnations write, and what they found
    writer.sock     the writers' control socket, for the quiesce script

Prints one line per event to its console. SIGTERM: the writers stop in order; unmounting, which syncs the file systems,
is the site's. A disk that fails ends it with the writers' exit code: it was fenced.
"""

from __future__ import annotations

import json
import os
import queue
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import msgspec

from backhaul.demo.guest_disks import (
    block_paths,
    block_regions,
    database_path,
    install,
    keep_what_is_found,
)
from backhaul.demo.guest_machine import GuestMachine
from backhaul.demo.kept import TICK_S, say
from backhaul.demo.nameplate import Nameplate
from backhaul.demo.writers.blocks import BlockWriter
from backhaul.demo.writers.control import Commands, ControlSocket
from backhaul.demo.writers.process import EXIT_FAILED
from backhaul.demo.writers.spec import BlockWriterSpec, SqliteWriterSpec
from backhaul.demo.writers.sqlite_writer import SqliteWriter
from backhaul.demo.writers.workload import Workload
from backhaul.replication.errors import BackhaulError
from backhaul.replication.ports import RealClock

ACKNOWLEDGED: Final = Path("acknowledged")
FOUND: Final = Path("found")
CONTROL: Final = Path("writer.sock")
BOOTS: Final = Path("boots")

BLOCKS_LOG: Final = "blocks"
ENTRIES_LOG: Final = "entries"

WRITES_PER_S: Final = 60.0
TRANSACTIONS_PER_S: Final = 20.0
"""Half a megabyte a second: enough that every second counts, little enough for four machines on two cores."""

QUIESCE_LIMIT_S: Final = 5.0
"""Longer than hashing all disks takes on a busy machine; well below the limit that agents assume for scripts."""

_PROGRESS_TICKS: Final = 4


class Together:
    """All writers of the machine behind one control socket: quiesced means that all are."""

    def __init__(self, writers: list[Workload], stop: queue.SimpleQueue[int]) -> None:
        self._writers, self._stop = writers, stop

    def quiesce(self) -> int | None:
        """The block writer's newest sequence; None if any could not be quiesced, and then none is."""
        answers = [writer.quiesce() for writer in self._writers]
        if None in answers:
            self.resume()
            return None
        return answers[0]

    def resume(self) -> bool:
        """False if the limit had ended it for any of them."""
        resumed = [writer.resume() for writer in self._writers]  # each of them, whatever the others say
        return all(resumed)

    def status(self) -> dict[str, int | float]:
        """The figures of all; those of the second writer with its name before them."""
        figures = dict(self._writers[0].status())
        for writer in self._writers[1:]:
            figures.update({f"{ENTRIES_LOG}_{name}": value for name, value in writer.status().items()})
        return figures

    def request_stop(self) -> None:
        """Stop the machine in order."""
        self._stop.put(0)


class Boot(msgspec.Struct, frozen=True):
    """A line of BOOTS: incarnations of the writers (0: no such writer), and the folder in FOUND (empty: none)."""

    blocks: int
    entries: int
    found: str


def boot(machine: GuestMachine, number: int) -> list[Workload]:
    """Read the disks, install what is missing, keep evidence; the writers, not started yet."""
    nameplate = Nameplate(machine)
    name = nameplate.read()
    if name:
        keep_what_is_found(machine, FOUND / str(number))
    else:
        say("installing")
        install(machine)
        name = site_name(machine)
        nameplate.write(name)
    return _writers(machine, name)


def _writers(machine: GuestMachine, name: str) -> list[Workload]:
    clock = RealClock()
    blocks = BlockWriterSpec(
        machine=name,
        log=ACKNOWLEDGED / BLOCKS_LOG,
        control=CONTROL,
        quiesce_limit_s=QUIESCE_LIMIT_S,
        writes_per_s=WRITES_PER_S,
        disks=block_paths(machine),
        regions=block_regions(machine),
    )
    writers: list[Workload] = [BlockWriter(blocks, clock)]
    database = database_path(machine)
    if database is not None:
        entries = SqliteWriterSpec(
            machine=name,
            log=ACKNOWLEDGED / ENTRIES_LOG,
            quiesce_limit_s=QUIESCE_LIMIT_S,
            writes_per_s=TRANSACTIONS_PER_S,
            database=database,
        )
        writers.append(SqliteWriter(entries, clock))
    return writers


def read_boots(work: Path) -> list[Boot]:
    """All boots of the machine whose working folder this is, oldest first."""
    path = work / BOOTS
    lines = path.read_bytes().splitlines() if path.exists() else []
    return [msgspec.json.decode(line, type=Boot) for line in lines]


def _note_boot(number: int, incarnations: list[int]) -> None:
    found = FOUND / str(number)
    noted = Boot(incarnations[0], incarnations[1] if len(incarnations) > 1 else 0, found.name if found.exists() else "")
    with BOOTS.open("ab") as file:
        file.write(msgspec.json.encode(noted) + b"\n")


def site_name(machine: GuestMachine) -> str:
    """The name under which its first site knows the machine; from then on it is the machine's own, on its disk."""
    name: str = msgspec.json.decode(machine.metadata.read_bytes())["name"]
    return name


def run(machine: GuestMachine, stop: queue.SimpleQueue[int]) -> int:
    """Live until told to stop or until a disk fails; the exit code."""
    number = len(read_boots(Path())) + 1
    writers = boot(machine, number)
    started: list[Workload] = []
    try:
        for writer in writers:
            writer.start()
            started.append(writer)
        _note_boot(number, [writer.log.incarnation for writer in writers])
        say(f"writing as incarnation {writers[0].log.incarnation}")
        control = ControlSocket(CONTROL, Commands(Together(writers, stop)))
        try:
            return _live(writers, stop)
        finally:
            control.close()
    finally:
        _finish(started)


def _live(writers: list[Workload], stop: queue.SimpleQueue[int]) -> int:
    ticks = 0
    while True:
        for writer in writers:
            if writer.wait(0.0):
                return EXIT_FAILED
        ticks += 1
        if ticks % _PROGRESS_TICKS == 0:
            say(f"progress {json.dumps([writer.status() for writer in writers])}")
        try:
            return stop.get(timeout=TICK_S)
        except queue.Empty:
            continue


def _finish(started: list[Workload]) -> None:
    """Stop all writers in order; the first failure is raised after the others have stopped too."""
    failure: BackhaulError | None = None
    for writer in started:
        try:
            writer.finish()
        except BackhaulError as error:
            failure = failure or error
    if failure is not None:
        raise failure


@contextmanager
def _signals(stop: queue.SimpleQueue[int]) -> Iterator[None]:
    ends = (signal.SIGTERM, signal.SIGINT)
    before = [signal.signal(number, lambda _number, _frame: stop.put(0)) for number in ends]
    try:
        yield
    finally:
        for number, handler in zip(ends, before, strict=True):
            signal.signal(number, handler)


def main() -> int:
    """The guest's program."""
    os.umask(0)  # files on the disks belong to no user: see `guest_disks`
    stop: queue.SimpleQueue[int] = queue.SimpleQueue()
    try:
        with _signals(stop):
            return run(GuestMachine.read(os.environ), stop)
    except BackhaulError as error:
        sys.stderr.write(f"{error}\n")
        return EXIT_FAILED


if __name__ == "__main__":
    sys.exit(main())
