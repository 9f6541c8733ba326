"""What may happen to a call. The server's errors arrive with their stable code, message and advice.

What is found on this side, without a server to say it, has a class of its own (`OwnError`) with its code, as the
server's errors have; the reference page of codes is rendered from both. Nothing of ours is imported here.
"""

from __future__ import annotations

import inspect
from typing import ClassVar


class ClientError(Exception):
    """A call failed. `code`: the server's, or that of an `OwnError`."""

    def __init__(self, code: str, message: str, fix: str = "", status: int = 0) -> None:
        self.code, self.message, self.fix, self.status = code, message, fix, status
        super().__init__(f"{code}: {message} {fix}".strip())


class NotLoggedIn(ClientError):
    """There is no profile, or its session is over."""


class NotFound(ClientError):
    """The server knows no such resource."""


class Unreachable(ClientError):
    """The server did not answer."""


class JobFailed(ClientError):
    """A job that was waited for failed."""


class OwnError(ClientError):
    """Found on this side. The docstring of each kind is its message; what stands in braces is given by name."""

    CODE: ClassVar[str]
    FIX: ClassVar[str]

    def __init__(self, *, status: int = 0, **params: object) -> None:
        message = " ".join(inspect.cleandoc(type(self).__doc__ or "").split())
        super().__init__(self.CODE, message.format(**params), self.FIX, status)


class ServerUnreachable(OwnError, Unreachable):
    """{server} does not answer: {reason}."""

    CODE = "BH-UNREACHABLE"
    FIX = "Check the server's address and that it runs."


class AnswerStrange(OwnError):
    """The answer has HTTP status {http_status} and is none of a configuration server."""

    CODE = "BH-HTTP"
    FIX = "Check the address: something else answers there, or stands between."


class JobEnded(OwnError, JobFailed):
    """The job ended as {state} and gave no reason."""

    CODE = "BH-JOB"
    FIX = "`backhaul job show` has its steps; a job that was cancelled changed nothing more."
