"""The composition root: the command line with the verbs that start servers and agents.

Only here and in `composition` are real files, clocks and randomness made and handed on. Each service is a process of
its own; its libraries are imported when its verb runs, so that an agent loads no server. Logs go to standard error as
JSON.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from backhaul.cli import server_passphrase_rotate, server_passphrase_show
from backhaul.cli.app import agent, app, config, master_target, passphrase, process_server, server
from backhaul.cli.output import AsJson, print_json
from backhaul.composition import on_server, registering
from backhaul.composition.running import DataDir, failing, log_to_stderr, real_world, run_until_stopped
from backhaul.composition.sites import site
from backhaul.replication.ports import RealFiles

__all__ = ["main", "run_until_stopped"]

process_server.command("register")(registering.process_server)
master_target.command("register")(registering.master_target)
agent.command("register")(registering.agent)
app.command("doctor")(on_server.doctor)
config.command("show")(on_server.config)
app.add_typer(site, name="site")


# --- configuration server ---------------------------------------------------------------------------------------------


@server.command("run")
@failing
def server_run(
    data_dir: DataDir,
    listen: Annotated[str, typer.Option(help="Address and port to serve on, HOST:PORT.")] = "0.0.0.0:443",
) -> None:
    """Run a configuration server until it is stopped. It starts a process server and a master target beside it.

    The first start makes the vault and prints the one-time password of its account `admin`: once, and never again.
    """
    from backhaul.configuration_server.serving import serve
    from backhaul.configuration_server.settings import parse_address

    def show(user: str, password: str) -> None:
        typer.echo(f"The vault was made. Log in as {user} with this one-time password; it is not shown again:")
        typer.echo(f"  {password}")

    def ready(port: int, roots: Path) -> None:
        typer.echo(f"Serving on port {port}. Roots for clients: {roots}")

    address = parse_address(listen)
    run_until_stopped(serve(data_dir, address, RealFiles(), real_world(), show_password=show, ready=ready))


LocalDir = Annotated[
    Path | None,
    typer.Option(
        "--data-dir",
        help="On the configuration server itself: its folder. No session is needed there.",
        show_default="the configuration server of the session is asked",
    ),
]


@passphrase.command("show")
@failing
def passphrase_show(data_dir: LocalDir = None, as_json: AsJson = False) -> None:
    """Print the connection passphrase, with which servers and agents register."""
    if data_dir is None:
        server_passphrase_show.show(as_json)
        return
    _print_passphrase(data_dir, lambda vault: vault.passphrase(), as_json)


@passphrase.command("rotate")
@failing
def passphrase_rotate(data_dir: LocalDir = None, as_json: AsJson = False) -> None:
    """Make a new connection passphrase and print it. The one before is wrong from now on; what is registered stays."""
    if data_dir is None:
        server_passphrase_rotate.rotate(as_json)
        return
    _print_passphrase(data_dir, lambda vault: vault.rotate_passphrase(), as_json)


def _print_passphrase(data_dir: Path, get: Callable[[Any], Any], as_json: bool) -> None:
    from backhaul.configuration_server.database import FILE
    from backhaul.configuration_server.errors import VaultError
    from backhaul.configuration_server.settings import load_settings
    from backhaul.configuration_server.vault import Vault

    if not (data_dir / FILE).exists():
        raise VaultError(folder=data_dir, reason="it holds no vault")
    vault = Vault(data_dir, load_settings(data_dir), RealFiles(), real_world())
    try:
        text = get(vault).text()
    finally:
        vault.close()
    if as_json:
        print_json({"passphrase": text})
    else:
        typer.echo(text)


# --- process servers, master targets, agents --------------------------------------------------------------------------


@process_server.command("run")
@failing
def process_server_run(data_dir: DataDir = Path("process-server")) -> None:
    """Run the process server of a folder until it is stopped. One that cannot make its data durable ends itself."""
    from backhaul.configuration_server.service_process_server import run_process_server

    run_until_stopped(run_process_server(data_dir, RealFiles(), real_world()))


@process_server.command("boot")
@failing
def process_server_boot() -> None:
    """Run a deployed process server: its cloud does so at each boot, and says in the environment what to set up."""
    from backhaul.configuration_server.service_deployed import run_deployed

    run_until_stopped(run_deployed(os.environ, RealFiles(), real_world()))


@master_target.command("run")
@failing
def master_target_run(data_dir: DataDir = Path("master-target")) -> None:
    """Run the master target of a folder until it is stopped. One that cannot make its data durable ends itself."""
    from backhaul.configuration_server.service_master_target import run_master_target

    run_until_stopped(run_master_target(data_dir, RealFiles(), real_world()))


@agent.command("run")
@failing
def agent_run(
    data_dir: DataDir = Path("agent"),
    freezer: Annotated[
        Path | None,
        typer.Option(
            help="Socket of a process run as root that freezes file systems for it, for an agent that is not root.",
            show_default="it freezes by itself",
        ),
    ] = None,
) -> None:
    """Run the agent of a folder until it is stopped: it replicates what its configuration server tells it to."""
    from backhaul.configuration_server.service_agent import run_agent

    run_until_stopped(run_agent(data_dir, RealFiles(), real_world(), freezer))


def main() -> None:
    """Entry of the command line."""
    log_to_stderr(logging.WARNING)  # of a command that is typed; a service says more
    words = [word for word in sys.argv[1:2] if not word.startswith("-")]
    if not words or words == ["demo"]:  # an agent loads nothing of the demo
        from backhaul.demo.command import app as demo

        app.add_typer(demo, name="demo")
    app()


if __name__ == "__main__":
    main()
