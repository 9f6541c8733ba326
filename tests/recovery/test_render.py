"""The documents are exactly what the tables say."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from backhaul.recovery.item import State
from backhaul.recovery.refusals import REASONS
from backhaul.recovery.render import render_checks, render_states, write
from backhaul.recovery.table import TABLE

REFERENCE = Path(*Path(__file__).parts[:-3], "docs", "reference")


@pytest.mark.parametrize(
    ("name", "render"),
    [pytest.param("states.md", render_states, id="states"), pytest.param("checks.md", render_checks, id="checks")],
)
def test_document_is_what_is_rendered(name: str, render: Callable[[], str]) -> None:
    assert (REFERENCE / name).read_text() == render(), "run `python -m backhaul.recovery.render docs/reference`"


def test_writing_gives_both_documents(tmp_path: Path) -> None:
    write(tmp_path)
    assert (tmp_path / "states.md").read_text() == render_states()
    assert (tmp_path / "checks.md").read_text() == render_checks()


def test_page_of_states_names_every_state_transition_and_reason() -> None:
    page = render_states()
    assert all(f"| `{state}` |" in page for state in State)
    assert all(f"| `{code}` |" in page for code in REASONS)
    for (state, event), row in TABLE.items():
        assert f"| `{state}` | `{event.value}` | " + (f"`{row.to}`" if row.to else "the state before") in page
