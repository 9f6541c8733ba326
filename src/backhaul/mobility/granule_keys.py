"""The granule keys of an agent's items, kept for as long as the items are its.

A target tells an item's key when a stream opens (OPEN-ANSWER); after a move no stream opens any more, and the digests
of the stopped disks are wanted then, maybe by an agent that was started anew. So the keys lie in a file beside the
agent's state, 0600, not sealed: whoever reads that folder has the agent's private key and its disks, and a granule
key gives away less than either (it tells whether a granule equals one that is known already). Key of an unlocked
seal would lie in the same folder.

Invariant: what `get` answers was stored before, unless storing failed, which costs only an agent's restart. Called
from worker threads, one call at a time.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Final

import msgspec
import structlog

from backhaul.replication.errors import UNDECODABLE
from backhaul.replication.maps import KEY_BYTES
from backhaul.replication.ports import Files
from backhaul.replication.values import ItemId

FILE: Final = "granule-keys.json"
_log = structlog.get_logger(__name__)


class GranuleKeys:
    """See the module."""

    def __init__(self, files: Files | None = None, folder: Path | None = None) -> None:
        """Without a folder they live as long as the agent."""
        self._files, self._folder = files, folder
        self._keys: dict[ItemId, bytes] = {}
        if files is not None and folder is not None and FILE in files.names(folder):
            self._keys = _read(files, folder / FILE)

    def get(self, item: ItemId) -> bytes | None:
        """The newest key of an item; None where no target has told one."""
        return self._keys.get(item)

    def learn(self, keys: Mapping[ItemId, bytes], assigned: Collection[ItemId]) -> None:
        """Keep these, and forget those of items that are not assigned any more."""
        wanted = {item: key for item, key in (self._keys | dict(keys)).items() if item in assigned or item in keys}
        if wanted == self._keys:
            return
        self._keys = wanted
        if self._files is None or self._folder is None:
            return
        try:
            self._files.replace(self._folder / FILE, msgspec.json.encode(wanted))
        except OSError as error:
            _log.warning("granule_keys.not_stored", reason=str(error))


def _read(files: Files, path: Path) -> dict[ItemId, bytes]:
    try:
        found = msgspec.json.decode(files.read(path), type=dict[str, bytes])
    except UNDECODABLE as error:
        _log.warning("granule_keys.unreadable", reason=str(error))
        return {}
    return {ItemId(item): key for item, key in found.items() if len(key) == KEY_BYTES}
