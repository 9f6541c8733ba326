"""The command line: JSON and tables, exit codes, and only the client below. `test_help` looks at what it says."""

from __future__ import annotations

import ast
import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

import backhaul.__main__
import backhaul.cli
from backhaul.cli.app import app
from backhaul.client.profile import VARIABLE, load_profile, save_profile
from configuration_server.live import LiveServer, live_server


@pytest.fixture(scope="module")
def lone(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveServer]:
    with live_server(tmp_path_factory.mktemp("cli"), built_in=False) as made:
        yield made


@pytest.fixture(autouse=True)
def profile(lone: LiveServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, str(lone.profile_path))
    monkeypatch.setenv("COLUMNS", "200")


def run(*arguments: str) -> Result:
    return CliRunner().invoke(app, list(arguments))


def test_lists_as_json_and_as_tables(lone: LiveServer) -> None:
    (policy,) = json.loads(run("policy", "list", "--json").output)
    assert policy["name"] == "24-hours"
    assert run("policy", "list").output.splitlines()[1].split()[0] == "24-hours"
    for verb in ("item list", "job list", "process-server list", "master-target list", "agent list"):
        assert json.loads(run(*verb.split(), "--json").output) == []
        assert run(*verb.split()).exit_code == 0
    shown = json.loads(run("config", "show", "--json").output)
    assert shown["settings"]["heartbeat_s"] == 0.2
    assert shown["term"] == 1
    assert "heartbeat_s" in run("config", "show").output


def test_policies_are_made_shown_and_checked() -> None:
    assert run("policy", "create", "gold", "--point-interval-s", "5").exit_code == 0
    assert "5" in run("policy", "show", "GOLD").output
    again = run("policy", "create", "gold", "--point-interval-s", "5")
    assert again.exit_code == 0
    other = run("policy", "create", "gold", "--point-interval-s", "6")
    assert (other.exit_code, "BH-NAME-TAKEN" in other.stderr) == (1, True)
    wrong = run("policy", "create", "lead", "--point-interval-s", "0.1", "--freeze-limit-s", "99")
    assert wrong.exit_code == 1
    assert "BH-POLICY-INTERVAL" in wrong.stderr
    assert "BH-POLICY-FREEZE" in wrong.stderr
    tiers = run("policy", "create", "tiers", "--tier", "600:0", "--tier", "86400:60", "--journal-bytes", "1073741824")
    assert tiers.exit_code == 0
    made = json.loads(run("policy", "show", "tiers", "--json").output)["properties"]["backhaul"]
    assert made["tiers"] == [{"until_age_s": 600.0, "every_s": 0.0}, {"until_age_s": 86400.0, "every_s": 60.0}]
    assert made["journal_bytes"] == 1 << 30
    assert run("policy", "create", "no", "--tier", "hour").exit_code == 2


@pytest.mark.parametrize(
    "arguments",
    [
        ("item", "show", "nothing"), ("job", "show", "0"), ("policy", "show", "none"), ("doctor", "nothing"),
        ("process-server", "show", "none"), ("recovery-point", "list", "none"), ("item", "protect", "none"),
    ],
    ids=" ".join,
)  # fmt: skip
def test_what_is_not_there_exits_4(arguments: tuple[str, ...]) -> None:
    shown = run(*arguments)
    assert shown.exit_code == 4
    assert "BH-RESOURCE-UNKNOWN" in shown.stderr


def test_a_session_that_is_over_exits_3(lone: LiveServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import dataclasses

    over = dataclasses.replace(load_profile(), token="over")
    monkeypatch.setenv(VARIABLE, str(tmp_path / "profile.json"))
    assert run("item", "list").exit_code == 3
    save_profile(over)
    shown = run("item", "list")
    assert (shown.exit_code, "backhaul login" in shown.stderr) == (3, True)
    assert (tmp_path / "profile.json").stat().st_mode & 0o777 == 0o600


def test_a_server_that_does_not_answer_exits_5(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import dataclasses

    away = dataclasses.replace(load_profile(), server="https://127.0.0.1:1")
    monkeypatch.setenv(VARIABLE, str(tmp_path / "profile.json"))
    save_profile(away)
    assert run("item", "list").exit_code == 5


def test_the_passphrase_is_the_same_through_the_api_and_from_the_folder(lone: LiveServer) -> None:
    shown = run("server", "passphrase", "show").output.strip()
    assert shown.startswith("bhp1.")
    local = run("server", "passphrase", "show", "--data-dir", str(lone.data_dir), "--json")
    assert json.loads(local.output)["passphrase"] == shown
    made = run("server", "passphrase", "rotate", "--data-dir", str(lone.data_dir)).output.strip()
    assert made != shown
    assert run("server", "passphrase", "show").output.strip() == made


def test_a_folder_without_a_vault_is_not_made_one(tmp_path: Path) -> None:
    shown = run("server", "passphrase", "show", "--data-dir", str(tmp_path))
    assert (shown.exit_code, "BH-VAULT" in shown.stderr) == (1, True)
    assert list(tmp_path.iterdir()) == []


def test_login_and_logout(lone: LiveServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, str(tmp_path / "profile.json"))
    password = tmp_path / "password"
    login = ["login", "--server", f"localhost:{lone.port}", "--ca", str(lone.data_dir / "ca.pem")]
    password.write_text("wrong")
    assert run(*login, "--password-file", str(password)).exit_code == 3
    from configuration_server.live import PASSWORD

    password.write_text(PASSWORD + "\n")
    assert run(*login, "--password-file", str(password)).exit_code == 0
    token = load_profile().token
    assert run("policy", "list").exit_code == 0
    assert run("logout").exit_code == 0
    assert run("policy", "list").exit_code == 3
    with lone.transport(token) as transport, pytest.raises(Exception, match="BH-LOGIN-REQUIRED"):
        transport.call("GET", "/session")


def test_the_server_is_not_trusted_by_its_name_alone(lone: LiveServer, tmp_path: Path) -> None:
    import ssl

    from backhaul.links.authority import Authority, AuthorityStore
    from backhaul.replication.ports import RealClock, RealFiles, RealRandomness

    store = AuthorityStore(RealFiles(), tmp_path / "authority", RealClock(), RealRandomness())
    other = tmp_path / "other.pem"
    other.write_text(ssl.DER_cert_to_PEM_cert(Authority.create("other", store).issuing.certificate))
    password = tmp_path / "password"
    password.write_text("never sent")
    shown = run("login", "--server", f"localhost:{lone.port}", "--ca", str(other), "--password-file", str(password))
    assert (shown.exit_code, "CERTIFICATE_VERIFY_FAILED" in shown.stderr) == (5, True)


def test_faces_import_the_client_only() -> None:
    folder = Path(backhaul.cli.__file__).parent
    for path in [*folder.glob("*.py"), *(folder.parent / "client").glob("*.py")]:
        allowed = ("backhaul.client", "backhaul.cli") if path.parent == folder else ("backhaul.client",)
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("backhaul"):
                assert (node.module or "").startswith(allowed), (path.name, node.module)
