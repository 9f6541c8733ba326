"""Home dials out, with real processes: registration, heartbeats, reports and replication, and nobody dials home."""

from __future__ import annotations

import json
import os
import signal
import ssl
from collections.abc import Iterator
from pathlib import Path

import pytest

from backhaul.client.errors import ClientError
from backhaul.configuration_server.service_config import ServiceConfig, save_service
from backhaul.links.passphrase import make_passphrase
from backhaul.replication.ports import RealFiles, RealRandomness
from configuration_server.dialled import ID, NETWORK, Cloud, Door, dialled_cloud
from configuration_server.live import LiveServer, live_server, until

MiB = 1024 * 1024


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveServer]:
    with live_server(tmp_path_factory.mktemp("home")) as made:
        yield made


@pytest.fixture(scope="module")
def deployment(home: LiveServer) -> Iterator[tuple[Cloud, Door]]:
    with dialled_cloud(home) as made:
        yield made


@pytest.fixture(scope="module")
def cloud(deployment: tuple[Cloud, Door]) -> Cloud:
    """A process server that was deployed and waits."""
    return deployment[0]


@pytest.fixture(scope="module")
def registered(cloud: Cloud) -> Cloud:
    """The same, registered over the connection that home dialled."""
    cloud.registered()
    return cloud


@pytest.fixture(scope="module")
def replica(registered: Cloud) -> Path:
    """The replica at home of the machine `vm1` in the cloud."""
    registered.home.healthy("masterTargets")
    return registered.replicate("vm1", root=os.urandom(MiB) + bytes(MiB))


@pytest.fixture(autouse=True)
def nobody_dials_home(request: pytest.FixtureRequest) -> Iterator[None]:
    """After each test: home's address, as the cloud was told it, has not been connected to."""
    yield
    if "deployment" in request.fixturenames:
        assert not request.getfixturevalue("deployment")[1].was_used()


def test_a_deployed_server_is_shown_as_unregistered_and_a_wrong_key_is_named(cloud: Cloud) -> None:
    cloud.dialling(addresses=[cloud.address], keyHash="00" * 32)
    link = until(lambda: (found := cloud.dialling()["link"]) and found["code"] and found)
    assert link["code"] == "BH-KEY-HASH-WRONG"
    ladder = cloud.home.vault().doctor(ID, item=False)
    assert (ladder["ok"], ladder["rungs"][-1]["code"]) == (False, "BH-KEY-HASH-WRONG")
    assert cloud.server()["state"] == "unregistered"
    assert "register" in cloud.server()["nextCommand"]


def test_a_wrong_passphrase_is_refused_and_said_on_both_sides(cloud: Cloud) -> None:
    cloud.deployed()
    root = ssl.PEM_cert_to_DER_cert(cloud.home.roots)
    wrong = make_passphrase(root, RealRandomness()).text()
    done = cloud.register(wrong, "--home-dials")
    assert done.returncode != 0
    assert "BH-PASSPHRASE-WRONG" in done.stderr
    assert wrong not in done.stderr + done.stdout
    ladder = until(lambda: (seen := cloud.home.vault().doctor(ID, item=False)) and seen["rungs"][-1]["code"] and seen)
    assert ladder["rungs"][-1]["code"] == "BH-PASSPHRASE-WRONG"


def test_it_registers_over_homes_connection_and_is_healthy(registered: Cloud) -> None:
    shown = registered.server()
    assert (shown["state"], shown["homeLink"]["up"]) == ("registered", True)
    assert shown["network"] == NETWORK, "its announcement came through the tunnel"
    ladder = registered.home.vault().doctor(ID, item=False)
    assert ladder["ok"], ladder
    assert any("tunnel from home" in rung["rung"] for rung in ladder["rungs"])


def test_no_secret_stays_behind(registered: Cloud) -> None:
    passphrase = registered.home.vault().passphrase().encode()
    for path in registered.folder.rglob("*"):
        assert not path.is_file() or passphrase not in path.read_bytes(), path


def test_an_agent_behind_it_replicates_home(registered: Cloud, replica: Path) -> None:
    home = registered.home
    assert replica.read_bytes() == (home.folder / "vm1-disks" / "root.img").read_bytes()
    assert home.vault().doctor("vm1", item=True)["ok"]
    told = json.loads((home.folder / "vm1" / "reach.json").read_text())
    assert told == {"reach": "process-server", "process_servers": [registered.address]}


@pytest.mark.usefixtures("replica")
def test_a_killed_process_server_is_reported_and_all_goes_on_when_it_is_back(registered: Cloud) -> None:
    vault = registered.home.vault()
    registered.process.kill()
    assert registered.process.wait() == -signal.SIGKILL
    down = until(lambda: (link := registered.server()["homeLink"]) and not link["up"] and link)
    assert down["code"] in ("BH-LINK-LOST", "BH-LINK-UNREACHABLE")
    assert not vault.doctor(ID, item=False)["ok"]
    seen = vault.points("vm1")[0]["properties"]["backhaul"]["number"]
    registered.start()
    until(lambda: registered.server()["homeLink"]["up"])
    until(lambda: vault.points("vm1")[0]["properties"]["backhaul"]["number"] > seen)
    until(lambda: vault.doctor("vm1", item=True)["ok"])


@pytest.mark.usefixtures("replica")
def test_a_restarted_configuration_server_dials_again(registered: Cloud) -> None:
    registered.home.end()
    registered.home.start()
    registered.home.login()
    until(lambda: (registered.server()["homeLink"] or {}).get("up"))
    until(lambda: registered.home.vault().doctor("vm1", item=True)["ok"])


def test_with_a_vpn_the_server_dials_and_home_keeps_no_tunnel(home: LiveServer, tmp_path: Path) -> None:
    """The other setting: the same server, the same protocol, dialled by itself."""
    folder = tmp_path / "ps-vpn"
    folder.mkdir(mode=0o700)
    save_service(RealFiles(), folder, ServiceConfig("ps-vpn", "127.0.0.1", 0, network="vnet2", spool_bytes=1 << 28))
    home.run("process-server", folder)
    until(lambda: (folder / "register.sock").exists())
    profile = home.profile
    assert profile is not None
    with home.transport(profile.token) as transport:
        transport.call("PUT", f"{profile.vault}/backhaulServers/ps-vpn/dialling", {"dialling": "server"})
    done = home.command(
        "process-server", "register", "--configuration-server", f"127.0.0.1:{home.port}", "--data-dir", str(folder),
        "--passphrase-file", str(home.passphrase_file()), "--name", "vpn",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    until(lambda: home.vault().server("ps-vpn")["properties"]["health"] == "Healthy")
    assert home.vault().server("ps-vpn")["properties"]["homeLink"] is None
    assert json.loads((folder / "reach.json").read_text())["reach"] == "direct"


@pytest.mark.parametrize(
    "body",
    [
        {"keyHash": "xyz"},
        {"keyHash": "00"},
        {"addresses": ["nowhere"]},
        {"dialling": "nobody"},
        {"role": "agent"},
        {"what": 1},
    ],
    ids=str,
)
def test_a_dialling_that_makes_no_sense_is_refused(home: LiveServer, body: dict[str, object]) -> None:
    profile = home.profile
    assert profile is not None
    with home.transport(profile.token) as transport, pytest.raises(ClientError):
        transport.call("PUT", f"{profile.vault}/backhaulServers/x/dialling", body)
