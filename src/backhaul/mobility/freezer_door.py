"""The freezer's door: freezes for an agent that is not root. Run as root by `python -m backhaul.mobility.freezer_door`.

Freezing needs root, replicating does not. An agent that runs as another user connects to the door's socket and is given
a freezer with a guard, as it would otherwise start them itself: the connection is the freezer's link (messages:
`freezing`). Invariants: only the user that the door is for is heard; only file systems on devices whose node belongs to
that user are frozen; a connection is taken only when what the one before it froze is thawed, or held. One thread; lives
as long as who started it wants (SIGTERM), and what it gave then ends as its agent does.
"""

from __future__ import annotations

import hashlib
import os
import signal
import socket
import struct
import sys
from pathlib import Path
from typing import Final

from backhaul.mobility.freezer_client import (
    FREEZER_COMMAND,
    GUARD_COMMAND,
    StartedChild,
    default_state_folder,
    thaw_left,
)
from backhaul.mobility.freezing import MAX_LIMIT_MS, StateFile, System

USAGE: Final = "usage: python -m backhaul.mobility.freezer_door SOCKET UID\n"
_CREDENTIALS: Final = struct.Struct("3i")  # struct ucred: pid, uid, gid
_ENDS_S: Final = MAX_LIMIT_MS / 1000 + 10
"""Freezer and guard end by themselves once their link is closed and all is thawed. One that does not, as it is stopped,
is killed after the longest limit; what it had frozen then is thawed here.
"""


class Door:
    """One door: `path` of its socket, in a folder that only root may change, and the user it is for."""

    def __init__(self, path: Path, uid: int) -> None:
        self._path, self._uid = path, uid
        mark = hashlib.sha256(os.fsencode(path.absolute())).hexdigest()[:12]  # the same at each start of the door
        self._state = StateFile(str(default_state_folder() / f"backhaul-freezer-{mark}.state"))
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)

    def open(self) -> None:
        """Listen, once what an earlier door's agents left frozen is thawed. Raises OSError."""
        thaw_left(self._state)
        self._path.unlink(missing_ok=True)
        self._listener.bind(str(self._path))
        os.chown(self._path, self._uid, -1)
        self._path.chmod(0o600)
        self._listener.listen(1)

    def serve(self) -> None:
        """One agent after the other, until a signal ends the process."""
        while True:
            link, _ = self._listener.accept()
            with link:
                pid, uid, _ = _CREDENTIALS.unpack(
                    link.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
                )
                if uid != self._uid:
                    sys.stderr.write(f"refused process {pid} of user {uid}\n")
                    continue
                children = self._give(link)
            for child in children:
                child.end(_ENDS_S)
            thaw_left(self._state)  # both have ended; if they were killed while something was frozen

    def _give(self, link: socket.socket) -> list[StartedChild]:
        if held := thaw_left(self._state):
            still = [point for point in held if os.path.ismount(point)]
            if still:
                System().send(link, f"refused held:{len(still)}")
                return []
            self._state.remove()
        freezer, guard = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with freezer, guard:
            return [
                StartedChild(FREEZER_COMMAND, [link, freezer], self._state.path, str(self._uid)),
                StartedChild(GUARD_COMMAND, [guard]),
            ]


def main(arguments: list[str]) -> int:
    """Serve one door."""
    if len(arguments) != 2 or not arguments[1].isdigit():
        sys.stderr.write(USAGE)
        return 2
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    door = Door(Path(arguments[0]), int(arguments[1]))
    door.open()
    door.serve()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
