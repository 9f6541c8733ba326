"""Every command that a message or a document names is one that can be run, with the options that it names.

Looked at: everything that stands in backticks after `backhaul` in the product's own texts (its source, so each code's
text and advice too), in the rendered reference, in docs and READMEs; and every command line of their code blocks.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.core import TyperGroup

import backhaul.__main__  # noqa: F401 - adds the verbs that start servers and agents
from backhaul.cli.app import app
from backhaul.demo.command import app as demo
from documents.pages import pages

ROOT = Path(__file__).parents[2]
DOCUMENTS = (*sorted(ROOT.glob("README*.md")), *sorted((ROOT / "docs").rglob("*.md")), ROOT / "CHANGELOG.md")
SOURCES = sorted((ROOT / "src").rglob("*.py"))

_INLINE = re.compile(r"`backhaul\s+([^`]+)`")
_BLOCK = re.compile(r"^```\w*\n(.*?)^```", re.DOTALL | re.MULTILINE)
_LINE = re.compile(r"^(?:\S*[$#]\s+)?(?:sudo )?(?:\S*/)?(?:python3? -m )?backhaul\s+(.*)$")
_WORD = re.compile(r"[a-z][a-z-]*")
_OPTION = re.compile(r"--?[a-z][a-z-]*")
_ENDS = frozenset({"|", "&", "&&", ";", ">", ">>", "2>", "<", "#", "\\"})
"""Words after which a command line is another's."""


def inline(text: str) -> Iterator[str]:
    """What stands after `backhaul` in backticks; a text of the source may go over several string literals."""
    joined = re.sub(r"[\"']\s*\n\s*f?[\"']", "", text)
    yield from (" ".join(match.split()) for match in _INLINE.findall(joined))


def lines(text: str) -> Iterator[str]:
    """Commands of code blocks; one that is continued on the next line is one."""
    for block in _BLOCK.findall(text):
        for line in re.sub(r"\\\n\s*", " ", block).splitlines():
            if match := _LINE.match(line.strip()):
                yield match.group(1)


def wrong(command: Any, named: str, *said: str) -> str:
    """What of a command line (without `backhaul`, and what was `said` already) cannot be run; empty for nothing."""
    words = re.sub(r"[\[\]]", " ", re.sub(r"\{[^}]*\}", "X", named)).split()
    if not isinstance(command, TyperGroup):
        return _wrong_option(command, words)
    rest = " ".join(words[1:])
    if words and words[0].isupper():  # stands for any command; followed by one, for any group that has it
        groups = (one for one in command.commands.values() if isinstance(one, TyperGroup))
        return min((wrong(group, rest, "any", "group") for group in groups), key=len) if rest else ""
    if not words or words[0] in _ENDS or not _WORD.fullmatch(words[0].split("|")[0]):
        alone = command.invoke_without_command or "--help" in words
        return _wrong_option(command, words) if alone else " ".join((*said, "is a group, not a command"))
    names = words[0].split("|")
    unknown = [name for name in names if name not in command.commands]
    if unknown:
        return " ".join(("there is no", *said, unknown[0]))
    found = (wrong(command.commands[name], rest, *said, name) for name in names)
    return next((why for why in found if why), "")


def _wrong_option(command: Any, words: list[str]) -> str:
    known = {"--help"}.union(*(parameter.opts + parameter.secondary_opts for parameter in command.params))
    for word in words:
        if word in _ENDS:
            break
        for name in word.split("|"):
            option = name.partition("=")[0].rstrip(".,;:")
            if _OPTION.fullmatch(option) and option not in known:
                return f"{command.name} has no option {option}"
    return ""


def command_line() -> Any:
    """All of it, as the composition root puts it together."""
    root: Any = typer.main.get_command(app)
    root.commands["demo"] = typer.main.get_command(demo)
    return root


def named_commands() -> list[tuple[str, str]]:
    """Where, and what."""
    texts = [(str(path.relative_to(ROOT)), path.read_text(encoding="utf-8")) for path in (*DOCUMENTS, *SOURCES)]
    found = [(where, named) for where, text in texts for named in inline(text)]
    found += [(where, named) for where, text in texts if where.endswith(".md") for named in lines(text)]
    return found + [(path.name, named) for path, text in pages() for named in inline(text)]


def test_every_command_that_is_named_can_be_run() -> None:
    root = command_line()
    bad = {f"{where}: backhaul {named}: {why}" for where, named in named_commands() if (why := wrong(root, named))}
    assert not bad, "\n".join(sorted(bad))


def test_messages_and_documents_name_commands_at_all() -> None:
    found = {named for _, named in named_commands()}
    assert {"item cancel", "doctor", "item resync"} <= found
    assert any(where == "README.md" for where, _ in named_commands())


@pytest.mark.parametrize(
    ("named", "why"),
    [
        ("item cancel", ""),
        ("item cancel web --at-once 3", ""),
        ("server passphrase show|rotate", ""),
        ("item unprotect ITEM... [--dry-run] [--complete-migration]", ""),
        ("item failover {name} --unplanned | less --no-such", ""),
        ("doctor [ITEM|SERVER]", ""),
        ("demo", ""),
        ("demo --until failed-over", ""),
        ("{kind} register", ""),
        ("ARGUMENTS", ""),
        ("{kind} vanish", "there is no any group vanish"),
        ("server passphrase", "server passphrase is a group, not a command"),
        ("item cleanup", "there is no item cleanup"),
        ("agent prepare", "there is no agent prepare"),
        ("server passphrase show|erase", "there is no server passphrase erase"),
        ("item cancel --force", "cancel has no option --force"),
        ("item cancel --force=1", "cancel has no option --force"),
        ("nonsense", "there is no nonsense"),
    ],
)
def test_what_cannot_be_run_is_found(named: str, why: str) -> None:
    assert wrong(command_line(), named) == why


def test_commands_are_found_where_they_stand() -> None:
    text = "Say `backhaul item show`.\n```console\nhome$ backhaul login --server X \\\n    --user admin\nprinted\n```\n"
    assert list(inline(text)) == ["item show"]
    assert list(lines(text)) == ["login --server X  --user admin"]
    assert list(inline('fix = "Run `backhaul item "\n    f"cancel`."')) == ["item cancel"]
