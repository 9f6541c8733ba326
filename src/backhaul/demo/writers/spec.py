"""What a writer is told to do. Read as JSON from a file by the writers' programs; built directly by tests."""

from __future__ import annotations

from pathlib import Path
from typing import Final, TypeVar

import msgspec

from backhaul.demo.writers.errors import WriterSpecInvalid
from backhaul.replication.errors import UNDECODABLE

MAX_THREADS: Final = 64
"""Writes in flight at once: more than a disk here has queue for, and a bound on threads."""


class RegionSpec(msgspec.Struct, frozen=True):
    """Part of a disk to overwrite: `disk` indexes the specification's disks; `first`, `blocks` count 4 KiB."""

    disk: int
    first: int
    blocks: int


class WriterSpec(msgspec.Struct, frozen=True, kw_only=True):
    """What all writers share.

    machine          name of the machine; part of every stamp
    log              folder for the acknowledgement logs of this machine, outside its disks
    control          path of a UNIX socket to listen on; None: commands come on stdin, whose end stops the writer
    quiesce_limit_s  seconds after which a quiesced writer goes on by itself
    writes_per_s     writes (or transactions) a second over all threads; 0: as fast as it goes
    progress_s       seconds between progress lines on stdout; 0: none
    seed             of the random choices; 0: another one each time
    """

    machine: str
    log: Path
    control: Path | None = None
    quiesce_limit_s: float = 2.0
    writes_per_s: float = 200.0
    progress_s: float = 1.0
    seed: int = 0


class BlockWriterSpec(WriterSpec, frozen=True, kw_only=True):
    """Overwrites blocks of `disks` (files or block devices, in the machine's order) at random.

    regions  what to overwrite; empty: all whole blocks of all disks
    threads  writes in flight at once
    """

    disks: tuple[Path, ...]
    regions: tuple[RegionSpec, ...] = ()
    threads: int = 4


class SqliteWriterSpec(WriterSpec, frozen=True, kw_only=True):
    """Commits numbered transactions to the SQLite database at `database`, on a file system of the machine.

    payload_bytes  most random bytes in one transaction
    """

    database: Path
    payload_bytes: int = 2048


Spec = TypeVar("Spec", bound=WriterSpec)


def read_spec(path: Path, kind: type[Spec]) -> Spec:
    """The specification in a JSON file. Raises WriterSpecInvalid."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=kind, dec_hook=lambda wanted, value: wanted(value))
    except OSError as failure:
        raise WriterSpecInvalid(reason=f"{path}: {failure.strerror}") from failure
    except UNDECODABLE as failure:
        raise WriterSpecInvalid(reason=f"{path}: {failure}") from failure


def write_spec(path: Path, spec: WriterSpec) -> None:
    """Write the specification as `read_spec` reads it."""
    path.write_bytes(msgspec.json.encode(spec, enc_hook=str))
