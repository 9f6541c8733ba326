"""What every verb of the composition root needs: errors with their codes, services until they are stopped, a log."""

from __future__ import annotations

import asyncio
import functools
import logging
import signal
import sys
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ParamSpec

import structlog
import typer

from backhaul.cli.output import print_error
from backhaul.replication.errors import BackhaulError
from backhaul.replication.ports import RealClock, RealRandomness

if TYPE_CHECKING:
    from backhaul.links.dialer import Redial

P = ParamSpec("P")

DataDir = Annotated[Path, typer.Option("--data-dir", help="Folder with all that this service keeps; made if missing.")]
ListenHost = Annotated[
    str, typer.Option("--listen-host", help="Address of this machine to listen on.", show_default="every address")
]


def failing(verb: Callable[P, None]) -> Callable[P, None]:
    """Print a BackhaulError with its code and what to do, and exit with its exit code."""

    @functools.wraps(verb)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> None:
        try:
            verb(*args, **kwargs)
        except* BackhaulError as group:
            error = _first(group)
            print_error(error.code, f"{error.message} {error.advice}".replace("\n", " "))
            raise typer.Exit(error.exit_code) from None

    return wrapped


def _first(group: BaseExceptionGroup[BackhaulError]) -> BackhaulError:
    inner = group.exceptions[0]
    return _first(inner) if isinstance(inner, BaseExceptionGroup) else inner


def run_until_stopped(service: Coroutine[Any, Any, None]) -> None:
    """Run a service until it ends or the process is told to stop (SIGTERM, SIGINT)."""

    async def supervised() -> None:
        task = asyncio.ensure_future(service)
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, task.cancel)
        try:
            await task
        except asyncio.CancelledError:
            structlog.get_logger(__name__).info("service.stopped")

    log_to_stderr(logging.INFO)
    asyncio.run(supervised())


def log_to_stderr(level: int) -> None:
    """JSON lines on standard error, from this level on: standard output is for what a command shows."""
    logging.basicConfig(stream=sys.stderr, level=logging.WARNING, format="%(message)s")
    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso"),
            structlog.processors.format_exc_info,
            structlog.processors.JSONRenderer(),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
    )


def real_world() -> Redial:
    """Clock, randomness and patience of this machine."""
    from backhaul.links.dialer import Redial

    return Redial(RealClock(), RealRandomness())
