"""Exit codes, the same for every verb; `MEANING` is what the help says of them."""

from __future__ import annotations

from typing import Final

from backhaul.client.errors import ClientError, JobFailed, NotFound, NotLoggedIn, Unreachable

FAILED: Final = 1
BROKEN_RUNG: Final = 7

MEANING: Final = {
    0: "done",
    FAILED: "refused or failed; its code (BH-...) and what to do are printed",
    2: "wrong usage",
    3: "not logged in, or the session is over",
    4: "there is no such item, server, job, policy or network",
    5: "the configuration server does not answer",
    6: "the job that was waited for failed",
    BROKEN_RUNG: "the doctor found a broken step",
}

_CODES: Final[dict[type[ClientError], int]] = {NotLoggedIn: 3, NotFound: 4, Unreachable: 5, JobFailed: 6}


def exit_code(error: ClientError) -> int:
    """The exit code for an error."""
    return next((code for kind, code in _CODES.items() if isinstance(error, kind)), FAILED)
