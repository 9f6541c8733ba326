"""Machines, disks and layers of a site, as the lifecycle's steps change them.

Invariant: what is there already is not made again, also when the record of it was lost by a kill: layers are found by
their base, machines by their id. Raises the errors of sites. Called from the jobs' threads.
"""

from __future__ import annotations

from typing import Final

from backhaul.configuration_server.lifecycle.errors import DisksUnequal, StartNotConfirmed
from backhaul.configuration_server.lifecycle.ports import Ports
from backhaul.configuration_server.lifecycle.values import Ids, Item, Place
from backhaul.sites.contract import PowerOff, Site
from backhaul.sites.errors import PowerNotConfirmed
from backhaul.sites.values import DiskRequest, Machine, MachineDisk, MachineRequest, PowerState

STARTS: Final = ("on", "on-again", "on-once-more")
"""Tokens of one step: so many power cuts it outlives; a machine that ends by itself is not started for ever."""


class Host:
    """An item's place on its site, in one step of a job."""

    def __init__(self, ports: Ports, ids: Ids, step: str, place: Place) -> None:
        self._ids, self._step, self._place = ids, step, place
        self._site: Site = ports.sites.site(place.site)

    def _token(self, what: str) -> str:
        return self._ids.token(f"{self._step}/{what}")

    # --- power --------------------------------------------------------------------------------------------------

    def find(self) -> Machine | None:
        """The machine; None when it is not defined."""
        return next((machine for machine in self._site.machines() if machine.id == self._place.machine), None)

    def power(self) -> PowerState:
        """Read back from the site; a machine that is not defined is off."""
        return PowerState.OFF if self.find() is None else self._site.power_state(self._place.machine)

    def off(self) -> None:
        """Power off, hard, and read that back. Raises PowerNotConfirmed."""
        if self.power() is PowerState.OFF:
            return
        self._site.power_off(self._place.machine, PowerOff.HARD, token=self._token("off"))
        if self.power() is not PowerState.OFF:
            raise PowerNotConfirmed(machine=self._place.machine, reason="it runs again")

    def on(self, item: Item) -> None:
        """Power on and read that back: a step that is repeated may find that its site has lost power since, and then
        its own token starts nothing any more. Raises StartNotConfirmed.
        """
        for token in STARTS:
            if self.power() is PowerState.OFF:
                self._site.power_on(self._place.machine, token=self._token(token))
        state = self.power()
        if state is not PowerState.RUNNING:
            raise StartNotConfirmed(item=item.name, machine=self._place.machine, power=state)

    # --- definition ---------------------------------------------------------------------------------------------

    def define(self, disks: tuple[str, ...]) -> None:
        """Have the machine defined on these disks, whatever it was defined on before. It is off."""
        place, found = self._place, self.find()
        mounts = place.mounts or ("",) * len(disks)
        wanted = tuple(MachineDisk(disk, mount) for disk, mount in zip(disks, mounts, strict=True))
        if found is not None and found.disks == wanted:
            return self._own(disks)
        if found is not None:
            self._site.delete_machine(place.machine, token=self._token("undefine"))
        request = MachineRequest(
            name=place.name,
            subscription=place.subscription,
            network=place.network,
            subnet=place.subnet,
            command=place.command,
            disks=wanted,
            address=place.address,
            machine_id=place.machine,
            tags=place.tags,
        )
        self._site.create_machine(request, token=self._token("define"))
        return None

    def _own(self, disks: tuple[str, ...]) -> None:
        """Its disks may have been lent to a master target meanwhile."""
        for index, disk in enumerate(disks):
            self._attach(disk, self._place.holder, index)

    def undefine(self) -> None:
        """Forget the machine; its disks stay. It is off."""
        if self._place.machine and self.find() is not None:
            self._site.delete_machine(self._place.machine, token=self._token("undefine"))

    # --- layers -------------------------------------------------------------------------------------------------

    def make_layers(self) -> tuple[str, ...]:
        """One writable layer over each disk."""
        made = {disk.base: disk.id for disk in self._site.disks() if disk.base}
        return tuple(
            made[disk] if disk in made else self._site.layer_create(disk, token=self._token(f"layer-{index}")).id
            for index, disk in enumerate(self._place.disks)
        )

    def drop_layers(self) -> None:
        """Every layer over the disks, recorded or not."""
        for index, base in enumerate(self._place.disks):
            for disk in self._site.disks():
                if disk.base == base:
                    self._site.layer_drop(disk.id, token=self._token(f"drop-{index}-{disk.id}"))

    def merge_layers(self) -> None:
        """The layers become the disks, without stopping the guest."""
        standing = {disk.id for disk in self._site.disks() if disk.base}
        for index, layer in enumerate(self._place.layers):
            if layer in standing:
                self._site.layer_commit(layer, token=self._token(f"merge-{index}"))

    # --- disks --------------------------------------------------------------------------------------------------

    def make_disks(self, item: Item) -> tuple[str, ...]:
        """The side's disks for a replica: the old ones, or new ones of the source's sizes."""
        place = self._place
        if place.disks:
            if len(place.disks) != len(item.disks):
                raise DisksUnequal(item=item.name, expected=len(item.disks), side=place.site, found=len(place.disks))
            return place.disks
        return tuple(
            self._site.create_disk(
                DiskRequest(f"{place.name}-{disk.index}", place.subscription, disk.size, place.account),
                token=self._token(f"disk-{disk.index}"),
            ).id
            for disk in item.disks
        )

    def lend(self) -> tuple[str, ...]:
        """Hand the disks to the side's master target; the paths under which it opens them. The machine is off."""
        return self._give(self._place.target_holder, self._place.disks)

    def take_back(self) -> None:
        """Take the disks from the side's master target, which has let go of them."""
        for index, disk in enumerate(self._place.disks):
            if self._holder(disk) == self._place.target_holder:
                self._site.detach_disk(disk, token=self._token(f"detach-{index}"))

    def delete_disks(self, disks: tuple[str, ...]) -> None:
        """Remove disks for good; those that are gone are no error. Nobody holds them."""
        standing = {disk.id for disk in self._site.disks()}
        for index, disk in enumerate(disks):
            if disk in standing:
                self._site.delete_disk(disk, token=self._token(f"delete-{index}"))

    def paths(self) -> tuple[str, ...]:
        """Where the machine's own disks are found."""
        return self._give(self._place.holder, self._place.own_disks)

    def _give(self, holder: str, disks: tuple[str, ...]) -> tuple[str, ...]:
        paths = []
        for index, disk in enumerate(disks):
            if self._holder(disk) not in ("", holder):
                self._site.detach_disk(disk, token=self._token(f"detach-{index}"))
            paths.append(self._attach(disk, holder, index))
        return tuple(paths)

    def _attach(self, disk: str, holder: str, index: int) -> str:
        return self._site.attach_disk(disk, holder, token=self._token(f"attach-{index}")).path

    def _holder(self, disk: str) -> str:
        return next((known.holder for known in self._site.disks() if known.id == disk), "")
