"""Alerts as Site Recovery's HealthError."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final

from backhaul.recovery.health import Alert, Assessment
from backhaul.recovery.preflight_facts import Health

_ITEM: Final = {
    Health.HEALTHY: "Normal",
    Health.WARNING: "Warning",
    Health.CRITICAL: "Critical",
    Health.UNKNOWN: "Warning",
}


def health_errors(alerts: Iterable[Alert]) -> list[dict[str, Any]]:
    """Each alert with its causes and what to do."""
    return [
        {
            "errorCode": alert.code,
            "errorLevel": alert.health,
            "errorType": "health",
            "summaryMessage": alert.message,
            "errorMessage": alert.message,
            "possibleCauses": "; ".join(alert.causes),
            "recommendedAction": alert.fix,
        }
        for alert in alerts
    ]


def item_health(assessment: Assessment) -> str:
    """Health of an item in Site Recovery's words; what is unknown is no better than a warning."""
    return _ITEM[assessment.health]
