"""Every checklist there is. Importing it completes `findings.REGISTRY`; nothing else is done here."""

from __future__ import annotations

from typing import Any, Final

from backhaul.recovery.deployment import DEPLOYMENT
from backhaul.recovery.findings import Checklist
from backhaul.recovery.health import THRESHOLDS
from backhaul.recovery.policies import POLICY
from backhaul.recovery.preflight import ITEM_LISTS
from backhaul.recovery.preflight_delete import DELETE_PROCESS_SERVER

CHECKLISTS: Final[tuple[Checklist[Any], ...]] = (
    DEPLOYMENT,
    *ITEM_LISTS,
    DELETE_PROCESS_SERVER,
    POLICY,
    THRESHOLDS,
)
