"""The whole demo: its stages in order, one demo per folder, what is left running and what is cleaned away.

Invariant: whatever ends a run (the end, a failure, a signal), either everything it started has ended, or it was told
to keep it and has said how to go on. A killed run leaves everything running, for `--resume` or `clean`. Main thread.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Final

from backhaul.demo.coming_back import fail_back, home_again
from backhaul.demo.display import Display
from backhaul.demo.errors import DemoFolderWrong, DemoTaken
from backhaul.demo.going_over import commit, fail_over
from backhaul.demo.operator import operating
from backhaul.demo.plan import ALL_BYTES, ALL_DISKS, CLOUD, CONTROL, HOME, MACHINE_PLANS, Plan
from backhaul.demo.progress import Progress
from backhaul.demo.protecting import protect
from backhaul.demo.reprotecting import reprotect
from backhaul.demo.rescue_servers import delete, deploy
from backhaul.demo.setting_up import set_up
from backhaul.demo.site_process import SiteProcess
from backhaul.demo.stages import Run, Stage, check_name, run_stages
from backhaul.demo.waking import wake

STAGES: Final = (
    Stage("set-up", "two sites, their servers, two machines that write all the time", set_up),
    Stage("protected", "both machines are copied to the cloud and have recovery points", protect),
    Stage("failed-over", "alpha in a disaster, beta as planned; both go on in the cloud", fail_over),
    Stage("committed", "both stay there", commit),
    Stage("process-servers", "a way home: one process server into each virtual network", deploy),
    Stage("reprotected", "both are copied home; a process server is killed in the middle of it", reprotect),
    Stage("failed-back", "both come home; one cancels that first", fail_back),
    Stage("home-again", "both stay at home, and are protected towards the cloud again", home_again),
    Stage("cleaned-up", "the process servers are deleted", delete),
)

VERIFIED: Final = "failback verified: {machines} machines, {disks} disks, {bytes} bytes, prefix property holds"
"""The last line of a run in which every stage was done: none is, unless the oracle found every promise kept."""


class Interrupted(Exception):
    """A signal asked for the end."""


@dataclass(frozen=True)
class Wish:
    """What the caller wants. `until` empty: all stages; `unprivileged`: root does without namespaces and devices."""

    folder: Path
    unprivileged: bool = False
    until: str = ""
    keep: bool = False
    resume: bool = False


def run_demo(wish: Wish, display: Display, stages: Sequence[Stage] = STAGES) -> bool:
    """Run the demo; whether every stage is done. Raises DemoError's kinds and Interrupted, cleaned up before."""
    check_name(stages, wish.until)
    with holding(wish.folder.resolve()), signals():
        plan, progress = _begin_or_go_on(wish)
        keep = wish.keep or bool(wish.until)
        try:
            with operating(plan) as operator:
                run = Run(plan, operator, progress, display)
                if progress.noted.done and not all(stage.name in progress.noted.done for stage in stages):
                    wake(run)
                run_stages(stages, run, wish.until)
        except BaseException:
            if wish.keep:
                _say_how_to_look(plan, display)
            else:
                stop_everything(plan)
                display.line(f"Everything was stopped; disks and logs are in {plan.folder}.")
                _say_how_to_go_on(plan, display)
            raise
        complete = all(stage.name in progress.noted.done for stage in stages)
        if keep:
            _say_how_to_look(plan, display)
        else:
            stop_everything(plan)
            remove(plan)
        if complete:
            display.line(VERIFIED.format(machines=len(MACHINE_PLANS), disks=ALL_DISKS, bytes=f"{ALL_BYTES:,}"))
        return complete


def clean(folder: Path) -> None:
    """End and remove everything of the demo in this folder. Raises DemoTaken, DemoFolderWrong."""
    plan = Plan.of(folder)
    if not plan.folder.exists():
        return
    with holding(plan.folder):
        known = Progress(plan.folder, plan.as_root)
        if not known.exists and any(path.name != "lock" for path in plan.folder.iterdir()):
            raise DemoFolderWrong(folder=plan.folder, reason="it is not a demo's, so nothing of it is removed")
        stop_everything(plan)
        remove(plan)


def stop_everything(plan: Plan) -> None:
    """End machines, servers, services, networks, mounts and providers of both sites."""
    for name in (HOME, CLOUD):
        SiteProcess(plan.folder / name, plan.management(name)).take_down()


def remove(plan: Plan) -> None:
    """Remove the folder; nothing of it is in use."""
    shutil.rmtree(plan.folder)


@contextmanager
def holding(folder: Path) -> Iterator[None]:
    """One demo at a time works in a folder. Raises DemoTaken, DemoFolderWrong."""
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        descriptor = os.open(folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise DemoFolderWrong(folder=folder, reason=error.strerror) from error
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        os.close(descriptor)
        raise DemoTaken(folder=folder) from error
    try:
        yield
    finally:
        os.close(descriptor)


@contextmanager
def signals() -> Iterator[None]:
    """SIGINT, SIGTERM and SIGHUP end the run in order; while it ends they are not heard again."""

    def stop(_number: int, _frame: FrameType | None) -> None:
        for number in ends:
            signal.signal(number, signal.SIG_IGN)
        raise Interrupted

    ends = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = [signal.signal(number, stop) for number in ends]
    try:
        yield
    finally:
        for number, handler in zip(ends, before, strict=True):
            signal.signal(number, handler)


def _begin_or_go_on(wish: Wish) -> tuple[Plan, Progress]:
    """A demo that was begun without namespaces and devices goes on without them, whatever root says now."""
    plan = Plan.of(wish.folder, wish.unprivileged)
    progress = Progress(plan.folder, plan.as_root)
    if not progress.exists:
        if any(path.name != "lock" for path in plan.folder.iterdir()):
            raise DemoFolderWrong(folder=plan.folder, reason="it is not empty and holds no demo")
        progress.begin()
        return plan, progress
    if not wish.resume:
        raise DemoFolderWrong(folder=plan.folder, reason="it holds a demo already")
    progress.load()
    plan = Plan.of(wish.folder, unprivileged=not progress.noted.as_root)
    if progress.noted.as_root and not plan.as_root:
        raise DemoFolderWrong(folder=plan.folder, reason="its demo was begun as root")
    return plan, progress


def _say_how_to_look(plan: Plan, display: Display) -> None:
    inside = f"ip netns exec {Path(plan.namespace(CONTROL)).name} " if plan.as_root else ""
    display.line("")
    display.line("Everything is left running. Look at it, for example:")
    display.line(f"  export PATH={Path(sys.executable).parent}:$PATH BACKHAUL_PROFILE={plan.folder}/profile.json")
    for command in ("item list", "item show alpha", "recovery-point list alpha", "process-server list"):
        display.line(f"  {inside}backhaul {command}")
    _say_how_to_go_on(plan, display)


def _say_how_to_go_on(plan: Plan, display: Display) -> None:
    program = Path(sys.executable).parent / "backhaul"
    display.line(f"Judge again:  {program} demo check --data-dir {plan.folder}")
    display.line(f"Go on:        {program} demo --resume --data-dir {plan.folder}")
    display.line(f"Clean up:     {program} demo clean --data-dir {plan.folder}")
