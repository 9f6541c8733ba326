"""A site as a value: disks with a word as their content, machines with power, tokens enforced, effects counted.

Stricter than the contract asks: a token that comes again with other arguments fails the test, and what a real site
refuses (a disk in two hands, dropping what is attached) is refused here.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import msgspec

from backhaul.sites.errors import InUse, PowerNotConfirmed, SiteNotFound, SiteUnreachable
from backhaul.sites.values import (
    Account,
    Attachment,
    Disk,
    DiskRequest,
    LayerPlan,
    Machine,
    MachineRequest,
    PowerState,
    Principal,
    SiteRole,
)

Apply = Callable[[], None]
Effect = Callable[[str, Apply], None]


@dataclass
class FakeDisk:
    """A disk; `content` stands for all of its bytes."""

    shown: Disk
    content: str


class FakeSite:
    """See the module. Only what the lifecycle uses is there: anything else fails as an attribute that is missing."""

    def __init__(self, name: str, effect: Effect) -> None:
        self.name, self._effect = name, effect
        self.held: dict[str, FakeDisk] = {}
        self.defined: dict[str, tuple[Machine, MachineRequest]] = {}
        self.answers: dict[str, tuple[Any, Any]] = {}
        self.starts: list[str] = []
        self.stubborn: set[str] = set()
        """Machines that do not go off."""
        self.silent = False
        self.role = SiteRole.OWNER
        self.frozen: set[str] = set()
        """Machines whose file systems are: their guests wait with what they would write."""
        self.storage: tuple[Account, ...] = ()
        self.copied = 0
        """Bytes of a layer that is made by copying; 0: layers are reflinks."""

    def _reach(self) -> None:
        if self.silent:
            raise SiteUnreachable(address=self.name, reason="it is cut off")

    def _once(self, token: str, arguments: Any, act: Callable[[Callable[[Any], None]], Any]) -> Any:
        self._reach()
        assert 0 < len(token) <= 200
        if token in self.answers:
            assert self.answers[token][0] == arguments, f"token {token} came with other arguments"
            return self.answers[token][1]

        def finish(answer: Any) -> None:
            self.answers[token] = (arguments, answer)

        act(finish)
        return self.answers[token][1]

    # --- reading --------------------------------------------------------------------------------------------------

    def whoami(self) -> Principal:
        self._reach()
        return Principal("backhaul", {"prod": self.role})

    def disks(self) -> tuple[Disk, ...]:
        self._reach()
        return tuple(disk.shown for disk in self.held.values())

    def machines(self) -> tuple[Machine, ...]:
        self._reach()
        return tuple(machine for machine, _ in self.defined.values())

    def accounts(self) -> tuple[Account, ...]:
        self._reach()
        return self.storage

    def layer_plan(self, disk: str) -> LayerPlan:
        self._reach()
        return LayerPlan(disk, "copy" if self.copied else "reflink", self.copied, 0.0, measured=True)

    def power_state(self, machine: str) -> PowerState:
        self._reach()
        if machine not in self.defined:
            raise SiteNotFound(what="machine", name=machine)
        return self.defined[machine][0].power

    # --- disks ----------------------------------------------------------------------------------------------------

    def create_disk(self, request: DiskRequest, *, token: str) -> Disk:
        made = Disk(f"{self.name}-{request.name}-{token}", request.name, request.subscription, request.size)

        def act(finish: Callable[[Any], None]) -> None:
            def apply() -> None:
                self.held[made.id] = FakeDisk(made, "")
                finish(made)

            self._effect(f"{self.name} create_disk {request.name}", apply)

        answer: Disk = self._once(token, request, act)
        return answer

    def delete_disk(self, disk: str, *, token: str) -> None:
        def act(finish: Callable[[Any], None]) -> None:
            if self.held[disk].shown.holder:
                raise InUse(what=disk, reason=f"{self.held[disk].shown.holder} has it attached")

            def apply() -> None:
                del self.held[disk]
                finish(None)

            self._effect(f"{self.name} delete_disk {disk}", apply)

        self._once(token, disk, act)

    def attach_disk(self, disk: str, holder: str, *, token: str) -> Attachment:
        answer = Attachment(disk, holder, f"{self.name}:{disk}", self.held[disk].shown.size)

        def act(finish: Callable[[Any], None]) -> None:
            had = self.held[disk].shown.holder
            if had not in ("", holder):
                raise InUse(what=disk, reason=f"{had} has it")
            if had == holder:
                finish(answer)
                return

            def apply() -> None:
                self._hold(disk, holder)
                finish(answer)

            self._effect(f"{self.name} attach {disk} to {holder}", apply)

        self._once(token, (disk, holder), act)
        if self.held[disk].shown.holder != holder:
            raise InUse(what=disk, reason="somebody else has it by now")
        return answer

    def detach_disk(self, disk: str, *, token: str) -> None:
        def act(finish: Callable[[Any], None]) -> None:
            holder = self.held[disk].shown.holder
            if holder.startswith("machine:") and self.power_state(holder[8:]) is not PowerState.OFF:
                raise InUse(what=disk, reason="the machine runs")

            def apply() -> None:
                self._hold(disk, "")
                finish(None)

            if holder:
                self._effect(f"{self.name} detach {disk}", apply)
            else:
                finish(None)

        self._once(token, disk, act)

    def _hold(self, disk: str, holder: str) -> None:
        known = self.held[disk]
        self.held[disk] = FakeDisk(_with(known.shown, holder=holder), known.content)

    # --- layers ---------------------------------------------------------------------------------------------------

    def layer_create(self, disk: str, *, token: str) -> Disk:
        layer = Disk(f"layer-{token}", "layer", "prod", self.held[disk].shown.size, base=disk)

        def act(finish: Callable[[Any], None]) -> None:
            def apply() -> None:
                self.held[layer.id] = FakeDisk(layer, self.held[disk].content)
                finish(layer)

            self._effect(f"{self.name} layer over {disk}", apply)

        answer: Disk = self._once(token, disk, act)
        return answer

    def layer_drop(self, layer: str, *, token: str) -> None:
        def act(finish: Callable[[Any], None]) -> None:
            if layer in self.held and self.held[layer].shown.holder:
                raise InUse(what=layer, reason="it is attached")

            def apply() -> None:
                del self.held[layer]
                finish(None)

            if layer in self.held:
                self._effect(f"{self.name} drop {layer}", apply)
            else:
                finish(None)

        self._once(token, layer, act)

    def layer_commit(self, layer: str, *, token: str) -> Disk:
        def act(finish: Callable[[Any], None]) -> None:
            base = self.held[layer].shown.base
            if self.held[base].shown.holder:
                raise InUse(what=base, reason=f"{self.held[base].shown.holder} has it attached")

            def apply() -> None:
                taken = self.held.pop(layer)
                old = self.held[base].shown
                self.held[base] = FakeDisk(_with(old, holder=taken.shown.holder), taken.content)
                for key, (machine, request) in self.defined.items():
                    disks = tuple(_with(d, disk=base) if d.disk == layer else d for d in machine.disks)
                    self.defined[key] = (_with(machine, disks=disks), request)
                finish(self.held[base].shown)

            self._effect(f"{self.name} merge {layer}", apply)

        answer: Disk = self._once(token, layer, act)
        return answer

    # --- machines -------------------------------------------------------------------------------------------------

    def create_machine(self, request: MachineRequest, *, token: str) -> Machine:
        key = request.machine_id
        made = Machine(
            key, request.name, request.subscription, request.network, request.subnet, request.address or "10.0.0.9",
            request.disks, request.tags, PowerState.OFF,
        )  # fmt: skip

        def act(finish: Callable[[Any], None]) -> None:
            assert key not in self.defined, "defined twice"
            for disk in request.disks:
                if self.held[disk.disk].shown.holder:
                    raise InUse(what=disk.disk, reason=f"{self.held[disk.disk].shown.holder} has it attached")

            def apply() -> None:
                self.defined[key] = (made, request)
                for disk in request.disks:
                    self._hold(disk.disk, f"machine:{key}")
                finish(made)

            self._effect(f"{self.name} define {request.name}", apply)

        answer: Machine = self._once(token, request, act)
        return answer

    def delete_machine(self, machine: str, *, token: str) -> None:
        def act(finish: Callable[[Any], None]) -> None:
            if self.power_state(machine) is not PowerState.OFF:
                raise InUse(what=machine, reason="it runs")

            def apply() -> None:
                del self.defined[machine]
                for key, disk in self.held.items():
                    if disk.shown.holder == f"machine:{machine}":
                        self._hold(key, "")
                finish(None)

            self._effect(f"{self.name} undefine {machine}", apply)

        self._once(token, machine, act)

    def power_on(self, machine: str, *, token: str) -> Machine:
        def act(finish: Callable[[Any], None]) -> None:
            shown, _ = self.defined[machine]
            for disk in shown.disks:
                assert self.held[disk.disk].shown.holder == f"machine:{machine}", "started on a disk of somebody else"
            self._power(machine, PowerState.RUNNING, finish)

        answer: Machine = self._once(token, machine, act)
        return answer

    def power_off(self, machine: str, how: str = "hard", grace_s: float = 30.0, *, token: str) -> Machine:
        def act(finish: Callable[[Any], None]) -> None:
            if machine in self.stubborn:
                raise PowerNotConfirmed(machine=machine, reason="it does not end")
            self._power(machine, PowerState.OFF, finish)

        answer: Machine = self._once(token, machine, act)
        return answer

    def _power(self, machine: str, state: PowerState, finish: Callable[[Any], None]) -> None:
        shown, request = self.defined[machine]

        def apply() -> None:
            self.defined[machine] = (_with(shown, power=state), request)
            self.frozen.discard(machine)
            if state is PowerState.RUNNING:
                self.starts.append(machine)
            finish(self.defined[machine][0])

        if shown.power is state:
            finish(shown)
        else:
            self._effect(f"{self.name} power {state} {machine}", apply)

    # --- what tests do ------------------------------------------------------------------------------------------

    def running(self) -> list[str]:
        """Machines that run."""
        return [key for key, (machine, _) in self.defined.items() if machine.power is PowerState.RUNNING]

    def rename(self, machine: str, name: str) -> None:
        """The machine has another id from now on."""
        shown, request = self.defined.pop(machine)
        self.defined[name] = (_with(shown, id=name), _with(request, machine_id=name))
        for disk in shown.disks:
            self._hold(disk.disk, f"machine:{name}")

    def hang(self, machine: str) -> None:
        """It has power and does nothing any more."""
        shown, request = self.defined[machine]
        self.defined[machine] = (_with(shown, power=PowerState.HUNG), request)

    def reshape(self, disk: str, **changes: Any) -> None:
        """The disk is another one from now on: size, account."""
        self.held[disk] = FakeDisk(_with(self.held[disk].shown, **changes), self.held[disk].content)

    def write(self, word: str) -> None:
        """Every running guest that is not frozen writes to each of its disks."""
        for key in set(self.running()) - self.frozen:
            for part in self.defined[key][0].disks:
                disk = self.held[part.disk]
                self.held[part.disk] = replace(disk, content=f"{disk.content} {word}".strip())


def _with(value: Any, **changes: Any) -> Any:
    return msgspec.structs.replace(value, **changes)
