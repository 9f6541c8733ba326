"""Renders the tables of this package to Markdown: `docs/reference/states.md` and `docs/reference/checks.md`.

Invariant: the documents are exactly what is rendered here; a test compares them. Run it to write them again:
`python -m backhaul.recovery.render docs/reference`.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from pathlib import Path

from backhaul.recovery.catalogue import CHECKLISTS
from backhaul.recovery.findings import REGISTRY
from backhaul.recovery.health import ALERTS
from backhaul.recovery.item import CLOUD_ACTIVE, ENDED, MEANING, NOBODY_RUNS, Action, Operation, Side, State
from backhaul.recovery.refusals import REASONS
from backhaul.recovery.table import TABLE, Effect, Goes

_STATES_HEAD = """# States of a replicated item

An item goes round: home, cloud, home. This page is rendered from the tables of `backhaul.recovery`.
Each view of an item says first which copy is true: the side that is authoritative, the copy that must not start, and
what acting now would lose. Cancel is possible until the commit and returns to exactly the state before; only the
generation rises, so that nothing older can write any longer. One fact is shown beside the state, whatever it is:
*resync required*.
"""

_CHECKS_HEAD = """# Checks and alerts

Before a job starts, everything that could stop it is checked, and all findings are shown at once. A finding has a
code that never changes, a severity (*fail*: the job does not start; *warn*: it may), the reason, and what to do. A
check that needs another one is left out when that one has not passed. This page is rendered from `backhaul.recovery`.
"""


def _table(head: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> str:
    lines = [f"| {' | '.join(head)} |", f"|{'---|' * len(head)}"]
    lines += [f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in row)} |" for row in rows]
    return "\n".join(lines) + "\n"


def _events(state: State) -> dict[Operation | Action | str, Goes]:
    return {event: row for (source, event), row in TABLE.items() if source is state}


def _active(state: State) -> str:
    return "where it ran" if state in ENDED else str(Side.CLOUD if state in CLOUD_ACTIVE else Side.HOME)


def render_states() -> str:
    """The page of states: per state its side and what is possible, the transitions, and the reasons for the rest."""
    overview = []
    for state in State:
        possible = [event.value for event in _events(state) if isinstance(event, Operation | Action)]
        runs = "neither" if state in NOBODY_RUNS else _active(state)
        operations = ", ".join(f"`{name}`" for name in possible) or "none"
        overview.append((f"`{state}`", MEANING[state], _active(state), runs, operations))
    transitions = [
        (f"`{state}`", f"`{event.value}`", f"`{row.to}`" if row.to else "the state before", _effects(row))
        for (state, event), row in TABLE.items()
    ]
    refused = [(f"`{reason.code}`", _sentence(reason.text), reason.fix) for reason in REASONS.values()]
    return "\n".join(
        (
            _STATES_HEAD,
            "## What is possible\n",
            _table(("state", "what it is", "authoritative", "may run", "operations"), overview),
            "## Transitions\n",
            _table(("state", "event", "next", "what else happens"), transitions),
            "## Why an operation is not possible\n",
            "An operation that a view shows as not possible carries one of these.\n",
            _table(("code", "reason", "what to do"), refused),
        )
    )


def _effects(row: Goes) -> str:
    return "; ".join(effect.value for effect in row.effects if isinstance(effect, Effect))


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:] + "."


def render_checks() -> str:
    """The page of checks: each checklist with its codes in order, then a heading per code, then the alerts."""
    lists = [
        f"### {item.title}\n\n"
        + "\n".join(f"1. [`{check.code}`](#{check.code.lower()})" for check in item.checks)
        + "\n"
        for item in CHECKLISTS
    ]
    return "\n".join(
        (
            _CHECKS_HEAD,
            "## What is checked before what\n",
            *lists,
            "## Checks\n",
            *(_check_section(code) for code in sorted(REGISTRY)),
            "## Alerts\n",
            *(_alert_section(code) for code in sorted(ALERTS)),
        )
    )


def _check_section(code: str) -> str:
    check = REGISTRY[code]
    needs = f"\n\nNeeds: {', '.join(f'`{need}`' for need in check.needs)}." if check.needs else ""
    return f"### {code}\n\n{check.title} Otherwise: *{check.severity}*, field `{check.field}`. {check.fix}{needs}\n"


def _alert_section(code: str) -> str:
    kind = ALERTS[code]
    message = kind.message.replace("{figure:.0f}", "N").replace("{figure}", "…")
    return f"### {code}\n\n{_sentence(message)} Possible causes: {'; '.join(kind.causes)}. {kind.fix}\n"


def write(folder: Path) -> None:
    """Write both pages into `folder`. Raises `OSError`."""
    (folder / "states.md").write_text(render_states(), encoding="utf-8")
    (folder / "checks.md").write_text(render_checks(), encoding="utf-8")


if __name__ == "__main__":
    write(Path(sys.argv[1]))
