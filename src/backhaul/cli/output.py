"""What verbs print: tables for people, JSON with `--json`, errors with their code and fix on standard error."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Iterable, Sequence
from typing import Annotated, Any, ParamSpec, TypeVar

import typer
from rich.console import Console
from rich.table import Table

from backhaul.cli.exit_codes import exit_code
from backhaul.client.errors import ClientError
from backhaul.client.profile import load_profile
from backhaul.client.vault import Vault

P = ParamSpec("P")
R = TypeVar("R")

UNBOUNDED = 10_000
"""Columns of an output that is no terminal: programs read lines, not screens."""

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON instead of text for people.")]


def reporting(verb: Callable[P, R]) -> Callable[P, R]:
    """Print a ClientError of the verb and exit with its code."""

    @functools.wraps(verb)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return verb(*args, **kwargs)
        except ClientError as error:
            print_error(error.code, f"{error.message} {error.fix}".strip())
            raise typer.Exit(exit_code(error)) from None
        finally:
            while _opened:
                _opened.pop().close()

    return wrapped


def print_error(code: str, text: str) -> None:
    """An error with its code."""
    typer.echo(f"{code}: {text}", err=True)


_opened: list[Vault] = []
"""Closed when the verb has ended."""


def open_vault() -> Vault:
    """The vault of the profile, until the verb ends. Raises NotLoggedIn."""
    _opened.append(Vault(load_profile()))
    return _opened[-1]


def print_json(value: Any) -> None:
    """`value` as JSON."""
    typer.echo(json.dumps(value, indent=2))


def print_table(columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """Rows under columns; plain where the output is no terminal."""
    table = Table(*columns, box=None, pad_edge=False, show_header=any(columns))
    for row in rows:
        table.add_row(*("" if cell is None else str(cell) for cell in row))
    console = Console(highlight=False)
    if console.is_terminal:
        console.print(table)
        return
    console.width = UNBOUNDED
    with console.capture() as captured:
        console.print(table)
    typer.echo("\n".join(line.rstrip() for line in captured.get().splitlines()))


def print_fields(fields: Iterable[tuple[str, Any]]) -> None:
    """Names with their values, one a line."""
    print_table(("", ""), ((f"{name}:", value) for name, value in fields))


def seconds(value: float | None) -> str:
    """A duration for people."""
    if value is None:
        return "unknown"
    if value < 120:
        return f"{value:.0f} s"
    return f"{value / 60:.0f} min" if value < 7200 else f"{value / 3600:.1f} h"


def size(value: float) -> str:
    """Bytes for people."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if value < 1024:
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1024
    return f"{value:.1f} TiB"
