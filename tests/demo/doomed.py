"""A demo that is killed at a given effect of a stage: `python -m demo.doomed STAGE NUMBER WHEN [ARGUMENT...]`.

An effect is what the demo does to anything but itself: a request to the configuration server or to a site that changes
something, an order to its gateway, something typed on a server, a folder for a service; and each note of its own that
it must find again. WHEN is `before` or `after` its NUMBER-th one (from 1) of STAGE. The arguments are the demo's.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from typing import Any

from backhaul.client.transport import Transport
from backhaul.demo import machines, reprotecting, rescue_servers
from backhaul.demo import moving as moves
from backhaul.demo.command import app
from backhaul.demo.display import Display
from backhaul.demo.progress import Progress
from backhaul.sites.local.client import LocalSite


class Doom:
    """Counts the effects of the stage that runs, and kills this process at one of them."""

    def __init__(self, stage: str, number: int, when: str) -> None:
        self._stage, self._number, self._when = stage, number, when
        self._now, self._count = "", 0

    def begin(self, stage: str) -> None:
        self._now, self._count = stage, 0

    def over(self, owner: Any, name: str, is_effect: Callable[..., bool] = lambda *_: True) -> None:
        """Every call of this function that is an effect is counted."""
        real = getattr(owner, name)

        def counted(*arguments: Any, **named: Any) -> Any:
            if self._now != self._stage or not is_effect(*arguments):
                return real(*arguments, **named)
            self._count += 1
            self._die("before")
            answer = real(*arguments, **named)
            self._die("after")
            return answer

        setattr(owner, name, counted)

    def _die(self, when: str) -> None:
        if (self._count, when) == (self._number, self._when):
            os.kill(os.getpid(), signal.SIGKILL)


def main(stage: str, number: str, when: str, *arguments: str) -> None:
    """Run the demo until its end comes."""
    doom = Doom(stage, int(number), when)
    doom.over(Transport, "respond", lambda _self, method, *_: method != "GET")
    doom.over(LocalSite, "_call", lambda _self, _kind, _operation, token="", *_: bool(token))
    doom.over(Progress, "_save")
    doom.over(machines, "ask_to_enrol")
    doom.over(moves, "begin_station")
    doom.over(rescue_servers, "on_server")
    for module in (rescue_servers, reprotecting):
        doom.over(module, "order")
    shown = Display.stage

    def begun(self: Display, name: str, title: str) -> Any:
        doom.begin(name)
        return shown(self, name, title)

    Display.stage = begun  # type: ignore[method-assign]
    app(list(arguments), prog_name="backhaul demo")


if __name__ == "__main__":
    main(*sys.argv[1:])
