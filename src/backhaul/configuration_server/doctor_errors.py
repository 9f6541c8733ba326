"""What `doctor` finds broken, rung by rung. Causes that have a code of their own keep it; these are for the rest.

ConfigurationServerError
└── RungBroken   RungUnregistered, RungUnstarted, RungService, RungHeartbeat, RungClock, RungSpace, RungBlocked,
                 RungAgentSilent, RungAgentLink, RungTargetLink, RungReplica, RungWaiting, RungStalled, RungThrottled,
                 RungReplication, RungNoPoint
"""

from __future__ import annotations

from typing import Any, Final

from backhaul.configuration_server.errors import ConfigurationServerError
from backhaul.disks.errors import DiskError
from backhaul.links.errors import LinkError
from backhaul.master_target.errors import MasterTargetError
from backhaul.mobility.errors import MobilityError
from backhaul.replication.errors import BackhaulError, StreamError, every_error

_DATA_PLANE: Final = (MobilityError, DiskError, StreamError, MasterTargetError, LinkError)
"""What agents and targets report; an error of this server's own is raised, never reported."""


class RungBroken(ConfigurationServerError):
    """A rung of the ladder is broken: {reason}."""

    code = "BH-RUNG"
    fix = "See the reason."
    status = 409


class RungUnregistered(RungBroken):
    """{server} is {state}."""

    code = "BH-RUNG-UNREGISTERED"
    fix = "Next: {command}."


class RungUnstarted(RungBroken):
    """{server} was never started, so it has not said where it is."""

    code = "BH-RUNG-UNSTARTED"
    fix = "Next: {command}."


class RungService(RungBroken):
    """The service of {server} does not run on this machine."""

    code = "BH-RUNG-SERVICE"
    fix = "It is started again by itself where `built_in` is set; {log} says why it ended."


class RungHeartbeat(RungBroken):
    """{server} answers now, but its last heartbeat was {age}."""

    code = "BH-RUNG-HEARTBEAT"
    fix = "Wait for the next one; should it not come, this server is overloaded or `heartbeat_s` is set too high."


class RungClock(RungBroken):
    """The clock of {server} differs from this server's by {skew_s} s; {limit_s} s are allowed."""

    code = "BH-RUNG-CLOCK"
    fix = "Synchronise the clocks of both servers; until then ages and certificates cannot be trusted."


class RungSpace(RungBroken):
    """{percent} % of the spool of {server} is free."""

    code = "BH-RUNG-SPACE"
    fix = "Mend the way to the target or enlarge the spool; below 20 % the server throttles its machines."


class RungBlocked(RungBroken):
    """{server} stores nothing: {reason}"""

    code = "BH-RUNG-BLOCKED"
    fix = "Free space on the volume or mend its disk; it goes on by itself."


class RungAgentSilent(RungBroken):
    """{server} {age}."""

    code = "BH-RUNG-AGENT"
    fix = "Start the machine and `backhaul agent run`; check its way to this server."


class RungAgentLink(RungBroken):
    """Agent {agent} is not connected to process server {server}."""

    code = "BH-RUNG-AGENT-LINK"
    fix = "Open the way from the machine to the process server's data port; the agent's log names what it meets."


class RungTargetLink(RungBroken):
    """Process server {server} and master target {target} are not connected."""

    code = "BH-RUNG-TARGET-LINK"
    fix = "Open the way from the master target to the process server's data port; it is dialled again by itself."


class RungReplica(RungBroken):
    """Master target {target} holds no replica of {item}."""

    code = "BH-RUNG-REPLICA"
    fix = "See its job with `backhaul job list`, then protect it again."


class RungWaiting(RungBroken):
    """Master target {target} applies nothing of {item}: {reason}"""

    code = "BH-RUNG-WAITING"
    fix = "{advice}"


class RungStalled(RungBroken):
    """Process server {server} holds {backlog_bytes} bytes of {item}, of which none was applied for {idle_s} s."""

    code = "BH-RUNG-STALLED"
    fix = "Look at the master target's load and log, and at the bandwidth of the way to it."


class RungThrottled(RungBroken):
    """Process server {server} lets the machine of {item} wait, as its spool is short of space."""

    code = "BH-RUNG-THROTTLED"
    fix = "Enlarge the spool, raise the bandwidth to the target, or move machines to another process server."


class RungReplication(RungBroken):
    """The agent of {item} does not replicate it: {reason}"""

    code = "BH-RUNG-REPLICATION"
    fix = "Look at the agent's log; it tries again by itself."


class RungNoPoint(RungBroken):
    """{item} has no recovery point yet."""

    code = "BH-RUNG-NO-POINT"
    fix = "Wait until all disks are compared: `backhaul item show`."


def reported(code: str, params: dict[str, Any]) -> BackhaulError | None:
    """What a server or agent reported by its code, with its message and its fix; None for a code of a newer one."""
    known = (kind for base in _DATA_PLANE for kind in every_error(base))
    kind = next((kind for kind in known if kind.code == code), None)
    return None if kind is None else kind(**params)
