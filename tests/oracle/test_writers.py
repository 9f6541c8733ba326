"""The writers as processes: they write, quiesce, end in order, outlive nobody's patience, and restart elsewhere."""

from __future__ import annotations

import ctypes
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from backhaul.demo.oracle import Barrier, ViolationKind, check, check_transactions, load_history
from backhaul.demo.oracle.report import true_rpo_s
from backhaul.demo.writers import blocks
from backhaul.demo.writers.blocks import BlockWriter
from backhaul.demo.writers.control import ask
from backhaul.demo.writers.errors import WriterDiskFailed, WriterSpecInvalid, WriterUnreachable
from backhaul.demo.writers.spec import BlockWriterSpec, RegionSpec, SqliteWriterSpec, WriterSpec, read_spec, write_spec
from backhaul.replication.ports import RealClock
from backhaul.replication.units import BLOCK, MiB

Process = subprocess.Popen[str]


@pytest.fixture
def folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as path:  # a UNIX socket's path is short, pytest's folders are not
        yield Path(path)


def block_spec(folder: Path, side: str = "home", **changes: Any) -> BlockWriterSpec:
    disks = tuple(folder / f"{side}{number}" for number in range(2))
    for disk in disks:
        if not disk.exists():
            disk.write_bytes(bytes(MiB))
    fields: dict[str, Any] = {
        "machine": "web",
        "log": folder / "log",
        "disks": disks,
        "writes_per_s": 0.0,
        "progress_s": 0.05,
    }
    return BlockWriterSpec(**{**fields, **changes})


@contextmanager
def running(folder: Path, spec: WriterSpec, module: str = "blocks") -> Iterator[Process]:
    write_spec(folder / "spec.json", spec)
    command = [sys.executable, "-m", f"backhaul.demo.writers.{module}", str(folder / "spec.json")]
    pipe = subprocess.PIPE
    source = str(Path(blocks.__file__).parents[3])
    environment = {**os.environ, "PYTHONPATH": source}
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, text=True, env=environment) as process:
        try:
            assert until(process, "ready")
            yield process
        finally:
            process.kill()


def until(process: Process, word: str) -> str:
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith(word):
            return line.strip()
    return ""


def until_acknowledged(process: Process, count: int) -> None:
    while json.loads(until(process, "progress").removeprefix("progress "))["acknowledged"] < count:
        pass


def tell(process: Process, command: str) -> None:
    assert process.stdin is not None
    process.stdin.write(f"{command}\n")
    process.stdin.flush()


def test_sigterm_ends_it_in_order(folder: Path) -> None:
    spec = block_spec(folder)
    with running(folder, spec) as process:
        until_acknowledged(process, 100)
        process.send_signal(signal.SIGTERM)
        ended = json.loads(until(process, "ended").removeprefix("ended "))
        assert process.wait() == 0
    report = check(spec.log, spec.disks, Barrier.final())
    assert report.ok, report.text()
    assert report.contained == ended["acknowledged"] == ended["newest"]
    assert load_history(spec.log).newest.stopped


def test_sigterm_ends_it_also_when_another_than_the_main_thread_receives_it(folder: Path) -> None:
    with running(folder, block_spec(folder, progress_s=0.0)) as process:
        other = next(int(task) for task in os.listdir(f"/proc/{process.pid}/task") if int(task) != process.pid)
        assert ctypes.CDLL(None).tgkill(process.pid, other, signal.SIGTERM) == 0
        assert process.wait(30) == 0


def test_a_killed_writer_leaves_a_log_that_proves_and_the_next_one_goes_on(folder: Path) -> None:
    home = block_spec(folder)
    with running(folder, home) as process:
        until_acknowledged(process, 100)
        process.kill()
        assert process.wait() == -signal.SIGKILL
    assert not load_history(home.log).newest.stopped
    assert check(home.log, home.disks, Barrier.final()).ok
    cloud = block_spec(folder, "cloud")
    for old, new in zip(home.disks, cloud.disks, strict=True):
        shutil.copyfile(old, new)
    with running(folder, cloud) as process:
        until_acknowledged(process, 50)
        tell(process, "stop")
        assert process.wait() == 0
    assert sorted(load_history(home.log).incarnations) == [1, 2]
    report = check(home.log, cloud.disks, Barrier.final())
    assert report.ok, report.text()
    assert set(check(home.log, home.disks, Barrier.final()).counts) == {ViolationKind.BEHIND}
    assert true_rpo_s(report, RealClock().wall_ns()) > 0


def test_quiesced_disks_hold_exactly_what_was_answered(folder: Path) -> None:
    spec = block_spec(folder, control=folder / "s", quiesce_limit_s=60.0)
    with running(folder, spec) as process:
        until_acknowledged(process, 20)
        for _ in range(3):
            word, sequence = ask(folder / "s", "quiesce").split()
            report = check(spec.log, spec.disks, Barrier.at_sequence(int(sequence)))
            assert word == "quiesced"
            assert report.ok, report.text()
            assert report.newest is not None
            assert (report.newest.sequence, report.missing, report.in_flight) == (int(sequence), 0, 0)
            assert ask(folder / "s", "resume") == "resumed"
        assert ask(folder / "s", "resume") == "expired"
        assert ask(folder / "s", "dance").startswith("unknown")
        assert ask(folder / "s", "stop") == "stopping"
        assert process.wait() == 0


def test_it_goes_on_by_itself_behind_its_limit(folder: Path) -> None:
    with running(folder, block_spec(folder, quiesce_limit_s=0.1)) as process:
        tell(process, "quiesce")
        sequence = int(until(process, "quiesced").split()[1])
        until_acknowledged(process, sequence + 10)
        tell(process, "resume")
        assert until(process, "expired")
        tell(process, "status")
        assert json.loads(until(process, "status").removeprefix("status "))["expired"] == 1


def test_it_can_hang_and_writes_all_the_same(folder: Path) -> None:
    with running(folder, block_spec(folder, control=folder / "s")) as process:
        with pytest.raises(WriterUnreachable, match="no answer"):
            ask(folder / "s", "hang", timeout_s=0.05)
        with pytest.raises(WriterUnreachable, match="no answer"):
            ask(folder / "s", "quiesce", timeout_s=0.05)
        until_acknowledged(process, 100)
        process.send_signal(signal.SIGTERM)
        assert process.wait() == 0
    with pytest.raises(WriterUnreachable):
        ask(folder / "s", "status")


def test_the_end_of_stdin_stops_it(folder: Path) -> None:
    with running(folder, block_spec(folder)) as process:
        assert process.stdin is not None
        process.stdin.close()
        assert process.wait() == 0


def test_the_disks_are_open_for_writing_while_it_runs(folder: Path) -> None:
    spec = block_spec(folder)
    with running(folder, spec) as process:
        links = {Path(f"/proc/{process.pid}/fd/{name}") for name in os.listdir(f"/proc/{process.pid}/fd")}
        held = {link.resolve(): link for link in links}
        for disk in spec.disks:
            flags = Path(f"/proc/{process.pid}/fdinfo/{held[disk.resolve()].name}").read_text().split("flags:")[1]
            assert int(flags.split()[0], 8) & os.O_ACCMODE == os.O_RDWR
            assert int(flags.split()[0], 8) & os.O_DSYNC


def test_it_keeps_to_its_regions(folder: Path) -> None:
    spec = block_spec(folder, regions=(RegionSpec(disk=1, first=10, blocks=20),), threads=2)
    with running(folder, spec) as process:
        until_acknowledged(process, 200)
        tell(process, "stop")
        assert process.wait() == 0
    written = spec.disks[1].read_bytes()
    assert spec.disks[0].read_bytes() == bytes(MiB)
    assert written[: 10 * BLOCK] + written[30 * BLOCK :] == bytes(MiB - 20 * BLOCK)
    assert check(spec.log, spec.disks, Barrier.final()).contained >= 200


def test_a_failed_write_ends_it_and_is_never_acknowledged(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    writer = BlockWriter(block_spec(folder, threads=1), RealClock())
    real, calls = os.pwritev, []

    def failing(descriptor: int, buffers: list[bytes], offset: int) -> int:
        calls.append(offset)
        if len(calls) == 5:
            raise OSError(5, "Input/output error")
        return real(descriptor, buffers, offset)

    monkeypatch.setattr(os, "pwritev", failing)
    writer.start()
    assert writer.wait(None)
    with pytest.raises(WriterDiskFailed, match="Input/output error"):
        writer.finish()
    found = load_history(folder / "log").newest
    assert (len(calls), len(found.places), found.newest_acknowledged) == (5, 5, 4)


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param({"threads": 0}, id="no threads"),
        pytest.param({"disks": ()}, id="no disks"),
        pytest.param({"regions": (RegionSpec(disk=2, first=0, blocks=1),)}, id="no such disk"),
        pytest.param({"regions": (RegionSpec(disk=0, first=250, blocks=7),)}, id="past the end"),
        pytest.param({"regions": (RegionSpec(disk=0, first=0, blocks=7),), "threads": 4}, id="too few blocks"),
    ],
)
def test_specifications_that_cannot_be(folder: Path, changes: dict[str, Any]) -> None:
    with pytest.raises(WriterSpecInvalid):
        BlockWriter(block_spec(folder, **changes), RealClock()).start()
    assert not (folder / "log").exists()


def test_a_specification_is_read_as_it_was_written(folder: Path) -> None:
    spec = block_spec(folder, control=folder / "s", regions=(RegionSpec(disk=0, first=1, blocks=9),))
    write_spec(folder / "spec.json", spec)
    assert read_spec(folder / "spec.json", BlockWriterSpec) == spec
    (folder / "spec.json").write_text("{}")
    with pytest.raises(WriterSpecInvalid, match="machine"):
        read_spec(folder / "spec.json", BlockWriterSpec)


def test_sqlite_is_judged_by_its_transactions(folder: Path) -> None:
    spec = SqliteWriterSpec(
        machine="db", log=folder / "log", database=folder / "base.db", writes_per_s=0, progress_s=0.05
    )
    for _ in range(2):
        with running(folder, spec, "sqlite_writer") as process:
            until_acknowledged(process, 20)
            process.kill()
            process.wait()
        report = check_transactions(spec.log, spec.database, Barrier.final())
        assert report.ok, report.text()
    assert report.incarnation == 2
    with running(folder, spec, "sqlite_writer") as process:
        until_acknowledged(process, 10)
        tell(process, "quiesce")
        assert until(process, "quiesced")
        process.terminate()
        assert process.wait() == 0
    assert check_transactions(spec.log, spec.database, Barrier.final()).checked >= 50
