"""What every part of a provider is given: ports, folders, ledger, locks; and how a writing call is carried out once.

Made by `provider.py`, shared by its worker threads. Invariant: whatever changes a resource holds that resource's lock.
"""

from __future__ import annotations

import os
import threading
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TypeVar

import msgspec

from backhaul.replication.ports import Clock, Files, Randomness
from backhaul.sites.errors import SiteNotFound
from backhaul.sites.local.definition import Mode, SiteDefinition
from backhaul.sites.local.ledger import Call, Ledger, Record, Transaction

T = TypeVar("T")
R = TypeVar("R", bound=Record)

Step = Callable[[str], None]
"""Called with a word before and after each act in the world; does nothing in service. Tests kill the provider in it."""

_NAMESPACE = uuid.UUID("0d7f3c1e-5f0c-4f0e-9d0a-6b61636b6861")


class World:
    """The ports and the state of one site.

    folder   the site's folder, 0700; as root its group is the site's user, who may pass but change nothing
    private  the provider's own part of it: ledger, key, run files (0700, never the site's user's)
    volume   where images, accounts and machines lie
    """

    def __init__(
        self,
        folder: Path,
        definition: SiteDefinition,
        ledger: Ledger,
        *,
        files: Files,
        clock: Clock,
        randomness: Randomness,
        step: Step = lambda _: None,
    ) -> None:
        self.folder = folder
        self.private = folder / "provider"
        self.volume = folder / "volume"
        self.definition = definition
        self.ledger = ledger
        self.files = files
        self.clock = clock
        self.randomness = randomness
        self.step = step
        self._locks: dict[str, threading.RLock] = {}  # one per resource that was ever named: bounded by the ledger
        self._locks_lock = threading.Lock()

    @property
    def namespaces(self) -> bool:
        """Whether networks are namespaces (as root)."""
        return self.definition.mode is Mode.NAMESPACES

    @property
    def user(self) -> int | None:
        """The user id of the site's processes; None: that of the provider."""
        return self.definition.uid if self.namespaces else None

    def own(self, path: Path) -> None:
        """Give a file or folder to the site's user, and to nobody else."""
        if self.user is not None:
            os.chown(path, self.user, self.user, follow_symlinks=False)

    def show(self, path: Path) -> None:
        """Let the site's user read a file or folder that stays root's: what it cannot change, it cannot redirect."""
        if self.user is not None:
            os.chown(path, 0, self.user)
            path.chmod(0o750 if path.is_dir() else 0o640)

    def publish(self, path: Path, content: bytes) -> None:
        """Replace, durably and all at once, a file that the site's processes read."""
        beside = path.with_name(path.name + ".beside")
        self.files.replace(beside, content)
        self.show(beside)
        beside.rename(path)
        self.files.sync_folder(path.parent)

    @contextmanager
    def holding(self, *resources: str) -> Iterator[None]:
        """Hold the locks of these resources, always taken in the same order."""
        with ExitStack() as stack:
            for resource in sorted(set(resources)):
                with self._locks_lock:
                    lock = self._locks.setdefault(resource, threading.RLock())
                stack.enter_context(lock)
            yield

    def identity(self, call: Call) -> str:
        """The id of what a call makes: the same each time the call is repeated, so that nothing is made twice."""
        return str(uuid.uuid5(_NAMESPACE, f"{self.definition.name}\0{call.principal}\0{call.token}\0{call.digest}"))

    def read(self, kind: type[R], key: str, what: str) -> R:
        """The record. Raises SiteNotFound."""
        with self.ledger.transaction() as tx:
            return found(tx.get(kind, key), what, key)

    def ledger_get(self, kind: type[R], key: str) -> R | None:
        """The record, if there is one."""
        with self.ledger.transaction() as tx:
            return tx.get(kind, key)

    def once(self, call: Call, kind: type[T] | None, work: Callable[[], T], *resources: str) -> T:
        """Answer a repeated call from the ledger, else do `work`, which must `finish` the call itself."""
        with self.holding(*resources):
            with self.ledger.transaction() as tx:
                answer = tx.answer(call)
            if answer is not None:
                return msgspec.json.decode(answer, type=kind)
            return work()

    def finish(self, tx: Transaction, call: Call, resource: str, answer: object, *, effect: bool = True) -> None:
        """Write the answer and the effect into the transaction that makes the change durable."""
        tx.finish(call, resource, msgspec.json.encode(answer), effect=effect)


def found(record: T | None, what: str, name: str) -> T:
    """The record, or SiteNotFound."""
    if record is None:
        raise SiteNotFound(what=what, name=name)
    return record
