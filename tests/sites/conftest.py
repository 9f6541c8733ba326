"""Fixtures of the sites' tests."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from sites.site_world import Caller, running_site


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Caller]:
    """An unprivileged cloud, called as its owner; everything of it is stopped at the end."""
    with running_site(tmp_path / "cloud") as caller:
        yield caller
