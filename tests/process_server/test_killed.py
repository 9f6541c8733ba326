"""A process server that is killed, at counted acknowledgements, and started again: it goes on where it was."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from backhaul.replication.ports import RealFiles
from backhaul.replication.values import Role
from process_server.ends import AgentEnd, TargetEnd, Vault, connect, make_vault, target_dials
from process_server.world import AGENT

LAST = 500
TESTS = Path(__file__).parent.parent


@contextlib.asynccontextmanager
async def process(folder: Path) -> AsyncIterator[tuple[int, asyncio.subprocess.Process]]:
    """A process server of its own: port and process."""
    environment = {**os.environ, "PYTHONPATH": f"{TESTS}:{TESTS.parent / 'src'}"}
    child = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "process_server.server_main",
        str(folder / "identity"),
        str(folder / "ps"),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL,
        env=environment,
    )
    assert child.stdout is not None
    try:
        while not (line := await child.stdout.readline()).strip().isdigit():
            assert line, "the process server ended"
        yield int(line), child
    finally:
        with contextlib.suppress(ProcessLookupError):
            child.kill()
        await child.wait()


async def send_until_killed(
    vault: Vault, folder: Path, target: TargetEnd, sent: AgentEnd | None, more: int | None
) -> AgentEnd:
    """Send frames; kill the server once `more` of them are acknowledged, or with None end it when all arrived."""
    async with process(folder) as (port, child), target_dials(vault, port, target):
        agent = AgentEnd(await connect(vault, port, Role.AGENT, AGENT), size=200_000)
        held = 0
        if sent is None:
            await agent.open()
        else:
            position = await agent.attach()
            assert position.fence == sent.fence
            assert position.number >= sent.acknowledged, "what was acknowledged is gone"
            agent.fence, held = sent.fence, position.number
        sending = asyncio.create_task(agent.send(range(held + 1, LAST + 1)))
        if more is None:
            await target.until(lambda: len(target.frames) == LAST + 1)
        else:
            assert held + more < LAST, "the kill would come after the end"
            agent.acknowledged = await agent.spooled(held + more)
            child.send_signal(signal.SIGKILL)
            assert await child.wait() == -signal.SIGKILL
        await asyncio.gather(sending, return_exceptions=True)
        await agent.connection.close()
    return agent


@pytest.mark.parametrize("hold", [False, True], ids=["applied", "held"])
async def test_killed_again_and_again_it_goes_on(tmp_path: Path, hold: bool) -> None:
    vault, target = make_vault(tmp_path / "ca"), TargetEnd()
    vault.authority.own_identity(Role.PROCESS_SERVER, "ps1").save(RealFiles(), tmp_path / "identity")
    target.hold = hold
    agent: AgentEnd | None = None
    for more in (0, 1, 17, None):
        agent = await send_until_killed(vault, tmp_path, target, agent, more)
    assert agent is not None
    assert target.frames == [agent.content(number) for number in range(LAST + 1)]
    assert not target.gaps
    assert target.fence.stream == 1, "one stream carried it all"
