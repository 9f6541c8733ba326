"""The vault's folder: made once, mended after a kill at any point of the first start, its secrets sealed."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest

from backhaul.configuration_server.errors import SecretDamaged, SettingsWrong
from backhaul.configuration_server.sealing import MasterKey
from backhaul.configuration_server.settings import Settings, load_settings, parse_address
from backhaul.configuration_server.vault import Vault, advertised_addresses
from backhaul.links.dialer import Redial
from backhaul.links.identity import key_to_bytes
from backhaul.replication.ports import RealClock, RealFiles, RealRandomness

WORLD = Redial(RealClock(), RealRandomness())


def open_vault(folder: Path, files: RealFiles | None = None) -> Vault:
    return Vault(folder, Settings(), files or RealFiles(), WORLD)


class DoomedFiles(RealFiles):
    """Dies at the n-th durable change, before it or after it."""

    def __init__(self, left: int, *, after: bool) -> None:
        self.left, self.after = left, after

    def replace(self, path: Path, content: bytes) -> None:
        self.left -= 1
        if self.left == 0 and not self.after:
            raise KeyboardInterrupt
        super().replace(path, content)
        if self.left == 0:
            raise KeyboardInterrupt


def test_the_first_start_is_mended_after_a_kill_at_each_change(tmp_path: Path) -> None:
    for number in range(1, 6):
        for after in (False, True):
            folder = tmp_path / f"{number}-{after}"
            with pytest.raises(KeyboardInterrupt):
                open_vault(folder, DoomedFiles(number, after=after))
            vault = open_vault(folder)
            assert vault.record.term == 1
            assert vault.identity.peer.vault == vault.record.id
            vault.close()
    vault = open_vault(tmp_path / "whole", DoomedFiles(6, after=True))  # there are five changes, and no sixth
    vault.close()


def test_a_second_start_is_the_same_vault(tmp_path: Path) -> None:
    first = open_vault(tmp_path)
    passphrase, path = first.passphrase().text(), first.path
    first.close()
    again = open_vault(tmp_path)
    assert (again.passphrase().text(), again.path) == (passphrase, path)
    again.close()


def test_the_one_time_password_is_shown_once(tmp_path: Path) -> None:
    shown: list[tuple[str, str]] = []
    vault = open_vault(tmp_path)
    vault.ensure_admin(lambda user, password: shown.append((user, password)))
    vault.ensure_admin(lambda user, password: shown.append((user, password)))
    vault.close()
    assert [user for user, _ in shown] == ["admin"]
    assert len(shown[0][1]) == 27


def test_a_password_that_could_not_be_shown_does_not_count(tmp_path: Path) -> None:
    def broken(user: str, password: str) -> None:
        raise BrokenPipeError

    vault = open_vault(tmp_path)
    with pytest.raises(BrokenPipeError):
        vault.ensure_admin(broken)
    shown: list[str] = []
    vault.ensure_admin(lambda user, password: shown.append(password))
    vault.close()
    assert len(shown) == 1


def test_rotation_makes_the_passphrase_before_wrong(tmp_path: Path) -> None:
    vault = open_vault(tmp_path)
    before = vault.passphrase()
    made = vault.rotate_passphrase()
    assert vault.passphrase() == made
    assert made.key_id != before.key_id
    assert made.pin == before.pin
    vault.close()


def test_no_private_key_and_no_secret_lies_in_clear(tmp_path: Path) -> None:
    vault = open_vault(tmp_path)
    key = vault.identity.key.private_numbers().private_value.to_bytes(32, "big")
    secrets = [
        vault.passphrase().secret, vault.passphrase().text().encode(), key, key_to_bytes(vault.identity.key),
        vault.authority.issuing.key.private_numbers().private_value.to_bytes(32, "big"),
    ]  # fmt: skip
    vault.close()
    files = [path for path in tmp_path.rglob("*") if path.is_file() and path.name != "master.key"]
    assert len(files) >= 5
    for path in files:
        content = path.read_bytes()
        assert not [secret for secret in secrets if secret in content], path
    assert stat.S_IMODE((tmp_path / "secrets" / "master.key").stat().st_mode) == 0o600
    assert stat.S_IMODE((tmp_path / "backhaul.db").stat().st_mode) == 0o600


def test_sealed_values_open_only_under_their_name_and_key(tmp_path: Path) -> None:
    key = MasterKey.open_or_make(RealFiles(), tmp_path, RealRandomness())
    sealed = key.seal("one", b"secret")
    assert key.open("one", sealed) == b"secret"
    assert MasterKey.open_or_make(RealFiles(), tmp_path, RealRandomness()).open("one", sealed) == b"secret"
    other = MasterKey.open_or_make(RealFiles(), tmp_path / "other", RealRandomness())
    changed = sealed[:-1] + bytes([sealed[-1] ^ 1])
    for opener, name, content in (
        (key, "two", sealed), (other, "one", sealed), (key, "one", changed), (key, "one", b""),
    ):  # fmt: skip
        with pytest.raises(SecretDamaged):
            opener.open(name, content)


def test_another_master_key_does_not_open_the_vault(tmp_path: Path) -> None:
    open_vault(tmp_path).close()
    (tmp_path / "secrets" / "master.key").write_text("00" * 32)
    with pytest.raises(SecretDamaged):
        open_vault(tmp_path)


@pytest.mark.parametrize(
    "text",
    ['{"unknown": 1}', '{"heartbeat_s": 0}', '{"lock_after": 0}', '{"thresholds": {"cpu_warning": 99}}', "{"],
    ids=["unknown", "heartbeat", "lock", "thresholds", "no-json"],
)
def test_settings_that_are_wrong_are_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "settings.json").write_text(text)
    with pytest.raises(SettingsWrong):
        load_settings(tmp_path)


def test_settings_default(tmp_path: Path) -> None:
    assert load_settings(tmp_path) == Settings()


def test_addresses() -> None:
    assert str(parse_address("[::1]:443")) == "[::1]:443"
    assert parse_address("host:9443") == ("host", 9443)


def test_a_certificate_bears_every_name_that_is_wanted_now(tmp_path: Path) -> None:
    vault = open_vault(tmp_path)
    vault.refresh_identity("127.0.0.1")
    before = vault.identity.certificate
    vault.refresh_identity("127.0.0.1")
    assert vault.identity.certificate == before
    vault.refresh_identity("127.0.0.9")
    wanted = vault.identity
    assert wanted.certificate != before
    assert wanted.peer.id == vault.record.server_id
    vault.close()
    again = Vault(tmp_path, Settings(names=("dr.example",)), RealFiles(), WORLD)
    assert again.identity.certificate == wanted.certificate
    again.refresh_identity("127.0.0.9")
    assert again.identity.certificate != wanted.certificate
    again.close()


def test_a_certificate_that_ran_out_while_nobody_served_is_made_anew(tmp_path: Path) -> None:
    class LaterClock(RealClock):
        def wall_ns(self) -> int:
            return super().wall_ns() + 91 * 24 * 3600 * 1_000_000_000

    first = open_vault(tmp_path)
    first.refresh_identity("127.0.0.1")
    first.close()
    later = Vault(tmp_path, Settings(), RealFiles(), Redial(LaterClock(), RealRandomness()))
    later.refresh_identity("127.0.0.1")
    assert later.identity.peer.expires_ns > LaterClock().wall_ns()
    assert later.identity.peer.id == first.identity.peer.id
    later.close()


def test_a_revocation_that_a_kill_cut_short_is_believed_at_the_next_start(tmp_path: Path) -> None:
    vault = open_vault(tmp_path)
    vault.authority.revoke(name="agent/bad")
    vault.close()
    again = open_vault(tmp_path)
    assert not again.identity.trust.deny.names
    again.refresh_identity("127.0.0.1")
    assert again.identity.trust.deny.names == {"agent/bad"}
    again.close()


def test_other_machines_are_told_addresses_that_they_can_reach() -> None:
    assert advertised_addresses("127.0.0.9") == ("127.0.0.9",)
    assert advertised_addresses("dr.example") == ("dr.example",)
    everywhere = advertised_addresses("")
    assert everywhere
    assert len(everywhere) <= 16
    assert everywhere == ("127.0.0.1",) or not any(one.startswith(("127.", "fe80:")) for one in everywhere)
