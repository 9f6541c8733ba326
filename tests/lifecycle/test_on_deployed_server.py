"""On a deployed process server itself its administrator's user name and password are asked for, by each command there:
registering, doctor, configuration. And what doctor and configuration then show, seen from the server.
"""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest

from backhaul.configuration_server.on_server import OnServer
from backhaul.links.dialer import Redial
from backhaul.replication.ports import RealClock, RealFiles, RealRandomness
from cli.terminal import Terminal
from lifecycle.deployed import NAME, PASSWORD, World, command, failed_over_world, password_file, server_folder, until

WRONG = "Another-Horse-77"
BACKHAUL = (sys.executable, "-m", "backhaul")


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    with failed_over_world(tmp_path_factory.mktemp("deployed")) as made:
        yield made


@pytest.fixture(scope="module")
def unregistered(world: World) -> World:
    assert world.deploy()["state"] == "unregistered"
    return world


@pytest.fixture(scope="module")
def registered(unregistered: World) -> World:
    """Registered at a terminal, all of it typed. The wrong password comes first."""
    world, passphrase = unregistered, unregistered.server.vault().passphrase()
    folder = server_folder(world.cloud).parent
    with Terminal(*BACKHAUL, "process-server", "register", cwd=folder) as typed:
        begin_as_administrator(typed, WRONG)
        typed.expect("BH-ADMINISTRATOR")
        assert typed.end() == 1
    assert "Configuration server" not in typed.seen
    assert world.state()["state"] == "unregistered"
    with Terminal(*BACKHAUL, "process-server", "register", cwd=folder) as typed:
        begin_as_administrator(typed, PASSWORD)
        typed.expect("Configuration server (FQDN or IP address): ")
        typed.answer("127.0.0.1")
        typed.expect("Port of the configuration server [443]: ")
        typed.answer(str(world.server.port))
        for wrong in ("443", "9555"):
            typed.expect("Data transfer port of this server [9443]: ")
            typed.answer(wrong)
            typed.expect(f"Error: this server was deployed with 9443; deploy another one for {wrong}")
        typed.expect("Data transfer port of this server [9443]: ")
        typed.answer("")
        typed.expect("Connection passphrase")
        typed.answer_hidden(passphrase)
        typed.expect("is registered")
        assert typed.end() == 0
    assert PASSWORD not in typed.seen
    assert passphrase not in typed.seen
    until(lambda: world.state()["health"] == "Healthy")
    return world


def begin_as_administrator(typed: Terminal, password: str) -> None:
    typed.expect("User name of this server's administrator: ")
    typed.answer("rescue")
    typed.expect("Password of the administrator")
    typed.answer_hidden(password)


def here(
    world: World, *arguments: str, password: str = PASSWORD, user: str = "rescue"
) -> subprocess.CompletedProcess[str]:
    """A command on the server, where an administrator's commands begin; no session is anywhere."""
    secret = ("--user", user, "--password-file", password_file(world, password))
    run = [*BACKHAUL, *arguments, *secret]
    return subprocess.run(
        run, cwd=server_folder(world.cloud).parent, capture_output=True, text=True, check=False,
        stdin=subprocess.DEVNULL, env={"PATH": "/usr/bin:/bin", "HOME": str(world.cloud.folder / "nobody")},
    )  # fmt: skip


def doctor(world: World) -> tuple[int, list[dict[str, Any]]]:
    done = here(world, "doctor", "--json")
    assert done.stdout, done.stderr
    (ladder,) = json.loads(done.stdout)
    return done.returncode, list(ladder["rungs"])


def seen_from_itself(world: World, shift_s: float = 0.0) -> list[dict[str, Any]]:
    """The walk with a clock that is wrong by so much."""

    class Shifted(RealClock):
        def wall_ns(self) -> int:
            return super().wall_ns() + int(shift_s * 1e9)

    server = OnServer(server_folder(world.cloud), RealFiles(), Redial(Shifted(), RealRandomness()))
    return list(asyncio.run(server.walk())["rungs"])


def test_the_data_port_443_is_refused_before_anything_is_made(world: World) -> None:
    for port in ("443", "70000"):
        done = command(
            world, "process-server", "deploy", "--user", "rescue", "--password-file", password_file(world),
            "--data-port", port, "--dry-run",
        )  # fmt: skip
        assert done.returncode == 1
        assert f"the data transfer port is {port}; 443 is the configuration server's" in done.stdout + done.stderr
    assert world.cloud.effects() == []


def test_a_server_that_is_not_registered_yet_says_so(unregistered: World) -> None:
    status, rungs = doctor(unregistered)
    assert status == 7
    assert [rung["ok"] for rung in rungs] == [True, True, True, False]
    assert (rungs[-1]["rung"], rungs[-1]["code"]) == ("it is registered", "BH-NOT-REGISTERED")
    assert "backhaul process-server register" in rungs[-1]["fix"]
    shown = json.loads(here(unregistered, "config", "show", "--json").stdout)
    assert (shown["state"], shown["running"], shown["administrator"]) == ("unregistered", True, "rescue")


@pytest.mark.parametrize("verb", [("doctor",), ("config", "show")], ids=" ".join)
def test_only_its_administrator_sees_anything(registered: World, verb: tuple[str, ...]) -> None:
    right = here(registered, *verb)
    assert right.returncode == 0, right.stderr
    for wrong in (here(registered, *verb, password=WRONG), here(registered, *verb, user="somebody")):
        assert wrong.returncode == 1
        assert wrong.stdout == ""
        assert wrong.stderr.startswith("BH-ADMINISTRATOR")
    # Asked for where they are not given; the folder may be named from elsewhere, too.
    with Terminal(
        *BACKHAUL, *verb, "--data-dir", str(server_folder(registered.cloud)), cwd=registered.cloud.folder
    ) as at:
        begin_as_administrator(at, PASSWORD)
        assert at.end() == 0
    assert PASSWORD not in at.seen
    typed = [line.rstrip() for line in at.seen.splitlines()]  # a terminal's table is filled up to its width
    assert typed[-len(right.stdout.splitlines()) :] == right.stdout.splitlines()


def test_every_rung_from_the_server_outwards(registered: World) -> None:
    status, rungs = doctor(registered)
    assert (status, [rung["rung"] for rung in rungs if not rung["ok"]]) == (0, [])
    names = [rung["rung"] for rung in rungs]
    assert names[0] == "its service runs"
    assert names[1:3] == [
        f"its data port {registered.state()['address']}:9443: {rung}" for rung in ("name resolution", "TCP connection")
    ]
    assert names[3] == "it is registered"
    assert names[4].startswith("its certificate, valid until 2")
    assert names[5:] == [
        "its data port: TLS with that certificate",
        "home has dialled this server, and keeps a tunnel",
        "the configuration server answers, and knows this certificate",
        "the clocks of both agree",
        "there is room on the volume of its data",
    ]


def test_the_configuration_is_what_it_was_deployed_and_registered_with(registered: World) -> None:
    done = here(registered, "config", "show", "--json")
    shown, known = json.loads(done.stdout), registered.state()
    assert shown["name"] == NAME
    assert shown["addresses"] == [f"{known['address']}:9443"]
    assert (shown["dataPort"], shown["network"]) == (9443, known["network"])
    assert (shown["id"], shown["state"]) == (known["server"], "registered")
    assert shown["configurationServer"] == f"127.0.0.1:{registered.server.port}"
    assert (shown["administrator"], shown["whoDials"]) == ("rescue", "home")
    assert "password" not in done.stdout.lower()
    assert f"{known['address']}:9443" in here(registered, "config", "show").stdout


def test_a_clock_that_is_wrong_and_a_certificate_that_is_over(registered: World) -> None:
    broken = seen_from_itself(registered, -20.0)[-1]
    assert (broken["rung"], broken["code"]) == ("the clocks of both agree", "BH-CLOCK-WRONG")
    assert "by -20 s" in broken["reason"]
    broken = seen_from_itself(registered, 100 * 86400.0)[-1]
    assert (broken["rung"].split(",")[0], broken["code"]) == ("its certificate", "BH-CERTIFICATE-EXPIRED")
    assert seen_from_itself(registered)[-1]["ok"], "it is the clock"


def test_a_spool_that_is_nearly_full(registered: World) -> None:
    folder = server_folder(registered.cloud)
    filler = folder / "relay" / "filler"
    with filler.open("wb") as file:
        file.truncate(int(0.9 * json.loads((folder / "service.json").read_text())["spool_bytes"]))
    try:
        status, rungs = doctor(registered)
    finally:
        filler.unlink()
    assert (status, rungs[-1]["code"]) == (7, "BH-SPOOL-NEARLY-FULL")
    assert rungs[-1]["rung"] == "there is room on the volume of its data"


def test_home_that_does_not_dial_any_more_is_named(registered: World) -> None:
    registered.server.end()
    try:
        until(lambda: doctor(registered)[0] == 7)
        broken = doctor(registered)[1][-1]
        assert broken["rung"] == "home has dialled this server, and keeps a tunnel"
        assert broken["code"].startswith("BH-")
        assert broken["fix"]
    finally:
        registered.server.start()
    until(lambda: doctor(registered)[0] == 0)


def test_a_service_that_does_not_run_is_named_first(registered: World) -> None:
    registered.cloud.client.stop_server(NAME, token="off")
    try:
        status, rungs = doctor(registered)
        assert (status, [rung["code"] for rung in rungs]) == (7, ["BH-SERVICE-DOWN"])
        assert "process-server run" in rungs[0]["fix"]
    finally:
        registered.cloud.client.start_server(NAME, token="on")
    until(lambda: doctor(registered)[0] == 0)
