"""Making a range read as zeros without writing it.

Only calls that guarantee zeros afterwards are used. BLKDISCARD is not among them: a device may go on returning
the old data, and no attribute of it promises otherwise. Called by disks, from worker threads; both calls release
the interpreter.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import struct
from typing import Final

from backhaul.replication.units import MiB

_KEEP_SIZE: Final = 0x01  # linux/falloc.h
_PUNCH_HOLE: Final = 0x02
_BLKZEROOUT: Final = 0x127F  # linux/fs.h: _IO(0x12, 127)
_ZEROOUT_PIECE: Final = 256 * MiB
"""BLKZEROOUT may write for as long as the device needs and cannot be interrupted; between pieces it can."""

_UNSUPPORTED: Final = frozenset({errno.EOPNOTSUPP, errno.ENOSYS, errno.ENOTTY, errno.EINVAL})
_libc: Final = ctypes.CDLL(None, use_errno=True)
_fallocate: Final = _libc.fallocate
_fallocate.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_longlong, ctypes.c_longlong)
_fallocate.restype = ctypes.c_int


def punch_hole(descriptor: int, offset: int, length: int) -> bool:
    """Free the range of a file, or unmap it on a block device; it reads as zeros afterwards (fallocate(2)).

    False when file system or device cannot do it: nothing has changed then. Raises OSError.
    """
    while _fallocate(descriptor, _PUNCH_HOLE | _KEEP_SIZE, offset, length) != 0:
        number = ctypes.get_errno()
        if number in _UNSUPPORTED:
            return False
        if number != errno.EINTR:
            raise OSError(number, os.strerror(number))
    return True


def zero_out(descriptor: int, offset: int, length: int) -> bool:
    """Have the kernel zero a range of a block device: by the device's own command, else by writing zeros.

    False when the device refuses; part of the range may be zero then. Raises OSError.
    """
    end = offset + length
    while offset < end:
        piece = min(_ZEROOUT_PIECE, end - offset)
        try:
            fcntl.ioctl(descriptor, _BLKZEROOUT, struct.pack("=QQ", offset, piece))
        except OSError as error:
            if error.errno in _UNSUPPORTED:
                return False
            raise
        offset += piece
    return True
