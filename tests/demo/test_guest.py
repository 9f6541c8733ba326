"""The guest: it writes all the time, survives its own death, and tells what it found."""

from __future__ import annotations

import shutil
import signal
from pathlib import Path

import msgspec
import pytest

from backhaul.demo.errors import GuestMisplaced
from backhaul.demo.guest import CONTROL
from backhaul.demo.guest_machine import GuestMachine
from backhaul.demo.oracle import Barrier, check, load_history
from backhaul.demo.oracle.stamps import machine_tag
from backhaul.demo.writers.control import ask
from demo.guests import Guest, raw_disks


def test_a_stopped_guest_left_everything_it_acknowledged(tmp_path: Path) -> None:
    disks = raw_disks(tmp_path)
    guest = Guest(tmp_path, "alpha", disks)
    printed = guest.start()
    assert "installing" in printed
    guest.read_until("progress")
    assert guest.end(signal.SIGTERM) == 0
    report = check(guest.blocks_log, disks, Barrier.final())
    assert report.ok, report.text()
    assert report.contained > 0


def test_a_killed_guest_boots_again_and_the_chain_of_its_lives_is_proved(tmp_path: Path) -> None:
    disks = raw_disks(tmp_path)
    guest = Guest(tmp_path, "alpha", disks)
    guest.start()
    guest.read_until("progress")
    assert guest.end(signal.SIGKILL) == -signal.SIGKILL
    assert "installing" not in guest.start(), "the nameplate says that it is installed"
    guest.read_until("progress")
    assert guest.end(signal.SIGTERM) == 0
    assert sorted(load_history(guest.blocks_log).incarnations) == [1, 2]
    report = check(guest.blocks_log, disks, Barrier.final())
    assert report.ok, report.text()


def test_a_lost_write_between_two_lives_is_found(tmp_path: Path) -> None:
    disks = raw_disks(tmp_path)
    guest = Guest(tmp_path, "alpha", disks)
    guest.start()
    guest.read_until("progress")
    guest.end(signal.SIGTERM)
    shutil.copyfile(disks[1], tmp_path / "old.img")
    guest.start()
    guest.read_until("progress")
    guest.end(signal.SIGTERM)
    shutil.copyfile(tmp_path / "old.img", disks[1])  # one disk goes back, the other does not
    report = check(guest.blocks_log, disks, Barrier.final())
    assert not report.ok


def test_a_copy_of_the_disks_wakes_up_under_the_machines_own_name(tmp_path: Path) -> None:
    disks = raw_disks(tmp_path)
    first = Guest(tmp_path, "alpha", disks)
    first.start()
    first.end(signal.SIGTERM)
    other = Guest(tmp_path / "cloud", "renamed", disks)
    other.start()
    other.end(signal.SIGTERM)
    assert load_history(other.blocks_log).machine == machine_tag("alpha")


def test_the_quiesce_script_reaches_the_writers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    guest = Guest(tmp_path, "alpha", raw_disks(tmp_path))
    guest.start()
    guest.read_until("progress")
    monkeypatch.chdir(guest.work)
    answer = ask(CONTROL, "quiesce")
    newest = int(answer.removeprefix("quiesced "))
    history = load_history(guest.blocks_log)
    assert history.newest.newest_acknowledged == newest
    assert ask(CONTROL, "resume") == "resumed"
    guest.end(signal.SIGTERM)


def test_a_guest_without_a_machine_says_so() -> None:
    with pytest.raises(GuestMisplaced, match="BACKHAUL_DISKS"):
        GuestMachine.read({})
    mixed = [
        {"index": 0, "id": "a", "name": "a", "size": 1, "path": "/a", "mount": "/mnt"},
        {"index": 1, "id": "b", "name": "b", "size": 1, "path": "/b"},
    ]
    environment = {
        "BACKHAUL_DISKS": msgspec.json.encode(mixed).decode(),
        "BACKHAUL_MACHINE_ID": "m",
        "BACKHAUL_ADDRESS": "127.0.0.1",
        "BACKHAUL_METADATA": "/m",
    }
    with pytest.raises(GuestMisplaced, match="some disks"):
        GuestMachine.read(environment)
