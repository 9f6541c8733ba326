"""The server most tests of a module share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from configuration_server.live import LiveServer, live_server


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveServer]:
    """A live server with its own process server and master target."""
    with live_server(tmp_path_factory.mktemp("live")) as made:
        yield made


@pytest.fixture(scope="module")
def lone_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveServer]:
    """A live server that starts no others."""
    with live_server(tmp_path_factory.mktemp("lone"), built_in=False) as made:
        yield made
