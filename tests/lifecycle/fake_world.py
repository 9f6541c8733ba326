"""All ports of the lifecycle over values, with a kill before or after any effect.

The data plane is a tick: every agent whose assignment its target accepts brings the replica to what its disks hold.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TypeVar

import msgspec

from backhaul.configuration_server.errors import AgentMute, ResourceUnknown, ServerRefused, ServerSilent
from backhaul.configuration_server.lifecycle.errors import WaitedTooLong
from backhaul.configuration_server.lifecycle.ports import AgentFacts, Ports
from backhaul.configuration_server.lifecycle.values import Ids, Item, Place, Wish
from backhaul.configuration_server.lifecycle.workflows import WORKFLOWS
from backhaul.recovery.item import Report, State
from backhaul.recovery.preflight_facts import Health, ServerFacts, Version
from backhaul.recovery.states import ItemState, Side, step
from backhaul.replication.control import (
    AgentMode,
    Answer,
    DiskAnswer,
    DiskPath,
    DiskQuestion,
    ItemAssignment,
    ItemStatus,
    Method,
    PointStatus,
    Question,
    QuestionKind,
    SourceDisk,
    StillImagePlan,
)
from backhaul.replication.units import MiB
from backhaul.replication.values import (
    CompletePoint,
    Consistency,
    DiskIdentity,
    Fence,
    Hash,
    ItemDescriptor,
    ItemId,
    ItemPolicy,
    StillKind,
)
from backhaul.sites.values import Disk, MachineDisk, MachineRequest, PowerState
from lifecycle.fake_site import FakeDisk, FakeSite

T = TypeVar("T")
ITEM = ItemId("0123456789abcdef0123456789abcdef")
SIZE = 20 * MiB
SECOND = 1_000_000_000


class Killed(BaseException):
    """The process is gone at this instruction."""


@dataclass
class Rep:
    """An item at a target. `states`: number and contents of each point; number 0 are the disks before the first."""

    descriptor: ItemDescriptor
    paths: tuple[str, ...]
    before: tuple[str, ...]
    promoted: bool = False
    final: bool = False
    doubted: bool = False
    started: tuple[str, ...] | None = None
    states: list[tuple[int, tuple[str, ...]]] = field(default_factory=list)
    pins: dict[str, int] = field(default_factory=dict)


class Clock:
    """One second passes with every look."""

    def __init__(self) -> None:
        self.now = 1_000 * SECOND

    def wall_ns(self) -> int:
        return self.now

    def monotonic_ns(self) -> int:
        return self.now


class World:
    """See the module."""

    def __init__(self) -> None:
        self.effects: list[str] = []
        self.kill_at: tuple[int, str] | None = None
        self.clock = Clock()
        self.home, self.cloud = FakeSite("home", self.effect), FakeSite("cloud", self.effect)
        self.reps: dict[tuple[str, str], Rep] = {}
        self.told: dict[str, tuple[str, ItemAssignment]] = {}
        self.agents: dict[str, AgentFacts] = {}
        self.relays: dict[str, tuple[ServerFacts, ...]] = {
            "home-net": (_server("ps-home", "home-net"),),
            "vnet": (_server("ps-cloud", "vnet"),),
        }
        self.mute = False
        """Agents cannot be asked for digests."""
        self.space_free = 1 << 40
        self.refusal = ""
        """The code that agents answer to every question."""
        self.rung = ""
        self.targets: dict[str, ServerFacts | None] = {}
        """What is known of master targets, where it is not what is usual."""
        self.gone: set[str] = set()
        """Targets that do not answer."""
        self.journal = (0, 0)
        """Bytes in each journal, and its limit; 0: none."""
        self.frozen: dict[str, int] = {}
        """Machines that their agents hold frozen, and for which generation."""
        self.thaws = 0
        """Final points from inside that thaw before they are held."""
        self.forgotten = False
        self.ports = Ports(self, self, self, self, self, self, self, self.clock)
        self.stored = self._first_item()

    def effect(self, name: str, apply: Callable[[], None]) -> None:
        """Something changes for good. A kill is placed before or after it."""
        number = len(self.effects) + 1
        if self.kill_at == (number, "before"):
            self.kill_at = None
            raise Killed(name)
        apply()
        self.effects.append(name)
        if self.kill_at == (number, "after"):
            self.kill_at = None
            raise Killed(name)

    def _first_item(self) -> Item:
        machine = "11111111-1111-1111-1111-111111111111"
        disks = tuple(f"hd{index}" for index in range(2))
        for disk in disks:
            self.home.held[disk] = FakeDisk(Disk(disk, disk, "prod", SIZE), f"{disk}:")
        request = MachineRequest(
            "web", "prod", "home-net", "default", ("guest",), tuple(MachineDisk(d) for d in disks), machine_id=machine
        )
        self.home.create_machine(request, token="setup")
        self.home.power_on(machine, token="setup-on")
        self.effects.clear()
        at_home = Place(
            site="home", subscription="prod", network="home-net", subnet="default", name="web", target="mt-home",
            agent="agent-home", machine=machine, command=("guest",), disks=disks,
        )  # fmt: skip
        in_cloud = Place(
            site="cloud", subscription="prod", network="vnet", subnet="default", name="web", target="mt-cloud",
            agent="agent-cloud", command=("guest",),
        )  # fmt: skip
        return Item(
            id=ITEM, name="web", state=ItemState(), term=1, term_key=Hash(bytes(32)),
            disks=tuple(DiskIdentity(index, disk, SIZE) for index, disk in enumerate(disks)),
            policy=ItemPolicy(), rpo_threshold_s=900.0, still=StillImagePlan(), home=at_home, cloud=in_cloud,
        )  # fmt: skip

    # --- Sites, Servers, Seals, Waiting ---------------------------------------------------------------------------

    def site(self, name: str) -> Any:
        return {"home": self.home, "cloud": self.cloud}[name]

    def homes(self) -> tuple[str, ...]:
        return ("home",)

    def process_servers(self, place: Place) -> tuple[ServerFacts, ...]:
        return self.relays.get(place.network, ())

    def master_target(self, target: str) -> ServerFacts | None:
        return self.targets.get(target, _server(target, ""))

    def addresses(self, server: str) -> tuple[str, ...]:
        return (f"{server}:9443",)

    def version(self) -> Version:
        return (1, 0, 0)

    def settle(self) -> None:
        """Everybody was heard."""

    def broken_rung(self, item: ItemId, process_server: str, target: str) -> str:
        return self.rung

    def descriptor(self, descriptor: ItemDescriptor) -> bytes:
        return msgspec.msgpack.encode(descriptor)

    def report(self, body: bytes) -> bytes:
        return b"signed:" + body

    def until(self, look: Callable[[], T | None], *, item: ItemId, what: str, limit_s: float) -> T:
        for _ in range(3):
            found = look()
            if found is not None:
                return found
            self.tick()
        raise WaitedTooLong(item=item, what=what, limit_s=limit_s)

    # --- Items ----------------------------------------------------------------------------------------------------

    def load(self, item: ItemId) -> Item:
        assert item == ITEM
        if self.forgotten:
            raise ResourceUnknown(kind="item", name=item)
        return self.stored

    def forget(self, item: ItemId) -> None:
        assert item == ITEM
        if not self.forgotten:
            self.effect("forget the item", lambda: setattr(self, "forgotten", True))

    def change(self, item: ItemId, token: str, make: Callable[[Item], Item]) -> Item:
        if token in self.stored.done:
            return self.stored
        made = make(self.stored)
        made = msgspec.structs.replace(made, done=(*made.done, token))

        def apply() -> None:
            self.stored = made

        self.effect(f"record {token}", apply)
        return self.stored

    # --- Agents ---------------------------------------------------------------------------------------------------

    def known(self, agent: str) -> AgentFacts:
        return self.agents.get(agent, AgentFacts(registered=True, answers=True, version=(1, 0, 0)))

    def assign(self, agent: str, machine: str, assignment: ItemAssignment) -> None:
        if self.told.get(agent) == (machine, assignment):
            return

        def apply() -> None:
            self.told[agent] = (machine, assignment)

        self.effect(f"assign {agent} {assignment.mode} {assignment.generation}", apply)

    def holds(self, item: ItemId, generation: int, since_ns: int) -> bool | None:
        assert self.reps[self.stored.passive.target, item].final
        return self.frozen.get(self.stored.active.machine) == generation

    def reads(self, agent: str, item: ItemId) -> tuple[SourceDisk, ...]:
        place = self.stored.home if agent == "agent-home" else self.stored.cloud
        paths = (f"{place.site}:{disk}" for disk in place.own_disks)
        return tuple(SourceDisk(disk, path) for disk, path in zip(self.stored.disks, paths, strict=True))

    def question(self, agent: str, question: Question) -> Answer:
        if self.mute:
            raise AgentMute(agent=agent, machine=question.machine, reason="it does not report")
        if question.kind == QuestionKind.LINK:
            return Answer("", rates=(1e6,))
        if self.refusal:
            return Answer("", self.refusal, {"message": "as the test wants it"})
        place = self.stored.home if agent == "agent-home" else self.stored.cloud
        assert question.machine == place.machine
        answers = []
        for asked in question.disks:
            answers.append(self.answer_of(question, asked, self._disk(asked.path).content))
        return Answer("", disks=tuple(answers), rates=(1e6,))

    def answer_of(self, question: Question, asked: DiskQuestion, content: str) -> DiskAnswer:
        if question.kind == QuestionKind.EXTENTS:
            return DiskAnswer(asked.index, SIZE, runs=((0, len(content)),))
        if question.kind == QuestionKind.SAMPLE:
            hashes = (f"{question.key.hex()}{content[at : at + 1]}".encode() for at in asked.granules)
            return DiskAnswer(asked.index, SIZE, tuple(hashes), wire_ratio=0.5)
        assert question.kind == QuestionKind.DIGESTS
        digests = tuple(_digest(content, asked.first + index) for index in range(asked.count))
        return DiskAnswer(asked.index, len(content), digests)

    def one_time_key(self) -> bytes:
        return b"k" * 32

    # --- Targets --------------------------------------------------------------------------------------------------

    def ask(self, target: str, method: Method, params: dict[str, Any]) -> Any:
        if target in self.gone:
            raise ServerSilent(server=target, reason="it is cut off")
        if method is Method.TARGET_KEY:
            return {"key": target.encode()}
        answer = getattr(self, "_" + method.value.replace(".", "_"))(target, params)
        return msgspec.to_builtins(answer, builtin_types=(bytes,))

    def _status(self, target: str, params: dict[str, Any]) -> dict[str, Any]:
        return {"space_free": self.space_free}

    def _rep(self, target: str) -> Rep:
        try:
            return self.reps[target, ITEM]
        except KeyError:
            raise ServerRefused(server=target, method="?", reason_code="BH-ITEM-UNKNOWN", params={}) from None

    def _item_status(self, target: str, _: dict[str, Any]) -> ItemStatus:
        rep = self._rep(target)
        points = self._points_of(rep)
        newest = rep.states[-1][0] if rep.states else 0
        return ItemStatus(
            item=ITEM, descriptor=rep.descriptor, fence=Fence(1, rep.descriptor.generation, 1), stream_open=False,
            applied=0, complete=CompletePoint(newest, Hash(bytes(32))) if newest else None,
            newest_point=points[-1] if points else None, points=len(points), pins=rep.pins, promoted=rep.promoted,
            final=rep.final, started_epoch=rep.started is not None, journal_bytes=self.journal[0],
            journal_limit_bytes=self.journal[1], waiting="",
            findings=(), disks=tuple(DiskPath(i, path, SIZE) for i, path in enumerate(rep.paths)),
        )  # fmt: skip

    def _points_of(self, rep: Rep) -> list[PointStatus]:
        return [
            PointStatus(number, number * SECOND, StillKind.STOPPED, Consistency.CRASH, "", rep.final, 0, 0, 0)
            for number, _ in rep.states
        ]

    def _item_points(self, target: str, _: dict[str, Any]) -> list[PointStatus]:
        return self._points_of(self._rep(target))

    def _item_create(self, target: str, params: dict[str, Any]) -> ItemStatus:
        if (target, ITEM) not in self.reps:
            descriptor = msgspec.msgpack.decode(params["descriptor"], type=ItemDescriptor)
            assert descriptor.target == target
            paths = tuple(params["paths"])

            def apply() -> None:
                self.reps[target, ITEM] = Rep(descriptor, paths, self._read(paths))

            self.effect(f"{target} create", apply)
        return self._item_status(target, {})

    def _item_raise(self, target: str, params: dict[str, Any], promote: bool = False) -> ItemStatus:
        rep = self._rep(target)
        descriptor = msgspec.msgpack.decode(params["descriptor"], type=ItemDescriptor)
        assert descriptor.generation >= rep.descriptor.generation, "a lower generation"
        risen = descriptor.generation > rep.descriptor.generation

        def apply() -> None:
            rep.descriptor = descriptor
            rep.promoted = promote or (rep.promoted and not risen)
            rep.final = rep.final and not risen
            if promote and rep.started is not None:
                self._write(rep.paths, rep.started)
                rep.started = None

        if descriptor != rep.descriptor or (promote and not rep.promoted):
            self.effect(f"{target} {'promote' if promote else 'raise'} {descriptor.generation}", apply)
        return self._item_status(target, {})

    def _item_verify(self, target: str, params: dict[str, Any]) -> ItemStatus:
        rep = self._rep(target)
        descriptor = msgspec.msgpack.decode(params["descriptor"], type=ItemDescriptor)
        risen = descriptor.generation > rep.descriptor.generation

        def apply() -> None:
            rep.descriptor, rep.doubted, rep.promoted, rep.final = descriptor, True, False, False

        if risen:
            self.effect(f"{target} doubt {descriptor.generation}", apply)
        return self._item_status(target, {})

    def _item_promote(self, target: str, params: dict[str, Any]) -> ItemStatus:
        return self._item_raise(target, params, promote=True)

    def _item_go_to(self, target: str, params: dict[str, Any]) -> ItemStatus:
        rep, point = self._rep(target), params["point"]
        assert rep.started is None, "an epoch runs"
        contents = dict([(0, rep.before), *rep.states])[point]

        def apply() -> None:
            self._write(rep.paths, contents)
            rep.states.append((rep.states[-1][0] + 1, contents))

        if rep.states[-1][0] != point:
            self.effect(f"{target} go to {point}", apply)
        return self._item_status(target, {})

    def _item_pin(self, target: str, params: dict[str, Any]) -> ItemStatus:
        rep = self._rep(target)
        number = rep.states[-1][0] if rep.states else 0

        def apply() -> None:
            rep.pins[params["name"]] = number

        if rep.pins.get(params["name"]) != number:
            self.effect(f"{target} pin {params['name']}", apply)
        return self._item_status(target, {})

    def _item_release(self, target: str, params: dict[str, Any]) -> ItemStatus:
        rep = self._rep(target)
        if params["name"] in rep.pins:
            self.effect(f"{target} release {params['name']}", lambda: rep.pins.__delitem__(params["name"]))
        return self._item_status(target, {})

    def _item_hand_out(self, target: str, _: dict[str, Any]) -> ItemStatus:
        rep = self._rep(target)

        def apply() -> None:
            rep.states.clear()
            rep.pins.clear()

        if rep.states or rep.pins:
            self.effect(f"{target} hand out", apply)
        return self._item_status(target, {})

    def _item_delete(self, target: str, params: dict[str, Any]) -> dict[str, Any]:
        assert params["keep_disks"], "they are a site's"
        if (target, ITEM) in self.reps:
            self.effect(f"{target} delete", lambda: self.reps.__delitem__((target, ITEM)))
        return {}

    def _item_digests(self, target: str, params: dict[str, Any]) -> dict[str, Any]:
        rep = self._rep(target)
        # The map knows what the target itself wrote last; the disk may hold something else by now.
        known = rep.states[-1][1] if rep.states else rep.before
        content = (self._read(rep.paths) if params["reread"] else known)[params["disk"]]
        digests = [_digest(content, params["first"] + index) for index in range(params["count"])]
        return {"digests": digests, "lineage": target.encode()}

    def _read(self, paths: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(self._disk(path).content for path in paths)

    def _write(self, paths: tuple[str, ...], contents: tuple[str, ...]) -> None:
        for path, content in zip(paths, contents, strict=True):
            self._disk(path).content = content

    def _disk(self, path: str) -> FakeDisk:
        site, disk = path.split(":", 1)
        found: FakeDisk = self.site(site).held[disk]
        return found

    # --- the data plane -------------------------------------------------------------------------------------------

    def tick(self) -> None:
        """Agents replicate as far as targets let them."""
        for machine, assignment in self.told.values():
            for rep in self.reps.values():
                self._replicate(machine, assignment, rep)

    def _replicate(self, machine: str, assignment: ItemAssignment, rep: Rep) -> None:
        allowed = rep.descriptor.generation == assignment.generation and rep.descriptor.active_machine == machine
        if assignment.mode is AgentMode.STANDBY or rep.promoted or rep.final or not allowed:
            return
        off = all(machine not in site.running() for site in (self.home, self.cloud))
        inside = assignment.still.freeze and not assignment.still.stopped
        if inside and off:
            return  # the agent went with its machine
        if self.frozen.get(machine, assignment.generation) < assignment.generation:
            self._thaw(machine)
        if assignment.mode is AgentMode.FINAL and not off and not inside:
            return
        contents = self._read(tuple(disk.path for disk in assignment.disks))
        for path in rep.paths:
            site, disk = path.split(":", 1)
            assert self.site(site).held[disk].shown.holder.startswith("master-target:"), "not the target's disk"
        self._write(rep.paths, contents)
        rep.started = None
        rep.states.append(((rep.states[-1][0] if rep.states else 0) + 1, contents))
        rep.final = assignment.mode is AgentMode.FINAL
        if rep.final and inside:
            self._hold(machine, assignment.generation)

    def _hold(self, machine: str, generation: int) -> None:
        if self.thaws:
            self.thaws -= 1
            return
        self.frozen[machine] = generation
        for site in (self.home, self.cloud):
            site.frozen |= {machine} & set(site.running())

    def _thaw(self, machine: str) -> None:
        del self.frozen[machine]
        for site in (self.home, self.cloud):
            site.frozen.discard(machine)

    def half_an_epoch(self, target: str) -> None:
        """Some blocks of the next epoch have arrived."""
        rep = self.reps[target, ITEM]
        rep.started = self._read(rep.paths)
        self._write(rep.paths, tuple(f"{content} half" for content in rep.started))

    # --- what tests do --------------------------------------------------------------------------------------------

    def run(self, kind: str, job: str, journal: set[str] | None = None, wish: Wish | None = None) -> None:
        """The job, from where its journal says."""
        done = journal if journal is not None else set()
        if wish is not None:
            self.stored = msgspec.structs.replace(self.stored, wish=wish)
        for each in WORKFLOWS[kind]:
            if each.name not in done:
                each.run(self.ports, Ids(job, ITEM))
                done.add(each.name)

    def now(self) -> State:
        """The item's state."""
        return self.stored.state.state

    def first_point(self) -> None:
        """The data plane makes a point and the control plane notes it."""
        self.tick()
        self.stored = msgspec.structs.replace(self.stored, state=step(self.stored.state, Report.FIRST_POINT))

    def contents(self, side: Side) -> tuple[str, ...]:
        """What the machine's own disks of a side hold."""
        place = self.stored.at(side)
        return tuple(self.site(place.site).held[disk].content for disk in place.own_disks)

    def running(self) -> list[str]:
        """`site` of every machine that runs."""
        return [site.name for site in (self.home, self.cloud) for _ in site.running()]

    def snapshot(self) -> str:
        """Everything but what only the journal of effects would differ in."""
        machines = {
            site.name: sorted((key, str(machine)) for key, (machine, _) in site.defined.items())
            for site in (self.home, self.cloud)
        }
        disks = {site.name: sorted((k, str(d)) for k, d in site.held.items()) for site in (self.home, self.cloud)}
        record = msgspec.structs.replace(self.stored, done=())
        told = sorted(self.told.items(), key=str)
        frozen = sorted(self.home.frozen | self.cloud.frozen)
        return repr((machines, disks, sorted(self.reps.items()), told, record, self.forgotten, frozen))


def _server(name: str, network: str) -> ServerFacts:
    return ServerFacts(name=name, network=network, health=Health.HEALTHY, answers=True, version=(1, 0, 0))


def _digest(content: str, index: int) -> bytes:
    return hashlib.sha256(f"{content}/{index}".encode()).digest()[:16]


def off(world: World, side: Side) -> bool:
    """Whether the side's machine is off, as its site reads it."""
    place = world.stored.at(side)
    site = world.site(place.site)
    return place.machine not in site.defined or site.power_state(place.machine) is PowerState.OFF
