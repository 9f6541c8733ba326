"""The command line of `backhaul demo`, `demo check` and `demo clean`; the composition root mounts `app`.

Runs in the main thread. Exit codes: 0 done; 1 failed or a promise broken; 2 wrong usage; 130 interrupted.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Final

import typer

from backhaul.demo.display import Display
from backhaul.demo.errors import DemoError
from backhaul.demo.lifecycle import STAGES, Interrupted, Wish, clean, run_demo
from backhaul.demo.oracle import Barrier, CheckReport, check_command, check_transactions
from backhaul.demo.shell import open_shell
from backhaul.demo.stations import check_all
from backhaul.replication.errors import BackhaulError

INTERRUPTED: Final = 130
_NAMES: Final = ", ".join(stage.name for stage in STAGES)

app: Final = typer.Typer(
    help="Watch machines being protected, on real disks, with a home and a simulated cloud on this machine. "
    f"The stages are: {_NAMES}. As root: network namespaces, loop devices, ext4 and SQLite; otherwise addresses in "
    "127.0.0.0/8 and disk images. The oracle, which is no part of the product, proves what recovery points promise.",
    invoke_without_command=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


def default_folder() -> Path:
    """Where the demo lives unless told otherwise."""
    state = os.environ.get("XDG_STATE_HOME") or str(Path.home() / ".local" / "state")
    return Path(state) / "backhaul" / "demo"


DataDir = Annotated[
    Path | None, typer.Option("--data-dir", help="The demo's folder.", show_default="~/.local/state/backhaul/demo")
]


@app.callback()
def demo(
    context: typer.Context,
    data_dir: DataDir = None,
    until: Annotated[str, typer.Option(help="Stop after this stage and leave everything running.")] = "",
    keep: Annotated[
        bool, typer.Option("--keep", help="Leave everything running at the end, or when it fails.")
    ] = False,
    resume: Annotated[bool, typer.Option("--resume", help="Go on where a run was killed or stopped.")] = False,
    unprivileged: Annotated[
        bool, typer.Option("--unprivileged", help="As root: do without namespaces and devices, as other users must.")
    ] = False,
) -> None:
    """Run the demo."""
    if context.invoked_subcommand is not None:
        return
    wish = Wish(data_dir or default_folder(), unprivileged, until, keep, resume)
    try:
        run_demo(wish, Display())
    except Interrupted:
        raise typer.Exit(INTERRUPTED) from None
    except BackhaulError as error:
        raise _failed(error) from None


@app.command("check")
def check_demo(
    data_dir: DataDir = None,
    log: Annotated[Path | None, typer.Option(help="Acknowledgement logs of one machine, to judge --disk by.")] = None,
    disk: Annotated[list[Path] | None, typer.Option(help="A disk image or device, in the machine's order.")] = None,
    database: Annotated[Path | None, typer.Option(help="SQLite's database, instead of disks.")] = None,
    final: Annotated[bool, typer.Option("--final", help="Everything acknowledged must be there.")] = False,
    barrier_ns: Annotated[int, typer.Option(help="Everything acknowledged before this time (ns) must be there.")] = 0,
) -> None:
    """Let the oracle judge again what each life of the demo's machines found; or any images with --log and --disk."""
    try:
        if log is None:
            reports = check_all(data_dir or default_folder())
        else:
            reports = {str(log): _judge(log, disk or [], database, final, barrier_ns)}
    except BackhaulError as error:
        raise _failed(error) from None
    for name, report in reports.items():
        typer.echo(f"{name}\n{report.text()}\n")
    if not reports:
        typer.echo("No machine of this demo has been moved yet, so there is nothing to judge.")
    if not all(report.ok for report in reports.values()):
        raise typer.Exit(1)


@app.command("shell")
def shell_of_demo(
    place: Annotated[str, typer.Argument(help="`home`, or the name of a deployed process server.")],
    data_dir: DataDir = None,
    command: Annotated[str, typer.Option("--command", "-c", help="Only run this there, instead of a shell.")] = "",
) -> None:
    """Open a shell at home, logged in to the configuration server, or on a server in the cloud, as its administrator.

    Example: `backhaul demo shell home -c 'backhaul item list'`
    """
    try:
        open_shell(data_dir or default_folder(), place, command)
    except BackhaulError as error:
        raise _failed(error) from None


@app.command("clean")
def clean_demo(data_dir: DataDir = None) -> None:
    """End and remove everything of a demo that was kept, failed or killed."""
    try:
        clean(data_dir or default_folder())
    except BackhaulError as error:
        raise _failed(error) from None


def _judge(log: Path, disks: list[Path], database: Path | None, final: bool, barrier_ns: int) -> CheckReport:
    if bool(disks) == (database is not None):
        raise DemoError(reason="either disks or a database are judged by a log")
    if database is None:
        return check_command(log, disks, barrier_ns or None, final)
    chosen = Barrier.at_ns(barrier_ns) if barrier_ns else Barrier.none()
    return check_transactions(log, database, Barrier.final() if final else chosen)


def _failed(error: BackhaulError) -> typer.Exit:
    typer.echo(str(error), err=True)
    return typer.Exit(error.exit_code)
