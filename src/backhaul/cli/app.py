"""All verbs of the command line, in their groups. The composition root adds those that start servers and agents."""

from __future__ import annotations

from typing import Final

import typer

from backhaul.cli import (
    item_cancel,
    item_commit,
    item_failback,
    item_failover,
    item_integrity,
    item_list,
    item_protect,
    item_rebind,
    item_reprotect,
    item_resync,
    item_show,
    item_unprotect,
    job_cancel,
    job_list,
    job_show,
    job_watch,
    login,
    logout,
    policy_create,
    policy_list,
    policy_show,
    process_server_delete,
    process_server_deploy,
    process_server_switch,
    recovery_point_list,
    server_list,
    server_show,
)
from backhaul.cli.exit_codes import MEANING

EXIT_CODES: Final = "Exit codes: " + "; ".join(f"{code} {meaning}" for code, meaning in MEANING.items()) + "."
HELP: Final = """Disaster recovery that brings machines home again.

Machines that run at home are replicated to a cloud, all the time. After a disaster they go on there (item failover);
when home works again they are replicated back (process-server deploy, item reprotect) and start at home (item failback,
item commit).

To see it on this machine: backhaul demo. To begin: server run, login, agent register, item protect. What to do when
something does not work: backhaul doctor. Every code that is printed (BH-...) is explained in docs/reference/codes.md.
"""


def _group(help_text: str) -> typer.Typer:
    return typer.Typer(help=help_text, no_args_is_help=True)


app: Final = typer.Typer(
    help=HELP,
    epilog=EXIT_CODES,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
)
server: Final = _group(
    "The configuration server: it knows all machines and servers, decides who replicates what, and answers commands."
)
passphrase: Final = _group("The connection passphrase: servers and agents prove with it that they may register.")
process_server: Final = _group(
    "Process servers: each takes what the agents of a network send and passes it on. It can neither read nor forge it. "
    "A network in the cloud with failed-over machines needs one: deploy, register, and later delete it."
)
master_target: Final = _group(
    "Master targets: each keeps copies of machines' disks (replicas), and the recovery points one can go back to."
)
agent: Final = _group("Agents: each runs on a machine and sends what changes on its disks.")
item: Final = _group("Protected machines (items): protect them, fail them over, bring them home.")
recovery_point: Final = _group("Recovery points: moments to which all disks of an item can be put back together.")
policy: Final = _group("Replication policies: how often recovery points are made, and how long they are kept.")
job: Final = _group("Jobs: what was begun (a failover, a deployment), its steps, and why one failed.")
config: Final = _group("Settings in force, of the configuration server or of the server one is on.")

server.add_typer(passphrase, name="passphrase")
for name, group in (
    ("server", server), ("process-server", process_server), ("master-target", master_target), ("agent", agent),
    ("item", item), ("recovery-point", recovery_point), ("policy", policy), ("job", job), ("config", config),
):  # fmt: skip
    app.add_typer(group, name=name)

app.command("login")(login.run)
app.command("logout")(logout.run)
for group, kind in ((process_server, "processServers"), (master_target, "masterTargets"), (agent, "agents")):
    group.command("list")(server_list.verb(kind))
    group.command("show")(server_show.run)
process_server.command("deploy")(process_server_deploy.run)
process_server.command("switch")(process_server_switch.run)
process_server.command("delete")(process_server_delete.run)
item.command("protect")(item_protect.run)
item.command("list")(item_list.run)
item.command("show")(item_show.run)
item.command("failover")(item_failover.run)
item.command("commit")(item_commit.run)
item.command("reprotect")(item_reprotect.run)
item.command("failback")(item_failback.run)
item.command("cancel")(item_cancel.run)
item.command("integrity")(item_integrity.run)
item.command("resync")(item_resync.run)
item.command("rebind")(item_rebind.run)
item.command("unprotect")(item_unprotect.run)
recovery_point.command("list")(recovery_point_list.run)
policy.command("create")(policy_create.run)
policy.command("list")(policy_list.run)
policy.command("show")(policy_show.run)
job.command("list")(job_list.run)
job.command("show")(job_show.run)
job.command("watch")(job_watch.run)
job.command("cancel")(job_cancel.run)
