"""Checks on the active machine, its agent, and the recovery points made of it. See `preflight`, which lists them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from backhaul.recovery.findings import Severity, check
from backhaul.recovery.item import Operation
from backhaul.recovery.preflight_facts import ItemFacts, text_of
from backhaul.recovery.preflight_servers import master_target_answers

_WARN: Final = Severity.WARN


@check("BH-SOURCE-SITE-SILENT", field="machine", fix="Restore the way to the management API of the machine's site.")
def source_site_answers(facts: ItemFacts) -> Iterator[str]:
    """The site of the active machine answers."""
    if not facts.machine.site_answers:
        yield "the management API of the active machine's site does not answer"


@check("BH-MACHINE-OFF", field="machine", needs=(source_site_answers,), fix="Start the machine on its active side.")
def machine_runs(facts: ItemFacts) -> Iterator[str]:
    """The active machine runs."""
    if not facts.machine.running:
        yield "the active machine is off"


@check("BH-MACHINE-HUNG", field="machine", needs=(machine_runs,), fix="Look at its console; restart it if it hangs.")
def machine_answers(facts: ItemFacts) -> Iterator[str]:
    """The active machine answers."""
    if not facts.machine.answers:
        yield "the active machine runs but does not answer"


@check("BH-MACHINE-COPY", field="machine", needs=(source_site_answers, machine_runs),
       fix="Start the active machine; if its id rightly changed, confirm it with `backhaul item rebind`.")  # fmt: skip
def machine_is_the_active_one(facts: ItemFacts) -> Iterator[str]:
    """The machine that runs is the item's active machine, no copy of it."""
    if not facts.machine.is_active_machine:
        yield "the machine that runs has another id than the item's active machine"


@check("BH-REBIND-MACHINE", field="machine", needs=(source_site_answers,),
       fix="Give the id that hypervisor or cloud report; the site lists its machines with theirs.")  # fmt: skip
def named_machine_is_known(facts: ItemFacts) -> Iterator[str]:
    """The machine that is named is one of the active side's site."""
    if not facts.named_machine_known:
        yield "the site of the active side has no machine of the id that was named"


@check("BH-AGENT-NONE", field="agent", needs=(machine_runs,),
       fix="Wait up to 15 minutes after the start; then run `backhaul agent register` on the machine.")  # fmt: skip
def agent_is_registered(facts: ItemFacts) -> Iterator[str]:
    """The machine's agent is registered."""
    if not facts.machine.agent_registered:
        yield "the machine's agent has not registered since the machine was started"


@check("BH-AGENT-SILENT", field="agent", needs=(agent_is_registered, machine_answers),
       fix="Start the agent on the machine and see `backhaul doctor` for the way to it.")  # fmt: skip
def agent_answers(facts: ItemFacts) -> Iterator[str]:
    """The machine's agent sends heartbeats."""
    if not facts.machine.agent_answers:
        yield "the machine's agent sends no heartbeat"


@check("BH-AGENT-VERSION", field="agent", needs=(agent_is_registered,),
       fix="Upgrade the configuration server first, then process servers, then agents.")  # fmt: skip
def agent_version_fits(facts: ItemFacts) -> Iterator[str]:
    """The agent is not newer than the configuration server."""
    if facts.machine.agent_version > facts.configuration_server_version:
        theirs, ours = text_of(facts.machine.agent_version), text_of(facts.configuration_server_version)
        yield f"the agent has version {theirs}, the configuration server {ours}"


@check("BH-STILL-NONE", field="machine", needs=(agent_answers,),
       fix="Run the agent beside the machine, or let it freeze the file systems: a script holds nothing.")  # fmt: skip
def source_can_be_still(facts: ItemFacts) -> Iterator[str]:
    """The source can be stopped and read from outside, or frozen and held, for the final delta."""
    if not facts.machine.can_be_still:
        yield "the source can neither be read from outside when stopped nor be frozen and held"


@check("BH-SOURCE-RUNNING", field="machine", severity=_WARN,
       fix="Use the planned failover, which loses nothing, unless the source is about to be lost.")  # fmt: skip
def source_is_lost(facts: ItemFacts) -> Iterator[str]:
    """The source is not running, so an unplanned failover is the right one."""
    if facts.operation is Operation.UNPLANNED_FAILOVER and facts.machine.running and facts.machine.answers:
        yield "the source still runs and answers: what it writes from now on would be lost"


@check(
    "BH-POINT-NONE",
    field="point",
    needs=(master_target_answers,),
    fix="Wait for the first one; `backhaul item show` gives the time left.",
)
def point_exists(facts: ItemFacts) -> Iterator[str]:
    """There is a recovery point."""
    if not facts.points:
        yield "there is no recovery point that could be failed over to"


@check("BH-POINT-GONE", field="point", needs=(point_exists,), fix="Choose one of `backhaul recovery-point list`.")
def point_is_kept(facts: ItemFacts) -> Iterator[str]:
    """The chosen recovery point is still kept."""
    if facts.point is not None and facts.point not in facts.points:
        yield f"recovery point {facts.point} is not kept any longer, or was withdrawn"


@check("BH-POINT-OLD", field="point", severity=_WARN, needs=(point_exists,),
       fix="If the source still runs, a planned failover loses nothing; otherwise go on knowingly.")  # fmt: skip
def point_is_young(facts: ItemFacts) -> Iterator[str]:
    """The newest recovery point is younger than the RPO threshold."""
    if facts.newest_age_s is not None and facts.newest_age_s > facts.rpo_threshold_s:
        yield f"fail over now: loses {facts.newest_age_s:.0f} s, above the threshold of {facts.rpo_threshold_s:.0f} s"
