"""Where a machine is switched on after a stop: only where the product says that it runs."""

from __future__ import annotations

from typing import Any, cast

import pytest

from backhaul.client.errors import NotFound
from backhaul.demo.errors import StageFailed
from backhaul.demo.moving import integrity
from backhaul.demo.plan import CLOUD, HOME, MACHINE_PLANS
from backhaul.demo.stages import Run
from backhaul.demo.waking import runs_at

ALPHA = MACHINE_PLANS[0]


class Vault:
    """Shows one item."""

    def __init__(self, state: str, location: str) -> None:
        self.shown = {"protectionState": state, "activeLocation": location}

    def item(self, name: str) -> dict[str, Any]:
        assert name == ALPHA.name
        if not self.shown["protectionState"]:
            raise NotFound("BH-RESOURCE-UNKNOWN", "no such item")
        return {"properties": self.shown}


class Operator:
    """Asks that vault."""

    def __init__(self, vault: Vault | None = None, integrity: str = "") -> None:
        self._vault = vault
        self.lifecycle = self
        self._integrity = integrity

    def vault(self, act: Any) -> Any:
        return act(self._vault)

    def session(self, act: Any) -> Any:
        return act(self)

    def plan(self, _name: str) -> dict[str, str]:
        return {"integrity": self._integrity}


def run_with(operator: Operator) -> Run:
    return Run(cast(Any, None), cast(Any, operator), cast(Any, None), cast(Any, None))


@pytest.mark.parametrize(
    ("state", "location", "side"),
    [
        ("", "", HOME),
        ("protected", "Primary", HOME),
        ("failed-over", "Recovery", CLOUD),
        ("reprotecting", "Recovery", CLOUD),
        ("failed-back-committed", "Primary", HOME),
        ("final-delta", "Primary", None),
        ("fencing", "Primary", None),
        ("held", "Primary", None),
        ("failing-over", "Recovery", None),
        ("changing-point", "Recovery", None),
        ("canceling-failback", "Recovery", None),
        ("failback-final-delta", "Recovery", None),
    ],
)
def test_a_machine_in_the_middle_of_a_move_is_left_to_the_product(state: str, location: str, side: str | None) -> None:
    assert runs_at(run_with(Operator(Vault(state, location))), ALPHA) == side


def test_sides_that_differ_are_a_failure() -> None:
    assert integrity(run_with(Operator(integrity="passed")), ALPHA) == "passed"
    with pytest.raises(StageFailed, match="differ"):
        integrity(run_with(Operator(integrity="failed")), ALPHA)
