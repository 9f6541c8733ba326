"""Settings of a configuration server: the file `settings.json` in its data folder, all of them optional.

Read once at the start. `config show` prints what is in force. Sizes in bytes, times in seconds.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

import msgspec

from backhaul.configuration_server.errors import AddressWrong, SettingsWrong
from backhaul.links.dialer import Address
from backhaul.recovery.findings import problems
from backhaul.recovery.health import Thresholds, validate_thresholds
from backhaul.replication.errors import UNDECODABLE
from backhaul.replication.units import GiB

FILE: Final = "settings.json"


class Settings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What an operator may set.

    names                 DNS names under which clients reach this server, beside `localhost` and the machine's own
    addresses             IP addresses under which others reach it and its process server, for its certificate too
    heartbeat_s           how often servers are asked for their state
    session_s             life of a login
    lock_after, lock_s    failed logins until an account is locked, and for how long
    process_server_port, master_target_port   of the servers it starts; 0: any, kept from then on
    spool_bytes           bound of the own process server's spool
    built_in              whether it starts a process server and a master target of its own
    """

    names: tuple[str, ...] = ()
    addresses: tuple[str, ...] = ()
    heartbeat_s: float = 15.0
    session_s: float = 12 * 3600.0
    lock_after: int = 5
    lock_s: float = 900.0
    process_server_port: int = 9443
    master_target_port: int = 9444
    spool_bytes: int = 64 * GiB
    built_in: bool = True
    thresholds: Thresholds = Thresholds()


def load_settings(data_dir: Path) -> Settings:
    """The settings of a data folder; the defaults where there is no file. Raises SettingsWrong."""
    path = data_dir / FILE
    try:
        settings = msgspec.json.decode(path.read_bytes(), type=Settings)
    except FileNotFoundError:
        return Settings()
    except UNDECODABLE as error:
        raise SettingsWrong(folder=data_dir, reason=str(error)) from error
    wrong = [finding.reason for finding in problems(validate_thresholds(settings.thresholds))]
    if not 0.05 <= settings.heartbeat_s <= 300:
        wrong.append("heartbeat_s must be from 0.05 to 300")
    if settings.session_s <= 0 or settings.lock_s <= 0 or settings.lock_after < 1:
        wrong.append("session_s, lock_s and lock_after must be above 0")
    if wrong:
        raise SettingsWrong(folder=data_dir, reason="; ".join(wrong))
    return settings


def parse_address(text: str) -> Address:
    """`host:port` or `[IPv6]:port`. Raises AddressWrong."""
    host, colon, port = text.rpartition(":")
    if not colon or not port.isascii() or not port.isdigit() or int(port) > 65535:
        raise AddressWrong(address=text[:200])
    return Address(host.removeprefix("[").removesuffix("]"), int(port))
