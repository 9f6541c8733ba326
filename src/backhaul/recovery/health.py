"""Health of process servers, master targets and items: rules with editable thresholds.

Invariant: silence is Unknown, then Critical, never Healthy. A figure alerts when it was beyond its threshold for the
whole window, and clears when it was back by a margin for the clearing time, so that no alert flickers. Pure: samples
and the alerts shown before go in, an assessment comes out; called by the configuration server at each heartbeat and
once a minute for those that sent none. Thresholds: reference/azure-site-recovery.md 2.5.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Final

import msgspec

from backhaul.recovery.findings import Checklist, Finding, check
from backhaul.recovery.preflight_facts import Health
from backhaul.recovery.rpo import Rpo

_NS: Final = 1_000_000_000
_RANK: Final = (Health.HEALTHY, Health.WARNING, Health.UNKNOWN, Health.CRITICAL)
"""Unknown is worse than a warning: old figures of somebody silent say nothing."""


class Thresholds(msgspec.Struct, frozen=True, kw_only=True):
    """Editable. Percent, seconds. `window_s` is how long a figure must be beyond, `clear_s` how long back again.

    unknown_after_s, critical_after_s  silence; four heartbeats of 15 s, and Site Recovery's 15 min
    max_gap_s            samples further apart do not vouch for the time between them (figures come every 5 min)
    margin               share of the threshold by which a figure must be back before its alert clears
    rpo_critical_times   an RPO of this many thresholds is critical
    """

    window_s: float = 900.0
    clear_s: float = 300.0
    max_gap_s: float = 330.0
    margin: float = 0.05
    cpu_warning: float = 80.0
    cpu_critical: float = 95.0
    memory_warning: float = 80.0
    memory_critical: float = 95.0
    cache_free_warning: float = 30.0
    cache_free_critical: float = 25.0
    drain_warning_s: float = 1800.0
    drain_critical_s: float = 2700.0
    unknown_after_s: float = 60.0
    critical_after_s: float = 900.0
    stalled_warning_s: float = 60.0
    stalled_critical_s: float = 900.0
    rpo_critical_times: float = 2.0
    clock_skew_s: float = 5.0


class ServerSample(msgspec.Struct, frozen=True, kw_only=True):
    """One report of a server. `at_ns`: the receiver's monotonic clock. `drain_s`: time to forward what is spooled."""

    at_ns: int
    cpu_percent: float
    memory_percent: float
    cache_free_percent: float
    drain_s: float
    services_down: tuple[str, ...] = ()


class ItemSample(msgspec.Struct, frozen=True, kw_only=True):
    """What is known of an item now.

    expects_points   its state promises points (protected, verifying, standby)
    agent_age_s, target_age_s   since the last heartbeat; None: never heard
    stalled_s        since anything was acknowledged, while something waits; 0.0 when nothing waits
    broken_link, broken_s   the first broken link of its way, in words, and for how long; empty: the way is whole
    """

    rpo: Rpo
    rpo_threshold_s: float
    expects_points: bool
    agent_age_s: float | None
    target_age_s: float | None
    stalled_s: float
    broken_link: str = ""
    broken_s: float = 0.0


class AlertKind(msgspec.Struct, frozen=True):
    """An alert's fixed part: code, message with its `{figure}`, what may cause it, what to do."""

    code: str
    message: str
    causes: tuple[str, ...]
    fix: str


class Alert(msgspec.Struct, frozen=True):
    """An alert as shown."""

    code: str
    health: Health
    message: str
    causes: tuple[str, ...]
    fix: str


class Assessment(msgspec.Struct, frozen=True):
    """Overall health: the worst alert."""

    health: Health
    alerts: tuple[Alert, ...]

    @property
    def levels(self) -> dict[str, Health]:
        """What the next assessment needs to know of this one."""
        return {alert.code: alert.health for alert in self.alerts}


ALERTS: Final[dict[str, AlertKind]] = {}


def _kind(code: str, message: str, causes: tuple[str, ...], fix: str) -> AlertKind:
    kind = ALERTS[code] = AlertKind(code, message, causes, fix)
    return kind


_CPU = _kind(
    "BH-HEALTH-CPU",
    "processor load is {figure:.0f} %",
    ("more machines or changes than the server can relay", "other work on the same server"),
    "Add no machines to it; move some to another process server, or give it more cores.",
)
_MEMORY = _kind(
    "BH-HEALTH-MEMORY",
    "memory in use is {figure:.0f} %",
    ("more items than the server was sized for", "other work on the same server"),
    "Add no machines to it; move some to another process server, or give it more memory.",
)
_CACHE = _kind(
    "BH-HEALTH-CACHE",
    "free spool space is {figure:.0f} %",
    ("the way to the target is slower than the changes", "the target does not answer", "the spool disk is too small"),
    "Mend the way to the target or enlarge the spool; below 20 % the server throttles its machines.",
)
_DRAIN = _kind(
    "BH-HEALTH-BACKLOG",
    "what is spooled takes {figure:.0f} s to forward",
    ("the way to the target is slower than the changes", "a bandwidth limit applies"),
    "Raise the bandwidth or its limit, or move machines to another process server.",
)
_SERVICES = _kind(
    "BH-HEALTH-SERVICES",
    "services are not running: {figure}",
    ("a service ended with an error", "the server is starting"),
    "Look at the service's log and start it again.",
)
_HEARTBEAT = _kind(
    "BH-HEALTH-HEARTBEAT",
    "no heartbeat {figure}",
    ("the server or its network is down", "the way to the configuration server is broken", "its certificate ran out"),
    "`backhaul doctor` walks the way to it rung by rung.",
)
_RPO = _kind(
    "BH-HEALTH-RPO",
    "the newest recovery point is {figure:.0f} s old",
    ("the link is slower than the changes", "the link is stalled", "the disks are being compared"),
    "See the other alerts of the item; the threshold changes nothing but this alert.",
)
_NO_POINT = _kind(
    "BH-HEALTH-NO-POINT",
    "no recovery point: {figure}",
    ("points were withdrawn after damage", "the target does not answer"),
    "See the target's alerts; run `backhaul item resync` when it answers.",
)
_STALLED = _kind(
    "BH-HEALTH-STALLED",
    "nothing was acknowledged for {figure:.0f} s while changes wait",
    ("the link is cut", "the process server or the target hangs", "a journal or spool is full"),
    "`backhaul doctor` names the rung that is broken.",
)
_LINK = _kind(
    "BH-HEALTH-LINK",
    "its way is broken {figure}",
    ("a route or a firewall between the two", "one of the two is down", "its certificate was refused"),
    "`backhaul doctor` walks the way and says how to mend it; replication goes on by itself then.",
)
_AGENT = _kind(
    "BH-HEALTH-AGENT",
    "no heartbeat of the agent {figure}",
    ("the machine is off or hangs", "the agent was stopped", "the way to its process server is broken"),
    "Start the machine and its agent; `backhaul doctor` walks the way to it.",
)
_TARGET = _kind(
    "BH-HEALTH-TARGET",
    "no heartbeat of the target {figure}",
    ("the target is down", "the way to the target is broken"),
    "Start the target; `backhaul doctor` walks the way to it.",
)
_CLOCK = _kind(
    "BH-HEALTH-CLOCK",
    "the newest point lies {figure:.0f} s in the future",
    ("the clock of the machine or of the configuration server is wrong",),
    "Synchronise the clocks; until then the RPO shown is too small.",
)


def assess_server(
    samples: Sequence[ServerSample],
    now_ns: int,
    thresholds: Thresholds,
    *,
    known_since_ns: int,
    shown: Mapping[str, Health],
) -> Assessment:
    """Health of a process server or master target.

    samples         of at least the last window, oldest first
    now_ns, known_since_ns   the receiver's monotonic clock; the latter counts as a heartbeat before the first one
    shown           `levels` of the assessment before
    """
    last_ns = samples[-1].at_ns if samples else known_since_ns
    silent_s = (now_ns - last_ns) / _NS
    silence = _silence(_HEARTBEAT, silent_s if samples or silent_s > thresholds.critical_after_s else None, thresholds)
    if silence is not None:
        return _assessment([silence])
    alerts = [_figure_alert(rule, samples, thresholds, shown) for rule in _FIGURES]
    return _assessment([*alerts, _services_alert(samples, thresholds)])


def assess_item(sample: ItemSample, thresholds: Thresholds, *, shown: Mapping[str, Health]) -> Assessment:
    """Health of a replicated item. The RPO is an age already, so no window applies to it."""
    alerts = [
        _silence(_AGENT, sample.agent_age_s, thresholds),
        _silence(_TARGET, sample.target_age_s, thresholds),
        _stalled_alert(sample, thresholds),
        _link_alert(sample, thresholds),
    ]
    if sample.expects_points:
        alerts += [_rpo_alert(sample, thresholds, shown), _clock_alert(sample, thresholds)]
    return _assessment(alerts)


class _Figure(msgspec.Struct, frozen=True):
    """A figure of a server that alerts. `sign` -1: low values are the bad ones."""

    kind: AlertKind
    value: Callable[[ServerSample], float]
    levels: Callable[[Thresholds], tuple[float, float]]
    sign: int = 1


_FIGURES: Final = (
    _Figure(_CPU, lambda sample: sample.cpu_percent, lambda limits: (limits.cpu_warning, limits.cpu_critical)),
    _Figure(
        _MEMORY, lambda sample: sample.memory_percent, lambda limits: (limits.memory_warning, limits.memory_critical)
    ),
    _Figure(
        _CACHE,
        lambda sample: sample.cache_free_percent,
        lambda limits: (limits.cache_free_warning, limits.cache_free_critical),
        sign=-1,
    ),
    _Figure(_DRAIN, lambda sample: sample.drain_s, lambda limits: (limits.drain_warning_s, limits.drain_critical_s)),
)


def _figure_alert(
    rule: _Figure, samples: Sequence[ServerSample], thresholds: Thresholds, shown: Mapping[str, Health]
) -> Alert | None:
    before = shown.get(rule.kind.code, Health.HEALTHY)
    for health, level in zip((Health.CRITICAL, Health.WARNING), reversed(rule.levels(thresholds)), strict=True):

        def beyond(sample: ServerSample, level: float = level) -> bool:
            return rule.sign * rule.value(sample) > rule.sign * level

        def back(sample: ServerSample, level: float = level) -> bool:
            return rule.sign * rule.value(sample) <= rule.sign * level - thresholds.margin * level

        was_on = _RANK.index(before) >= _RANK.index(health)
        on = _lasts(samples, beyond, thresholds.window_s, thresholds.max_gap_s)
        if on or (was_on and not _lasts(samples, back, thresholds.clear_s, thresholds.max_gap_s)):
            return _alert(rule.kind, health, rule.value(samples[-1]))
    return None


def _lasts(
    samples: Sequence[ServerSample], holds: Callable[[ServerSample], bool], for_s: float, max_gap_s: float
) -> bool:
    """Whether it holds for every sample back to at least `for_s` before the newest, without a gap."""
    newer = samples[-1]
    for sample in reversed(samples):
        if not holds(sample) or newer.at_ns - sample.at_ns > max_gap_s * _NS:
            return False
        if samples[-1].at_ns - sample.at_ns >= for_s * _NS:
            return True
        newer = sample
    return False


def _services_alert(samples: Sequence[ServerSample], thresholds: Thresholds) -> Alert | None:
    if not _lasts(samples, lambda sample: bool(sample.services_down), thresholds.window_s, thresholds.max_gap_s):
        return None
    return _alert(_SERVICES, Health.WARNING, ", ".join(samples[-1].services_down))


def _silence(kind: AlertKind, age_s: float | None, thresholds: Thresholds) -> Alert | None:
    if age_s is None:
        return _alert(kind, Health.UNKNOWN, "was ever received")
    if age_s > thresholds.critical_after_s:
        return _alert(kind, Health.CRITICAL, f"for {age_s:.0f} s")
    return _alert(kind, Health.UNKNOWN, f"for {age_s:.0f} s") if age_s > thresholds.unknown_after_s else None


def _stalled_alert(sample: ItemSample, thresholds: Thresholds) -> Alert | None:
    if sample.stalled_s > thresholds.stalled_critical_s:
        return _alert(_STALLED, Health.CRITICAL, sample.stalled_s)
    if sample.stalled_s > thresholds.stalled_warning_s:
        return _alert(_STALLED, Health.WARNING, sample.stalled_s)
    return None


def _link_alert(sample: ItemSample, thresholds: Thresholds) -> Alert | None:
    """A broken link is silence between two servers, and has silence's limits; only it is known who is silent."""
    if not sample.broken_link or sample.broken_s <= thresholds.unknown_after_s:
        return None
    health = Health.CRITICAL if sample.broken_s > thresholds.critical_after_s else Health.WARNING
    return _alert(_LINK, health, f"for {sample.broken_s:.0f} s: {sample.broken_link}")


def _rpo_alert(sample: ItemSample, thresholds: Thresholds, shown: Mapping[str, Health]) -> Alert | None:
    if sample.rpo.seconds is None:
        return _alert(_NO_POINT, Health.CRITICAL, sample.rpo.why)
    before = shown.get(_RPO.code, Health.HEALTHY)
    times = ((Health.CRITICAL, thresholds.rpo_critical_times), (Health.WARNING, 1.0))
    for health, factor in times:
        level = sample.rpo_threshold_s * factor
        if _RANK.index(before) >= _RANK.index(health):
            level -= thresholds.margin * level
        if sample.rpo.seconds > level:
            return _alert(_RPO, health, sample.rpo.seconds)
    return None


def _clock_alert(sample: ItemSample, thresholds: Thresholds) -> Alert | None:
    if sample.rpo.clock_skew_s > thresholds.clock_skew_s:
        return _alert(_CLOCK, Health.WARNING, sample.rpo.clock_skew_s)
    return None


def _alert(kind: AlertKind, health: Health, figure: float | str) -> Alert:
    return Alert(kind.code, health, kind.message.format(figure=figure), kind.causes, kind.fix)


def _assessment(alerts: Iterable[Alert | None]) -> Assessment:
    on = tuple(alert for alert in alerts if alert is not None)
    return Assessment(max((alert.health for alert in on), key=_RANK.index, default=Health.HEALTHY), on)


@check("BH-THRESHOLDS", field="thresholds", fix="Make the warning milder than the critical level, and all above 0.")
def thresholds_are_ordered(thresholds: Thresholds) -> Iterator[str]:
    """Each warning comes before its critical alert, and every time is above 0."""
    pairs = [(rule.kind.code, *rule.levels(thresholds), rule.sign) for rule in _FIGURES]
    pairs.append((_STALLED.code, thresholds.stalled_warning_s, thresholds.stalled_critical_s, 1))
    pairs.append((_HEARTBEAT.code, thresholds.unknown_after_s, thresholds.critical_after_s, 1))
    pairs.append((_RPO.code, 1.0, thresholds.rpo_critical_times, 1))
    for code, warning, critical, sign in pairs:
        if not (sign * warning < sign * critical and min(warning, critical) > 0):
            yield f"{code}: the warning at {warning:g} does not come before the critical level {critical:g}"
    if not (0 <= thresholds.margin < 1 and min(thresholds.window_s, thresholds.clear_s, thresholds.max_gap_s) > 0):
        yield "the window, the clearing time and the largest gap must be above 0, the margin from 0 to below 1"


THRESHOLDS: Final = Checklist("thresholds", "Saving thresholds of health", (thresholds_are_ordered,))


def validate_thresholds(thresholds: Thresholds) -> list[Finding]:
    """All findings on edited thresholds at once."""
    return THRESHOLDS.run(thresholds)
