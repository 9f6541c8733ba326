"""Ends a transport at once, whatever was done to it before.

`asyncio` of Python 3.11.2, which Debian 12 ships, lets a TLS transport that is closed for the second time forget its
protocol, and then fails to abort it. Whoever cuts links (a deny list that is pushed, a peer that takes nothing, a
server that ends) cannot know how often they were closed already, and must not fail over the first of them. Used on the
event loop.
"""

from __future__ import annotations

import asyncio
from typing import cast


def cut(transport: asyncio.BaseTransport) -> None:
    """Abort it; one that is closed already goes on closing, within the time that a shutdown of TLS may take."""
    if getattr(transport, "_ssl_protocol", transport) is not None:
        cast(asyncio.WriteTransport, transport).abort()
