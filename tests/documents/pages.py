"""Reference pages that are rendered from the source, so that they cannot say anything else than it.

Called by `scripts/render`, and by the tests that compare the pages with the source.
"""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from collections.abc import Iterator
from pathlib import Path

import backhaul
from backhaul.client.errors import OwnError
from backhaul.recovery.render import render_checks, render_states
from backhaul.replication.errors import BackhaulError, every_error

REFERENCE = Path(__file__).parents[2] / "docs" / "reference"

_PACKAGES = {
    "replication": "The stream",
    "disks": "Disks",
    "links": "Links, certificates, enrolment",
    "mobility": "The agent",
    "process_server": "The process server",
    "master_target": "The master target",
    "recovery": "States, policies, preflight",
    "sites": "Sites",
    "configuration_server": "The configuration server",
    "client": "The client",
    "cli": "The command line",
    "demo": "The demo and its oracle",
}


def import_everything() -> None:
    """Import every module of the product, so that every error class is defined."""
    for module in pkgutil.walk_packages(backhaul.__path__, "backhaul."):
        if not module.name.endswith("__main__") and ".migrations." not in module.name:
            importlib.import_module(module.name)


def product_errors() -> list[type[BackhaulError]]:
    """Every error a user may meet, by code."""
    import_everything()
    own = {error for error in every_error() if error.__module__.startswith("backhaul.")}
    return sorted(own, key=lambda error: error.code)


def own_client_errors() -> list[type[OwnError]]:
    """Every error that the client and the command line find themselves, by code. They import nothing of ours."""
    import_everything()
    found, waiting = [], OwnError.__subclasses__()
    while waiting:
        error = waiting.pop()
        found.append(error)
        waiting += error.__subclasses__()
    return sorted((error for error in found if error.__module__.startswith("backhaul.")), key=lambda error: error.CODE)


def documented() -> list[tuple[str, str, str, str]]:
    """Package, code, message and advice of every error a user may meet, by code."""
    server = [(error, error.code, error.fix) for error in product_errors()]
    client = [(error, error.CODE, error.FIX) for error in own_client_errors()]
    rows = []
    for error, code, fix in (*server, *client):
        message = " ".join(inspect.cleandoc(error.__doc__ or "").split())
        rows.append((error.__module__.split(".")[1], code, message, " ".join(fix.split())))
    return sorted(rows, key=lambda row: row[1])


def codes_page() -> str:
    """docs/reference/codes.md."""
    lines = [
        "# Codes",
        "",
        "Every message of Backhaul has a code that stays the same. Below each: what happened, and what to do. What",
        "stands in braces is filled in. This page is written by `scripts/render` from the source.",
        "",
    ]
    for package, title in _PACKAGES.items():
        errors = [row for row in documented() if row[0] == package]
        if not errors:
            continue
        lines += [f"## {title}", ""]
        for _, code, message, fix in errors:
            lines += [f"### {code}", "", message, "", f"*{fix}*", ""]
    return "\n".join(lines)


def pages() -> Iterator[tuple[Path, str]]:
    """Every rendered page and its content."""
    yield REFERENCE / "codes.md", codes_page()
    yield REFERENCE / "states.md", render_states()
    yield REFERENCE / "checks.md", render_checks()


def render_pages() -> list[Path]:
    """Write the pages; their paths."""
    written = []
    for path, content in pages():
        path.write_text(content)
        written.append(path)
    return written


if __name__ == "__main__":
    for page in render_pages():
        print(page)
