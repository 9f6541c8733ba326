"""A provider killed at any step: the same call, repeated to a new one, completes with exactly one effect.

`step` is called before and after each act in the world and stands for the instruction at which the kill comes; what
is durable then is what SQLite and the files hold. One test kills a real process with SIGKILL instead.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from backhaul.replication.units import KiB
from backhaul.sites.errors import SiteFolderTaken
from backhaul.sites.values import DiskRequest, MachineDisk
from sites.site_world import OWNER, Caller, make_disk, make_machine, open_provider, server_request

Act = tuple[str, dict[str, Any]]
Prepare = Callable[[Caller], Act]


class Killed(BaseException):
    """The provider's process is gone: no `except Exception` of it runs any more."""


class Kill:
    """Kills at the `at`-th step and counts them."""

    def __init__(self, at: int) -> None:
        self.at = at
        self.count = 0
        self.armed = False

    def __call__(self, step: str) -> None:
        if self.armed:
            self.count += 1
            if self.count == self.at:
                raise Killed(step)


def create_server(site: Caller) -> Act:
    return "create_server", {"request": server_request()}


def delete_server(site: Caller) -> Act:
    site("create_server", "before", request=server_request())
    return "delete_server", {"server": "ps1"}


def stop_server(site: Caller) -> Act:
    site("create_server", "before", request=server_request())
    return "stop_server", {"server": "ps1"}


def start_server(site: Caller) -> Act:
    site("create_server", "before", request=server_request())
    site("stop_server", "before 2", server="ps1")
    return "start_server", {"server": "ps1"}


def create_disk(site: Caller) -> Act:
    return "create_disk", {"request": DiskRequest("d", "prod", 64 * KiB, account="acc")}


def delete_disk(site: Caller) -> Act:
    return "delete_disk", {"disk": make_disk(site, "before").id}


def grow_disk(site: Caller) -> Act:
    return "grow_disk", {"disk": make_disk(site, "before").id, "size": 512 * KiB}


def attach_disk(site: Caller) -> Act:
    return "attach_disk", {"disk": make_disk(site, "before").id, "holder": "master-target:x"}


def layer_create(site: Caller) -> Act:
    return "layer_create", {"disk": make_disk(site, "before").id}


def layer_commit(site: Caller) -> Act:
    layer = site("layer_create", "before 2", disk=make_disk(site, "before").id)
    return "layer_commit", {"layer": layer["id"]}


def machine(site: Caller) -> str:
    return make_machine(site, "machine", (MachineDisk(make_disk(site, "before").id),)).id


def power_on(site: Caller) -> Act:
    return "power_on", {"machine": machine(site)}


def power_off(site: Caller) -> Act:
    name = machine(site)
    site("power_on", "on", machine=name)
    return "power_off", {"machine": name}


def set_tags(site: Caller) -> Act:
    return "set_tags", {"machine": machine(site), "tags": {"a": "b"}}


CASES: dict[str, tuple[Prepare, int]] = {
    # how many steps each operation has at least: the matrix would shrink unseen otherwise
    "create_server": (create_server, 7),
    "delete_server": (delete_server, 2),
    "stop_server": (stop_server, 1),
    "start_server": (start_server, 2),
    "create_disk": (create_disk, 3),
    "delete_disk": (delete_disk, 1),
    "grow_disk": (grow_disk, 1),
    "attach_disk": (attach_disk, 1),
    "layer_create": (layer_create, 3),
    "layer_commit": (layer_commit, 1),
    "power_on": (power_on, 2),
    "power_off": (power_off, 4),
    "set_tags": (set_tags, 1),
}


def picture(site: Caller) -> dict[str, Any]:
    """The whole site as its callers see it, images included."""
    names = ("servers", "machines", "disks", "accounts", "subscriptions")
    files = sorted((path.name, path.stat().st_size) for path in site.provider.world.volume.rglob("*.img*"))
    return {name: site(name) for name in names} | {"addresses": site("addresses", network="vnet"), "images": files}


def killed_at(folder: Path, prepare: Prepare, at: int) -> tuple[dict[str, Any], list[tuple[str, str]], bool]:
    """Kill at the step, repeat with a new provider; the site afterwards, its effects, and whether the kill came."""
    kill = Kill(at)
    first = Caller(open_provider(folder, step=kill))
    operation, arguments = prepare(first)
    kill.armed = True
    killed = False
    try:
        first(operation, "the call", **arguments)
    except Killed:
        killed = True
    first.provider.close()
    second = Caller(open_provider(folder))
    try:
        answer = second(operation, "the call", **arguments)
        assert second(operation, "the call", **arguments) == answer
        return picture(second), second.effects(), killed
    finally:
        second.provider.take_down()


@pytest.mark.parametrize("case", CASES)
def test_killed_at_each_step(tmp_path: Path, case: str) -> None:
    prepare, least = CASES[case]
    expected, effects, killed = killed_at(tmp_path / "0", prepare, 0)
    assert not killed
    assert [token for _, token in effects].count("the call") == 1
    at = 0
    while killed or at == 0:
        at += 1
        seen, log, killed = killed_at(tmp_path / str(at), prepare, at)
        assert seen == expected, f"killed at step {at}"
        assert log == effects, f"killed at step {at}"
    assert at > least, "each step was killed in"


def test_a_half_made_server_can_be_deleted(tmp_path: Path) -> None:
    kill = Kill(3)
    first = Caller(open_provider(tmp_path, step=kill))
    before = picture(first)
    kill.armed = True
    with pytest.raises(Killed):
        first("create_server", "t1", request=server_request())
    first.provider.close()
    second = Caller(open_provider(tmp_path))
    assert second("servers")[0]["state"] == "creating"
    second("delete_server", "t2", server="ps1")
    assert picture(second) == before
    second.provider.take_down()


def test_a_provider_killed_for_real_while_its_guest_starts(tmp_path: Path) -> None:
    """SIGKILL between the guest's start and the note of it: the next provider finds it and starts no other."""
    first = Caller(open_provider(tmp_path))
    name = machine(first)
    first.provider.close()
    child = os.fork()
    if child == 0:

        def suicide(step: str) -> None:
            if step == "after start":
                os.kill(os.getpid(), signal.SIGKILL)

        Caller(open_provider(tmp_path, step=suicide), OWNER)("power_on", "the call", machine=name)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status), "the fault happened"
    second = Caller(open_provider(tmp_path))
    run = (second.provider.world.private / "run" / f"machine-{name}.run").read_bytes()
    assert second("power_state", machine=name) == "running"
    second("power_on", "the call", machine=name)
    assert (second.provider.world.private / "run" / f"machine-{name}.run").read_bytes() == run
    assert second.effects().count(("power_on", "the call")) == 1
    second.provider.take_down()


def test_one_provider_for_a_folder(tmp_path: Path) -> None:
    first = open_provider(tmp_path)
    with pytest.raises(SiteFolderTaken):
        open_provider(tmp_path)
    first.close()
    open_provider(tmp_path).take_down()
