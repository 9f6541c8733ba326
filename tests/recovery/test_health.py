"""Thresholds, windows, hysteresis; and that silence is never healthy."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec
import pytest

from backhaul.recovery.health import (
    ALERTS,
    Assessment,
    ItemSample,
    ServerSample,
    Thresholds,
    assess_item,
    assess_server,
)
from backhaul.recovery.preflight_facts import Health
from backhaul.recovery.rpo import Rpo

S = 1_000_000_000
LIMITS = Thresholds()
WELL = ServerSample(at_ns=0, cpu_percent=10, memory_percent=10, cache_free_percent=90, drain_s=0)
ITEM_WELL = ItemSample(
    rpo=Rpo(30.0, 9), rpo_threshold_s=900, expects_points=True, agent_age_s=1.0, target_age_s=1.0, stalled_s=0.0
)


def series(minutes: int, start_s: int = 0, **figures: Any) -> list[ServerSample]:
    """A sample a minute, `minutes` + 1 of them."""
    return [
        msgspec.structs.replace(WELL, at_ns=(start_s + 60 * minute) * S, **figures) for minute in range(minutes + 1)
    ]


def assessed(samples: list[ServerSample], shown: Mapping[str, Health] | None = None, late_s: float = 1.0) -> Assessment:
    now_ns = samples[-1].at_ns + round(late_s * S)
    return assess_server(samples, now_ns, LIMITS, known_since_ns=0, shown=shown or {})


@pytest.mark.parametrize(
    ("figures", "code", "health"),
    [
        pytest.param({"cpu_percent": 81}, "BH-HEALTH-CPU", Health.WARNING, id="cpu-warning"),
        pytest.param({"cpu_percent": 96}, "BH-HEALTH-CPU", Health.CRITICAL, id="cpu-critical"),
        pytest.param({"memory_percent": 81}, "BH-HEALTH-MEMORY", Health.WARNING, id="memory-warning"),
        pytest.param({"memory_percent": 96}, "BH-HEALTH-MEMORY", Health.CRITICAL, id="memory-critical"),
        pytest.param({"cache_free_percent": 29}, "BH-HEALTH-CACHE", Health.WARNING, id="cache-warning"),
        pytest.param({"cache_free_percent": 24}, "BH-HEALTH-CACHE", Health.CRITICAL, id="cache-critical"),
        pytest.param({"drain_s": 1801}, "BH-HEALTH-BACKLOG", Health.WARNING, id="backlog-warning"),
        pytest.param({"drain_s": 2701}, "BH-HEALTH-BACKLOG", Health.CRITICAL, id="backlog-critical"),
        pytest.param({"services_down": ("relay",)}, "BH-HEALTH-SERVICES", Health.WARNING, id="services"),
    ],
)
def test_a_figure_beyond_its_threshold_for_the_window_alerts(
    figures: dict[str, Any], code: str, health: Health
) -> None:
    assessment = assessed(series(15, **figures))
    assert [(alert.code, alert.health) for alert in assessment.alerts] == [(code, health)]
    assert assessment.health is health
    assert assessed(series(14, **figures)).health is Health.HEALTHY
    alert = assessment.alerts[0]
    assert alert.causes
    assert alert.fix
    assert "{" not in alert.message


@pytest.mark.parametrize(
    "figures",
    [{"cpu_percent": 80}, {"memory_percent": 80}, {"cache_free_percent": 30}, {"drain_s": 1800}],
    ids=["cpu", "memory", "cache", "backlog"],
)
def test_a_figure_at_its_threshold_is_healthy(figures: dict[str, Any]) -> None:
    assert assessed(series(20, **figures)).health is Health.HEALTHY


def test_one_good_sample_in_the_window_prevents_the_alert() -> None:
    samples = series(20, cpu_percent=99)
    samples[10] = msgspec.structs.replace(samples[10], cpu_percent=10)
    assert assessed(samples).health is Health.HEALTHY


def test_samples_with_a_gap_vouch_for_nothing_between_them() -> None:
    samples = [*series(7, cpu_percent=99), *series(7, start_s=7 * 60 + 331, cpu_percent=99)]
    assert assessed(samples).health is Health.HEALTHY


def test_an_alert_stays_until_the_figure_was_back_by_the_margin_for_the_clearing_time() -> None:
    shown = {"BH-HEALTH-CPU": Health.WARNING}
    assert assessed(series(20, cpu_percent=79), shown).health is Health.WARNING
    assert assessed(series(4, cpu_percent=75), shown).health is Health.WARNING
    assert assessed(series(5, cpu_percent=75), shown).health is Health.HEALTHY
    assert assessed(series(20, cpu_percent=79)).health is Health.HEALTHY


def test_a_critical_alert_eases_to_a_warning_first() -> None:
    shown = {"BH-HEALTH-CACHE": Health.CRITICAL}
    assert assessed(series(20, cache_free_percent=26), shown).health is Health.CRITICAL
    assert assessed(series(20, cache_free_percent=27), shown).health is Health.WARNING
    assert assessed(series(20, cache_free_percent=32), shown).health is Health.HEALTHY


def test_silence_is_unknown_then_critical_never_healthy() -> None:
    samples = series(20)
    assert assessed(samples, late_s=60).health is Health.HEALTHY
    assert assessed(samples, late_s=61).health is Health.UNKNOWN
    assert assessed(samples, late_s=900).health is Health.UNKNOWN
    assert assessed(samples, late_s=901).health is Health.CRITICAL
    assert assessed(samples, late_s=901).alerts[0].code == "BH-HEALTH-HEARTBEAT"


@pytest.mark.parametrize(
    ("known_for_s", "health"),
    [
        pytest.param(0, Health.UNKNOWN, id="just-registered"),
        pytest.param(900, Health.UNKNOWN, id="still-waiting"),
        pytest.param(901, Health.CRITICAL, id="too-long"),
    ],
)
def test_a_server_that_never_reported_is_not_healthy(known_for_s: int, health: Health) -> None:
    assert assess_server([], known_for_s * S, LIMITS, known_since_ns=0, shown={}).health is health


def test_levels_feed_the_next_assessment() -> None:
    first = assessed(series(15, cpu_percent=96))
    assert first.levels == {"BH-HEALTH-CPU": Health.CRITICAL}
    assert assessed(series(1, cpu_percent=94), first.levels).health is Health.CRITICAL


def item(shown: Mapping[str, Health] | None = None, **fields: Any) -> Assessment:
    return assess_item(msgspec.structs.replace(ITEM_WELL, **fields), LIMITS, shown=shown or {})


@pytest.mark.parametrize(
    ("fields", "code", "health"),
    [
        pytest.param({"rpo": Rpo(901.0)}, "BH-HEALTH-RPO", Health.WARNING, id="rpo-warning"),
        pytest.param({"rpo": Rpo(1801.0)}, "BH-HEALTH-RPO", Health.CRITICAL, id="rpo-critical"),
        pytest.param({"rpo": Rpo(None, why="none")}, "BH-HEALTH-NO-POINT", Health.CRITICAL, id="no-point"),
        pytest.param({"stalled_s": 61.0}, "BH-HEALTH-STALLED", Health.WARNING, id="stalled"),
        pytest.param({"stalled_s": 901.0}, "BH-HEALTH-STALLED", Health.CRITICAL, id="stalled-long"),
        pytest.param({"agent_age_s": 61.0}, "BH-HEALTH-AGENT", Health.UNKNOWN, id="agent-silent"),
        pytest.param({"agent_age_s": 901.0}, "BH-HEALTH-AGENT", Health.CRITICAL, id="agent-dead"),
        pytest.param({"agent_age_s": None}, "BH-HEALTH-AGENT", Health.UNKNOWN, id="agent-never"),
        pytest.param({"target_age_s": 901.0}, "BH-HEALTH-TARGET", Health.CRITICAL, id="target-dead"),
        pytest.param({"broken_link": "it", "broken_s": 61.0}, "BH-HEALTH-LINK", Health.WARNING, id="link"),
        pytest.param({"broken_link": "it", "broken_s": 901.0}, "BH-HEALTH-LINK", Health.CRITICAL, id="link-long"),
        pytest.param({"rpo": Rpo(0.0, 9, 6.0)}, "BH-HEALTH-CLOCK", Health.WARNING, id="clock"),
    ],
)
def test_an_item_alerts(fields: dict[str, Any], code: str, health: Health) -> None:
    assessment = item(**fields)
    assert [(alert.code, alert.health) for alert in assessment.alerts] == [(code, health)]
    assert assessment.health is health


def test_an_item_that_is_well_is_healthy() -> None:
    assert item() == Assessment(Health.HEALTHY, ())


def test_a_link_that_comes_back_soon_alerts_nobody() -> None:
    assert item(broken_link="the link", broken_s=60.0).health is Health.HEALTHY
    (alert,) = item(broken_link="the link between a and b is broken", broken_s=75.0).alerts
    assert alert.message == "its way is broken for 75 s: the link between a and b is broken"


def test_an_item_without_points_to_expect_has_no_rpo_alert() -> None:
    assert item(rpo=Rpo(None), expects_points=False).health is Health.HEALTHY


def test_the_rpo_alert_does_not_flicker() -> None:
    shown = {"BH-HEALTH-RPO": Health.WARNING}
    assert item(shown, rpo=Rpo(880.0)).health is Health.WARNING
    assert item(shown, rpo=Rpo(850.0)).health is Health.HEALTHY
    assert item(rpo=Rpo(880.0)).health is Health.HEALTHY


def test_the_worst_alert_is_the_health() -> None:
    assert item(agent_age_s=61.0, stalled_s=61.0).health is Health.UNKNOWN
    assert item(agent_age_s=61.0, stalled_s=901.0).health is Health.CRITICAL


def test_thresholds_are_editable() -> None:
    edited = Thresholds(cpu_warning=50, window_s=60)
    samples = series(1, cpu_percent=51)
    assert assess_server(samples, samples[-1].at_ns, edited, known_since_ns=0, shown={}).health is Health.WARNING


def test_every_alert_has_causes_and_a_fix() -> None:
    assert all(kind.causes and kind.fix and kind.message for kind in ALERTS.values())
