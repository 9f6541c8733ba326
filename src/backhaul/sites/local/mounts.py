"""File systems that the site mounts, as root: its volume, disks of servers and guests; and pulling the plug.

Unmounting a frozen or dirty ext4 writes to it. A machine whose plug is pulled must leave its disks as they are, so the
file system is shut down first (EXT4_IOC_SHUTDOWN without flushing its log), which works while it is frozen. Called
from worker threads under the lock of the machine or server.
"""

from __future__ import annotations

import errno
import fcntl
import os
import struct
import time
from pathlib import Path

from backhaul.replication.units import MiB
from backhaul.sites.errors import HostToolFailed, PowerNotConfirmed
from backhaul.sites.local.storage import hand_out, take_back
from backhaul.sites.local.tools import run
from backhaul.sites.local.world import World

_EXT4_IOC_SHUTDOWN = 0x8004587D  # _IOR('X', 125, __u32)
_NO_LOG_FLUSH = 2
_FITHAW = 0xC0045878  # _IOWR('X', 120, int)
_SMALLEST_XFS = 300 * MiB
_LET_GO_NS = 20_000_000_000
"""Ten times the limit of a freeze: whoever holds a mount longer is not an agent that makes a point."""
_LOOK_S = 0.05


def prepare_volume(world: World) -> None:
    """Make and mount what holds the site's disks: as root a sparse image with an XFS, whose files can share blocks."""
    world.files.make_folder(world.volume)
    if world.namespaces and not os.path.ismount(world.volume):
        image = world.folder / "volume.xfs"
        if not image.exists():
            partial = world.folder / "volume.xfs.partial"
            world.files.remove(partial)
            file = world.files.open(partial, create=True)
            file.truncate(max(world.definition.volume_bytes, _SMALLEST_XFS))
            file.close()
            run("mkfs.xfs", "-q", "-f", "-m", "reflink=1", str(partial))
            partial.rename(image)
            world.files.sync_folder(world.folder)
        run("mount", "-o", "loop", str(image), str(world.volume))
        # Shared, so that what is unmounted below it is gone in the mount namespaces of guests too.
        run("mount", "--make-shared", str(world.volume))
    world.show(world.volume)
    for part in ("disks", "accounts", "machines", "servers", "services"):
        world.files.make_folder(world.volume / part)
        world.show(world.volume / part)


def remove_volume(world: World) -> None:
    """Unmount it; everything below must be unmounted."""
    if world.namespaces and os.path.ismount(world.volume):
        run("umount", str(world.volume))


def mount(world: World, image: Path, folder: Path) -> None:
    """Mount the image's ext4 on the folder, which the site's user owns; mounted already is no error."""
    world.files.make_folder(folder)
    if os.path.ismount(folder):
        return
    run("mount", "-t", "ext4", "-o", "nodev,nosuid,noatime", hand_out(world, image), str(folder))
    world.own(folder)
    folder.chmod(0o700)


def unmount(world: World, image: Path, folder: Path) -> None:
    """Unmount in order, then let go of the image. Who had the file system frozen, or was about to freeze it, lets go of
    it within its limit. Raises HostToolFailed.
    """
    end_ns = world.clock.monotonic_ns() + _LET_GO_NS
    while os.path.ismount(folder):
        try:
            run("umount", str(folder))
        except HostToolFailed as error:
            if "busy" not in error.message or world.clock.monotonic_ns() > end_ns:
                raise
            time.sleep(_LOOK_S)
    take_back(world, image)


def stop_writing(folder: Path) -> None:
    """Nothing more reaches the disk of the ext4 mounted here, frozen or not; sleepers wake with an error."""
    if not os.path.ismount(folder):
        return
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOATIME)
    try:
        fcntl.ioctl(descriptor, _EXT4_IOC_SHUTDOWN, struct.pack("I", _NO_LOG_FLUSH))
        _thaw(descriptor)
    except OSError as error:
        raise PowerNotConfirmed(
            machine=str(folder), reason=f"its file system does not stop: {error.strerror}"
        ) from error
    finally:
        os.close(descriptor)


def _thaw(descriptor: int) -> None:
    try:
        fcntl.ioctl(descriptor, _FITHAW, 0)
    except OSError as error:
        if error.errno != errno.EINVAL:  # it was not frozen
            raise
