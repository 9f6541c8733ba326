"""Our way: agent, process server and master target as three processes, as they are in production.

Mutual TLS on both hops, frames sealed end to end, spool and journal durable before they are acknowledged, undo journal
on. The clock runs from the moment at which the waiting agent is given its assignment until the target says that the
first recovery point is complete; that includes the compare of all hashes, which an initial replication begins with.
"""

from __future__ import annotations

import asyncio
import subprocess
import sys
from pathlib import Path
from typing import Any, Final

import msgspec

from backhaul.links.authority import Authority
from backhaul.links.certificates import Expect
from backhaul.links.connection import Connection, open_data
from backhaul.links.dialer import Address, dial_data
from backhaul.links.identity import Identity
from backhaul.links.tls import Credentials
from backhaul.replication import messages as m
from backhaul.replication.control import (
    AgentMode,
    Assignment,
    ItemAssignment,
    ItemStatus,
    Method,
    SourceDisk,
    StillImagePlan,
)
from backhaul.replication.opening import make_descriptor
from backhaul.replication.ports import RealClock, RealFiles
from backhaul.replication.values import DiskIdentity, Hash, ItemDescriptor, ItemId, ItemPolicy, Role
from benchmarks.certificates import HOST
from benchmarks.copies import CopyFailed, process, tail
from benchmarks.measure import Cost, Meter

ITEM: Final = ItemId("be" * 16)
MACHINE: Final = "machine"
POLICY: Final = ItemPolicy(point_interval_s=3600.0)
LOOK_S: Final = 0.02
"""How often the target is asked for its newest point: the most by which the end is seen late."""

WITHIN_S: Final = 1800.0
"""A copy that takes longer has failed."""


class Backhaul:
    """See the module; a `copies.Way`."""

    name = "backhaul"

    def __init__(self, authority: Authority) -> None:
        self._authority = authority

    def missing(self) -> list[str]:
        """See Way."""
        return []

    def copy(self, image: Path, folder: Path) -> tuple[Cost, Path]:
        """See Way."""
        for role, id in ((Role.PROCESS_SERVER, "relay"), (Role.MASTER_TARGET, "target"), (Role.AGENT, "agent")):
            self._authority.own_identity(role, id).save(RealFiles(), folder / "identities" / id)
        (folder / "target").mkdir(mode=0o700)
        log, assignment = folder / "log", folder / "assignment"
        with process(_service(folder, "relay", str(folder / "relay")), log) as relay:
            port = _port(relay, log)
            with process(_service(folder, "target", str(folder / "target"), "relay", str(port)), log) as target:
                address = Address(HOST, _port(target, log))
                with process(_service(folder, "agent", MACHINE, str(assignment)), log) as agent:
                    _port(agent, log)
                    meter = Meter({"agent": agent.pid, "process server": relay.pid, "target": target.pid})
                    identity = self._authority.own_identity(Role.CONFIGURATION_SERVER, "cs")
                    disk = SourceDisk(DiskIdentity(0, "disk", image.stat().st_size), str(image))
                    cost = asyncio.run(_replicate(identity, address, disk, port, assignment, meter, log))
        return cost, folder / "target" / "items" / ITEM / "disks" / "0.img"


def _service(folder: Path, role: str, *arguments: str) -> list[str]:
    return [sys.executable, "-m", "benchmarks.service", role, str(folder / "identities" / role), *arguments]


def _port(service: subprocess.Popen[bytes], log: Path) -> int:
    assert service.stdout is not None, "it is a pipe"
    line = service.stdout.readline()
    if not line.startswith(b"ready "):
        raise CopyFailed(f"a service did not start{tail(log)}")
    return int(line.split()[1])


class _Target:
    """Control requests to the master target, as the configuration server makes them."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._number = 0

    async def request(self, method: Method, **params: Any) -> Any:
        self._number += 1
        await self._connection.send(m.message(m.Request(self._number, method, params)))
        answer = await self._connection.receive()
        response = m.read_head(answer, m.Response)
        if response.code:
            raise CopyFailed(f"the target refuses {method}: {response.code} {response.result}")
        return msgspec.msgpack.decode(answer.payload)


async def _replicate(
    identity: Identity, address: Address, disk: SourceDisk, relay_port: int, file: Path, meter: Meter, log: Path
) -> Cost:
    """Make the item, let the agent begin, wait for the first point. Raises CopyFailed."""
    clock = RealClock()
    connection = await dial_data(
        address, Credentials(identity, clock), Expect(Role.MASTER_TARGET, "target"), clock=clock
    )
    try:
        await open_data(connection, "bench")
        target = _Target(connection)
        await target.request(Method.ITEM_CREATE, descriptor=_descriptor(identity, disk.identity), paths=[None])
        key = bytes((await target.request(Method.TARGET_KEY))["key"])
        beside = file.with_name("assignment.new")
        beside.write_bytes(msgspec.json.encode(Assignment(1, MACHINE, (_assignment(disk, key, relay_port),))))
        meter.restart()
        beside.rename(file)
        async with asyncio.timeout(WITHIN_S):
            while not await _is_complete(target):  # noqa: ASYNC110
                await asyncio.sleep(LOOK_S)
        return meter.read()
    except TimeoutError:
        raise CopyFailed(f"no recovery point within {WITHIN_S:g} s{tail(log)}") from None
    finally:
        await connection.close()


async def _is_complete(target: _Target) -> bool:
    status = msgspec.convert(await target.request(Method.ITEM_STATUS, item=ITEM), ItemStatus)
    return status.complete is not None


def _descriptor(identity: Identity, disk: DiskIdentity) -> bytes:
    descriptor = ItemDescriptor(
        item=ITEM,
        term=1,
        term_key=Hash(bytes(32)),
        generation=1,
        target="target",
        agent="agent",
        active_machine=MACHINE,
        disks=(disk,),
        policy=POLICY,
    )
    return make_descriptor(identity, descriptor)


def _assignment(disk: SourceDisk, key: bytes, relay_port: int) -> ItemAssignment:
    return ItemAssignment(
        item=ITEM,
        term=1,
        generation=1,
        mode=AgentMode.REPLICATE,
        target_key=key,
        process_server="relay",
        process_server_addresses=(f"{HOST}:{relay_port}",),
        disks=(disk,),
        still=StillImagePlan(),
        policy=POLICY,
    )
