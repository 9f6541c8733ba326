"""A process server as a process of its own, to be killed: prints its port, then serves."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

from backhaul.links.identity import Identity
from backhaul.links.tls import Credentials
from backhaul.process_server.run import run
from backhaul.replication.ports import RealClock, RealFiles, RealRandomness
from process_server.ends import config


async def main(identity_folder: Path, folder: Path) -> None:
    credentials = Credentials(Identity.load(RealFiles(), identity_folder), RealClock())
    await run(
        config(folder), credentials, RealFiles(), RealClock(), RealRandomness(), lambda port: print(port, flush=True)
    )


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1]), Path(sys.argv[2])))
