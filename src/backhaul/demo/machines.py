"""The demo's machines as the operator handles them: made at home, switched on, their agents told where they are.

Invariant: every call may be repeated; tokens of site calls follow from the machine's name. Called by stages.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Final

import msgspec

from backhaul.demo.kept import ENROL, ask_to_enrol
from backhaul.demo.operator import Operator, await_that
from backhaul.demo.plan import DISK_BYTES, HOME, MACHINES, SUBNET, SUBSCRIPTION, MachinePlan
from backhaul.demo.service import MACHINE, REGISTRATION, MachineWord
from backhaul.replication.errors import UNDECODABLE
from backhaul.replication.ports import RealFiles
from backhaul.sites.values import DiskRequest, Machine, MachineDisk, MachineRequest, PowerState

GUEST_COMMAND: Final = (sys.executable, "-u", "-m", "backhaul.demo.guest")
MOUNTS: Final = ("disk0", "disk1")
_CONTROL: Final = f"{sys.executable} -m backhaul.demo.writers.control guest/writer.sock"


def make_at_home(operator: Operator, plan: MachinePlan) -> Machine:
    """The machine with its disks, defined at home; empty disks, which its guest installs at the first boot."""
    site = operator.site(HOME)
    as_root = operator.plan.as_root
    disks = tuple(
        site.create_disk(
            DiskRequest(f"{plan.name}-{index}", SUBSCRIPTION, size, file_system="ext4" if as_root else ""),
            token=f"demo/{plan.name}/disk-{index}",
        ).id
        for index, size in enumerate(DISK_BYTES)
    )
    request = MachineRequest(
        name=plan.name,
        subscription=SUBSCRIPTION,
        network=MACHINES,
        subnet=SUBNET,
        command=GUEST_COMMAND,
        disks=tuple(MachineDisk(disk, MOUNTS[index] if as_root else "") for index, disk in enumerate(disks)),
        machine_id=plan.id,
    )
    return site.create_machine(request, token=f"demo/{plan.name}/machine")


def find(operator: Operator, side: str, name: str) -> Machine | None:
    """The machine of this name on a side; None if there is none."""
    return next((machine for machine in operator.site(side).machines() if machine.name == name), None)


def switch_on(operator: Operator, side: str, machine: Machine, occasion: str) -> None:
    """Power on, and wait until its writers write. `occasion` tells one switching on from another."""
    site = operator.site(side)
    if site.power_state(machine.id) is PowerState.OFF:
        site.power_on(machine.id, token=f"demo/{machine.name}/on/{occasion}")
    await_writing(operator, side, machine)


def await_writing(operator: Operator, side: str, machine: Machine) -> None:
    """Its guest has read the disks and writes."""
    await_that(
        lambda: "writing as incarnation" in operator.site(side).console(f"machine:{machine.id}"),
        f"The boot of {machine.name} ({side})",
    )


def place_agent(operator: Operator, side: str, plan: MachinePlan, machine: Machine) -> None:
    """Tell the machine's agent on this side which machine it stands beside and where its disks are now."""
    site = operator.site(side)
    paths = tuple(
        site.attach_disk(part.disk, f"machine:{machine.id}", token=f"demo/{os.urandom(8).hex()}").path
        for part in machine.disks
    )
    folder = operator.service_folder(side, plan.agent)
    guest = os.path.relpath(operator.machine_folder(side, machine.id), folder)  # short: it becomes a socket's path
    word = MachineWord(machine.id, paths, guest)
    if _read(folder / MACHINE) == word:
        return
    RealFiles().replace(folder / MACHINE, msgspec.json.encode(word))
    uid = operator.plan.uid(side)
    if uid is not None:
        os.chown(folder / MACHINE, uid, uid)


def enrol_agent(operator: Operator, side: str, plan: MachinePlan, passphrase: str) -> None:
    """Register the machine's agent of this side; one that is registered stays so."""
    arguments = ["agent", "register", "--name", agent_name(side, plan), "--metadata-file", str(MACHINE)]
    for index in range(len(DISK_BYTES)):
        arguments += ["--disk", f"{plan.name}-{index}=disk{index}"]
    if operator.plan.as_root:
        arguments += ["--freeze"]
    else:
        arguments += ["--quiesce", f"{_CONTROL} quiesce", "--resume", f"{_CONTROL} resume"]
    enrol(operator, side, plan.agent, arguments, passphrase)


def agent_name(side: str, plan: MachinePlan) -> str:
    """Under which name the configuration server knows it."""
    return plan.name if side == HOME else f"{plan.name}-{side}"


def enrol(operator: Operator, side: str, service: str, arguments: list[str], passphrase: str) -> None:
    """Have a service register itself, once, with the passphrase in a file that only it reads."""
    folder = operator.service_folder(side, service)
    await_that(folder.exists, f"The folder of service {service} ({side})")
    if (folder / REGISTRATION).exists() or (folder / ENROL).exists():
        return
    whole = [*arguments, "--configuration-server", operator.plan.configuration_server]
    whole += ["--passphrase-file", str(ENROL / "passphrase"), "--data-dir", str(REGISTRATION.parent)]
    ask_to_enrol(folder, whole, {"passphrase": passphrase}, operator.plan.uid(side))


def _read(path: Path) -> MachineWord | None:
    try:
        return msgspec.json.decode(path.read_bytes(), type=MachineWord)
    except (FileNotFoundError, *UNDECODABLE):
        return None
