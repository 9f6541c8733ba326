"""How far a demo got: one durable file in its folder, so that `--resume` goes on after a kill of anything.

Invariant: a stage is noted as done after its last effect; what a stage must find again (ids, figures) is noted before
the effect that needs it, as facts. A repeated stage finds its own facts. Called by the demo's main thread only.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

import msgspec

from backhaul.demo.errors import ProgressDamaged
from backhaul.replication.errors import UNDECODABLE
from backhaul.replication.ports import RealFiles

FILE: Final = "progress.json"


class Noted(msgspec.Struct, frozen=True):
    """The file's content. `done`: finished stages with the line that each ended with, in their order."""

    as_root: bool
    done: dict[str, str] = {}
    facts: dict[str, Any] = {}


class Progress:
    """The progress of the demo in one folder."""

    def __init__(self, folder: Path, as_root: bool) -> None:
        self._path = folder / FILE
        self._files = RealFiles()
        self.noted = Noted(as_root)

    @property
    def exists(self) -> bool:
        """Whether a demo was begun here."""
        return self._path.exists()

    def load(self) -> None:
        """Read what was noted. Raises ProgressDamaged."""
        try:
            self.noted = msgspec.json.decode(self._path.read_bytes(), type=Noted)
        except (OSError, *UNDECODABLE) as error:
            raise ProgressDamaged(path=self._path, reason=str(error)) from error

    def begin(self) -> None:
        """Note that there is a demo."""
        self._save(self.noted)

    def note(self, **facts: Any) -> None:
        """Note facts, durably."""
        self._save(msgspec.structs.replace(self.noted, facts={**self.noted.facts, **facts}))

    def fact(self, name: str, default: Any = None) -> Any:
        """A fact that was noted, in plain JSON types."""
        return self.noted.facts.get(name, default)

    def finish(self, stage: str, line: str) -> None:
        """Note that a stage is done."""
        self._save(msgspec.structs.replace(self.noted, done={**self.noted.done, stage: line}))

    def _save(self, noted: Noted) -> None:
        self._files.replace(self._path, msgspec.json.encode(noted))
        self.noted = noted
