"""The proof that nobody writes: made only while it is true, and lost as soon as it is not."""

from __future__ import annotations

import contextlib
import ctypes
import mmap
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from backhaul.mobility import stopped as stopped_module
from backhaul.mobility import writers
from backhaul.mobility.errors import ImageNotStill, NotStopped, StopUnproven
from backhaul.mobility.stopped import ScanProof, StoppedDisks, stopped
from backhaul.mobility.writers import Writer, device_writers, file_writers
from backhaul.replication.ports import RealClock
from backhaul.replication.values import Consistency, StillKind
from mobility.conftest import Volumes, eventually

CLOCK = RealClock()


@pytest.fixture
def inspectable(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leaves out processes that even root may not look at (a supervisor), which make every scan unproven."""
    every = writers._processes

    def allowed(proc: Path) -> list[Path]:
        found = []
        for folder in every(proc):
            try:
                for entry in (folder / "fd").iterdir():
                    entry.stat()
            except PermissionError:
                continue
            except OSError:
                pass
            found.append(folder)
        return found

    monkeypatch.setattr(writers, "_processes", allowed)


@contextlib.contextmanager
def _mapped(path: Path) -> Iterator[None]:
    """A shared writable mapping without a descriptor, which Python's own mapping would keep."""
    library = ctypes.CDLL(None, use_errno=True)
    library.mmap.restype = ctypes.c_void_p
    library.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long]
    library.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
    with path.open("r+b") as file:
        address = library.mmap(None, 4096, mmap.PROT_READ | mmap.PROT_WRITE, mmap.MAP_SHARED, file.fileno(), 0)
    assert address != ctypes.c_void_p(-1).value
    try:
        yield
    finally:
        library.munmap(address, 4096)


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "disk.img"
    path.write_bytes(bytes(65536))
    return path


def test_a_file_without_a_writer(image: Path) -> None:
    with stopped([image], CLOCK) as still, image.open("rb"):
        assert (still.kind, still.consistency, still.limit_s) == (StillKind.STOPPED, Consistency.CRASH, None)
        assert still.barrier_ns <= CLOCK.wall_ns()
        still.confirm()
        assert still.frozen_us == 0


def test_a_file_with_a_writer(image: Path) -> None:
    with image.open("r+b"), pytest.raises(NotStopped), stopped([image], CLOCK):
        pytest.fail("it is not stopped")


def test_a_file_that_is_mapped_for_writing_and_closed(image: Path) -> None:
    with _mapped(image), pytest.raises(NotStopped), stopped([image], CLOCK):
        pytest.fail("it is not stopped")


def test_one_of_two_disks_with_a_writer(image: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.img"
    other.write_bytes(bytes(512))
    with other.open("r+b"), pytest.raises(NotStopped, match=r"other\.img"), stopped([image, other], CLOCK):
        pytest.fail("it is not stopped")


@pytest.mark.parametrize("opening", ["exec 3<>", "exec 3>>", ": >"], ids=["read-write", "append", "truncate"])
def test_who_opens_later_for_writing_ends_the_image_and_goes_on_when_it_is_given_up(image: Path, opening: str) -> None:
    with stopped([image], CLOCK) as still:
        still.confirm()
        writer = subprocess.Popen(["sh", "-c", f"{opening} {image}; exit 7"])
        eventually(lambda: _lost(still), "the lease is broken")
        with pytest.raises(ImageNotStill, match="opened for writing"):
            still.confirm()
    assert writer.wait(30) == 7


def _lost(still: stopped_module.StoppedImage) -> bool:
    try:
        still.confirm()
    except ImageNotStill:
        return True
    return False


def test_losing_a_lease_does_not_end_the_agent_by_a_signal(image: Path) -> None:
    assert signal.getsignal(signal.SIGIO) is signal.SIG_DFL
    with stopped([image], CLOCK) as still:
        writer = subprocess.Popen(["sh", "-c", f"exec 3<>{image}"])
        eventually(lambda: _lost(still), "the lease is broken")
    assert writer.wait(30) == 0


def test_what_opens_and_closes_between_two_looks_is_noticed(image: Path) -> None:
    """A non-blocking open is refused while the lease lasts, and breaks it."""
    with stopped([image], CLOCK) as still:
        with pytest.raises(BlockingIOError):
            os.open(image, os.O_WRONLY | os.O_NONBLOCK)
        with pytest.raises(ImageNotStill):
            still.confirm()


# ---- where leases are refused


@pytest.mark.root
@pytest.mark.usefixtures("inspectable")
def test_scan_finds_descriptors_and_mappings_of_other_processes(image: Path) -> None:
    assert file_writers(image) == []
    with subprocess.Popen(["sh", "-c", f"exec 3<>{image}; echo; read x"], stdin=-1, stdout=-1) as writer:
        assert writer.stdout is not None
        writer.stdout.readline()
        assert [found.pid for found in file_writers(image)] == [writer.pid]
        assert isinstance(file_writers(image)[0], Writer)
        writer.communicate()
    with _mapped(image):
        assert [found.pid for found in file_writers(image)] == [os.getpid()]
    assert file_writers(image) == []


@pytest.mark.root
@pytest.mark.usefixtures("inspectable")
def test_without_leases_the_file_is_watched_by_scans_and_times(image: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(file: Path) -> None:
        raise StopUnproven(disk=file, reason="no lease")

    monkeypatch.setattr(stopped_module, "LeaseProof", refuse)
    with image.open("r+b"), pytest.raises(NotStopped), stopped([image], CLOCK):
        pytest.fail("it is not stopped")
    with stopped([image], CLOCK) as still:
        still.confirm()
        with image.open("r+b") as file:
            with pytest.raises(ImageNotStill, match="open for writing"):
                still.confirm()
            file.write(b"x")
        with pytest.raises(ImageNotStill, match="was written"):
            still.confirm()


def test_a_process_that_cannot_be_looked_at_means_unproven(image: Path, tmp_path: Path) -> None:
    proc = tmp_path / "proc"
    (proc / "17").mkdir(parents=True)

    class Closed(type(proc)):  # type: ignore[misc]
        def iterdir(self) -> object:
            if self.name == "fd":
                raise PermissionError
            return (Closed(path) for path in super().iterdir())

    with pytest.raises(StopUnproven, match="17"):
        file_writers(image, Closed(proc))
    with pytest.raises(StopUnproven, match="17"):
        device_writers(["7:0"], Closed(proc))


@pytest.mark.root
@pytest.mark.usefixtures("inspectable")
def test_in_a_process_namespace_of_its_own_a_scan_proves_nothing(image: Path) -> None:
    code = f"from backhaul.mobility.stopped import ScanProof; from pathlib import Path; ScanProof(Path({str(image)!r}))"
    done = subprocess.run(
        ["unshare", "--pid", "--fork", "--mount-proc", sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=False,
    )
    assert "process namespace of its own" in done.stderr
    ScanProof(image)


# ---- block devices


@pytest.mark.root
def test_a_mounted_device_is_not_stopped(volumes: Volumes) -> None:
    with pytest.raises(NotStopped, match="mounted"), stopped([Path(volumes.loops[0])], CLOCK):
        pytest.fail("it is mounted")


@pytest.fixture
def device(volumes: Volumes) -> Path:
    """A loop device whose file system is not mounted."""
    subprocess.run(["umount", str(volumes.points.pop(0))], check=True)
    return Path(volumes.loops[0])


@pytest.mark.root
@pytest.mark.usefixtures("inspectable")
def test_an_unmounted_device_is_stopped(device: Path) -> None:
    with stopped([device], CLOCK) as still:
        still.confirm()


@pytest.mark.root
@pytest.mark.usefixtures("inspectable")
def test_a_device_that_somebody_has_open(device: Path) -> None:
    with device.open("r+b"), pytest.raises(NotStopped, match=str(os.getpid())), stopped([device], CLOCK):
        pytest.fail("it is open")
    with device.open("rb"), stopped([device], CLOCK) as still:
        still.confirm()


@pytest.mark.root
@pytest.mark.usefixtures("inspectable")
def test_a_write_between_two_looks_is_counted_by_the_kernel(device: Path) -> None:
    with stopped([device], CLOCK) as still:
        subprocess.run(
            ["dd", "if=/dev/zero", f"of={device}", "bs=4096", "count=1", "conv=fsync"], check=True, stderr=-3
        )
        with pytest.raises(ImageNotStill, match="was written"):
            still.confirm()


@pytest.fixture
def unseen(monkeypatch: pytest.MonkeyPatch) -> None:
    """There is a process that this one may not look at, as for every agent without privileges."""

    def refuse(folder: Path, is_it: object) -> bool:
        raise PermissionError

    monkeypatch.setattr(writers, "_writes", refuse)


@pytest.mark.root
@pytest.mark.usefixtures("unseen")
def test_the_word_of_the_machines_site_stands_for_a_look_at_every_process(device: Path) -> None:
    with pytest.raises(StopUnproven), stopped([device], CLOCK):
        pytest.fail("nobody looked")
    with StoppedDisks([device], CLOCK, machine_off=True).hold() as still:
        still.confirm()


@pytest.mark.root
@pytest.mark.usefixtures("unseen")
def test_the_word_of_the_machines_site_hides_no_write_and_no_mount(device: Path, volumes: Volumes) -> None:
    off = StoppedDisks([device], CLOCK, machine_off=True)
    with off.hold() as still, device.open("r+b", buffering=0) as other:
        other.write(bytes(4096))
        os.fsync(other.fileno())
        with pytest.raises(ImageNotStill, match="was written"):
            still.confirm()
    with pytest.raises(NotStopped, match="mounted"), StoppedDisks([Path(volumes.loops[1])], CLOCK, True).hold():
        pytest.fail("it is mounted")


@pytest.mark.root
@pytest.mark.usefixtures("unseen")
def test_a_write_that_has_not_ended_is_no_stillness(device: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with StoppedDisks([device], CLOCK, machine_off=True).hold() as still:
        monkeypatch.setattr(stopped_module, "writes_in_flight", lambda device: 1)
        with pytest.raises(ImageNotStill, match="being written"):
            still.confirm()


@pytest.mark.root
@pytest.mark.usefixtures("inspectable")
def test_the_file_behind_a_loop_device(device: Path, volumes: Volumes) -> None:
    with volumes.images[0].open("r+b"), pytest.raises(NotStopped, match=r"first\.img"), stopped([device], CLOCK):
        pytest.fail("its file is open")
    with stopped([device], CLOCK) as still, volumes.images[0].open("r+b"), pytest.raises(ImageNotStill):
        still.confirm()


@pytest.mark.root
@pytest.mark.usefixtures("inspectable")
def test_another_loop_device_of_the_same_file(device: Path, volumes: Volumes) -> None:
    made = subprocess.run(
        ["losetup", "-f", "--show", str(volumes.images[0])], check=True, capture_output=True, text=True
    )
    volumes.loops.append(made.stdout.strip())
    with pytest.raises(NotStopped, match=volumes.loops[-1]), stopped([device], CLOCK):
        pytest.fail("another device writes to its file")


@pytest.mark.root
def test_a_file_behind_a_loop_device_names_the_device(volumes: Volumes) -> None:
    with pytest.raises(NotStopped, match=volumes.loops[0]), stopped([volumes.images[0]], CLOCK):
        pytest.fail("the loop device can write")
