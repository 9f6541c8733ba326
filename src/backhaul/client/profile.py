"""The profile: which server, whom to trust, which session. One file, readable by its owner only."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass, field
from pathlib import Path

from backhaul.client.errors import NotLoggedIn

VARIABLE = "BACKHAUL_PROFILE"


@dataclass(frozen=True, slots=True)
class Profile:
    """`server`: https://host:port; `ca_pem`: the roots, in clear; `vault`: path of its resource."""

    server: str
    ca_pem: str
    user: str
    vault: str
    token: str = field(repr=False)


def profile_path() -> Path:
    """Where the profile is; `BACKHAUL_PROFILE` names another file."""
    named = os.environ.get(VARIABLE)
    config = os.environ.get("XDG_CONFIG_HOME") or str(Path.home() / ".config")
    return Path(named) if named else Path(config) / "backhaul" / "profile.json"


def load_profile() -> Profile:
    """Raises NotLoggedIn."""
    try:
        return Profile(**json.loads(profile_path().read_text()))
    except FileNotFoundError:
        raise _not_logged_in("There is no session on this machine.") from None
    except (ValueError, TypeError):
        raise _not_logged_in(f"The profile {profile_path()} is damaged.") from None


def _not_logged_in(message: str) -> NotLoggedIn:
    return NotLoggedIn("BH-LOGIN-REQUIRED", message, "Log in with `backhaul login --server HOST:PORT --ca FILE`.")


def save_profile(profile: Profile) -> None:
    """Write it whole, 0600 from the first byte."""
    path = profile_path()
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    beside = path.with_name(path.name + ".new")
    descriptor = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    with os.fdopen(descriptor, "w") as file:
        json.dump(asdict(profile), file)
    beside.rename(path)


def forget_profile() -> None:
    """Remove it; one that is gone is no error."""
    profile_path().unlink(missing_ok=True)
