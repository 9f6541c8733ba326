"""The help reads as documentation. Generated from the command line itself, so that a new verb is held to it too."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest
import typer
from typer.core import TyperGroup

import backhaul.__main__  # noqa: F401 - adds the verbs that start servers and agents
from backhaul.cli.app import app
from backhaul.cli.exit_codes import BROKEN_RUNG, FAILED, MEANING, exit_code
from backhaul.client.errors import ClientError, JobFailed, NotFound, NotLoggedIn, Unreachable
from backhaul.demo.command import app as demo

NAMED = (
    "demo", "demo check", "server run", "server passphrase show", "server passphrase rotate", "process-server deploy",
    "process-server register", "process-server run", "process-server list", "process-server show",
    "process-server switch", "process-server delete", "master-target register", "master-target run",
    "agent register", "agent run", "item protect", "item list", "item show", "item failover", "item commit",
    "item reprotect", "item failback", "item cancel", "item resync", "recovery-point list", "policy create",
    "policy list", "policy show", "job list", "job show", "job watch", "job cancel", "doctor", "config show",
)  # fmt: skip
"""Commands of design section 12 that issue 4 names."""

SERVE = ("run", "boot")
"""Verbs that go on until they are stopped: nothing to be read by a program."""

NO_VIEW = frozenset(
    {"login", "logout", "site add", "site take-down", "agent register", "master-target register",
     "process-server register"}
)  # fmt: skip
"""Verbs that say in a word what they did."""

SENTENCE = re.compile(r"[A-Z0-9`].*[.:]$", re.DOTALL)


def command_line() -> Any:
    root: Any = typer.main.get_command(app)
    root.commands["demo"] = typer.main.get_command(demo)
    return root


def walk(command: Any, *words: str) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Every command below, and every group."""
    yield words, command
    if isinstance(command, TyperGroup):
        for name, inner in command.commands.items():
            yield from walk(inner, *words, name)


ALL = {" ".join(words): command for words, command in walk(command_line())}
VERBS = sorted(name for name, command in ALL.items() if not isinstance(command, TyperGroup))
GROUPS = sorted(name for name, command in ALL.items() if isinstance(command, TyperGroup))


def options(command: Any) -> list[Any]:
    return [one for one in command.params if "--help" not in one.opts]


def test_every_documented_verb_exists() -> None:
    assert [name for name in NAMED if name not in ALL] == []
    assert len(VERBS) >= len(NAMED) - 1, "what is looked at below"


@pytest.mark.parametrize("name", [*GROUPS, *VERBS])
def test_each_command_and_option_says_in_a_sentence_what_it_does(name: str) -> None:
    command = ALL[name]
    first = (command.help or "").strip().split("\n\n")[0]
    assert len(first.split()) >= 4, f"{name!r} says {first!r}"
    assert SENTENCE.match(" ".join((command.help or "").split()).split(" Example")[0]), (
        f"{name!r} says {command.help!r}"
    )
    for one in options(command):
        text = " ".join((getattr(one, "help", None) or "").split())
        assert len(text.split()) >= 3, f"{name} {one.opts}: {text!r}"
        assert SENTENCE.match(text), f"{name} {one.opts}: {text!r}"


@pytest.mark.parametrize("name", VERBS)
def test_what_is_shown_or_listed_can_be_read_by_a_program(name: str) -> None:
    flags = {flag for one in options(ALL[name]) for flag in one.opts}
    if name.split()[0] == "demo" or name.endswith(SERVE) or name in NO_VIEW:
        assert "--json" not in flags, "then it belongs to those that are looked at"
    else:
        assert "--json" in flags


@pytest.mark.parametrize("name", VERBS)
def test_no_option_takes_a_secret(name: str) -> None:
    """Arguments are read by every process of the machine: secrets come from files and prompts."""
    for one in options(ALL[name]):
        if any(word in flag for flag in one.opts for word in ("password", "passphrase", "token", "secret")):
            assert all(flag.endswith("-file") for flag in one.opts), (name, one.opts)


def test_examples_can_be_run() -> None:
    """Each command line in a help text names a verb that there is, and options that it has."""
    from documents.test_commands import wrong

    examples = [
        line.rstrip(".")
        for command in ALL.values()
        for text in re.findall(r"Examples?:(.*?)(?:\n\n|$)", command.help or "", re.DOTALL)
        for line in re.findall(r"backhaul (.*?)(?:, or:|`|$)", " ".join(text.split()))
    ]
    assert len(examples) >= 10
    assert {example: why for example in examples if (why := wrong(command_line(), example))} == {}


def test_the_exit_codes_are_those_of_the_help() -> None:
    """As a user reads them, and as a failing command gives them."""
    done = subprocess.run(
        [sys.executable, "-m", "backhaul", "--help"], capture_output=True, text=True, check=True,
    )  # fmt: skip
    shown = " ".join(done.stdout.split())
    assert shown.count("Exit codes:") == 1
    for code, meaning in MEANING.items():
        assert f"{code} {meaning}" in shown
    errors = (ClientError, NotLoggedIn, NotFound, Unreachable, JobFailed)
    assert {exit_code(error("BH-X", "")) for error in errors} == set(MEANING) - {0, 2, BROKEN_RUNG}
    assert FAILED in MEANING
