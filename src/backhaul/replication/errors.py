"""The base of all errors a user may meet, and those of the stream itself.

    BackhaulError
    ├── StreamError          the stream between an agent and a target
    │   ├── FrameMalformed   ├── FrameForged      ├── FrameGap
    │   ├── FenceStale       ├── OpeningRefused   ├── EpochViolation
    │   └── ...              (each package adds its own below BackhaulError)

A class is one thing that can happen. Its docstring is the message (with `{parameters}`), `code` is stable and
is what travels over the wire and through the API, `fix` says what to do next. `docs/reference/codes.md` has a
heading per code; a test compares both sets.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from typing import Any, ClassVar, Final

import msgspec

UNDECODABLE: Final = (msgspec.MsgspecError, UnicodeDecodeError)
"""What decoding raises for bytes that are not what was asked for; text that is no UTF-8 is not msgspec's own error."""

MAX_PARAM: Final = 500
"""Characters of one parameter in a message: the cause of an error may quote what a peer sent."""


class BackhaulError(Exception):
    """Something went wrong."""

    code: ClassVar[str] = "BH-INTERNAL"
    fix: ClassVar[str] = "This is a defect of Backhaul: report it with the log of the service that printed it."
    exit_code: ClassVar[int] = 1

    def __init__(self, **params: Any) -> None:
        self.params = params
        super().__init__(self.message)

    @property
    def message(self) -> str:
        """What happened and why, for a person."""
        return _fill(inspect.cleandoc(type(self).__doc__ or ""), self.params)

    @property
    def advice(self) -> str:
        """What to do next, for a person."""
        return _fill(self.fix, self.params)

    def plain_params(self) -> dict[str, int | str]:
        """The parameters as a message may carry them: numbers, and text of at most MAX_PARAM characters."""
        return {
            name: value if isinstance(value, int) else str(value)[:MAX_PARAM] for name, value in self.params.items()
        }

    def __str__(self) -> str:
        return f"{self.code}: {self.message} {self.advice}".replace("\n", " ")


class _Known(dict[str, Any]):
    """Parameters of a message; one that is missing shows by its name instead of raising in an error path."""

    def __missing__(self, key: str) -> str:
        return "{" + key + "}"


def _fill(template: str, params: dict[str, Any]) -> str:
    return template.format_map(_Known(params))


def every_error(base: type[BackhaulError] = BackhaulError) -> Iterator[type[BackhaulError]]:
    """All error classes defined so far, `base` included; import the packages of interest first."""
    yield base
    for child in base.__subclasses__():
        yield from every_error(child)


class StreamError(BackhaulError):
    """The stream of item {item} failed."""

    code = "BH-STREAM"
    fix = "The agent opens a new stream by itself; nothing that was acknowledged is lost."


class FrameMalformed(StreamError):
    """A frame or message that arrived from {peer} is not well formed: {reason}."""

    code = "BH-FRAME-MALFORMED"
    fix = "Compare the versions of both ends; the connection was closed and nothing of the frame was used."


class FrameForged(StreamError):
    """Frame {number} of item {item} does not open with the stream's key: it was altered or is not this stream's."""

    code = "BH-FRAME-FORGED"
    fix = "The frame was refused. If it happens again, somebody between agent and target alters data: see the doctor."


class FrameGap(StreamError):
    """Item {item} expected frame {expected} but frame {number} came: what lies between was lost on the way."""

    code = "BH-FRAME-GAP"
    fix = "The agent opens a new stream and sends the unapplied blocks again by itself."


class FenceStale(StreamError):
    """The stream of item {item} with fence {fence} is closed; the target accepts only {accepted}."""

    code = "BH-FENCE-STALE"
    fix = "An old agent, spool or configuration server is still running; it stands by and changes nothing."


class OpeningRefused(StreamError):
    """The target refused to open a stream for item {item}: {reason}."""

    code = "BH-OPENING-REFUSED"
    fix = "See the reason; `backhaul doctor` names the rung that is broken."


class NotActiveMachine(OpeningRefused):
    """Machine {machine} may not replicate item {item}: the active machine is {active}, so this one is a copy."""

    code = "BH-NOT-ACTIVE-MACHINE"
    fix = "Nothing to do if this is a clone or an old primary. If the machine's id rightly changed, rebind the item."


class EpochViolation(StreamError):
    """Item {item}: the agent sent {what}, which the epochs' order does not allow here: {reason}."""

    code = "BH-EPOCH-VIOLATION"
    fix = "The target keeps its newest complete point; the agent must open a new stream."


class VersionUnsupported(StreamError):
    """The peer {peer} speaks protocol versions {theirs}, this side {ours}: they have none in common."""

    code = "BH-VERSION-UNSUPPORTED"
    fix = "Upgrade the older side; the configuration server first, then process servers, then agents."


class OpeningForged(StreamError):
    """{what} was refused: {reason}."""

    code = "BH-OPENING-FORGED"
    fix = "Nothing of it was used. If it happens again, check the certificates of both ends with the doctor."


class StreamClosed(StreamError):
    """Item {item} has no open stream on this side, so the message was refused."""

    code = "BH-STREAM-CLOSED"
    fix = "The agent opens a new stream by itself."


class SpoolLost(StreamError):
    """The process server no longer holds frames of item {item} that it had acknowledged: it has {held} of {spooled}."""

    code = "BH-SPOOL-LOST"
    fix = "The agent opens a new stream and sends the unapplied blocks again; no resync is needed."


class DescriptorRefused(StreamError):
    """The descriptor of item {item} was refused: {reason}."""

    code = "BH-DESCRIPTOR-REFUSED"
    fix = "An old configuration server may still be running; the target keeps the highest term and generation it saw."
