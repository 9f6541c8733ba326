"""Checks on the side where something is started, undone or thrown away. See `preflight`, which lists them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from backhaul.recovery.findings import Severity, check
from backhaul.recovery.preflight_facts import ItemFacts
from backhaul.recovery.preflight_servers import master_target_answers, state_allows

_WARN: Final = Severity.WARN


@check("BH-SITE-SILENT", field="other_side", fix="Restore the way to the site's management API.")
def site_answers(facts: ItemFacts) -> Iterator[str]:
    """The site on which the machine shall run, or its disks are made or given back, answers."""
    if not facts.other_side.reachable:
        yield "the management API of the other side's site does not answer"


@check("BH-OTHER-SIDE-RUNNING", field="other_side", needs=(site_answers,),
       fix="Power the old machine off: its disks become the replica.")  # fmt: skip
def other_side_is_off(facts: ItemFacts) -> Iterator[str]:
    """The machine of the other side is off."""
    if not facts.other_side_off:
        yield "the site has not confirmed that the machine of the other side is off"


@check("BH-SITE-RIGHTS", field="other_side", needs=(site_answers,),
       fix="Have the right to start machines given to the account that Backhaul uses there.")  # fmt: skip
def site_lets_start(facts: ItemFacts) -> Iterator[str]:
    """Backhaul may start machines there."""
    if not facts.other_side.may_start:
        yield "the account may not start machines on the other side"


@check("BH-SITE-MACHINE-NEW", field="other_side", severity=_WARN, needs=(site_answers,),
       fix="Nothing has to be done; compare its networks and addresses with the old machine's.")  # fmt: skip
def site_knows_machine(facts: ItemFacts) -> Iterator[str]:
    """The machine is known on the side where it shall run."""
    if not facts.other_side.machine_exists:
        yield "the machine is not known there: it is made anew from its description"


@check("BH-LAYER-SPACE", field="other_side", needs=(site_answers,), fix="Free space for the writable layer.")
def layer_has_space(facts: ItemFacts) -> Iterator[str]:
    """There is space for the writable layer."""
    if facts.other_side.layer_bytes > facts.other_side.free_bytes:
        yield f"the layer takes {facts.other_side.layer_bytes:,} bytes and {facts.other_side.free_bytes:,} are free"


@check("BH-LAYER-COPY", field="other_side", severity=_WARN, needs=(layer_has_space,),
       fix="Put the replicas on a file system with reflinks (XFS, btrfs) to start within seconds.")  # fmt: skip
def layer_is_instant(facts: ItemFacts) -> Iterator[str]:
    """The writable layer is a reflink or snapshot, so that the machine starts at once."""
    if facts.other_side.layer_bytes:
        yield f"the storage knows no reflinks: {facts.other_side.layer_bytes:,} bytes are copied before the start"


@check("BH-COMMIT-UNPROVED", field="item", severity=_WARN, needs=(state_allows,),
       fix="Look at the machine's data first: after the commit the old side is not kept.")  # fmt: skip
def move_is_proved(facts: ItemFacts) -> Iterator[str]:
    """An integrity report proves that both sides were equal."""
    if not facts.integrity_proved:
        yield "no integrity report proves this move"


@check("BH-CANCEL-UNDO", field="item", needs=(state_allows, master_target_answers),
       fix="Let the reprotect end, or end the protection; the disks are as they are now.")  # fmt: skip
def old_disks_can_return(facts: ItemFacts) -> Iterator[str]:
    """What the old disks held before the reprotect is still kept."""
    if not facts.undo_kept:
        yield "the pin of the disks before the reprotect is gone: they cannot go back to what they were"


@check("BH-CANCEL-REPLICA", field="item", severity=_WARN, needs=(state_allows, master_target_answers),
       fix="Nothing has to be done: the old side has exactly its state, and all disks are compared.")  # fmt: skip
def replica_can_return(facts: ItemFacts) -> Iterator[str]:
    """The replica's state before the move is still kept."""
    if not facts.replica_kept:
        yield "the pin of the replica before the move is gone: it stays at the point that was started"
