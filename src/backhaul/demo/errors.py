"""What ends the demo, or a guest of it.

DemoError
├── GuestMisplaced     ├── StageFailed       ├── DemoFolderWrong
├── DemoTaken          ├── ProgressDamaged   ├── PromiseBroken
└── StageUnknown       └── WaitedInVain
"""

from __future__ import annotations

from backhaul.replication.errors import BackhaulError


class DemoError(BackhaulError):
    """The demo ended: {reason}."""

    code = "BH-DEMO"
    fix = "See the reason and the logs in the demo's folder; `backhaul demo clean` removes everything."


class GuestMisplaced(DemoError):
    """The guest program cannot run here: {reason}."""

    code = "BH-DEMO-GUEST"
    fix = "It is started by a local site for a machine with at least one disk, not by hand."


class StageFailed(DemoError):
    """Stage {stage} failed: {reason}."""

    code = "BH-DEMO-STAGE"
    fix = "See the reason. `--resume` goes on from the last finished stage, `backhaul demo clean` removes everything."


class StageUnknown(DemoError):
    """There is no stage {stage}; the stages are: {stages}."""

    code = "BH-DEMO-STAGE-UNKNOWN"
    fix = "Name one of them, or leave `--until` out."
    exit_code = 2


class DemoFolderWrong(DemoError):
    """The folder {folder} cannot be used for the demo: {reason}."""

    code = "BH-DEMO-FOLDER"
    fix = "Name another folder with --data-dir, go on with --resume, or remove the demo with `backhaul demo clean`."
    exit_code = 2


class DemoTaken(DemoError):
    """Another demo works in {folder}."""

    code = "BH-DEMO-TAKEN"
    fix = "Wait for it, end it, or name another folder with --data-dir."
    exit_code = 2


class PlaceUnknown(DemoError):
    """The demo has no {place} to open a shell at."""

    code = "BH-DEMO-PLACE"
    fix = "Places are: {places}. A process server is there once it is deployed."
    exit_code = 2


class ProgressDamaged(DemoError):
    """The progress file {path} cannot be read: {reason}."""

    code = "BH-DEMO-PROGRESS"
    fix = "Nothing is known of how far the demo got: remove it with `backhaul demo clean` and start again."


class PromiseBroken(DemoError):
    """The oracle found machine {machine} {where} to be no prefix of what was acknowledged: {findings}."""

    code = "BH-DEMO-PROMISE-BROKEN"
    fix = "This is a defect of Backhaul, or of the medium. Keep the demo's folder and report it with its logs."


class WaitedInVain(DemoError):
    """{what} did not come about within {limit_s} s; the last that was seen: {seen}."""

    code = "BH-DEMO-WAITED"
    fix = "See the logs in the demo's folder, and `backhaul doctor`; then go on with --resume."
