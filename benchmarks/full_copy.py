"""`scripts/bench full-copy`: a whole disk, end to end, against nbdcopy over TLS through as many hops, in the same run.

Rounds alternate, and so does who begins, so that what else the machine does hits both. It prints medians and their
ratios and asserts nothing about time; a copy that differs from its image is an error.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Final

from backhaul.replication.errors import BackhaulError
from backhaul.replication.units import GiB, KiB, MiB
from benchmarks.backhaul_way import Backhaul
from benchmarks.certificates import make_authority
from benchmarks.copies import CopyFailed, Way
from benchmarks.image import ImageNotMade, facts, make_image
from benchmarks.measure import Cost, WrongCopy, check_same, machine, median
from benchmarks.nbdcopy import NbdCopy

UNITS: Final = {"KiB": KiB, "MiB": MiB, "GiB": GiB}


def size(text: str) -> int:
    """Bytes of `512MiB`, `4GiB`."""
    for unit, factor in UNITS.items():
        if text.endswith(unit) and text.removesuffix(unit).strip().isdigit():
            return int(text.removesuffix(unit)) * factor
    raise argparse.ArgumentTypeError(f"{text!r} is not a size like 512MiB or 4GiB")


def _arguments() -> argparse.Namespace:
    assert __doc__ is not None, "written above"
    parser = argparse.ArgumentParser(
        prog="scripts/bench full-copy", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--size", type=size, default=4 * GiB, help="size of the image (4GiB)")
    parser.add_argument("--rounds", type=int, default=5, help="copies of each way (5)")
    parser.add_argument("--image", type=Path, help="copy this raw image instead of making one; it is only read")
    parser.add_argument("--source", type=Path, action="append", help="where files are taken from (/usr); repeatable")
    parser.add_argument("--folder", type=Path, help="where everything is kept while it runs (a temporary folder)")
    parser.add_argument("--only", choices=["backhaul", "nbdcopy"], help="one way alone, to profile it")
    return parser.parse_args()


def main() -> int:
    """The exit code: 0, 1 when something failed or a copy was wrong."""
    arguments = _arguments()
    folder = Path(tempfile.mkdtemp(prefix="backhaul-bench-", dir=arguments.folder))
    try:
        print(machine(), flush=True)
        image = arguments.image or _image(folder, arguments)
        print(f"image: {facts(image)}", flush=True)
        costs = _rounds(_ways(folder, arguments.only), image, folder, arguments.rounds)
    except (BackhaulError, CopyFailed, ImageNotMade, WrongCopy) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    finally:
        shutil.rmtree(folder)
    _print_medians(costs)
    return 0


def _image(folder: Path, arguments: argparse.Namespace) -> Path:
    image = folder / "image"
    make_image(image, arguments.size, arguments.source or [Path("/usr")])
    return image


def _ways(folder: Path, only: str | None) -> list[Way]:
    authority = make_authority(folder / "authority")
    ways: list[Way] = []
    for way in (Backhaul(authority), NbdCopy(authority)):
        if only not in (None, way.name):
            continue
        if missing := way.missing():
            print(f"{way.name} is left out: {', '.join(missing)} not found", flush=True)
        else:
            ways.append(way)
    return ways


def _rounds(ways: list[Way], image: Path, folder: Path, rounds: int) -> dict[str, list[Cost]]:
    costs: dict[str, list[Cost]] = {way.name: [] for way in ways}
    for number in range(rounds):
        for way in ways if number % 2 == 0 else reversed(ways):
            place = folder / f"{number}-{way.name}"
            place.mkdir()
            os.sync()  # what the last round left to be written is not this one's work
            cost, copy = way.copy(image, place)
            check_same(image, copy)
            shutil.rmtree(place)
            costs[way.name].append(cost)
            print(f"round {number + 1}  {way.name:<10}{cost}", flush=True)
    return costs


def _print_medians(costs: dict[str, list[Cost]]) -> None:
    medians = {name: median(each) for name, each in costs.items() if each}
    for name, each in medians.items():
        print(f"median   {name:<10}{each}")
    if len(medians) < 2:
        print("no ratio: only one way was measured")
        return
    ours, peer = medians[Backhaul.name], medians[NbdCopy.name]
    wall, cpu = ours.wall_s / peer.wall_s, ours.cpu_s / peer.cpu_s
    sent = ours.loopback_bytes / peer.loopback_bytes if peer.loopback_bytes else 0.0
    print(f"ratio    {Backhaul.name} / {NbdCopy.name}: time {wall:.2f}, CPU {cpu:.2f}, bytes {sent:.2f}")
    print("every copy was compared with its image and is the same")


if __name__ == "__main__":
    sys.exit(main())
