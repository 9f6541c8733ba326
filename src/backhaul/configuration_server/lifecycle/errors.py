"""What can end a job of an item's lifecycle. Raised in the jobs' threads; shown by API and command line as they are."""

from __future__ import annotations

from backhaul.configuration_server.errors import ConfigurationServerError


class LifecycleError(ConfigurationServerError):
    """The job of item {item} failed: {reason}."""

    code = "BH-LIFECYCLE"
    fix = "See the reason; repeat the job or cancel it with `backhaul item cancel`."
    status = 409


class SourceHeld(LifecycleError):
    """Nobody confirms that machine {machine} of item {item} is off: it is {power}. Neither side may run."""

    code = "BH-SOURCE-HELD"
    fix = "Power it off by hand and repeat the move, cancel it, or declare the source gone (unplanned failover)."


class SourceThawed(LifecycleError):
    """The file systems of machine {machine} of item {item} thawed before they were held, {tries} times."""

    code = "BH-SOURCE-THAWED"
    fix = "See the agent's report: its way to the target is too slow for the freeze's limit, or it ends. Then cancel."


class WaitedTooLong(LifecycleError):
    """Item {item}: {what} did not come about within {limit_s} s."""

    code = "BH-WAITED-TOO-LONG"
    fix = "`backhaul doctor` names the rung that is broken; then repeat the job or cancel it."


class StartNotConfirmed(LifecycleError):
    """Machine {machine} of item {item} was told to start but is {power}."""

    code = "BH-START-NOT-CONFIRMED"
    fix = "Look at its console; repeat the job, go to another recovery point, or cancel."


class DigestsRefused(LifecycleError):
    """The agent of machine {machine} does not give its disks' digests: {reason} ({reason_code})."""

    code = "BH-DIGESTS-REFUSED"
    fix = "See what its code means; then cancel the move and repeat it, or commit with --accept-integrity, by name."


class IntegrityReportForged(LifecycleError):
    """This is no integrity report that a configuration server of this vault signed: {reason}."""

    code = "BH-INTEGRITY-REPORT-FORGED"
    fix = "Do not believe it; cancel the move and repeat it, so that both sides are compared again."


class ReplicaMissing(LifecycleError):
    """Master target {target} holds no replica of item {item}."""

    code = "BH-REPLICA-MISSING"
    fix = "Check which master target the item names; cancel the move, then protect the item again."


class PinMissing(LifecycleError):
    """Master target {target} does not keep the state {pin} of item {item} any longer, so nothing can return to it."""

    code = "BH-PIN-MISSING"
    fix = "The disks are as they are now; resynchronise the item instead of cancelling."


class DisksUnequal(LifecycleError):
    """Item {item} has {expected} disks and side {side} has {found}."""

    code = "BH-DISKS-UNEQUAL"
    fix = "Protect the item again with the disks it has now."


class MachineUnnamed(LifecycleError):
    """Item {item} can be bound to another machine only by that machine's id."""

    code = "BH-MACHINE-UNNAMED"
    fix = "Name it: `backhaul item rebind ITEM --machine ID`, with the id that hypervisor or cloud report."


class LifecycleUnknown(LifecycleError):
    """Item {item} has no plan for its other side: it cannot be moved."""

    code = "BH-LIFECYCLE-UNKNOWN"
    fix = "Say first where it shall run: network, subnet and machine of the other side."
    status = 404


class NetworkEmpty(LifecycleError):
    """No item lies in the virtual network {network}{where}. Networks with items: {known}."""

    code = "BH-NETWORK-EMPTY"
    fix = "Name one of these networks, or the items themselves; `backhaul item list` shows them."
    status = 404


class BatchFailed(LifecycleError):
    """{failed} of {total} items failed: {names}."""

    code = "BH-BATCH-FAILED"
    fix = "Each item has a job of its own that says why; the others went on."
