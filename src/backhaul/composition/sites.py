"""Verbs for sites: those that the configuration server works with, and the provider of a local one."""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path
from typing import Annotated, Final

import typer

from backhaul.cli import site_add, site_list
from backhaul.composition.running import failing, log_to_stderr

site: Final = typer.Typer(
    help="Sites: where machines run. A local one is a home or a simulated cloud on this machine.", no_args_is_help=True
)
site.command("add")(site_add.run)
site.command("list")(site_list.run)

DataDir = Annotated[Path, typer.Option("--data-dir", help="Folder with all of the site; made if missing.")]
Definition = Annotated[
    Path, typer.Option("--definition", help="File that says what the site has: networks, quota, accounts. JSON.")
]


@site.command("run")
@failing
def site_run(
    data_dir: DataDir,
    definition: Definition,
    listen: Annotated[str, typer.Option(help="Address of the management API, HOST:PORT.")] = "127.0.0.1:0",
    management: Annotated[
        str,
        typer.Option(
            help="With network namespaces: a second address, reached from all networks, HOST:PORT.",
            show_default="none",
        ),
    ] = "",
) -> None:
    """Run the provider of a local site until it is stopped; its machines and servers outlive it."""
    from backhaul.sites.local.daemon import read_definition, serve

    log_to_stderr(logging.INFO)
    asyncio.run(serve(data_dir, read_definition(definition), listen, management))


@site.command("take-down")
@failing
def site_take_down(data_dir: DataDir, definition: Definition) -> None:
    """Stop and remove everything of a site whose provider has ended; its disks and its log of effects stay."""
    from backhaul.sites.local.daemon import read_definition, take_down

    take_down(data_dir, read_definition(definition))
