"""Chooses how a still image is had, each time one is needed: the first way of the plan that works at the moment.

A machine that is powered off is `stopped`, the same machine running is `frozen` or quiesced. Called from worker
threads.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path

import msgspec

from backhaul.mobility.errors import NotStopped, NoWayToStill, StopUnproven
from backhaul.mobility.freezer_client import Freezer
from backhaul.mobility.frozen import FrozenDisks
from backhaul.mobility.quiesce import QuiescedApplication, QuiesceScripts
from backhaul.mobility.still import StillImage, StillSource
from backhaul.mobility.stopped import StoppedDisks
from backhaul.replication.control import StillImagePlan
from backhaul.replication.ports import Clock


def for_final(plan: StillImagePlan) -> StillImagePlan:
    """The plan of the final point. A script's application goes on after its own limit, so only a freeze can be held
    until the machine is off: where there is one, it is made without the script.
    """
    return msgspec.structs.replace(plan, pre=(), post=()) if plan.freeze else plan


class PlannedStill:
    """A `still.StillSource` that follows a plan."""

    def __init__(
        self,
        plan: StillImagePlan,
        disks: Sequence[Path],
        freezer: Freezer,
        clock: Clock,
        freeze_limit_s: float,
        machine_off: bool = False,
    ) -> None:
        """`machine_off`: the machine's site says so, as `stopped.StoppedDisks` understands it."""
        self.held_s: float | None = None
        """For how long a running machine is held at most; None where the plan has no way to hold it."""
        self._stopped = StoppedDisks(disks, clock, machine_off) if plan.stopped else None
        frozen = FrozenDisks(freezer, disks, freeze_limit_s) if plan.freeze else None
        self._running: StillSource | None = frozen
        if frozen is not None:
            self.held_s = freeze_limit_s
        if plan.pre:
            scripts = QuiesceScripts(plan.pre, plan.post, plan.script_limit_s, plan.quiesce_limit_s)
            self._running = QuiescedApplication(scripts, clock, frozen)
            self.held_s = min(plan.quiesce_limit_s, freeze_limit_s) if frozen is not None else plan.quiesce_limit_s

    def lasts(self) -> bool:
        """Whether the image would last now, as the machine is stopped: then nothing needs to be copied ahead."""
        if self._stopped is None:
            return False
        try:
            with self._stopped.hold():
                return True
        except (NotStopped, StopUnproven):
            return False

    @contextlib.contextmanager
    def hold(self) -> Iterator[StillImage]:
        """Raises NoWayToStill when the plan names none; otherwise what the last way that was tried raises."""
        with contextlib.ExitStack() as held:
            yield held.enter_context(self._choose(held))

    def _choose(self, held: contextlib.ExitStack) -> contextlib.AbstractContextManager[StillImage]:
        if self._stopped is not None:
            try:
                return contextlib.nullcontext(held.enter_context(self._stopped.hold()))
            except (NotStopped, StopUnproven):
                if self._running is None:
                    raise
        if self._running is None:
            raise NoWayToStill
        return self._running.hold()
