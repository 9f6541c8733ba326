"""Disks, accounts and writable layers."""

from __future__ import annotations

from pathlib import Path

import pytest

from backhaul.replication.units import KiB, MiB
from backhaul.sites.errors import (
    AccountFull,
    AccountUnknown,
    DiskSizeWrong,
    InUse,
    RequestMalformed,
    SiteNotFound,
)
from backhaul.sites.values import MachineDisk, PowerState
from sites.site_world import Caller, await_console, make_disk, make_machine, open_provider, power, python_guest

TARGET = "master-target:mt1"
STAMP = python_guest(
    """
import json, os, sys, time
disk = os.open(json.loads(os.environ["BACKHAUL_DISKS"])[0]["path"], os.O_RDWR)
number = 0
while True:
    number += 1
    os.pwrite(disk, b"guest%011d" % number, 0)
    print("wrote", number)
    time.sleep(0.002)
"""
)


def write(path: str, offset: int, data: bytes) -> None:
    """Write in place, as a holder would."""
    with Path(path).open("r+b") as image:
        image.seek(offset)
        image.write(data)


def images(site: Caller) -> list[Path]:
    """All image files of the site."""
    return sorted(site.provider.world.volume.rglob("*.img*"))


def test_a_disk_belongs_to_one_holder(site: Caller) -> None:
    disk = make_disk(site, "d1")
    attached = site("attach_disk", "a1", disk=disk.id, holder=TARGET)
    assert Path(attached["path"]).stat().st_size == disk.size
    assert site("attach_disk", "a1", disk=disk.id, holder=TARGET) == attached
    assert site("attach_disk", "a2", disk=disk.id, holder=TARGET) == attached
    with pytest.raises(InUse):
        site("attach_disk", "a3", disk=disk.id, holder="master-target:other")
    with pytest.raises(InUse):
        site("delete_disk", "x1", disk=disk.id)
    site("detach_disk", "x2", disk=disk.id)
    with pytest.raises(InUse):
        site("attach_disk", "a1", disk=disk.id, holder=TARGET)
    site("delete_disk", "x3", disk=disk.id)
    site("delete_disk", "x4", disk=disk.id)
    assert images(site) == []
    assert [effect[1] for effect in site.effects()] == ["d1", "a1", "x2", "x3"]


def test_a_running_machine_keeps_its_disks(site: Caller) -> None:
    disk = make_disk(site, "d1")
    machine = make_machine(site, "m", (MachineDisk(disk.id),)).id
    site("power_on", "p1", machine=machine)
    with pytest.raises(InUse):
        site("detach_disk", "x1", disk=disk.id)
    site("power_off", "p2", machine=machine)
    site("detach_disk", "x1", disk=disk.id)


def test_a_disk_grows_and_never_shrinks(site: Caller) -> None:
    disk = make_disk(site, "d1")
    assert site("grow_disk", "g1", disk=disk.id, size=MiB)["size"] == MiB
    site("grow_disk", "g1", disk=disk.id, size=MiB)
    assert images(site)[0].stat().st_size == MiB
    for wrong in (256 * KiB, MiB + 1, 0):
        with pytest.raises(DiskSizeWrong):
            site("grow_disk", f"g{wrong}", disk=disk.id, size=wrong)
    assert [effect[1] for effect in site.effects()] == ["d1", "g1"]


def test_disks_count_against_their_account(site: Caller) -> None:
    disk = make_disk(site, "d1", account="acc", size=60 * MiB)
    assert site("accounts")[0]["used"] == 60 * MiB
    with pytest.raises(AccountFull):
        make_disk(site, "d2", account="acc", size=8 * MiB)
    with pytest.raises(AccountFull):
        site("grow_disk", "g", disk=disk.id, size=65 * MiB)
    with pytest.raises(AccountFull):
        site("layer_create", "l", disk=disk.id)
    with pytest.raises(AccountUnknown):
        make_disk(site, "d3", account="none")
    site("delete_disk", "x", disk=disk.id)
    assert site("accounts")[0]["used"] == 0


def test_what_a_disk_cannot_be(site: Caller) -> None:
    for size in (0, -4096, 4097, 1 << 60):
        with pytest.raises(DiskSizeWrong):
            make_disk(site, f"d{size}", size=size)
    with pytest.raises(RequestMalformed):
        make_disk(site, "d", file_system="ntfs")
    with pytest.raises(SiteNotFound):
        site("attach_disk", "a", disk="none", holder=TARGET)
    disk = make_disk(site, "ok").id
    with pytest.raises(RequestMalformed):
        site("attach_disk", "a", disk=disk, holder="nobody")
    with pytest.raises(SiteNotFound):
        site("attach_disk", "a", disk=disk, holder="machine:none")


def test_a_formatted_disk_holds_an_ext4(site: Caller) -> None:
    make_disk(site, "d1", size=4 * MiB, file_system="ext4")
    assert images(site)[0].read_bytes()[1080:1082] == b"\x53\xef", "the superblock's magic"


def test_a_layer_changes_nothing_below_it(site: Caller) -> None:
    disk = make_disk(site, "d1")
    base = site("attach_disk", "a1", disk=disk.id, holder=TARGET)["path"]
    write(base, 8192, b"replica")
    plan = site("layer_plan", disk=disk.id)
    layer = site("layer_create", "l1", disk=disk.id)
    assert layer["layer_kind"] == plan["kind"]
    assert (layer["base"], layer["size"]) == (disk.id, disk.size)
    assert site("layer_create", "l1", disk=disk.id) == layer
    above = site("attach_disk", "a2", disk=layer["id"], holder="machine-side:x")["path"]
    assert Path(above).read_bytes() == Path(base).read_bytes()
    write(above, 0, b"changed")
    assert Path(base).read_bytes()[:8200] == bytes(8192) + b"replica\0"
    with pytest.raises(InUse):
        site("layer_drop", "x0", layer=layer["id"])
    site("detach_disk", "x1", disk=layer["id"])
    site("layer_drop", "x2", layer=layer["id"])
    assert len(images(site)) == 1
    assert [effect[1] for effect in site.effects()] == ["d1", "a1", "l1", "a2", "x1", "x2"]


def test_a_copy_predicts_its_time_from_the_last_one(site: Caller) -> None:
    disk = make_disk(site, "d1", size=4 * MiB)
    path = site("attach_disk", "a1", disk=disk.id, holder=TARGET)["path"]
    write(path, 0, bytes(range(256)) * 4096)
    plan = site("layer_plan", disk=disk.id)
    if plan["kind"] == "reflink":
        assert (plan["copy_bytes"], plan["predicted_s"]) == (0, 0.0)
        return
    assert MiB <= plan["copy_bytes"] < 2 * MiB, "holes are not copied"
    assert not plan["measured"]
    layer = site("layer_create", "l1", disk=disk.id)
    made = next(path for path in images(site) if layer["id"] in path.name)
    assert made.stat().st_blocks * 512 < 2 * MiB, "nor made"
    assert site("layer_plan", disk=disk.id)["measured"]


def test_commit_swaps_the_identity_under_a_running_guest(site: Caller) -> None:
    disk = make_disk(site, "d1")
    base = site("attach_disk", "a1", disk=disk.id, holder=TARGET)["path"]
    write(base, 4096, b"replica")
    layer = site("layer_create", "l1", disk=disk.id)
    machine = make_machine(site, "m", (MachineDisk(layer["id"]),), STAMP).id
    site("power_on", "p1", machine=machine)
    await_console(site, f"machine:{machine}", "wrote 3\n")
    with pytest.raises(InUse, match=TARGET):
        site("layer_commit", "c1", layer=layer["id"])
    site("detach_disk", "x1", disk=disk.id)
    committed = site("layer_commit", "c1", layer=layer["id"])
    assert (committed["id"], committed["base"], committed["holder"]) == (disk.id, "", f"machine:{machine}")
    assert site("layer_commit", "c1", layer=layer["id"]) == committed
    assert power(site, machine) is PowerState.RUNNING
    assert not Path(base).exists()
    assert [each["id"] for each in site("disks")] == [disk.id]
    assert site("machines")[0]["disks"][0]["disk"] == disk.id
    written = len(site("console", holder=f"machine:{machine}").splitlines())
    await_console(site, f"machine:{machine}", f"wrote {written + 3}\n")
    site("power_off", "p2", machine=machine)
    content = images(site)[0].read_bytes()
    assert content[4096:4103] == b"replica"
    assert int(content[5:16]) >= written + 3, "what the guest wrote after the commit is under the base's identity"
    assert site("power_on", "p3", machine=machine)["power"] == "running"
    assert [effect[1] for effect in site.effects()].count("c1") == 1


def test_layers_stand_only_on_disks(site: Caller) -> None:
    disk = make_disk(site, "d1")
    layer = site("layer_create", "l1", disk=disk.id)
    with pytest.raises(InUse):
        site("layer_create", "l2", disk=layer["id"])
    with pytest.raises(InUse):
        site("layer_commit", "c", layer=disk.id)
    with pytest.raises(InUse):
        site("delete_disk", "x", disk=disk.id)
    other = site("layer_create", "l3", disk=disk.id)
    with pytest.raises(InUse):
        site("layer_commit", "c2", layer=other["id"])


def test_images_that_nothing_names_are_deleted_at_start(tmp_path: Path) -> None:
    provider = open_provider(tmp_path / "s")
    caller = Caller(provider)
    disk = make_disk(caller, "d1")
    folder = provider.world.volume / "disks"
    (folder / "lost.img").write_bytes(b"x")
    (folder / "half.img.partial").write_bytes(b"x")
    provider.close()
    again = open_provider(tmp_path / "s")
    assert [path.name for path in folder.iterdir()] == [f"{disk.id}.img"]
    again.take_down()
