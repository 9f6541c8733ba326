"""The stages of the demo, in their order, and what runs them.

Invariant: a stage may be run again after a kill at any point of it: it looks at the world before it acts, as the
product's own jobs do. A finished stage is not run again. Runs in the demo's main thread.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from backhaul.client.errors import ClientError
from backhaul.demo.display import Display
from backhaul.demo.errors import DemoError, StageFailed, StageUnknown
from backhaul.demo.operator import Operator
from backhaul.demo.plan import Plan
from backhaul.demo.progress import Progress
from backhaul.replication.errors import BackhaulError


@dataclass(frozen=True)
class Run:
    """What a stage is given."""

    plan: Plan
    operator: Operator
    progress: Progress
    display: Display


@dataclass(frozen=True)
class Stage:
    """A stage: `run` brings the world there and answers its one line; `title` says what it is about to do."""

    name: str
    title: str
    run: Callable[[Run], str]


def check_name(stages: Sequence[Stage], wanted: str) -> None:
    """Raises StageUnknown."""
    names = [stage.name for stage in stages]
    if wanted and wanted not in names:
        raise StageUnknown(stage=wanted, stages=", ".join(names))


def run_stages(stages: Sequence[Stage], run: Run, until: str = "") -> None:
    """Run what is not done yet, up to and including `until`. Raises StageFailed, StageUnknown, PromiseBroken."""
    check_name(stages, until)
    for stage in stages:
        if stage.name not in run.progress.noted.done:
            began = time.monotonic()
            with run.display.stage(stage.name, stage.title):
                line = _attempt(stage, run)
            run.display.done(stage.name, time.monotonic() - began, line)
            run.progress.finish(stage.name, line)
        if stage.name == until:
            return


def _attempt(stage: Stage, run: Run) -> str:
    try:
        return stage.run(run)
    except DemoError:
        raise
    except (BackhaulError, ClientError, OSError) as error:
        raise StageFailed(stage=stage.name, reason=str(error).rstrip(".")) from error
