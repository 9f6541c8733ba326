"""Items at the command line: every view begins with which copy is true, and chosen disks are what is protected."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from backhaul.configuration_server.shapes.frozen import MOST, frozen_share
from backhaul.replication.control import PointStatus
from backhaul.replication.values import Consistency, StillKind
from configuration_server.live import LiveServer, live_server, until

MiB = 1024 * 1024


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveServer]:
    """A machine `web1` with three disks, one of which is protected."""
    with live_server(tmp_path_factory.mktemp("items")) as made:
        made.healthy("masterTargets")
        made.healthy("processServers")
        made.machine("web1", root=b"r" * MiB, data=b"d" * MiB, scratch=bytes(MiB))
        yield made


@pytest.fixture(scope="module")
def protected(server: LiveServer) -> LiveServer:
    """Protected by the command line: two of three disks."""
    assert server.command("policy", "create", "fast", "--point-interval-s", "1").returncode == 0
    unknown = server.command("item", "protect", "web1", "--disk", "root", "--disk", "rot")
    assert unknown.returncode == 1
    assert unknown.stderr.startswith("BH-PROTECT-REFUSED"), unknown.stderr
    assert "it has no disk rot; its disks are: " in unknown.stderr
    assert json.loads(server.command("item", "list", "--json").stdout) == [], "nothing was made"
    done = server.command("item", "protect", "web1", "--policy", "fast", "--disk", "root", "--disk", "data")
    assert done.returncode == 0, done.stderr
    until(lambda: server.vault().item("web1")["properties"]["protectionState"] == "protected")
    return server


def test_the_chosen_disks_alone_are_protected(protected: LiveServer) -> None:
    item = protected.vault().item("web1")
    disks = item["properties"]["providerSpecificDetails"]["protectedDisks"]
    assert [disk["diskId"] for disk in disks] == ["root", "data"]
    replica = protected.data_dir / "master-target" / "target" / "items" / item["name"] / "disks"
    contents = sorted(image.read_bytes()[:1] for image in replica.glob("*.img"))
    assert contents == [b"d", b"r"]
    shown = protected.command("item", "show", "web1").stdout
    assert "Disk root:" in shown
    assert "Disk data:" in shown
    assert "scratch" not in shown


def test_each_row_and_view_begins_with_the_true_copy(protected: LiveServer) -> None:
    heading, row = protected.command("item", "list").stdout.splitlines()
    assert heading.startswith("TRUE COPY")
    assert row.split()[:3] == ["home", "web1", "protected"]
    (listed,) = json.loads(protected.command("item", "list", "--json").stdout)
    shown = json.loads(protected.command("item", "show", "web1", "--json").stdout)
    for item in (listed, shown):
        assert next(iter(item["properties"])) == "truth"
        assert item["properties"]["truth"]["authoritative"] == "home"
    printed = protected.command("item", "show", "web1").stdout
    assert printed.startswith("The copy at home is authoritative. The copy in the cloud must not start.\n")


def test_a_view_says_how_points_are_made_and_what_they_cost(protected: LiveServer) -> None:
    until(lambda: protected.vault().item("web1")["properties"]["backhaul"].get("frozen"))
    shown = protected.command("item", "show", "web1").stdout
    lines = dict(line.split(":", 1) for line in shown.splitlines() if ":" in line)
    assert lines["Tracker"].strip().startswith("scan")
    assert "image stopped, crash consistent" in lines["Newest point"]
    assert lines["Writers held"].strip().startswith("0.0 ms for the newest point; 0.00 % of the last")
    assert "aim: below 1 %" in lines["Writers held"]
    (listed,) = protected.vault().items()
    assert "frozen" not in listed["properties"]["backhaul"], "a list asks no target for all of its points"


def point(number: int, at_s: float, held_ms: float) -> PointStatus:
    kind, consistency = StillKind.FROZEN, Consistency.FILE_SYSTEM
    held = int(held_ms * 1000)
    return PointStatus(number, int(at_s * 1e9), kind, consistency, "", False, held, 0, 0)


def test_the_share_of_time_in_which_writers_were_held() -> None:
    assert frozen_share([]) is None
    assert frozen_share([point(1, 0, 500)]) is None, "one point alone says nothing of a time"
    share = frozen_share([point(7, 0, 900), point(8, 10, 200), point(9, 20, 400)])
    assert share is not None
    assert (share.percent, share.points, share.seconds, share.aim_percent) == (3.0, 2, 20.0, 1.0)
    thinned = frozen_share([point(1, 0, 0), point(5, 50, 5000), point(6, 60, 100)])
    assert thinned is not None
    assert (thinned.percent, thinned.points) == (1.0, 1), "what was thinned is not known, so it is not counted"
    assert frozen_share([point(1, 5, 1), point(2, 5, 1)]) is None, "a clock that stood still"
    many = frozen_share([point(n, n, 10) for n in range(10 * MOST)])
    assert many is not None
    assert many.points == MOST - 1


def test_a_master_target_is_looked_at_from_itself_too(protected: LiveServer) -> None:
    folder = protected.data_dir / "master-target"
    done = protected.command("doctor", "--data-dir", str(folder), "--json")
    (ladder,) = json.loads(done.stdout)
    assert (done.returncode, [rung for rung in ladder["rungs"] if not rung["ok"]]) == (0, [])
    assert ladder["rungs"][-1]["rung"] == "there is room on the volume of its data"
    shown = json.loads(protected.command("config", "show", "--data-dir", str(folder), "--json").stdout)
    assert (shown["role"], shown["state"]) == ("master-target", "registered")
