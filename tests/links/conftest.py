"""The vault most tests use."""

from __future__ import annotations

from pathlib import Path

import pytest

from links.world import Vault, make_authority


@pytest.fixture
def vault(tmp_path: Path) -> Vault:
    return Vault(make_authority(tmp_path / "authority"))


@pytest.fixture
def other_vault(tmp_path: Path) -> Vault:
    """Another authority that says it is the same vault."""
    return Vault(make_authority(tmp_path / "other-authority"))
