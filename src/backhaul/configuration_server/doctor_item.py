"""The upper part of an item's ladder: what stands between its servers, each of which answered already.

The links between the servers, the replica, what the target waits for, then what follows from those: an uploader that
stalls, a machine that is throttled; at last the agent's own reason, and the points. Called by `doctor`, event loop.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from backhaul.configuration_server.doctor_errors import (
    RungAgentLink,
    RungNoPoint,
    RungReplica,
    RungReplication,
    RungStalled,
    RungTargetLink,
    RungThrottled,
    RungWaiting,
    reported,
)
from backhaul.configuration_server.items import mode_of, state_of, target_of
from backhaul.configuration_server.records import ItemRecord
from backhaul.recovery.item import State
from backhaul.replication.control import AgentMode
from backhaul.replication.errors import BackhaulError
from backhaul.replication.values import Role

if TYPE_CHECKING:
    from backhaul.configuration_server.doctor import Answered, Ladder
    from backhaul.configuration_server.plane import ControlPlane
    from backhaul.process_server.health import ItemHealth


async def walk_item(plane: ControlPlane, ladder: Ladder, record: ItemRecord, answers: Mapping[str, Answered]) -> None:
    """`answers`: of the item's process server and target. Raises BrokenRung."""
    target = target_of(record)
    if mode_of(state_of(record)) is not AgentMode.STANDBY and record.assigned:
        await _walk_links(ladder, record, target, answers)
    async with ladder.rung("replica", "item: the target holds it"):
        status = await plane.target_status(record)
        if status is None:
            raise RungReplica(target=target, item=record.name)
    async with ladder.rung("applies", "item: the target applies"):
        if status.waiting:
            raise _waiting(record, target, status.waiting)
    await _walk_relay(plane, ladder, record, answers)
    async with ladder.rung("replicates", "item: the agent replicates it"):
        _check_report(plane, record)
    async with ladder.rung("point", "item: has a recovery point"):
        if status.newest_point is None and state_of(record).state is not State.DISCOVERED:
            raise RungNoPoint(item=record.name)


async def _walk_links(ladder: Ladder, record: ItemRecord, target: str, answers: Mapping[str, Answered]) -> None:
    relay = record.process_server
    async with ladder.rung("agent-link", "item: link from its agent to its process server"):
        if not _has_peer(answers, relay, f"{Role.AGENT}/{record.agent}"):
            raise RungAgentLink(agent=record.agent, server=relay)
    async with ladder.rung("target-link", "item: link between its process server and its target"):
        ends = ((relay, f"{Role.MASTER_TARGET}/{target}"), (target, f"{Role.PROCESS_SERVER}/{relay}"))
        if not all(_has_peer(answers, end, peer) for end, peer in ends):
            raise RungTargetLink(server=relay, target=target)


def _has_peer(answers: Mapping[str, Answered], server: str, peer: str) -> bool:
    return server not in answers or peer in answers[server].status.peers


async def _walk_relay(plane: ControlPlane, ladder: Ladder, record: ItemRecord, answers: Mapping[str, Answered]) -> None:
    relay, limit_s = record.process_server, plane.vault.settings.thresholds.stalled_warning_s
    held = _held(answers, record)
    async with ladder.rung("uploader", "item: its process server sends on what it holds"):
        if held is not None and held.backlog_bytes and held.idle_s > limit_s:
            raise RungStalled(
                server=relay, item=record.name, backlog_bytes=held.backlog_bytes, idle_s=f"{held.idle_s:.0f}"
            )
    async with ladder.rung("throttle", "item: is not throttled"):
        if held is not None and held.throttled:
            raise RungThrottled(server=relay, item=record.name)


def _held(answers: Mapping[str, Answered], record: ItemRecord) -> ItemHealth | None:
    answered = answers.get(record.process_server)
    if answered is None or answered.relay is None:
        return None
    return next((item for item in answered.relay.items if item.item == record.id), None)


def _check_report(plane: ControlPlane, record: ItemRecord) -> None:
    live = plane.live.items.get(record.id)
    report = live.report if live else None
    if report is None:
        raise RungReplication(item=record.name, reason="it has not reported it")
    if report.code:
        raise _agents_own(record, report.code, report.params)


def _agents_own(record: ItemRecord, code: str, params: dict[str, Any]) -> BackhaulError:
    """What the agent met, under its own code; where it gave the code alone, its message could not be filled in."""
    error = reported(code, params) if params else None
    return error or RungReplication(
        item=record.name, reason=", ".join([code, *(f"{name} {value}" for name, value in params.items())])
    )


def _waiting(record: ItemRecord, target: str, code: str) -> RungWaiting:
    known = reported(code, {"item": record.name})
    advice = known.advice if known else "Look the code up in the master target's log."
    return RungWaiting(target=target, item=record.name, reason=code, advice=advice)
