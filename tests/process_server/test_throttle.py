"""Fairness and hysteresis of throttling, for any figures."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backhaul.process_server.errors import SettingRefused
from backhaul.process_server.throttle import Throttle, ThrottleLimits
from backhaul.replication.values import ItemId
from process_server.world import ITEM, OTHER, THIRD

BACKLOGS = st.dictionaries(st.sampled_from([ITEM, OTHER, THIRD]), st.integers(0, 1 << 40))


@given(BACKLOGS, st.floats(0, 0.199), st.sets(st.sampled_from([ITEM, OTHER, THIRD])))
def test_when_short_the_largest_stops_and_who_holds_nothing_never(
    backlogs: dict[ItemId, int], free: float, stopped: set[ItemId]
) -> None:
    wanted = Throttle(ThrottleLimits()).decide(free, backlogs, frozenset(stopped))
    held = {item: size for item, size in backlogs.items() if size}
    assert wanted <= held.keys()
    if held:
        assert max(held, key=lambda item: held[item]) in wanted


@given(BACKLOGS, st.floats(0.301, 1))
def test_with_space_everybody_goes_on(backlogs: dict[ItemId, int], free: float) -> None:
    throttle = Throttle(ThrottleLimits())
    throttle.decide(0.01, backlogs, frozenset())
    assert throttle.decide(free, backlogs, frozenset(backlogs)) == set()


def test_an_item_goes_on_at_half_the_mean_not_at_the_mean() -> None:
    throttle = Throttle(ThrottleLimits())
    stopped = frozenset({ITEM})
    assert throttle.decide(0.15, {ITEM: 100, OTHER: 60}, frozenset()) == {ITEM}
    assert throttle.decide(0.15, {ITEM: 59, OTHER: 60}, stopped) == {ITEM, OTHER}
    assert throttle.decide(0.15, {ITEM: 20, OTHER: 60}, stopped) == {OTHER}


@pytest.mark.parametrize("limits", [(0.0, 0.2, 0.3), (0.3, 0.2, 0.4), (0.1, 0.4, 0.3), (0.1, 0.2, 1.0)], ids=str)
def test_limits_in_the_wrong_order_are_refused(limits: tuple[float, float, float]) -> None:
    critical, throttle, resume = limits
    with pytest.raises(SettingRefused):
        ThrottleLimits(throttle, resume, critical).check()
