"""A small local site for tests: definition, tokens, a provider in this process, and requests that are valid."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec

from backhaul.replication.ports import Clock, RealClock, RealFiles, RealRandomness
from backhaul.replication.units import KiB, MiB
from backhaul.sites.local.definition import (
    AccountDefinition,
    Mode,
    NetworkDefinition,
    PrincipalDefinition,
    SiteDefinition,
    SiteKind,
    SubnetDefinition,
    SubscriptionDefinition,
)
from backhaul.sites.local.principals import token_hash
from backhaul.sites.local.provider import Provider
from backhaul.sites.local.world import Step
from backhaul.sites.server_rules import hash_password
from backhaul.sites.values import (
    Disk,
    DiskRequest,
    Machine,
    MachineDisk,
    MachineRequest,
    PowerState,
    Principal,
    ServerRequest,
    ServerSize,
    SiteRole,
)

PASSWORD = "Correct-Horse-7"
PASSWORD_HASH = hash_password(PASSWORD, RealRandomness())
TOKENS = {role: f"token-of-{role}" for role in SiteRole}
PRINCIPALS = {role: Principal(str(role), {"prod": role}) for role in SiteRole}
OTHER = Principal("stranger", {"elsewhere": SiteRole.OWNER})
OWNER = PRINCIPALS[SiteRole.OWNER]
SIZES = (ServerSize("small", 2, 4 * MiB, 8 * MiB), ServerSize("large", 8, 4 * MiB, 16 * MiB))
SLEEPER = ("/bin/sh", "-c", "echo booted; while :; do sleep 1000; done")
RANGE = f"127.{64 + os.getpid() % 128}"
"""Two runs of these tests at once on one machine seldom share their addresses."""
SERVER_NET, SERVER_PREFIX = "vnet", f"{RANGE}.1.0/24"


def definition(**changes: Any) -> SiteDefinition:
    """A cloud with one subscription (three servers, twelve cores), two networks and one account of 64 MiB."""
    networks = tuple(
        NetworkDefinition(name, "prod", "rg", "here", prefix, (SubnetDefinition("default", prefix),))
        for name, prefix in ((SERVER_NET, SERVER_PREFIX), ("vnet2", f"{RANGE}.2.0/24"))
    )
    principals = (
        *(PrincipalDefinition(str(role), token_hash(TOKENS[role]), {"prod": role}) for role in SiteRole),
        PrincipalDefinition("stranger", token_hash("stranger"), {"elsewhere": SiteRole.OWNER}),
    )
    plain = SiteDefinition(
        name="cloud",
        kind=SiteKind.CLOUD,
        mode=Mode.ADDRESSES,
        subscriptions=(SubscriptionDefinition("prod", 3, 12), SubscriptionDefinition("elsewhere")),
        networks=networks,
        accounts=(AccountDefinition("acc", "prod", "rg", "here", 64 * MiB),),
        principals=principals,
        sizes=SIZES,
    )
    return msgspec.structs.replace(plain, **changes)


class Caller:
    """Calls a provider as one principal would through the API, with values instead of JSON."""

    def __init__(self, provider: Provider, principal: Principal = OWNER) -> None:
        self.provider = provider
        self.principal = principal

    def __call__(self, operation: str, token: str = "", **arguments: Any) -> Any:
        answer = self.provider.perform(self.principal, operation, token, msgspec.json.encode(arguments))
        return msgspec.json.decode(answer)

    def effects(self) -> list[tuple[str, str]]:
        """(operation, token) of all effects."""
        return [(effect["operation"], effect["token"]) for effect in self("effects")]


def open_provider(
    folder: Path, site: SiteDefinition | None = None, *, step: Step = lambda _: None, clock: Clock | None = None
) -> Provider:
    """A provider over the folder, with the real world's ports."""
    return Provider(
        folder,
        site or definition(),
        files=RealFiles(),
        clock=clock or RealClock(),
        randomness=RealRandomness(),
        step=step,
    )


@contextmanager
def running_site(folder: Path, site: SiteDefinition | None = None, **ports: Any) -> Iterator[Caller]:
    """A provider that takes everything down at the end."""
    caller = Caller(open_provider(folder, site, **ports))
    try:
        yield caller
    finally:
        caller.provider.take_down()  # the one it has by now: a test may have opened another


def server_request(**changes: Any) -> ServerRequest:
    """A request without findings."""
    plain = ServerRequest(
        name="ps1",
        subscription="prod",
        resource_group="rg",
        region="here",
        network=SERVER_NET,
        subnet="default",
        user="psadmin",
        password=PASSWORD_HASH,
        account="acc",
        size="small",
        command=SLEEPER,
    )
    return msgspec.structs.replace(plain, **changes)


def make_disk(call: Caller, token: str, **changes: Any) -> Disk:
    """A disk of 256 KiB."""
    plain = msgspec.structs.replace(DiskRequest("data", "prod", 256 * KiB), **changes)
    return msgspec.convert(call("create_disk", token, request=plain), Disk)


def make_machine(
    call: Caller, token: str, disks: tuple[MachineDisk, ...] = (), command: tuple[str, ...] = SLEEPER, **changes: Any
) -> Machine:
    """A machine of the first network."""
    plain = MachineRequest(changes.pop("name", "vm1"), "prod", SERVER_NET, "default", command, disks)
    return msgspec.convert(call("create_machine", token, request=msgspec.structs.replace(plain, **changes)), Machine)


def power(call: Caller, machine: str) -> PowerState:
    """Power as read back."""
    return PowerState(call("power_state", machine=machine))


def python_guest(source: str) -> tuple[str, ...]:
    """A guest in Python: the interpreter without its site packages, so that it starts fast."""
    return (sys.executable, "-I", "-S", "-u", "-c", source)


def await_console(call: Caller, holder: str, text: str) -> str:
    """The console once it holds the text; the guest writes it, so this ends when the guest has got there."""
    for _ in range(200_000):
        console = call("console", holder=holder)
        if text in console:
            return str(console)
    raise AssertionError(f"{holder} never printed {text!r}: {console!r}")
