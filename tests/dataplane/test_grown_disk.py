"""A disk that grows: resized at the target and continued, whatever the larger part held, and whatever fails meanwhile.

Older points keep what they held: nothing of the disk as it was before is lost by its growth.
"""

from __future__ import annotations

import asyncio
import errno
import os
import random
from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import pytest

from backhaul.disks.raw_file import create_raw_file
from backhaul.replication.control import Method, SourceDisk
from backhaul.replication.units import GRANULE, MiB
from backhaul.replication.values import DiskIdentity
from dataplane.plane import Machine, RequestFailed
from dataplane.processes.stepped import SteppedPlane, running_stepped

SIZE = 2 * MiB + 3 * 512
"""Ends within a block: the block that straddles the old end must be sent again."""

GROWN = 3 * MiB + 512


@pytest.fixture
async def plane(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[SteppedPlane]:
    async with running_stepped(tmp_path, monkeypatch) as running:
        yield running


def noise(seed: int, length: int) -> bytes:
    return random.Random(seed).randbytes(length)


async def protected(plane: SteppedPlane, seed: int, replica: Path | None = None) -> Machine:
    """A machine with a noisy disk, replicated; to `replica` where one is given."""
    image = plane.folder / "web-0.img"
    create_raw_file(image, SIZE)
    image.write_bytes(noise(seed, SIZE))
    machine = await plane.protect("web", [SIZE], disks=[image], paths=[str(replica)] if replica else None)
    await plane.caught_up(machine)
    return machine


def grow(machine: Machine, seed: int) -> None:
    """The source grows, and is written to its new end. In a thread of its own: the kernel lets it wait until the agent
    has given up its still image.
    """
    os.truncate(machine.disks[0], GROWN)
    with machine.disks[0].open("r+b") as file:
        file.seek(SIZE - 512)
        file.write(noise(seed, GROWN - SIZE + 512))


def grown_identity(plane: SteppedPlane, machine: Machine) -> DiskIdentity:
    return msgspec.structs.replace(plane.assigned(machine).disks[0].identity, size=GROWN)


async def tell_target(plane: SteppedPlane, machine: Machine) -> None:
    descriptor = plane.descriptor(machine.name, machine.item, [grown_identity(plane, machine)])
    await plane.request(Method.ITEM_RAISE, descriptor=descriptor)


async def tell_agent(plane: SteppedPlane, machine: Machine) -> None:
    disks = (SourceDisk(grown_identity(plane, machine), str(machine.disks[0])),)
    await machine.control.set(machine.name, msgspec.structs.replace(plane.assigned(machine), disks=disks))


async def followed(plane: SteppedPlane, machine: Machine, replica: Path | None = None) -> None:
    """A point holds all that was written before this call: the replica is the disk."""
    await plane.caught_up(machine)
    assert (replica or plane.replicas(machine)[0]).read_bytes()[:GROWN] == machine.disks[0].read_bytes()


async def test_points_before_the_growth_hold_what_the_disk_held(plane: SteppedPlane, seed: int) -> None:
    machine = await protected(plane, seed)
    before, point = machine.disks[0].read_bytes(), await plane.newest(machine)
    await plane.request(Method.ITEM_PIN, item=machine.item, name="before", point=point)
    await asyncio.to_thread(grow, machine, seed + 1)
    await tell_target(plane, machine)
    await tell_agent(plane, machine)
    await followed(plane, machine)
    grown, newest = machine.disks[0].read_bytes(), await plane.newest(machine)
    await plane.target.stop()
    await plane.target.start()
    await plane.promote(machine, 2)
    await plane.request(Method.ITEM_GO_TO, item=machine.item, point=point)
    assert plane.replicas(machine)[0].read_bytes() == before + bytes(GROWN - SIZE)
    await plane.request(Method.ITEM_GO_TO, item=machine.item, point=newest)
    assert plane.replicas(machine)[0].read_bytes() == grown


async def test_what_lay_behind_the_old_end_of_a_larger_replica_is_not_taken_for_the_disks(
    plane: SteppedPlane, seed: int
) -> None:
    replica = plane.folder / "old.img"
    create_raw_file(replica, GROWN + GRANULE)
    replica.write_bytes(noise(seed + 2, GROWN + GRANULE))
    machine = await protected(plane, seed, replica)
    await asyncio.to_thread(os.truncate, machine.disks[0], GROWN)  # and nothing is written there: it reads as zeros
    await tell_target(plane, machine)
    await tell_agent(plane, machine)
    await followed(plane, machine, replica)


@pytest.mark.parametrize("step", ["item.replace", "fence.replace"])
async def test_a_growth_that_failed_half_way_is_repeated(plane: SteppedPlane, seed: int, step: str) -> None:
    machine = await protected(plane, seed)
    plane.at_target.fail(step, errno.ENOSPC)
    with pytest.raises(RequestFailed) as refusal:
        await tell_target(plane, machine)
    assert refusal.value.code in ("BH-JOURNAL-WRITE-FAILED", "BH-STATE-NOT-STORED")
    assert step in plane.at_target.fired
    plane.at_target.mend()
    await plane.target.stop()
    await plane.target.start()  # with what was stored of it
    await plane.caught_up(machine)
    await asyncio.to_thread(grow, machine, seed + 1)
    await tell_target(plane, machine)
    await tell_agent(plane, machine)
    await followed(plane, machine)


async def test_a_replica_that_cannot_grow_says_so_and_goes_on_once_it_can(
    plane: SteppedPlane, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The source's new part stays unsent, and no point is made of the disk without it."""
    machine = await protected(plane, seed)
    refused: list[int] = []
    truncate = os.ftruncate

    def full(descriptor: int, size: int) -> None:
        if size != GROWN:  # the journal's files, of a point that is made meanwhile
            truncate(descriptor, size)
            return
        refused.append(size)
        raise OSError(errno.EFBIG, os.strerror(errno.EFBIG))

    await asyncio.to_thread(grow, machine, seed + 1)
    with monkeypatch.context() as patch:
        patch.setattr(os, "ftruncate", full)
        with pytest.raises(RequestFailed) as refusal:
            await tell_target(plane, machine)
    assert (refusal.value.code, refused) == ("BH-DISK-GROW", [GROWN])
    await tell_agent(plane, machine)
    await plane.reported_code(machine, "BH-DISKS-DIFFER")
    newest = await plane.newest(machine)
    await plane.reported_code(machine, "BH-DISKS-DIFFER")
    assert await plane.newest(machine) == newest
    await tell_target(plane, machine)
    await followed(plane, machine)
