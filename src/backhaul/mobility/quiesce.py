"""Still because the application was asked to: its `pre` script quiesces it, its `post` script lets it go on.

The contract with the scripts: when `pre` ends with status 0, everything the application acknowledged is on the disks
and nothing will be written until `post`, or until the application resumes by itself after its own limit, which it
must do in case `post` never comes. `post` ends with status 0 only if the application was quiesced until then; it is
run after every `pre` that could be started, once, also when that failed. What other programs write is not covered:
with a file system between application and disk an `inner` freeze is made while the application is quiesced.
Called from worker threads.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from backhaul.mobility.errors import ImageNotStill, QuiesceFailed, QuiesceTimedOut, StillError
from backhaul.mobility.scripts import run_script
from backhaul.mobility.still import StillImage, StillSource
from backhaul.replication.ports import Clock
from backhaul.replication.values import Consistency, StillKind


@dataclass(frozen=True)
class QuiesceScripts:
    """What the operator set.

    pre, post       commands with their arguments
    script_limit_s  how long each may run
    limit_s         after how long, counted from the start of `pre`, the application resumes by itself
    """

    pre: tuple[str, ...]
    post: tuple[str, ...]
    script_limit_s: float = 10.0
    limit_s: float = 30.0


class QuiescedImage:
    """An application at rest; see `still.StillImage`."""

    kind = StillKind.FROZEN
    consistency = Consistency.APPLICATION

    def __init__(self, scripts: QuiesceScripts, clock: Clock) -> None:
        """Run `pre`. Raises QuiesceFailed or QuiesceTimedOut, after `post` was run."""
        self._scripts = scripts
        self._clock = clock
        self._inner: StillImage | None = None
        self._began_ns = clock.monotonic_ns()
        self.limit_s: float | None = scripts.limit_s
        self.frozen_us = 0
        self.ended = False
        try:
            _run("pre", scripts.pre, scripts.script_limit_s)
        except StillError as error:
            self._post_after(error)
            raise
        self.barrier_ns = clock.wall_ns()

    def freeze_within(self, inner: StillImage) -> None:
        """The file systems are frozen as well now, so this is when the image became still."""
        self._inner = inner
        self.barrier_ns = inner.barrier_ns

    def confirm(self) -> None:
        """Thaw what is frozen within, then `post`. Raises ImageNotStill if the application may have resumed before."""
        if self.ended:
            raise ImageNotStill(reason="it was ended before")
        try:
            if self._inner is not None:
                self._inner.confirm()
        except BaseException as error:
            self._post_after(error)
            raise
        over = self._elapsed_us() > self._scripts.limit_s * 1_000_000
        self._post()
        self.frozen_us = self._elapsed_us()
        if over:
            raise ImageNotStill(reason=f"the application resumes by itself after {self._scripts.limit_s} s")

    def let_go(self, error: BaseException | None) -> None:
        """Run `post` if it was not run yet; if it fails while `error` is on its way, that is noted on `error`."""
        if self.ended:
            return
        if error is not None:
            self._post_after(error)
        else:
            self._post()

    def _elapsed_us(self) -> int:
        return (self._clock.monotonic_ns() - self._began_ns) // 1000

    def _post(self) -> None:
        self.ended = True
        _run("post", self._scripts.post, self._scripts.script_limit_s)

    def _post_after(self, error: BaseException) -> None:
        try:
            self._post()
        except StillError as second:
            error.add_note(str(second))


class QuiescedApplication:
    """An application with scripts; a `still.StillSource`."""

    def __init__(self, scripts: QuiesceScripts, clock: Clock, inner: StillSource | None = None) -> None:
        """`inner`: freezes the file systems meanwhile; None where the application writes to raw disks."""
        self._scripts = scripts
        self._clock = clock
        self._inner = inner

    @contextlib.contextmanager
    def hold(self) -> Iterator[QuiescedImage]:
        """At rest from entering to `confirm` or leaving. Raises QuiesceFailed, QuiesceTimedOut, and as `inner`."""
        image = QuiescedImage(self._scripts, self._clock)
        try:
            with contextlib.ExitStack() as held:
                if self._inner is not None:
                    image.freeze_within(held.enter_context(self._inner.hold()))
                yield image
        except BaseException as error:
            image.let_go(error)
            raise
        image.let_go(None)


def _run(stage: str, command: Sequence[str], limit_s: float) -> None:
    script = " ".join(command)
    try:
        result = run_script(command, limit_s)
    except OSError as error:
        raise QuiesceFailed(stage=stage, script=script, status="no start", output=error.strerror) from error
    if result.status is None:
        raise QuiesceTimedOut(stage=stage, script=script, limit_s=limit_s, output=result.output or "no output")
    if result.status != 0:
        raise QuiesceFailed(
            stage=stage, script=script, status=f"status {result.status}", output=result.output or "no output"
        )
