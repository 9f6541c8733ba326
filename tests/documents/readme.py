"""The console blocks of the READMEs, word for word."""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[2]
ENGLISH, GERMAN = ROOT / "README.md", ROOT / "README.de.md"
FAILBACK = {ENGLISH: "## The first failback, by hand", GERMAN: "## Das erste Failback von Hand"}
FROM_NOTHING = "## From nothing, by hand"


class Line(NamedTuple):
    """A command: at which prompt (`home`, `cloud`, or empty: the checkout), and its text."""

    place: str
    command: str


def commands(page: Path, heading: str) -> list[Line]:
    """All commands of a section, in order."""
    section = page.read_text().split(f"\n{heading}\n", 1)[1].split("\n## ", 1)[0]
    blocks = re.findall(r"```console\n(.*?)```", section, re.DOTALL)
    lines = [line for block in blocks for line in block.splitlines()]
    found = [re.fullmatch(r"(home|cloud|)\$ (.+)", line) for line in lines]
    assert lines
    assert all(found), f"{page.name}, {heading}: a line that is no command: {lines}"
    return [Line(match[1], match[2]) for match in found if match]


def plain_blocks(page: Path) -> list[str]:
    """Blocks that are neither console nor anything else by name."""
    return re.findall(
        r"^```\n(.*?)^```$", re.sub(r"^```\w+\n.*?^```$", "", page.read_text(), flags=re.M | re.S), re.M | re.S
    )
