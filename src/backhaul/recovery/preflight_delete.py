"""Checks before a process server is deleted, and their list."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from backhaul.recovery.findings import Checklist, Finding, Severity, check
from backhaul.recovery.preflight_facts import DeleteFacts

_WARN: Final = Severity.WARN


@check("BH-DELETE-BUILT-IN", field="process_server", fix="Stop the configuration server instead, or leave it.")
def server_is_deployed(facts: DeleteFacts) -> Iterator[str]:
    """The process server did not come with a configuration server."""
    if facts.built_in:
        yield f"process server {facts.name} belongs to its configuration server"


@check("BH-DELETE-RIGHTS", field="process_server", fix="Have the right to delete servers given to you.")
def caller_may_delete(facts: DeleteFacts) -> Iterator[str]:
    """The caller may delete the server."""
    if not facts.caller_may_delete:
        yield f"you may not delete server {facts.name}"


@check("BH-DELETE-IN-USE", field="process_server",
       fix="Fail back and commit these items, or move them: `backhaul process-server switch`.")  # fmt: skip
def server_is_unused(facts: DeleteFacts) -> Iterator[str]:
    """No item needs the process server."""
    if facts.items:
        yield f"{len(facts.items)} items need it: " + ", ".join(facts.items)


@check("BH-DELETE-SPOOL", field="process_server", needs=(server_is_unused,),
       fix="Wait until it has forwarded what it holds; otherwise those blocks are sent again.")  # fmt: skip
def spool_is_empty(facts: DeleteFacts) -> Iterator[str]:
    """The process server has forwarded everything."""
    if facts.spool_bytes:
        yield f"{facts.spool_bytes:,} bytes are not forwarded yet"


@check("BH-DELETE-LAST", field="network", severity=_WARN, needs=(server_is_unused,),
       fix="Deploy another one before these machines are reprotected.")  # fmt: skip
def network_keeps_a_server(facts: DeleteFacts) -> Iterator[str]:
    """Failed-over machines of its network keep a process server."""
    if facts.failed_over and not facts.other_servers:
        yield f"{facts.failed_over} failed-over machines of virtual network {facts.network} have no other way home"


DELETE_PROCESS_SERVER: Final = Checklist(
    "delete-process-server",
    "Deleting a process server",
    (server_is_deployed, caller_may_delete, server_is_unused, spool_is_empty, network_keeps_a_server),
)


def before_delete_process_server(facts: DeleteFacts) -> list[Finding]:
    """All findings before a process server is deleted, passes included."""
    return DELETE_PROCESS_SERVER.run(facts)
