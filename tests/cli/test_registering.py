"""`backhaul process-server register` at a real terminal, and by flags: it asks for what is not given."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cli.terminal import Terminal
from configuration_server.live import LiveServer, live_server, until

REGISTER = (sys.executable, "-m", "backhaul", "process-server", "register")


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveServer]:
    with live_server(tmp_path_factory.mktemp("registering"), built_in=False) as made:
        yield made


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


def registration(folder: Path) -> dict[str, str]:
    return dict(json.loads((folder / "registration.json").read_text()))


def test_it_asks_for_everything_at_a_terminal_and_again_for_what_is_wrong(home: LiveServer, tmp_path: Path) -> None:
    """Host, port, data port and passphrase are typed; the passphrase is on no screen; the server that comes of it runs
    on the data port that was typed.
    """
    passphrase, port = home.vault().passphrase(), free_port()
    with Terminal(*REGISTER, "--listen-host", "127.0.0.1", "--name", "typed", cwd=tmp_path) as typed:
        typed.expect("Configuration server (FQDN or IP address): ")
        typed.answer("https://127.0.0.1")
        typed.expect("Error: ")
        typed.expect("Configuration server (FQDN or IP address): ")
        typed.answer("127.0.0.1")
        typed.expect("Port of the configuration server [443]: ")
        typed.answer("70000")
        typed.expect("Error: 70000 is no port")
        typed.expect("Port of the configuration server [443]: ")
        typed.answer(str(home.port))
        for wrong, why in (("443", "443"), (str(home.port), "cannot be listened on"), ("much", "is no port")):
            typed.expect("Data transfer port of this server [9443]: ")
            typed.answer(wrong)
            typed.expect("Error: ")
            typed.expect(why)
        typed.expect("Data transfer port of this server [9443]: ")
        typed.answer(str(port))
        typed.expect("Connection passphrase")
        typed.answer_hidden(passphrase)
        typed.expect("is registered as")
        assert typed.end() == 0
    assert passphrase not in typed.seen
    assert passphrase[5:44] not in typed.seen
    folder = tmp_path / "process-server"
    assert registration(folder)["configuration_server"] == f"127.0.0.1:{home.port}"
    assert json.loads((folder / "service.json").read_text())["port"] == port
    home.run("process-server", folder)
    (healthy,) = home.healthy("processServers")
    assert healthy["properties"]["addresses"] == [f"127.0.0.1:{port}"]


def test_what_is_typed_is_shown_where_it_is_no_secret(home: LiveServer, tmp_path: Path) -> None:
    """The positive control of the test above: a screen that showed nothing would hide every secret. And the way is
    tried before the passphrase is asked for: nobody listens there, and no prompt follows.
    """
    with Terminal(*REGISTER, "--data-port", str(free_port()), cwd=tmp_path) as typed:
        typed.expect("Configuration server (FQDN or IP address): ")
        typed.answer("127.0.0.1:1")
        typed.expect("BH-LINK-UNREACHABLE")
        assert typed.end() == 1
    assert "127.0.0.1:1" in typed.seen.split("BH-")[0]
    assert "Port of the configuration server" not in typed.seen, "HOST:PORT has said it"
    assert "passphrase" not in typed.seen


def test_by_flags_nothing_is_asked(home: LiveServer, tmp_path: Path) -> None:
    """Host and port apart; the usual data port; a contradiction is refused before anything is tried."""
    secret = ("--passphrase-file", str(home.passphrase_file()), "--data-dir", str(tmp_path / "ps"))
    server = ("--configuration-server", "127.0.0.1", "--port", str(home.port))
    port = str(free_port())
    done = home.command("process-server", "register", *server, *secret, "--data-port", port, "--name", "flags")
    assert (done.returncode, "is registered as" in done.stdout) == (0, True), done.stderr
    assert registration(tmp_path / "ps")["configuration_server"] == f"127.0.0.1:{home.port}"
    again = home.command("process-server", "register", *server, *secret, "--data-port", port, "--name", "flags")
    assert again.returncode == 0, again.stderr
    other = ("--configuration-server", f"127.0.0.1:{home.port}", "--port", "8443")
    assert home.command("process-server", "register", *other, *secret).returncode == 2
    wrong = home.command("process-server", "register", "--configuration-server", "a/b", *secret)
    assert (wrong.returncode, "BH-ADDRESS" in wrong.stderr) == (1, True)


def test_without_a_terminal_a_missing_server_is_no_guess(home: LiveServer, tmp_path: Path) -> None:
    done = home.command("process-server", "register", "--data-dir", str(tmp_path / "ps"))
    assert done.returncode != 0
    assert not (tmp_path / "ps" / "registration.json").exists()


def test_the_doctor_on_a_server_that_dials_home_itself(home: LiveServer, tmp_path: Path) -> None:
    """It belongs to whoever owns its folder, so nobody is asked for; the way home is climbed rung by rung."""
    folder = home.register("process-server", "dials", "--data-port", "0", "--listen-host", "127.0.0.1")
    before = here(folder)
    assert [rung["code"] for rung in before] == ["BH-SERVICE-DOWN"]
    home.run("process-server", folder)
    until(lambda: here(folder)[-1]["ok"])
    way = f"the configuration server 127.0.0.1:{home.port}: "
    climbed = [rung["rung"].removeprefix(way) for rung in here(folder) if rung["rung"].startswith(way)]
    assert climbed == ["name resolution", "TCP connection", "TLS"]
    home.end()
    try:
        broken = here(folder)[-1]
        assert (broken["rung"], broken["code"]) == (f"{way}TCP connection", "BH-LINK-UNREACHABLE")
    finally:
        home.start()
    shown = home.command("config", "show", "--data-dir", str(folder), "--json")
    assert json.loads(shown.stdout)["whoDials"] == "this server"
    nothing = home.command("doctor", "--data-dir", str(tmp_path))
    assert (nothing.returncode, nothing.stderr.split(":")[0]) == (1, "BH-NOT-REGISTERED")
    assert list(tmp_path.iterdir()) == [], "looking makes nothing"


def here(folder: Path) -> list[dict[str, Any]]:
    """What the doctor finds on this server."""
    done = subprocess.run(
        [sys.executable, "-m", "backhaul", "doctor", "--data-dir", str(folder), "--json"],
        capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL,
    )  # fmt: skip
    assert done.stdout, done.stderr
    (ladder,) = json.loads(done.stdout)
    assert done.returncode == (0 if ladder["ok"] else 7)
    return list(ladder["rungs"])
