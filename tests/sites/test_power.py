"""Machines: power is what the kernel says, hard means nothing is left, and guests outlive the provider."""

from __future__ import annotations

import os
import signal
import socket
import threading
from pathlib import Path

import msgspec
import pytest

from backhaul.configuration_server.occupancy import started_at
from backhaul.sites.errors import (
    AddressTaken,
    CommandMissing,
    InUse,
    NameTaken,
    NeedsRoot,
    PowerNotConfirmed,
    RequestMalformed,
    SiteNotFound,
    StartFailed,
)
from backhaul.sites.local.processes import RunFile
from backhaul.sites.values import MachineDisk, PowerState
from sites.site_world import (
    RANGE,
    SLEEPER,
    Caller,
    await_console,
    make_disk,
    make_machine,
    open_provider,
    power,
    python_guest,
)

FAMILY = python_guest(
    """
import os, sys, time, signal
signal.signal(signal.SIGTERM, signal.SIG_IGN)
if not os.fork():
    os.setsid()
    if not os.fork():
        print("grandchild", os.getpid()); time.sleep(9999)
    time.sleep(9999)
time.sleep(9999)
"""
)
COUNTER = python_guest(
    """
import json, os, time
path = json.loads(os.environ["BACKHAUL_DISKS"])[0]["path"]
disk = os.open(path, os.O_RDWR)
print("open", path)
count = 0
while True:
    count += 1
    os.pwrite(disk, count.to_bytes(8, "little"), 0)
    if count == 1: print("wrote")
    time.sleep(0.001)
"""
)


def run_file(site: Caller, machine: str) -> RunFile:
    """What the launcher noted."""
    path = site.provider.world.private / "run" / f"machine-{machine}.run"
    return msgspec.json.decode(path.read_bytes(), type=RunFile)


def alive(pid: int) -> bool:
    """Whether the process exists and is no zombie."""
    return bool(started_at(pid))


def test_a_guest_learns_its_disks_address_and_identity(site: Caller) -> None:
    disk = make_disk(site, "d1")
    show = (
        "import os, time; e = os.environ; print(e['BACKHAUL_DISKS'], e['BACKHAUL_METADATA'], 'end'); time.sleep(9999)"
    )
    identity = "C0FFEE00-0000-4000-8000-000000000001"
    machine = make_machine(
        site, "m", (MachineDisk(disk.id),), python_guest(show), machine_id=identity, tags={"ps": f"{RANGE}.1.9:9443"}
    )
    assert machine.id == identity.lower()
    assert machine.power is PowerState.OFF
    site("power_on", "p1", machine=machine.id)
    disks, metadata, _ = await_console(site, f"machine:{machine.id}", "end").rsplit(maxsplit=2)
    assert msgspec.json.decode(disks)[0]["id"] == disk.id
    assert Path(msgspec.json.decode(disks)[0]["path"]).stat().st_size == disk.size
    told = msgspec.json.decode(Path(metadata).read_bytes())
    assert told == site("metadata", machine=machine.id)
    assert told["instance_id"] == machine.id
    site("set_tags", "t1", machine=machine.id, tags={"ps": f"{RANGE}.1.10:9443"})
    assert msgspec.json.decode(Path(metadata).read_bytes())["tags"] == {"ps": f"{RANGE}.1.10:9443"}


def test_power_on_and_off_once_each(site: Caller) -> None:
    machine = make_machine(site, "m").id
    site("power_on", "p1", machine=machine)
    pid = run_file(site, machine).pid
    site("power_on", "p1", machine=machine)
    site("power_on", "p2", machine=machine)
    assert run_file(site, machine).pid == pid
    site("power_off", "p3", machine=machine)
    site("power_off", "p4", machine=machine)
    assert not alive(pid)
    assert [effect for effect in site.effects() if effect[0] != "create_machine"] == [
        ("power_on", "p1"),
        ("power_off", "p3"),
    ]


def test_hard_power_off_leaves_no_descendant(site: Caller) -> None:
    machine = make_machine(site, "m", command=FAMILY).id
    site("power_on", "p1", machine=machine)
    grandchild = int(await_console(site, f"machine:{machine}", "\n").split()[1])
    os.kill(run_file(site, machine).pid, signal.SIGKILL)
    assert alive(grandchild), "it left the session before its parent died"
    assert power(site, machine) is PowerState.RUNNING, "something of it still runs"
    site("power_off", "p2", machine=machine)
    assert not alive(grandchild)
    assert power(site, machine) is PowerState.OFF


def test_graceful_power_off_asks_and_does_not_force(site: Caller) -> None:
    polite = make_machine(site, "m1", name="polite").id
    stubborn = make_machine(site, "m2", name="stubborn", command=FAMILY).id
    for machine in (polite, stubborn):
        site("power_on", f"on {machine}", machine=machine)
    await_console(site, f"machine:{polite}", "booted")
    await_console(site, f"machine:{stubborn}", "grandchild")
    assert site("power_off", "p1", machine=polite, how="graceful")["power"] == "off"
    with pytest.raises(PowerNotConfirmed):
        site("power_off", "p2", machine=stubborn, how="graceful", grace_s=0.05)
    assert power(site, stubborn) is PowerState.RUNNING
    assert ("power_off", "p2") not in site.effects()


def test_a_hung_guest_writes_nothing_until_it_is_resumed(site: Caller) -> None:
    disk = make_disk(site, "d1")
    machine = make_machine(site, "m", (MachineDisk(disk.id),), COUNTER).id
    site("power_on", "p1", machine=machine)
    image = Path(await_console(site, f"machine:{machine}", "wrote").split()[1])
    assert site("hang", "h1", machine=machine)["power"] == "hung"
    with image.open("rb") as content:
        before = content.read(8)
        assert content.seek(0) == 0
        assert content.read(8) == before
    site("hang", "h2", machine=machine)
    assert site("resume", "h3", machine=machine)["power"] == "running"
    while image.read_bytes()[:8] == before:
        pass  # ends when the guest goes on; the suite's timeout otherwise
    assert [effect[1] for effect in site.effects()][-2:] == ["h1", "h3"]
    site("hang", "h4", machine=machine)
    assert site("power_off", "p2", machine=machine)["power"] == "off", "a hung machine can be powered off"


def test_a_guest_that_ended_by_itself_is_off(site: Caller) -> None:
    machine = make_machine(site, "m", command=("/bin/sh", "-c", "echo ended")).id
    site("power_on", "p1", machine=machine)
    await_console(site, f"machine:{machine}", "ended")
    while power(site, machine) is not PowerState.OFF:
        pass
    site("power_on", "p2", machine=machine)
    assert [effect[1] for effect in site.effects()] == ["m", "p1", "p2"]


def test_guests_outlive_the_provider_and_are_adopted(tmp_path: Path) -> None:
    folder = tmp_path / "cloud"
    first = Caller(open_provider(folder))
    machine = make_machine(first, "m").id
    first("power_on", "p1", machine=machine)
    pid = run_file(first, machine).pid
    first.provider.close()
    second = Caller(open_provider(folder))
    try:
        assert power(second, machine) is PowerState.RUNNING
        second("power_on", "p2", machine=machine)
        assert run_file(second, machine).pid == pid
        assert "booted" in await_console(second, f"machine:{machine}", "booted")
        second("power_off", "p3", machine=machine)
        assert not alive(pid)
    finally:
        second.provider.take_down()


def test_reading_power_disturbs_no_start(site: Caller) -> None:
    """A reader that held the lock for an instant would make a start believe that the machine runs already."""
    machine = make_machine(site, "m", command=("/bin/sleep", "9999")).id
    stop = threading.Event()

    def read() -> None:
        while not stop.is_set():
            site("power_state", machine=machine)

    readers = [threading.Thread(target=read) for _ in range(2)]
    for reader in readers:
        reader.start()
    try:
        for turn in range(5):
            assert site("power_on", f"on {turn}", machine=machine)["power"] == "running"
            assert alive(run_file(site, machine).pid)
            assert site("power_off", f"off {turn}", machine=machine)["power"] == "off"
    finally:
        stop.set()
        for reader in readers:
            reader.join()
    assert len(site.effects()) == 11


def test_a_recycled_pid_is_not_taken_for_the_guest(site: Caller) -> None:
    machine = make_machine(site, "m").id
    site("power_on", "p1", machine=machine)
    run = run_file(site, machine)
    site("power_off", "p2", machine=machine)
    stranger = os.fork()
    if stranger == 0:
        signal.pause()
        os._exit(0)
    try:
        path = site.provider.world.private / "run" / f"machine-{machine}.run"
        path.write_bytes(msgspec.json.encode(msgspec.structs.replace(run, pid=stranger)))
        assert power(site, machine) is PowerState.OFF
        site("power_off", "p3", machine=machine)
        assert alive(stranger)
    finally:
        os.kill(stranger, signal.SIGKILL)
        os.waitpid(stranger, 0)


def test_a_failed_start_can_be_repeated(site: Caller) -> None:
    disk = make_disk(site, "d1")
    machine = make_machine(site, "m", (MachineDisk(disk.id),)).id
    site("detach_disk", "x1", disk=disk.id)
    with pytest.raises(StartFailed):
        site("power_on", "p1", machine=machine)
    assert power(site, machine) is PowerState.OFF
    site("attach_disk", "x2", disk=disk.id, holder=f"machine:{machine}")
    assert site("power_on", "p1", machine=machine)["power"] == "running"


def test_what_a_machine_cannot_be(site: Caller) -> None:
    disk = make_disk(site, "d1")
    make_machine(site, "m1", (MachineDisk(disk.id),), address=f"{RANGE}.1.20")
    with pytest.raises(NameTaken):
        make_machine(site, "m2")
    with pytest.raises(InUse):
        make_machine(site, "m3", (MachineDisk(disk.id),), name="b")
    with pytest.raises(SiteNotFound):
        make_machine(site, "m4", (MachineDisk("none"),), name="b")
    with pytest.raises(CommandMissing):
        make_machine(site, "m5", name="b", command=())
    with pytest.raises(RequestMalformed):
        make_machine(site, "m6", name="b", machine_id="no-uuid")
    with pytest.raises(NeedsRoot):
        make_machine(site, "m7", (MachineDisk(disk.id, "data"),), name="b")
    assert [machine["name"] for machine in site("machines")] == ["vm1"]


def test_two_machines_never_share_an_address(site: Caller) -> None:
    first, second = make_machine(site, "m1"), make_machine(site, "m2", name="b")
    assert first.address != second.address
    thief = make_machine(site, "m3", name="thief", command=SLEEPER)
    with open_listener(thief.address), pytest.raises(AddressTaken):
        site("power_on", "p1", machine=thief.id)


def open_listener(address: str) -> socket.socket:
    """Somebody else on the machine's address."""

    return socket.create_server((address, 0))


def test_deleting_a_machine_keeps_its_disks(site: Caller) -> None:
    disk = make_disk(site, "d1")
    machine = make_machine(site, "m", (MachineDisk(disk.id),)).id
    site("power_on", "p1", machine=machine)
    with pytest.raises(InUse):
        site("delete_machine", "x1", machine=machine)
    site("power_off", "p2", machine=machine)
    site("delete_machine", "x2", machine=machine)
    site("delete_machine", "x3", machine=machine)
    assert site("machines") == []
    assert site("addresses", network="vnet") == []
    assert site("disks")[0]["holder"] == ""
    assert [effect[1] for effect in site.effects()][-1] == "x2"
