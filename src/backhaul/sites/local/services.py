"""Services of a site that are always there, as a cloud's storage is: processes that the provider keeps running.

One whose first process ends is started again, with growing pauses while it keeps ending, after all that it left behind
has been killed; one that a killed provider left running is adopted. The watch is a thread of its own; it touches a
service only under `service/NAME`.
"""

from __future__ import annotations

import threading
from pathlib import Path

import msgspec
import structlog

from backhaul.replication.errors import BackhaulError
from backhaul.sites.local.definition import AddressRecord, ServiceDefinition
from backhaul.sites.local.ledger import Call
from backhaul.sites.local.networks import Fabric, network_of
from backhaul.sites.local.processes import Processes, ProcessSpec
from backhaul.sites.local.world import World, found
from backhaul.sites.values import Metadata, Service

_log = structlog.get_logger(__name__)
_LOOK_S = 0.5
_LONGEST_PAUSE_S = 30.0
"""A service that cannot start is tried twice a minute: often enough to heal by itself, too rare to fill a log."""
_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


class Services:
    """All services of one site."""

    def __init__(self, world: World, fabric: Fabric, processes: Processes) -> None:
        self._world = world
        self._fabric = fabric
        self._processes = processes
        self._ended = threading.Event()
        self._watch: threading.Thread | None = None

    def services(self, call: Call) -> tuple[Service, ...]:
        """Those in networks of subscriptions that the caller may read."""
        return tuple(
            Service(each.name, each.network, each.address, self._processes.state(_name(each)))
            for each in self._world.definition.services
            if call.sees(found(network_of(self._world.definition, each.network), "network", each.network).subscription)
        )

    def begin(self) -> None:
        """At start: take their addresses, start what does not run, and keep watching."""
        services = self._world.definition.services
        with self._world.ledger.transaction() as tx:
            for each in services:
                key = f"{each.network}/{each.address}"
                tx.put(AddressRecord(key, each.network, each.subnet, each.address, _name(each)))
        if services:
            self._watch = threading.Thread(target=self._keep, name="services", daemon=True)
            self._watch.start()

    def end(self) -> None:
        """Stop watching; the services go on."""
        self._ended.set()
        if self._watch is not None:
            self._watch.join()

    def stop_all(self) -> None:
        """Kill them, before the site is taken down."""
        for each in self._world.definition.services:
            with self._world.holding(f"service/{each.name}"):
                self._processes.kill(_name(each))
                self._processes.kill(_beside(each))
                self._fabric.unbind(each.network, each.address)

    def _keep(self) -> None:
        pauses = dict.fromkeys((each.name for each in self._world.definition.services), 0.0)
        due = dict.fromkeys(pauses, 0.0)
        while True:
            now = self._world.clock.monotonic_ns() / 1e9
            for each in self._world.definition.services:
                if self._runs(each):
                    if now > due[each.name] + _LONGEST_PAUSE_S:
                        pauses[each.name] = 0.0
                elif now >= due[each.name]:
                    self._start(each)
                    pauses[each.name] = min(_LONGEST_PAUSE_S, max(_LOOK_S, pauses[each.name] * 2))
                    due[each.name] = now + pauses[each.name]
            if self._ended.wait(_LOOK_S):
                return

    def _runs(self, service: ServiceDefinition) -> bool:
        with self._world.holding(f"service/{service.name}"):
            return all(self._processes.leads(name) for name in self._names(service))

    def _names(self, service: ServiceDefinition) -> list[str]:
        companion = self._world.namespaces and service.companion
        return [_name(service), *([_beside(service)] if companion else [])]

    def _start(self, service: ServiceDefinition) -> None:
        folder = self._world.volume / "services" / service.name
        with self._world.holding(f"service/{service.name}"):
            try:
                for name in self._names(service):
                    if not self._processes.leads(name):
                        self._processes.kill(name)
                self._world.files.make_folder(folder / "data")
                for shown in (folder.parent, folder):
                    self._world.show(shown)
                self._world.own(folder / "data")
                self._fabric.bind(service.network, service.address)
                self._world.publish(folder / "metadata.json", msgspec.json.encode(self._metadata(service)))
                if self._world.namespaces and service.companion:
                    self._processes.start(self._companion(service, folder))
                self._processes.start(self._spec(service, folder))
            except (BackhaulError, OSError) as error:
                _log.error("service does not start", service=service.name, reason=str(error))

    def _spec(self, service: ServiceDefinition, folder: Path) -> ProcessSpec:
        environment = {
            "PATH": _PATH,
            "BACKHAUL_SERVICE": service.name,
            "BACKHAUL_ADDRESS": service.address,
            "BACKHAUL_METADATA": str(folder / "metadata.json"),
            "BACKHAUL_DATA": str(folder / "data"),
        }
        return ProcessSpec(
            name=_name(service),
            command=service.command,
            environment=environment,
            folder=folder / "data",
            network=service.network,
            namespace=self._fabric.namespace(service.network),
            address=service.address,
        )

    def _companion(self, service: ServiceDefinition, folder: Path) -> ProcessSpec:
        command = tuple(word.format(uid=self._world.user) for word in service.companion)
        return ProcessSpec(_beside(service), command, {"PATH": _PATH}, folder, service.network, privileged=True)

    def _metadata(self, service: ServiceDefinition) -> Metadata:
        site = self._world.definition.name
        return Metadata(_name(service), service.name, site, service.network, service.subnet, service.address, {})


def _name(service: ServiceDefinition) -> str:
    return f"service:{service.name}"


def _beside(service: ServiceDefinition) -> str:
    return f"companion:{service.name}"
