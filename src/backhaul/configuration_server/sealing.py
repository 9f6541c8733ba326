"""The master key: what must be recoverable, and every private key, lies sealed under one file, `secrets/master.key`.

Invariant: a sealed value opens only with the key and the name it was sealed under, so sealed values cannot be
exchanged for each other. The key is made at the first start and never leaves its file. Any thread.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from backhaul.configuration_server.errors import SecretDamaged
from backhaul.links.identity import KeySeal
from backhaul.replication.ports import Files, Randomness

FOLDER: Final = "secrets"
FILE: Final = "master.key"
KEY_BYTES: Final = 32
NONCE_BYTES: Final = 12


class MasterKey:
    """Seals and opens."""

    def __init__(self, key: bytes, randomness: Randomness, folder: Path) -> None:
        if len(key) != KEY_BYTES:
            raise SecretDamaged(folder=folder)
        self._cipher = AESGCM(key)
        self._randomness = randomness
        self._folder = folder

    @classmethod
    def open_or_make(cls, files: Files, data_dir: Path, randomness: Randomness) -> MasterKey:
        """The key of a data folder; made, 0600, where there is none. Raises SecretDamaged."""
        folder = data_dir / FOLDER
        files.make_folder(folder)
        if FILE not in files.names(folder):
            files.replace(folder / FILE, randomness.token(KEY_BYTES).hex().encode() + b"\n")
        try:
            key = bytes.fromhex(files.read(folder / FILE).decode("ascii").strip())
        except ValueError as error:
            raise SecretDamaged(folder=data_dir) from error
        return cls(key, randomness, data_dir)

    def seal(self, name: str, secret: bytes) -> bytes:
        """`secret` sealed under `name`."""
        nonce = self._randomness.token(NONCE_BYTES)
        return nonce + self._cipher.encrypt(nonce, secret, name.encode())

    def open(self, name: str, sealed: bytes) -> bytes:
        """What was sealed under `name`. Raises SecretDamaged."""
        try:
            return self._cipher.decrypt(sealed[:NONCE_BYTES], sealed[NONCE_BYTES:], name.encode())
        except (InvalidTag, ValueError) as error:
            raise SecretDamaged(folder=self._folder) from error

    def key_seal(self, name: str) -> KeySeal:
        """The seal of private keys in files."""
        return KeySeal(seal=lambda key: self.seal(name, key), open=lambda sealed: self.open(name, sealed))
