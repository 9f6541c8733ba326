"""Servers and agents register, renew, are refused and are revoked, with the command line's own tool and real TLS."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from backhaul.client.errors import ClientError
from backhaul.configuration_server.member import Member, MemberFolder, Registration, register
from backhaul.links.certificates import parse_identity
from backhaul.links.dialer import Address
from backhaul.links.errors import (
    AuthorityMismatch,
    EnrolmentLimited,
    EnrolmentMalformed,
    EnrolmentRefused,
    PassphraseWrong,
    TokenSpent,
)
from backhaul.links.passphrase import Passphrase, make_passphrase, parse_passphrase
from backhaul.links.tls import Credentials
from backhaul.replication.errors import BackhaulError
from backhaul.replication.ports import RealClock, RealFiles, RealRandomness
from backhaul.replication.values import Role
from configuration_server.live import LiveServer, live_server, until


@pytest.fixture
def limited(tmp_path: Path) -> Iterator[LiveServer]:
    """A server of its own: after this nobody on this address may register for a while."""
    with live_server(tmp_path, built_in=False) as made:
        yield made


def passphrase_of(server: LiveServer) -> Passphrase:
    return parse_passphrase(server.vault().passphrase())


def enrol(server: LiveServer, passphrase: Passphrase, server_id: str, role: Role = Role.AGENT) -> Registration:
    address = Address("127.0.0.1", server.port)
    return asyncio.run(register(address, passphrase, role, server_id, server_id, clock=RealClock()))[0]


def healthy(server: LiveServer, name: str) -> bool:
    return bool(server.vault().server(name)["properties"]["health"] == "Healthy")


def token(server: LiveServer, role: Role, server_id: str) -> Passphrase:
    profile = server.profile
    assert profile is not None
    with server.transport(profile.token) as transport:
        made = transport.call("POST", f"{profile.vault}/backhaulTokens", {"role": role, "server": server_id})
    return parse_passphrase(made["token"])


def test_a_process_server_registers_runs_and_is_listed_healthy(lone_server: LiveServer) -> None:
    folder = lone_server.register("process-server", "ps1", "--data-port", "0", "--listen-host", "127.0.0.1")
    shown = lone_server.vault().server("ps1")
    assert shown["properties"]["nextCommand"].startswith("backhaul process-server run")
    assert shown["properties"]["health"] != "Healthy"
    lone_server.run("process-server", folder)
    (healthy,) = lone_server.healthy("processServers")
    assert healthy["properties"]["friendlyName"] == "ps1"
    assert lone_server.vault().doctor("ps1", item=False)["ok"]


def test_again_it_registers_without_a_passphrase_by_its_own_certificate(lone_server: LiveServer) -> None:
    folder = lone_server.register("agent", "again", "--disk", "a=/dev/null")
    before = json.loads((folder / "registration.json").read_text())
    key = (folder / "identity" / "identity").read_bytes()
    done = lone_server.command(
        "agent", "register", "--configuration-server", f"127.0.0.1:{lone_server.port}", "--data-dir", str(folder),
        "--name", "again", "--disk", "b=/dev/zero",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert json.loads((folder / "registration.json").read_text()) == before
    assert (folder / "identity" / "identity").read_bytes() != key
    assert json.loads((folder / "agent.json").read_text())["disks"] == {"b": "/dev/zero"}


@pytest.mark.parametrize("port", ["443", "70000"])
def test_the_data_port_is_never_443(lone_server: LiveServer, port: str) -> None:
    done = lone_server.command(
        "process-server", "register", "--configuration-server", f"127.0.0.1:{lone_server.port}",
        "--data-dir", str(lone_server.folder / "never"), "--data-port", port,
    )  # fmt: skip
    assert done.returncode == 1
    assert "BH-DATA-PORT" in done.stderr
    assert not (lone_server.folder / "never" / "registration.json").exists()


def test_a_wrong_address_and_another_vault_are_named(lone_server: LiveServer) -> None:
    right = passphrase_of(lone_server)
    with pytest.raises(BackhaulError, match="BH-LINK-UNREACHABLE"):
        asyncio.run(register(Address("127.0.0.1", 1), right, Role.AGENT, "a", "a", clock=RealClock()))
    with pytest.raises(AuthorityMismatch):
        enrol(lone_server, make_passphrase(b"another root", RealRandomness()), "a")


def test_a_rotated_passphrase_is_wrong(lone_server: LiveServer) -> None:
    old = passphrase_of(lone_server)
    lone_server.vault().rotate_passphrase()
    with pytest.raises(PassphraseWrong):
        enrol(lone_server, old, "after-rotation")
    enrol(lone_server, passphrase_of(lone_server), "after-rotation")


def test_nobody_becomes_a_server_that_exists(lone_server: LiveServer) -> None:
    passphrase = passphrase_of(lone_server)
    enrol(lone_server, passphrase, "taken")
    for role in (Role.AGENT, Role.PROCESS_SERVER):
        with pytest.raises(EnrolmentRefused):
            enrol(lone_server, passphrase, "taken", role)
    with pytest.raises(EnrolmentRefused):
        enrol(lone_server, passphrase, "cs-evil", Role.CONFIGURATION_SERVER)


def test_a_token_is_for_one_server_once_also_after_a_restart(lone_server: LiveServer) -> None:
    made = token(lone_server, Role.PROCESS_SERVER, "deployed")
    shown = lone_server.vault().server("deployed")
    assert shown["properties"]["state"] == "unregistered"
    assert "register" in shown["properties"]["nextCommand"]
    with pytest.raises(EnrolmentMalformed):
        enrol(lone_server, made, "other", Role.PROCESS_SERVER)
    lone_server.end()
    lone_server.start()
    lone_server.login()
    enrol(lone_server, made, "deployed", Role.PROCESS_SERVER)
    assert lone_server.vault().server("deployed")["properties"]["state"] == "registered"
    with pytest.raises((TokenSpent, PassphraseWrong)):
        enrol(lone_server, made, "deployed", Role.PROCESS_SERVER)


def test_a_revoked_server_is_refused_everywhere_and_others_are_told(lone_server: LiveServer, tmp_path: Path) -> None:
    passphrase, clock = passphrase_of(lone_server), RealClock()
    address = Address("127.0.0.1", lone_server.port)

    async def walk() -> None:
        members = []
        for name in ("bad", "good"):
            _, identity = await register(address, passphrase, Role.AGENT, name, name, clock=clock)
            folder = MemberFolder(tmp_path / name, RealFiles(), RealRandomness(), "agent")
            members.append(Member(folder, Credentials(identity, clock), address, clock))
        bad, good = members
        before = await bad.orders(0)
        waiting = asyncio.ensure_future(good.orders(before.revision))
        profile = lone_server.profile
        assert profile is not None
        with lone_server.transport(profile.token) as transport:
            await asyncio.to_thread(transport.call, "DELETE", f"{profile.vault}/backhaulServers/bad")
        told = await waiting
        assert told.deny.names == {"agent/bad"}
        with pytest.raises(BackhaulError):
            await bad.orders(0)
        with pytest.raises(BackhaulError):
            await bad.call("POST", "/members/self/certificate", b"{}")
        for member in members:
            member.close()

    asyncio.run(walk())
    with pytest.raises(EnrolmentRefused):
        enrol(lone_server, passphrase, "bad")
    names = {server["name"] for server in lone_server.vault().servers()}
    assert "good" in names
    assert "bad" not in names


def test_an_agent_may_not_report_for_another(lone_server: LiveServer, tmp_path: Path) -> None:
    passphrase, clock, address = passphrase_of(lone_server), RealClock(), Address("127.0.0.1", lone_server.port)

    async def walk() -> None:
        _, identity = await register(address, passphrase, Role.AGENT, "one", "one", clock=clock)
        folder = MemberFolder(tmp_path / "one", RealFiles(), RealRandomness(), "agent")
        member = Member(folder, Credentials(identity, clock), address, clock)
        report = {"agent": "two", "machine": "m", "version": "0", "now_ns": 0, "revision": 0, "items": []}
        with pytest.raises(BackhaulError, match="BH-BODY-WRONG"):
            await member.call("POST", "/members/self/report", json.dumps(report).encode())
        await member.call("POST", "/members/self/report", json.dumps(report | {"agent": "one"}).encode())
        member.close()

    asyncio.run(walk())


def test_a_renewed_certificate_is_a_new_one_for_the_same_server(lone_server: LiveServer, tmp_path: Path) -> None:
    folder = lone_server.register("agent", "one", "--disk", "a=/dev/null")
    kept = MemberFolder(folder, RealFiles(), RealRandomness(), "agent")
    before = kept.load()[1].peer
    lone_server.register("agent", "one", "--disk", "a=/dev/null")
    after = parse_identity(kept.load()[1].certificate)
    assert after.uri == before.uri
    assert after.serial != before.serial


def test_a_server_that_is_not_there_any_more_is_named_by_the_doctor(lone_server: LiveServer) -> None:
    folder = lone_server.register("process-server", "ps2", "--data-port", "0", "--listen-host", "127.0.0.1")
    process = lone_server.run("process-server", folder)
    until(lambda: healthy(lone_server, "ps2"))
    process.kill()
    process.wait()
    until(lambda: lone_server.vault().server("ps2")["properties"]["silence"])
    walked = lone_server.vault().doctor("ps2", item=False)
    assert not walked["ok"]
    assert walked["rungs"][-1]["rung"].endswith("TCP connection")
    assert walked["rungs"][-1]["code"] == "BH-LINK-UNREACHABLE"
    assert lone_server.command("doctor", "ps2").returncode == 7
    with pytest.raises(ClientError, match="BH-RESOURCE-UNKNOWN"):
        lone_server.vault().doctor("nothing", item=False)


def test_two_processes_do_not_serve_one_folder(lone_server: LiveServer) -> None:
    folder = lone_server.register("process-server", "ps3", "--data-port", "0", "--listen-host", "127.0.0.1")
    lone_server.run("process-server", folder)
    until(lambda: healthy(lone_server, "ps3"))
    second = lone_server.command("process-server", "run", "--data-dir", str(folder))
    assert second.returncode == 1
    assert "BH-FOLDER-TAKEN" in second.stderr
    again = lone_server.command("server", "run", "--data-dir", str(lone_server.data_dir), "--listen", "127.0.0.1:0")
    assert "BH-FOLDER-TAKEN" in again.stderr


def test_wrong_passphrases_are_counted_and_limited(limited: LiveServer) -> None:
    right = passphrase_of(limited)
    wrong = Passphrase(right.kind, right.pin, bytes(20))
    for _ in range(5):
        with pytest.raises(PassphraseWrong):
            enrol(limited, wrong, "a")
    for passphrase in (wrong, right):
        with pytest.raises(EnrolmentLimited):
            enrol(limited, passphrase, "a")
    assert limited.vault().servers() == []
