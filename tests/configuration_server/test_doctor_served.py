"""The doctor of a live configuration server, whose servers are broken for real: service, certificate, clock."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

from backhaul.configuration_server.occupancy import running_in, stop
from backhaul.replication.ports import RealFiles
from configuration_server.live import LiveServer, live_server, until

AHEAD_S = 8
WRONG_CLOCK = f"""
import sys, time
from backhaul.replication.ports import RealClock
RealClock.wall_ns = lambda self: time.time_ns() + {AHEAD_S} * 10**9
sys.argv[0] = "backhaul"
from backhaul.__main__ import main
main()
"""


def broken(server: LiveServer, name: str) -> dict[str, Any]:
    """The rung at which the walk to a server ends, once it does; every rung before it holds."""
    walked = server.vault().doctor(name, item=False)
    *held, last = walked["rungs"]
    assert all(rung["ok"] for rung in held)
    assert not last["ok"], f"all is well with {name}"
    assert last["reason"]
    assert last["fix"]
    return dict(last)


def process_server(server: LiveServer, name: str) -> tuple[Path, subprocess.Popen[bytes]]:
    """A registered process server, healthy."""
    folder = server.register("process-server", name, "--data-port", "0", "--listen-host", "127.0.0.1")
    process = server.run("process-server", folder)
    until(lambda: server.vault().server(name)["properties"]["health"] == "Healthy")
    return folder, process


def test_a_service_of_its_own_that_does_not_run(tmp_path: Path) -> None:
    with live_server(tmp_path) as server:
        server.healthy("processServers")
        assert server.vault().doctor("built-in-ps", item=False)["ok"]
        assert server.end(signal.SIGKILL) == -signal.SIGKILL
        folder = server.data_dir / "process-server"
        assert stop(RealFiles(), folder, signal.SIGKILL)
        until(lambda: running_in(RealFiles(), folder) is None)
        settings = server.data_dir / "settings.json"
        settings.write_text(json.dumps(json.loads(settings.read_text()) | {"built_in": False}))  # nobody starts it
        server.start()
        rung = broken(server, "built-in-ps")
        assert (rung["id"], rung["code"]) == ("service", "BH-RUNG-SERVICE")
        assert str(folder / "service.log") in rung["fix"]
        printed = server.command("doctor", "built-in-ps")
        assert printed.returncode == 7
        assert "BROKEN process-server built-in-ps: service runs" in printed.stdout
        assert "BH-RUNG-SERVICE" in printed.stdout


def test_another_server_at_its_address(lone_server: LiveServer) -> None:
    mine, first = process_server(lone_server, "mine")
    theirs, second = process_server(lone_server, "theirs")
    for process in (first, second):
        process.kill()
        process.wait()
    address = json.loads((mine / "service.json").read_text())
    other = json.loads((theirs / "service.json").read_text())
    (theirs / "service.json").write_text(json.dumps(other | {"port": address["port"]}))
    lone_server.run("process-server", theirs)
    until(lambda: (known := running_in(RealFiles(), theirs)) and known.port == address["port"])
    rung = broken(lone_server, "mine")
    assert (rung["id"], rung["code"]) == ("tls", "BH-ROLE-REFUSED")


def test_a_server_whose_clock_is_wrong(lone_server: LiveServer) -> None:
    folder, process = process_server(lone_server, "late")
    assert lone_server.vault().doctor("late", item=False)["ok"]
    process.kill()
    process.wait()
    with (folder / "service.log").open("ab") as log:
        command = [sys.executable, "-c", WRONG_CLOCK, "process-server", "run", "--data-dir", str(folder)]
        lone_server.members.append(subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True))
    until(lambda: running_in(RealFiles(), folder))
    until(lambda: lone_server.vault().doctor("late", item=False)["rungs"][-1]["id"] in ("clock", "space"))
    rung = broken(lone_server, "late")
    assert (rung["id"], rung["code"]) == ("clock", "BH-RUNG-CLOCK")
    assert f"{AHEAD_S} s" in rung["reason"]
