"""File systems that can be frozen: real ones on loop devices for root, folders that only seem to freeze for others."""

from __future__ import annotations

import os
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from backhaul.mobility import freezer_client
from backhaul.mobility.freezing import System
from mobility.doomed import Doomed
from shared_mounts import shared

PATIENCE_S = 30.0
"""How long a condition may take to come true before the test fails; far beyond every limit, on a busy machine too."""


SHORT_S = 1.0
"""A freeze's limit that is waited for; file systems on a busy disk come to rest within it."""


def eventually(condition: Callable[[], bool], what: str) -> None:
    """Wait for a condition that another process makes true."""
    end = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < end, f"never: {what}"
        time.sleep(0.005)


@dataclass
class Volumes:
    """Two file systems. `fake`: they only seem to freeze."""

    points: list[Path]
    images: list[Path]
    loops: list[str]
    fake: bool
    state: Path

    def frozen(self) -> list[bool]:
        """Which are frozen now, asked of the kernel."""
        if self.fake:
            return [(point / ".frozen").exists() for point in self.points]
        return [self._ask(point) for point in self.points]

    @staticmethod
    def _ask(point: Path) -> bool:
        descriptor = os.open(point, os.O_RDONLY)
        try:
            return System().still_frozen(descriptor)
        finally:
            os.close(descriptor)

    def thaw(self, point: Path) -> bool:
        """As somebody else would, by `fsfreeze --unfreeze`."""
        descriptor = os.open(point, os.O_RDONLY)
        try:
            return (Doomed() if self.fake else System()).thaw(descriptor)
        finally:
            os.close(descriptor)

    def freeze(self, point: Path) -> None:
        """As somebody else would, by `fsfreeze --freeze`."""
        descriptor = os.open(point, os.O_RDONLY)
        try:
            (Doomed() if self.fake else System()).freeze(descriptor)
        finally:
            os.close(descriptor)

    def accept_writes(self) -> None:
        """Fails unless both take a write, durably, before PATIENCE_S is over."""
        if self.fake:
            eventually(lambda: not any(self.frozen()), "thawed")
            return
        for point in self.points:
            writer = threading.Thread(target=_write, args=(point / "written",), daemon=True)
            writer.start()
            writer.join(PATIENCE_S)
            assert not writer.is_alive(), f"{point} is frozen still"


def _write(path: Path) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT, 0o600)
    try:
        os.write(descriptor, b"x" * 4096)
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@pytest.fixture
def state_folder() -> Iterator[Path]:
    """A folder in tmpfs."""
    if not os.access("/dev/shm", os.W_OK):
        pytest.skip("no writable /dev/shm, which the freezer's state needs")
    with tempfile.TemporaryDirectory(dir="/dev/shm") as folder:
        yield Path(folder)


@pytest.fixture
def fake_volumes(tmp_path: Path, state_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Volumes:
    """Two folders."""
    monkeypatch.setattr(Doomed, "fake", True)
    monkeypatch.setattr(Doomed, "fatal", 0)
    monkeypatch.setattr(freezer_client, "System", Doomed)
    monkeypatch.setattr(freezer_client, "_file_system_of", lambda descriptor: str(os.fstat(descriptor).st_ino))
    points = [tmp_path / "first", tmp_path / "second"]
    for point in points:
        point.mkdir()
    return Volumes(points, [], [], True, state_folder)


@pytest.fixture
def volumes(tmp_path: Path, state_folder: Path) -> Iterator[Volumes]:
    """Two ext4 file systems on loop devices over image files; everything is taken away afterwards, thawed first."""
    if os.geteuid() != 0:
        pytest.skip("loop devices and freezing need root")
    found = Volumes([], [], [], False, state_folder)
    with shared(tmp_path):
        yield from _volumes(found, tmp_path)


def _volumes(found: Volumes, tmp_path: Path) -> Iterator[Volumes]:
    try:
        for name in ("first", "second"):
            image, point = tmp_path / f"{name}.img", tmp_path / name
            point.mkdir()
            with image.open("wb") as file:
                file.truncate(16 * 1024 * 1024)
            subprocess.run(["mkfs.ext4", "-q", "-F", str(image)], check=True, stdin=subprocess.DEVNULL)
            loop = subprocess.run(["losetup", "-f", "--show", str(image)], check=True, capture_output=True, text=True)
            found.loops.append(loop.stdout.strip())
            found.images.append(image)
            subprocess.run(["mount", found.loops[-1], str(point)], check=True)
            found.points.append(point)
        yield found
    finally:
        for point in found.points:
            found.thaw(point)
            subprocess.run(["umount", str(point)], check=True)
        for device in found.loops:
            subprocess.run(["losetup", "-d", device], check=True)


@pytest.fixture(params=[pytest.param("fake"), pytest.param("ext4", marks=pytest.mark.root)])
def any_volumes(request: pytest.FixtureRequest) -> Volumes:
    """Both kinds, one after the other."""
    name = "fake_volumes" if request.param == "fake" else "volumes"
    found = request.getfixturevalue(name)
    assert isinstance(found, Volumes)
    return found
