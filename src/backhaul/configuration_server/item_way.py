"""The way of an item's blocks from server to server, and its first broken link, by what the servers said last.

    agent ──> process server ──> master target      and home's own links to the servers on it

It is why an RPO grows, what preflight refuses for, and what `doctor` looks at anew. Invariant: a cause comes before
what follows from it: where home reaches a process server no more, nobody behind it is blamed for being silent. What
was never heard of breaks nothing; other rules tell of that. Asks nobody; any thread.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from backhaul.configuration_server.items import COMPARING, mode_of, state_of, target_of
from backhaul.configuration_server.records import ItemRecord
from backhaul.replication.control import AgentMode
from backhaul.replication.values import Role

if TYPE_CHECKING:
    from backhaul.configuration_server.live import LiveServer
    from backhaul.configuration_server.plane import ControlPlane

HERE: Final = "this configuration server"


def broken_link(plane: ControlPlane, process_server: str, target: str, agent: str = "") -> str:
    """The first broken link of the way, in words; empty: none is known to be broken. Without `agent` its own link is
    left out: a machine that is off is told of elsewhere.
    """
    return (
        _tunnel(plane, process_server)
        or _silent(plane, Role.PROCESS_SERVER, process_server)
        or _silent(plane, Role.MASTER_TARGET, target)
        or _between(plane, process_server, target)
        or (_from_agent(plane, process_server, agent) if agent else "")
    )


def broken_way(plane: ControlPlane, record: ItemRecord) -> str:
    """The first broken link of an item that replicates now; empty for one that does not."""
    if mode_of(state_of(record)) is AgentMode.STANDBY or not record.assigned:
        return ""
    return broken_link(plane, record.process_server, target_of(record), record.agent)


def why_it_grows(plane: ControlPlane, record: ItemRecord, stalled_s: float) -> str:
    """Why the newest recovery point gets older; empty where nothing is known to be wrong."""
    broken = broken_way(plane, record)
    if broken:
        return broken
    live = plane.live.items.get(record.id)
    report, status = (live.report, live.status) if live else (None, None)
    if report is not None and report.code:
        return f"the agent cannot go on: {report.code}"
    if status is not None and status.waiting:
        return f"the target applies nothing: {status.waiting}"
    if stalled_s > plane.vault.settings.thresholds.stalled_warning_s:
        return f"nothing was applied for {stalled_s:.0f} s while changes wait"
    return "all disks are compared first" if state_of(record).state in COMPARING else ""


def _tunnel(plane: ControlPlane, process_server: str) -> str:
    state = plane.home.tunnels.state(process_server)
    if state is None or state.up or state.error is None:
        return ""
    return f"{_link(HERE, f'process server {process_server} at {state.address}')}: {state.error.message}"


def _silent(plane: ControlPlane, role: Role, server: str) -> str:
    known = plane.live.servers.get(server)
    if known is None or not known.error:
        return ""
    return f"{_link(HERE, f'{_WORDS[role]} {server}')}: {known.error}"


def _between(plane: ControlPlane, process_server: str, target: str) -> str:
    """Broken where neither end sees the other: what one of them said last may be from before they met."""
    ends = ((process_server, f"{Role.MASTER_TARGET}/{target}"), (target, f"{Role.PROCESS_SERVER}/{process_server}"))
    said = [_has_peer(plane.live.servers.get(end), peer) for end, peer in ends]
    if True in said or False not in said:
        return ""
    return _link(f"process server {process_server}", f"master target {target}")


def _from_agent(plane: ControlPlane, process_server: str, agent: str) -> str:
    if _has_peer(plane.live.servers.get(process_server), f"{Role.AGENT}/{agent}") is not False:
        return ""
    return _link(f"agent {agent}", f"process server {process_server}")


def _has_peer(server: LiveServer | None, peer: str) -> bool | None:
    """None: it has not said."""
    return None if server is None or server.status is None else peer in server.status.peers


_WORDS: Final = {Role.PROCESS_SERVER: "process server", Role.MASTER_TARGET: "master target"}


def _link(one: str, other: str) -> str:
    return f"the link between {one} and {other} is broken"
