"""What the lifecycle needs of the world. Implemented by `core` on a running configuration server, and by tests.

Every call blocks and is made from a job's thread. Writing calls are idempotent: those of a site by their token, those
of a target because a target answers what is; those of agents are desired state.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

from backhaul.configuration_server.lifecycle.values import Item, Place
from backhaul.recovery.preflight_facts import ServerFacts, Version
from backhaul.replication.control import Answer, ItemAssignment, Method, Question, SourceDisk
from backhaul.replication.ports import Clock
from backhaul.replication.values import ItemDescriptor, ItemId
from backhaul.sites.contract import Site

T = TypeVar("T")


@dataclass(frozen=True)
class AgentFacts:
    """An agent: whether it is registered, sends heartbeats, and its version."""

    registered: bool
    answers: bool
    version: Version


class Sites(Protocol):
    """The sites by name."""

    def site(self, name: str) -> Site:
        """Raises ResourceUnknown."""
        ...

    def homes(self) -> tuple[str, ...]:
        """Names of the sites where machines are protected."""
        ...


class Targets(Protocol):
    """Control requests to master targets."""

    def ask(self, target: str, method: Method, params: dict[str, Any]) -> Any:
        """The request's result as builtins. Raises ServerSilent, ServerRefused."""
        ...


class Agents(Protocol):
    """Agents on the machines, or beside them."""

    def assign(self, agent: str, machine: str, assignment: ItemAssignment) -> None:
        """What the agent is to do for this item from now on, durably; the same again changes nothing."""
        ...

    def known(self, agent: str) -> AgentFacts:
        """What is known of the agent itself."""
        ...

    def question(self, agent: str, question: Question) -> Answer:
        """What an agent answers about its disks: it may be a code. Raises AgentMute when there is no answer."""
        ...

    def holds(self, item: ItemId, generation: int, since_ns: int) -> bool | None:
        """Whether the item's agent holds its machine's file systems frozen for the final point of this generation,
        which its target has. None: it has not said since then (monotonic), or is about to hold.
        """
        ...

    def reads(self, agent: str, item: ItemId) -> tuple[SourceDisk, ...]:
        """The item's disks as this agent was told to read them last; empty: another agent reads the item now."""
        ...


class Servers(Protocol):
    """What is known of servers. `name` of the facts is the server's id."""

    def process_servers(self, place: Place) -> tuple[ServerFacts, ...]:
        """All that serve the place's virtual network."""
        ...

    def master_target(self, target: str) -> ServerFacts | None:
        """None: no such server is registered."""
        ...

    def addresses(self, server: str) -> tuple[str, ...]:
        """Where agents reach a process server, `host:port`."""
        ...

    def version(self) -> Version:
        """Of the configuration server."""
        ...

    def settle(self) -> None:
        """Wait until everybody who is registered was heard. Silence says nothing while this server has just started;
        returns at the latest when it would.
        """
        ...

    def broken_rung(self, item: ItemId, process_server: str, target: str) -> str:
        """First rung of the way through this process server to this target that is broken; empty: it is whole."""
        ...


class Items(Protocol):
    """The items' records."""

    def load(self, item: ItemId) -> Item:
        """Raises ResourceUnknown."""
        ...

    def change(self, item: ItemId, token: str, make: Callable[[Item], Item]) -> Item:
        """Store what `make` makes of the record, with `token`, in one transaction; once per token. Raises what `make`
        raises; then nothing is stored.
        """
        ...

    def forget(self, item: ItemId) -> None:
        """End the item's record; its events and jobs stay, and its name is free. One that is gone is no error."""
        ...


class Seals(Protocol):
    """The configuration server's signature."""

    def descriptor(self, descriptor: ItemDescriptor) -> bytes: ...
    def report(self, body: bytes) -> bytes: ...
    def one_time_key(self) -> bytes:
        """A fresh granule key, with which both sides of an item hash one sample."""
        ...


class Waiting(Protocol):
    """Waiting for something that others bring about."""

    def until(self, look: Callable[[], T | None], *, item: ItemId, what: str, limit_s: float) -> T:
        """What `look` answers once it is not None. Raises WaitedTooLong, and what `look` raises."""
        ...


@dataclass(frozen=True)
class Ports:
    """All of them."""

    sites: Sites
    targets: Targets
    agents: Agents
    servers: Servers
    items: Items
    seals: Seals
    waiting: Waiting
    clock: Clock
