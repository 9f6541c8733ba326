"""As root: networks are namespaces with routers, sites are users, disks are loop devices, layers are reflinks."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
import signal
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from backhaul.replication.units import MiB
from backhaul.sites.errors import AddressTaken, HostToolFailed, SiteUnreachable
from backhaul.sites.local import mounts, tools
from backhaul.sites.local.client import LocalSite
from backhaul.sites.local.daemon import take_down
from backhaul.sites.local.definition import SiteKind
from backhaul.sites.local.namespaces import NamespaceFabric, inside
from backhaul.sites.values import MachineDisk, PowerState, SiteRole
from sites.daemon_process import Daemon
from sites.root_world import (
    CLOUD_NET,
    CLOUD_UID,
    FABRIC,
    HOME_NET,
    OTHER_NET,
    assert_as_before,
    listener,
    output,
    pair,
    remember_session,
    root_definition,
    traces,
)
from sites.site_world import (
    SLEEPER,
    TOKENS,
    Caller,
    await_console,
    make_disk,
    make_machine,
    open_provider,
    power,
    python_guest,
    running_site,
    server_request,
)

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(
        not all(shutil.which(tool) for tool in ("ip", "nft", "losetup", "mkfs.xfs", "mkfs.ext4")),
        reason="needs iproute2, nftables, util-linux, xfsprogs and e2fsprogs",
    ),
]

_FIFREEZE, _FITHAW = 0xC0045877, 0xC0045878
PORT = 9443


@pytest.fixture
def sites(tmp_path: Path) -> Iterator[tuple[Caller, Caller]]:
    """Home and cloud, taken down without a trace."""
    remember_session(tmp_path)
    with pair(tmp_path) as both:
        yield both


@pytest.fixture
def cloud(sites: tuple[Caller, Caller]) -> Caller:
    """The cloud of the pair."""
    return sites[1]


def reachable(site: Caller, network: str, host: str, port: int = PORT) -> bool:
    """Whether a connection from inside the network comes about, within a time that a dropped packet outlasts."""
    return bool(site("probe", network=network, host=host, port=port, timeout_s=0.4)["reachable"])


def start_listener(site: Caller, network: str, name: str) -> str:
    """A machine that listens; its address."""
    machine = make_machine(site, name, command=listener(PORT), name=name, network=network)
    site("power_on", f"on {name}", machine=machine.id)
    await_console(site, f"machine:{machine.id}", "up")
    return machine.address


def test_routes_firewalls_and_the_management_address(sites: tuple[Caller, Caller]) -> None:
    home, cloud = sites
    at_home = start_listener(home, HOME_NET, "h")
    in_cloud, in_other = start_listener(cloud, CLOUD_NET, "c"), start_listener(cloud, OTHER_NET, "o")
    fabric = cloud.provider.fabric
    assert isinstance(fabric, NamespaceFabric)
    with fabric.listen_at_router("198.18.0.2", 8443):
        assert reachable(home, HOME_NET, in_cloud)
        assert reachable(cloud, CLOUD_NET, at_home)
        assert not reachable(cloud, OTHER_NET, in_cloud), "no way between two networks of a cloud"
        assert not reachable(cloud, CLOUD_NET, in_other)

        assert home("cut_route", "c1", network=HOME_NET)["cut"]
        assert not reachable(home, HOME_NET, in_cloud)
        assert not reachable(cloud, CLOUD_NET, at_home)
        assert reachable(home, HOME_NET, "198.18.0.2", 8443), "the API is reached as a cloud's is"
        assert not home("restore_route", "c2", network=HOME_NET)["cut"]
        assert reachable(home, HOME_NET, in_cloud)

        cloud("cut_route", "c3", network=CLOUD_NET)
        assert not reachable(home, HOME_NET, in_cloud)
        assert reachable(home, HOME_NET, in_other), "only the network that was named is cut"
        cloud("restore_route", "c4", network=CLOUD_NET)

        home("drop_inbound", "d1", network=HOME_NET, drop=True)
        assert not reachable(cloud, CLOUD_NET, at_home)
        assert reachable(home, HOME_NET, in_cloud), "home dials out"
        assert reachable(home, HOME_NET, at_home)
        home("drop_inbound", "d2", network=HOME_NET, drop=False)
        assert reachable(cloud, CLOUD_NET, at_home)
    assert [effect for effect in home.effects() if effect[0] in ("cut_route", "drop_inbound")] == [
        ("cut_route", "c1"),
        ("drop_inbound", "d1"),
        ("drop_inbound", "d2"),
    ]


def test_home_reaches_the_clouds_api_while_the_route_is_cut(tmp_path: Path) -> None:
    remember_session(tmp_path)
    site = root_definition(SiteKind.CLOUD)
    before = traces()
    with running_site(tmp_path / "home", root_definition(SiteKind.HOME)) as home:
        daemon = Daemon(tmp_path / "cloud", site, "198.18.0.2:8443")
        endpoint = daemon.start()
        home("cut_route", "c", network=HOME_NET)

        def ask() -> str:
            caller = LocalSite(endpoint.management, TOKENS[SiteRole.OWNER], endpoint.certificate_pem)
            try:
                return caller.whoami().name
            finally:
                caller.close()

        assert inside(home.provider.fabric.namespace(HOME_NET), ask) == "owner"
        with pytest.raises(SiteUnreachable):
            ask()  # outside the networks nobody has a way to this address
        daemon.end(signal.SIGTERM)
        take_down(daemon.folder, site)
    assert_as_before(before)


def test_every_network_reaches_a_public_one(tmp_path: Path) -> None:
    remember_session(tmp_path)
    with pair(tmp_path, public=OTHER_NET) as (home, cloud):
        in_cloud, in_public = start_listener(cloud, CLOUD_NET, "c"), start_listener(cloud, OTHER_NET, "o")
        assert reachable(cloud, CLOUD_NET, in_public)
        assert reachable(home, HOME_NET, in_public)
        assert not reachable(cloud, OTHER_NET, in_cloud)
        home("cut_route", "c1", network=HOME_NET)
        assert not reachable(home, HOME_NET, in_public)


def test_an_open_connection_stalls_when_the_route_is_cut(sites: tuple[Caller, Caller]) -> None:
    home, cloud = sites
    echo = python_guest(
        f"""
import os, socket
s = socket.create_server((os.environ["BACKHAUL_ADDRESS"], {PORT})); print("up")
c = s.accept()[0]
while d := c.recv(100): print("got", d); c.sendall(d)
"""
    )
    machine = make_machine(cloud, "m", command=echo)
    cloud("power_on", "p", machine=machine.id)
    await_console(cloud, f"machine:{machine.id}", "up")
    space = home.provider.fabric.namespace(HOME_NET)
    with inside(space, lambda: socket.create_connection((machine.address, PORT), 2)) as link:
        link.sendall(b"1")
        assert link.recv(1) == b"1"
        home("cut_route", "c1", network=HOME_NET)
        link.settimeout(0.4)
        link.sendall(b"2")
        with pytest.raises(TimeoutError):
            link.recv(1)
        assert "b'2'" not in cloud("console", holder=f"machine:{machine.id}"), "not even one way"
        home("restore_route", "c2", network=HOME_NET)
        link.settimeout(20)
        assert link.recv(1) == b"2", "sent again by TCP once the route is back"


def test_routes_outlive_the_provider_and_a_boot(tmp_path: Path) -> None:
    remember_session(tmp_path)
    with pair(tmp_path) as (home, cloud):
        in_cloud = start_listener(cloud, CLOUD_NET, "c")
        home("cut_route", "c1", network=HOME_NET)
        home.provider.close()
        output("ip", "netns", "del", f"bh-{FABRIC}-{HOME_NET}")  # a boot takes the namespace away
        home.provider = open_provider(tmp_path / "home", root_definition(SiteKind.HOME))
        assert not reachable(home, HOME_NET, in_cloud)
        home("restore_route", "c2", network=HOME_NET)
        assert reachable(home, HOME_NET, in_cloud)


LOOK = python_guest(
    """
import os, json, sys
def readable(path):
    try:
        os.listdir(path) if os.path.isdir(path) else open(path, "rb").read(1)
        return True
    except (PermissionError, FileNotFoundError):
        return False
disk = json.loads(os.environ["BACKHAUL_DISKS"])[0]
fd = os.open(disk["path"], os.O_RDWR)
os.pwrite(fd, b"x", 0)
own = os.path.dirname(os.environ["BACKHAUL_METADATA"])
site = own.split("/volume/")[0]
other = os.path.join(os.path.dirname(site), "home")
print(json.dumps({
    "uid": os.getuid(), "gid": os.getgid(), "groups": os.getgroups(), "disk": disk["path"],
    "metadata": readable(os.environ["BACKHAUL_METADATA"]),
    "write metadata": os.access(os.environ["BACKHAUL_METADATA"], os.W_OK),
    "site": readable(site + "/provider"), "ledger": readable(site + "/provider/ledger.sqlite"),
    "home": readable(other), "home volume": readable(other + "/volume"), "root": os.path.exists("/root/.bashrc"),
    "interfaces": sorted(name for _, name in __import__("socket").if_nameindex()),
}), flush=True)
import time; time.sleep(9999)
"""
)


def test_a_guest_is_a_user_that_sees_only_its_own(sites: tuple[Caller, Caller]) -> None:
    _, cloud = sites
    disk = make_disk(cloud, "d", size=MiB)
    machine = make_machine(cloud, "m", (MachineDisk(disk.id),), LOOK).id
    cloud("power_on", "p", machine=machine)
    seen = json.loads(await_console(cloud, f"machine:{machine}", "}"))
    node = Path(seen.pop("disk"))
    assert node.is_block_device()
    assert node.stat().st_uid == CLOUD_UID
    assert seen == {
        "uid": CLOUD_UID,
        "gid": CLOUD_UID,
        "groups": [],
        "metadata": True,
        "write metadata": False,
        "site": False,
        "ledger": False,
        "home": False,
        "home volume": False,
        "root": False,
        "interfaces": ["lan0", "lo", "up0"],
    }
    for folder in ("home", "cloud"):
        assert (cloud.provider.world.folder.parent / folder).stat().st_mode & 0o007 == 0
    cloud("power_off", "p2", machine=machine)
    assert node.stat().st_uid == 0


def test_layers_are_reflinks_and_commit_under_a_running_guest(cloud: Caller) -> None:
    disk = make_disk(cloud, "d", size=16 * MiB)
    base = cloud("attach_disk", "given", disk=disk.id, holder="master-target:x")["path"]
    with Path(base).open("r+b") as replica:
        replica.write(b"replica" + bytes(505))
        replica.flush()
        os.fsync(replica.fileno())
    assert cloud("layer_plan", disk=disk.id) == {
        "disk": disk.id, "kind": "reflink", "copy_bytes": 0, "predicted_s": 0.0, "measured": True,
    }  # fmt: skip
    layer = cloud("layer_create", "l", disk=disk.id)
    assert layer["layer_kind"] == "reflink"
    stamp = python_guest(
        """
import json, os, time
fd = os.open(json.loads(os.environ["BACKHAUL_DISKS"])[0]["path"], os.O_RDWR | os.O_SYNC)
print(os.pread(fd, 7, 0))
n = 0
while True:
    n += 1; os.pwrite(fd, b"%08d" % n, 4096); print("wrote", n); time.sleep(0.002)
"""
    )
    machine = make_machine(cloud, "m", (MachineDisk(layer["id"]),), stamp).id
    cloud("power_on", "p", machine=machine)
    assert "b'replica'" in await_console(cloud, f"machine:{machine}", "wrote 2\n")
    with Path(base).open("rb") as replica:
        assert replica.read(8192)[4096:] == bytes(4096), "the replica below is untouched"
    cloud("detach_disk", "x", disk=disk.id)
    assert cloud("layer_commit", "c", layer=layer["id"])["id"] == disk.id
    assert power(cloud, machine) is PowerState.RUNNING
    written = len(cloud("console", holder=f"machine:{machine}").splitlines())
    await_console(cloud, f"machine:{machine}", f"wrote {written + 3}\n")
    cloud("power_off", "p2", machine=machine)
    image = cloud.provider.world.volume / "disks" / f"{layer['id']}.img"
    content = image.read_bytes()
    assert content[:7] == b"replica"
    assert int(content[4096:4104]) >= written + 3


WRITER = python_guest(
    """
import json, os
folder = json.loads(os.environ["BACKHAUL_DISKS"])[0]["mount"]
fd = os.open(folder + "/data", os.O_RDWR | os.O_CREAT)
n = 0
while True:
    n += 1
    os.pwrite(fd, b"%08d" % n * 512, (n % 64) * 4096)
    if n % 8 == 0: os.fsync(fd)
    if n == 64: print("busy", folder)
"""
)


def freeze(folder: str) -> None:
    """Freeze the file system, as the freezer does."""
    descriptor = os.open(folder, os.O_RDONLY)
    fcntl.ioctl(descriptor, _FIFREEZE, 0)
    os.close(descriptor)


def digest(image: Path) -> str:
    """Hash of the whole image."""
    return hashlib.sha256(image.read_bytes()).hexdigest()


def mounted_writer(cloud: Caller) -> tuple[str, Path, str]:
    """A machine whose guest writes without pause to a mounted ext4: its id, image and mount folder."""
    disk = make_disk(cloud, "d", size=16 * MiB, file_system="ext4")
    machine = make_machine(cloud, "m", (MachineDisk(disk.id, "data"),), WRITER).id
    cloud("power_on", "p", machine=machine)
    folder = await_console(cloud, f"machine:{machine}", "busy").split()[1]
    assert os.path.ismount(folder)
    return machine, cloud.provider.world.volume / "disks" / f"{disk.id}.img", folder


def test_pulling_the_plug_of_a_frozen_disk_changes_no_byte(cloud: Caller) -> None:
    machine, image, folder = mounted_writer(cloud)
    freeze(folder)
    before = digest(image)
    assert cloud("power_off", "off", machine=machine)["power"] == "off"
    assert digest(image) == before
    assert not os.path.ismount(folder)
    assert output("losetup", "--list", "--noheadings", "--associated", str(image)) == ""
    cloud("power_on", "p2", machine=machine)
    await_console(cloud, f"machine:{machine}", "busy")


def test_who_is_about_to_freeze_a_disk_lets_go_before_it_is_unmounted(
    cloud: Caller, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine, _, folder = mounted_writer(cloud)
    agent = os.open(folder, os.O_RDONLY)
    refused: list[str] = []
    unmount = tools.run

    def run(*command: str) -> str:
        try:
            return unmount(*command)
        except HostToolFailed as error:
            refused.append(error.message)
            if len(refused) == 1:
                os.close(agent)
            raise

    monkeypatch.setattr(mounts, "run", run)
    assert cloud("power_off", "off", machine=machine)["power"] == "off"
    assert not os.path.ismount(folder)
    assert len(refused) == 1
    assert "busy" in refused[0]


def test_a_disk_that_is_handed_out_again_stays_where_it_is_when_its_reader_ends(cloud: Caller) -> None:
    disk = make_disk(cloud, "d", size=16 * MiB)
    image = cloud.provider.world.volume / "disks" / f"{disk.id}.img"
    first = cloud("attach_disk", "given", disk=disk.id, holder="master-target:x")["path"]
    reader = os.open(first, os.O_RDONLY)
    cloud("detach_disk", "taken-back", disk=disk.id)
    second = cloud("attach_disk", "given-again", disk=disk.id, holder="master-target:x")["path"]
    os.close(reader)
    standing = output("losetup", "--list", "--noheadings", "--output", "NAME", "--associated", str(image))
    assert standing.split() == [second]


def test_unmounting_a_frozen_disk_in_order_would_write(cloud: Caller) -> None:
    """The control of the test above: without the shutdown the bytes do change, so its hash can tell."""
    machine, image, folder = mounted_writer(cloud)
    freeze(folder)
    before = digest(image)
    processes = cloud.provider.world
    run = (processes.private / "run" / f"machine-{machine}.run").read_text()
    os.kill(json.loads(run)["pid"], signal.SIGKILL)
    descriptor = os.open(folder, os.O_RDONLY)
    fcntl.ioctl(descriptor, _FITHAW, 0)
    os.close(descriptor)
    cloud("power_off", "off", machine=machine)
    assert digest(image) != before


def test_a_disk_whose_plug_was_pulled_is_whole(cloud: Caller) -> None:
    machine, image, _ = mounted_writer(cloud)
    cloud("power_off", "off", machine=machine)
    copy = image.with_suffix(".check")
    shutil.copyfile(image, copy)
    output("e2fsck", "-y", "-E", "journal_only", str(copy))
    output("e2fsck", "-fn", str(copy))
    copy.unlink()


def test_a_servers_disks_are_mounted_and_full_is_enospc(cloud: Caller) -> None:
    fill = python_guest(
        """
import os, errno
for place in ("BACKHAUL_SPOOL", "BACKHAUL_DATA"):
    size = 0
    try:
        with open(os.environ[place] + "/fill", "wb", 0) as f:
            while True: size += f.write(bytes(65536))
    except OSError as e:
        print(place, errno.errorcode[e.errno], size >= int(os.environ["BACKHAUL_SPOOL_BYTES"]) // 2 or size > 1 << 20)
print("done", flush=True)
import time; time.sleep(9999)
"""
    )
    server = cloud("create_server", "t", request=server_request(command=fill))
    console = await_console(cloud, "server:ps1", "done")
    assert console.split()[:6] == ["BACKHAUL_SPOOL", "ENOSPC", "True", "BACKHAUL_DATA", "ENOSPC", "True"]
    folder = cloud.provider.world.volume / "accounts" / "acc" / "servers" / server["id"]
    assert os.path.ismount(folder / "spool")
    room = os.statvfs(folder / "spool")
    # ext4 keeps 2 % for itself; mkfs would keep 5 % more for root, which the server could never use.
    assert room.f_bfree - room.f_bavail < room.f_blocks * 0.04
    assert cloud("stop_server", "t2", server="ps1")["power"] == "off"
    assert not os.path.ismount(folder / "spool")
    cloud("start_server", "t3", server="ps1")
    cloud("delete_server", "t4", server="ps1")
    assert not folder.exists()


def test_a_servers_address_is_put_on_its_network_and_taken_off(cloud: Caller) -> None:
    space = f"bh-{FABRIC}-{CLOUD_NET}"
    request = server_request(address="10.78.1.20", command=SLEEPER)
    output("ip", "-n", space, "addr", "add", "10.78.1.20/32", "dev", "lan0")
    with pytest.raises(AddressTaken):
        cloud("create_server", "t", request=request)
    assert cloud("servers") == []
    assert "10.78.1.20" in output("ip", "-n", space, "addr"), "what is not the site's stays"
    output("ip", "-n", space, "addr", "del", "10.78.1.20/32", "dev", "lan0")
    cloud("create_server", "t", request=request)
    assert "10.78.1.20" in output("ip", "-n", space, "addr")
    cloud("delete_server", "t2", server="ps1")
    assert "10.78.1.20" not in output("ip", "-n", space, "addr")


def test_guests_and_mounts_outlive_the_provider(tmp_path: Path) -> None:
    remember_session(tmp_path)
    with pair(tmp_path) as (_, cloud):
        machine, _, folder = mounted_writer(cloud)
        cloud.provider.close()
        cloud.provider = open_provider(tmp_path / "cloud", root_definition(SiteKind.CLOUD))
        assert power(cloud, machine) is PowerState.RUNNING
        assert os.path.ismount(folder)
        cloud("power_off", "off", machine=machine)
        assert not os.path.ismount(folder)
