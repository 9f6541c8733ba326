"""Secrets come from a prompt or a file, never from an argument, where every process of the machine could read them."""

from __future__ import annotations

from pathlib import Path

import typer

from backhaul.cli.errors import SecretUnreadable

MAX_SECRET = 4096


def secret(name: str, file: Path | None, *, confirm: bool = False) -> str:
    """The secret from `file`, or asked for. Raises SecretUnreadable when the file cannot be read or is empty."""
    if file is None:
        return str(typer.prompt(name, hide_input=True, confirmation_prompt=confirm, err=True))
    try:
        with file.open() as opened:
            found = opened.read(MAX_SECRET).strip()
    except OSError as error:
        raise SecretUnreadable(file=file, reason=error.strerror) from None
    if not found:
        raise SecretUnreadable(file=file, reason="it is empty")
    return found
