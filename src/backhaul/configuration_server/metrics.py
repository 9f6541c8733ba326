"""Figures for Prometheus, rendered from what is known at this moment; nothing is counted in the background."""

from __future__ import annotations

from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, Gauge, generate_latest

from backhaul.configuration_server.items import state_of

if TYPE_CHECKING:
    from backhaul.configuration_server.plane import ControlPlane

HEALTHS = {"Healthy": 0, "Warning": 1, "Unknown": 2, "Critical": 3}


def render(plane: ControlPlane) -> str:
    """All figures in Prometheus' text format."""
    collected = CollectorRegistry()
    health = Gauge("backhaul_server_health", "0 healthy, 1 warning, 2 unknown, 3 critical", ["role", "server"],
                   registry=collected)  # fmt: skip
    backlog = Gauge("backhaul_server_backlog_bytes", "Spooled and not forwarded", ["server"], registry=collected)
    states = Gauge("backhaul_item_state", "1 for the state the item is in", ["item", "state"], registry=collected)
    rpo = Gauge("backhaul_item_rpo_seconds", "Age of the newest recovery point the target reported", ["item"],
                registry=collected)  # fmt: skip
    for server in plane.registry.list():
        health.labels(server.role, server.name).set(HEALTHS[plane.server_health(server).health])
        status = plane.live.server(server.id).status
        if status is not None:
            backlog.labels(server.name).set(status.backlog_bytes)
    for item in plane.items.list():
        states.labels(item.name, state_of(item).state).set(1)
        live = plane.live.items.get(item.id)
        asked_s = plane.live.age_s(live.asked_ns) if live else None
        silent = asked_s is None or asked_s > plane.vault.settings.thresholds.unknown_after_s
        found = plane.rpo(live.status if live and not silent else None)
        if found.seconds is not None:
            rpo.labels(item.name).set(found.seconds)
    return generate_latest(collected).decode()
