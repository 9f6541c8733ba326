"""What a resync asks of a replica: its maps count no longer, its points do, and a crash changes neither."""

from __future__ import annotations

from .source import Setup


def test_doubt_makes_the_maps_stale_durably_and_keeps_points_and_pins() -> None:
    setup = Setup()
    setup.create()
    setup.epoch((0, 0, 1, 4), (1, 0, 2))
    setup.epoch((0, 0, 4), (1, 9, 5))
    setup.replica.pin("kept", 1)
    for disk in range(2):
        setup.replica.refresh(disk)
    setup.replica.save_maps()
    setup.replica.doubt()
    for _ in range(2):
        assert all(known.stale_count == known.count for known in setup.replica.maps)
        assert (setup.numbers(), setup.replica.pins()) == ([1, 2], {"kept": 1})
        assert not setup.replica.must_compare
        setup.crash()
    assert setup.epoch((0, 0, 8)) == 3
    setup.crash()
    setup.check_points()


def test_what_was_changed_behind_the_replicas_back_is_in_its_map_after_a_doubt() -> None:
    setup = Setup()
    setup.create()
    setup.epoch((0, 0, 1, 4))
    setup.replica.refresh(0)
    before = setup.replica.maps[0].get(0)
    setup.world.disks[0].write(0, b"\xff" * 4096)
    setup.replica.refresh(0)
    assert setup.replica.maps[0].get(0) == before, "it is believed"
    setup.replica.doubt()
    setup.replica.refresh(0)
    assert setup.replica.maps[0].get(0) != before
