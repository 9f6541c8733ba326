"""Jobs of a real world in processes of their own, which kill themselves and are started again (`doomed_jobs`)."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
import threading
from dataclasses import dataclass
from multiprocessing.connection import Connection, Listener
from pathlib import Path
from typing import Final

import msgspec

from backhaul.configuration_server.lifecycle.values import Item, Wish
from dataplane.plane import FILES
from lifecycle.doomed_jobs import Task, adopt, lines, open_vault, plain, without_job
from lifecycle.real_world import RealWorld

TESTS: Final = Path(__file__).parent.parent
LIFE_S: Final = 120.0


@dataclass(frozen=True)
class Lived:
    """What a job did, however often it was killed.

    kills     where its processes ended themselves
    effects   every effect once, by name, in the order in which they were first begun
    sites     what the sites noted of it, each in its own log: `site operation token`
    """

    kills: list[str]
    effects: list[str]
    sites: list[str]


class DoomedJobs:
    """Runs jobs of a world. The agents stay the world's; what they are told comes from the jobs' processes."""

    def __init__(self, world: RealWorld) -> None:
        self.world, self.folder = world, world.folder / "jobs"
        self.folder.mkdir()
        world.configuration.identity.save(FILES, self.folder / "identity")
        vault = open_vault(self.folder)
        world.stored = adopt(vault, world.stored)
        vault.close()
        self._number = 0
        self._door = Listener(str(self.folder / "agents"), "AF_UNIX")
        self._serving = threading.Thread(target=self._serve, daemon=True)
        self._serving.start()

    def close(self) -> None:
        """Answer nobody any more."""
        self._door.close()

    def _serve(self) -> None:
        while True:
            try:
                peer = self._door.accept()
            except OSError:  # closed
                return
            threading.Thread(target=self._answer, args=(peer,), daemon=True).start()

    def _answer(self, peer: Connection) -> None:
        with peer:
            try:
                method, arguments = peer.recv()
                peer.send(getattr(self.world, method)(*arguments))
            except (EOFError, OSError):
                return  # it was killed while it asked

    async def run(self, kind: str, wish: Wish, doomed: str) -> Lived:
        """The job to its end, in as many lives as it is doomed to (`doomed_jobs.Task`)."""
        self._number += 1
        before, kills = self._noted(), self.folder / f"kills-{self._number}"
        task = self._task(kind, wish, doomed)
        (self.folder / "task").write_bytes(msgspec.json.encode(task))
        code, output, lives = -signal.SIGKILL, "", 0
        while code == -signal.SIGKILL:
            assert len(lines(kills)) == lives, "each of its ends was its own kill"
            code, output = await self._life()
            lives += 1
        assert code == 0, output[-3000:]
        ended = json.loads(output.splitlines()[-1])
        assert (ended["state"], ended["failures"]) == ("Succeeded", []), output[-3000:]
        left = msgspec.json.decode((self.folder / "item").read_bytes(), type=Item | None)
        self.world.forgotten = left is None
        self.world.stored = left or self.world.stored
        done = list(dict.fromkeys(lines(self.folder / f"effects-{self._number}")))
        return Lived(lines(kills), done, [note for note in self._noted() if note not in before])

    def _task(self, kind: str, wish: Wish, doomed: str) -> Task:
        world = self.world
        sites = {name: (*site.endpoint, f"token-{name}") for name, site in world.sites.items()}
        relays = {name: (network, world.where[name]) for network, name in world.relays.items()}
        targets = {name: world.where[name] for name in world.targets}
        where = {name: (address, token, certificate) for name, (address, certificate, token) in sites.items()}
        return Task(self._number, kind, wish, world.stored, doomed, where, targets, relays)

    async def _life(self) -> tuple[int, str]:
        environment = {**os.environ, "PYTHONPATH": f"{TESTS}:{TESTS.parent / 'src'}"}
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "lifecycle.doomed_jobs", str(self.folder),
            stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT, env=environment,
        )  # fmt: skip
        async with asyncio.timeout(LIFE_S):
            output, _ = await process.communicate()
        assert process.returncode is not None
        return process.returncode, output.decode(errors="replace")

    def _noted(self) -> list[str]:
        """The sites' logs, but for what tests do there."""
        found: list[tuple[int, str]] = []
        for name in self.world.sites:
            for effect in self.world.site(name).effects():
                found.append((effect.at_ns, f"{name} {effect.operation} {effect.token} {effect.number}"))
        return [text for _, text in sorted(found)]


def operations(notes: list[str]) -> list[str]:
    """The notes as effects are named: without the job, and the number in the log."""
    return [plain(f"{site} {operation} {without_job(token)}") for site, operation, token, _ in map(str.split, notes)]
