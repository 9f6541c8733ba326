"""Journals of each released version can be opened, and today's are written as their version says.

`golden/journal-v1.json` holds every file and disk of a small replica, deflated. It is written once per version:
`PYTHONPATH=src:tests python -c "from master_target.test_golden import store; store(1)"`.
"""

from __future__ import annotations

import base64
import json
import zlib
from pathlib import Path

import pytest

from backhaul.master_target.records import VERSION
from backhaul.replication.units import BLOCK

from .source import FOLDER, Setup
from .worlds import Content

GOLDEN = Path(__file__).parent / "golden"
SIZES = (12 * BLOCK, 3 * BLOCK + 512)


def produce() -> Setup:
    """A replica with every type of record: pins, merged epochs, a lapsed batch, an epoch that runs."""
    setup = Setup(sizes=SIZES)
    setup.create()
    setup.epoch((0, 0, 1, 3), (1, 3, 2))
    setup.epoch((0, 1, 3), (0, 8, 4, 2))
    setup.epoch((0, 0, 0, 2), (0, 9, 5))
    setup.epoch((0, 4, 6, 3))
    setup.epoch((0, 4, 7), (1, 0, 8, 4))
    setup.replica.pin("golden", 3)
    setup.replica.thin([1, 3, 5])
    setup.replica.save_maps()
    setup.replica.begin(setup.begin())
    setup.write(0, 2, 9)
    setup.replica.flush()
    disk = setup.world.disks[0].content
    disk.write(2 * BLOCK, b"torn")
    disk.sync()
    setup.crash()
    setup.replica.begin(setup.begin(stream=2))
    setup.frame = 0
    setup.write(0, 2, 10)
    setup.replica.flush()
    return setup


def contents(setup: Setup) -> dict[str, bytes]:
    """Every file and disk."""
    files = {str(path.relative_to(FOLDER)): setup.files.read(path) for path in sorted(setup.world.contents)}
    return files | {disk.name: disk.image() for disk in setup.world.disks}


def store(version: int) -> None:
    """Write the golden file of a version."""
    setup = produce()
    deflated = {name: base64.b64encode(zlib.compress(data, 9)).decode() for name, data in contents(setup).items()}
    (GOLDEN / f"journal-v{version}.json").write_text(json.dumps(deflated, indent=1) + "\n")


def load(version: int) -> dict[str, bytes]:
    stored = json.loads((GOLDEN / f"journal-v{version}.json").read_text())
    return {name: zlib.decompress(base64.b64decode(data)) for name, data in stored.items()}


@pytest.mark.parametrize("version", range(1, VERSION + 1))
def test_a_stored_journal_opens(version: int) -> None:
    made = produce()
    setup = Setup(sizes=SIZES)
    setup.images = made.images
    for name, data in load(version).items():
        content = next((disk.content for disk in setup.world.disks if disk.name == name), None)
        if content is None:
            content = setup.world.contents[FOLDER / name] = setup.world.entries[FOLDER / name] = Content()
        content.write(0, data)
        content.sync()
    setup.open()
    assert setup.replica.findings == ()
    assert setup.numbers() == [1, 3, 5]
    assert setup.replica.pins() == {"golden": 3}
    assert (setup.replica.applied_stream, setup.replica.applied_frame) == (2, 1)
    assert len(setup.replica.tries) == 2
    setup.check_points()


def test_todays_journal_is_byte_for_byte_its_version() -> None:
    assert contents(produce()) == load(VERSION)
