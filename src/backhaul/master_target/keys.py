"""The target's sealing keys: one per certificate, the old ones kept while an open stream was made to them.

Invariant: the newest key is the one agents are given, the one before it is what they may still have; any older one is
erased when no item's stored opening names it. `keys` is replaced, never changed, so that whoever iterates it needs no
lock. `newest` and `erase_unused` block (they store), one call at a time; `keys` is read from any thread.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Final

import msgspec

from backhaul.links.identity import UNSEALED, KeySeal
from backhaul.master_target.errors import ReplicaFileDamaged
from backhaul.master_target.stored import replace_or_refuse
from backhaul.replication.errors import UNDECODABLE
from backhaul.replication.ports import Files, Randomness
from backhaul.replication.sealing import SealingKey
from backhaul.replication.target import OFFERED_KEYS

FILE: Final = "sealing-keys"


class _Key(msgspec.Struct, frozen=True):
    """`certificate`: SHA-256 of the certificate under which the key was signed."""

    seed: bytes
    certificate: bytes


class SealingKeys:
    """See the module."""

    def __init__(self, files: Files, folder: Path, randomness: Randomness, seal: KeySeal = UNSEALED) -> None:
        """Raises ReplicaFileDamaged, and what `seal.open` raises."""
        self._files, self._path, self._randomness, self._seal = files, folder / FILE, randomness, seal
        self._stored: dict[int, _Key] = self._load() if FILE in files.names(folder) else {}
        self.keys: Mapping[int, SealingKey] = {n: SealingKey(key.seed) for n, key in sorted(self._stored.items())}
        """By number, newest last."""

    def _load(self) -> dict[int, _Key]:
        try:
            return msgspec.msgpack.decode(self._seal.open(self._files.read(self._path)), type=dict[int, _Key])
        except UNDECODABLE as error:
            raise ReplicaFileDamaged(name=str(self._path), reason=str(error)) from error

    def _store(self, stored: dict[int, _Key]) -> None:
        replace_or_refuse(self._files, self._path, self._seal.seal(msgspec.msgpack.encode(stored)))
        self._stored = stored

    def has_key_for(self, certificate: bytes) -> bool:
        """Whether the newest key belongs to `certificate` (DER), so that `newest` stores nothing."""
        number = max(self._stored, default=0)
        return bool(number) and self._stored[number].certificate == hashlib.sha256(certificate).digest()

    def newest(self, certificate: bytes) -> SealingKey:
        """The key that belongs to `certificate` (DER); made, durably, when the certificate is a new one.

        Raises StateNotStored (nothing changes then), OSError.
        """
        number = max(self._stored, default=0)
        if not self.has_key_for(certificate):
            number += 1
            key = SealingKey.make(self._randomness)
            self._store(self._stored | {number: _Key(key.seed, hashlib.sha256(certificate).digest())})
            self.keys = {**self.keys, number: key}
        return self.keys[number]

    def erase_unused(self, used: Collection[int]) -> None:
        """Forget the keys that no open stream uses and no agent is to have any more. Raises as `newest`."""
        kept = {*used, *sorted(self._stored)[-OFFERED_KEYS:]}
        if kept >= self._stored.keys():
            return
        self._store({number: key for number, key in self._stored.items() if number in kept})
        self.keys = {number: key for number, key in self.keys.items() if number in kept}
