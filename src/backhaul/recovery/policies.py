"""Replication policies: how often points are made, how long they are kept, when the operator is told.

Invariant: a policy that passed `validate_policy` is safe for `retention.to_drop`. Pure values; stored by the
configuration server, shortened to an `ItemPolicy` for the data plane. Defaults of the failback policy as Site
Recovery creates it (RPO threshold 15 min, retention 24 h).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Final

import msgspec

from backhaul.recovery.findings import Checklist, Finding, Severity, check
from backhaul.replication.units import MiB
from backhaul.replication.values import DEFAULT_TIERS, ItemPolicy, RetentionTier

HOUR_S: Final = 3600.0
DAY_S: Final = 24 * HOUR_S


class ReplicationPolicy(msgspec.Struct, frozen=True):
    """A named policy. Times in seconds.

    rpo_threshold_s   alert only: it changes nothing about how often points are made
    retention_points  most points kept, pins included
    tiers             ascending by age; what is older than the last one is thinned as the last one says
    freeze_limit_s    longest time writers are held for one point
    app_interval_s    how often an application script makes an application-consistent point; 0: never
    journal_bytes     bound of each item's undo journal, in bytes; 0: bounded by its volume only
    """

    name: str
    point_interval_s: float = 60.0
    retention_s: float = DAY_S
    retention_points: int = 2000
    tiers: tuple[RetentionTier, ...] = DEFAULT_TIERS
    rpo_threshold_s: float = 900.0
    freeze_limit_s: float = 2.0
    app_interval_s: float = 0.0
    journal_bytes: int = 0

    def spacing_s(self, age_s: float) -> float:
        """Least distance of points of this age; 0 keeps all."""
        for tier in self.tiers:
            if age_s <= tier.until_age_s:
                return tier.every_s
        return self.tiers[-1].every_s if self.tiers else 0.0

    def for_data_plane(self) -> ItemPolicy:
        """The part that agent and master target need."""
        return ItemPolicy(
            point_interval_s=self.point_interval_s,
            retention_s=self.retention_s,
            retention_points=self.retention_points,
            retention_tiers=self.tiers,
            freeze_limit_s=self.freeze_limit_s,
            journal_bytes=self.journal_bytes,
        )


LEAST_JOURNAL: Final = 64 * MiB
"""One batch of the master target."""

MAX_POINTS: Final = 100_000
"""The journal's index holds one entry per point; thinning sorts them all."""

_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,62}")


def _between(what: str, value: float, low: float, high: float, unit: str = " s") -> Iterator[str]:
    if not low <= value <= high:  # also refuses NaN
        yield f"{what} is {value:g}{unit}; it must be from {low:g} to {high:g}{unit}"


@check("BH-POLICY-NAME", field="name", fix="Use 1 to 63 letters, digits, '-', '_' or '.', beginning with no sign.")
def name_is_valid(policy: ReplicationPolicy) -> Iterator[str]:
    """The policy's name is valid."""
    if not _NAME.fullmatch(policy.name):
        yield f"{policy.name!r} is no valid name of a policy"


@check("BH-POLICY-INTERVAL", field="point_interval_s", fix="Choose an interval from 1 s to one day.")
def interval_is_valid(policy: ReplicationPolicy) -> Iterator[str]:
    """Points are made at least once a day and at most once a second."""
    yield from _between("the interval of recovery points", policy.point_interval_s, 1, DAY_S)


@check("BH-POLICY-RETENTION", field="retention_s", fix="Choose a retention from one minute to 365 days.")
def retention_is_valid(policy: ReplicationPolicy) -> Iterator[str]:
    """The retention is between one minute and a year."""
    yield from _between("the retention", policy.retention_s, 60, 365 * DAY_S)


@check(
    "BH-POLICY-RETENTION-SHORT", field="retention_s", severity=Severity.WARN, needs=(interval_is_valid,),
    fix="Keep points for longer than the interval at which they are made, or make them more often.",
)  # fmt: skip
def retention_holds_points(policy: ReplicationPolicy) -> Iterator[str]:
    """More than one point fits into the retention."""
    if policy.retention_s < 2 * policy.point_interval_s:
        yield "the retention is shorter than two intervals: there is rarely a second point to go back to"


@check("BH-POLICY-POINTS", field="retention_points", fix="Keep from 2 to 100,000 points.")
def count_is_valid(policy: ReplicationPolicy) -> Iterator[str]:
    """From 2 to 100,000 points are kept."""
    yield from _between("the number of points kept", policy.retention_points, 2, MAX_POINTS, "")


@check("BH-POLICY-TIERS", field="tiers", fix="Order the tiers by age, give each an age above 0 and 0 or more seconds.")
def tiers_ascend(policy: ReplicationPolicy) -> Iterator[str]:
    """The tiers of the retention ascend by age."""
    previous = 0.0
    for tier in policy.tiers:
        if not previous < tier.until_age_s < float("inf") or not 0 <= tier.every_s <= 365 * DAY_S:
            yield f"the tier up to {tier.until_age_s:g} s, one per {tier.every_s:g} s, does not follow {previous:g} s"
        previous = tier.until_age_s


@check(
    "BH-POLICY-TIERS-NESTED", field="tiers", needs=(tiers_ascend,),
    fix="Make the distance of each tier a whole multiple of the one before, at least one second.",
)  # fmt: skip
def tiers_nest(policy: ReplicationPolicy) -> Iterator[str]:
    """Each tier keeps points that the tier before has kept."""
    previous = 0.0
    for tier in policy.tiers:
        coarser = tier.every_s >= previous and (previous == 0 or tier.every_s % previous == 0)
        if not coarser or 0 < tier.every_s < 1:
            yield f"one point per {tier.every_s:g} s cannot follow one per {previous:g} s: points would be missing"
        previous = tier.every_s


@check("BH-POLICY-RPO", field="rpo_threshold_s", fix="Choose a threshold from 1 s to 30 days.")
def threshold_is_valid(policy: ReplicationPolicy) -> Iterator[str]:
    """The RPO threshold is between one second and 30 days."""
    yield from _between("the RPO threshold", policy.rpo_threshold_s, 1, 30 * DAY_S)


@check(
    "BH-POLICY-RPO-INTERVAL", field="rpo_threshold_s", severity=Severity.WARN,
    needs=(threshold_is_valid, interval_is_valid),
    fix="Raise the threshold, or make points more often; the threshold itself changes nothing but the alert.",
)  # fmt: skip
def threshold_can_hold(policy: ReplicationPolicy) -> Iterator[str]:
    """Points are made more often than the RPO threshold."""
    if policy.rpo_threshold_s < policy.point_interval_s:
        yield "points are made less often than the RPO threshold, so its alert would be on all the time"


@check("BH-POLICY-FREEZE", field="freeze_limit_s", fix="Choose a limit from 0.05 s to 10 s; 2 s is the default.")
def freeze_limit_is_valid(policy: ReplicationPolicy) -> Iterator[str]:
    """The limit of freezing lets a point finish and hurts nobody."""
    yield from _between("the freeze limit", policy.freeze_limit_s, 0.05, 10)


@check("BH-POLICY-APP", field="app_interval_s", fix="Choose 0 (never), or from the points' interval up to 12 hours.",
       needs=(interval_is_valid,))  # fmt: skip
def app_interval_is_valid(policy: ReplicationPolicy) -> Iterator[str]:
    """Application-consistent points are off, or not made more often than points."""
    if policy.app_interval_s != 0:
        yield from _between(
            "the interval of application-consistent points", policy.app_interval_s, policy.point_interval_s,
            max(12 * HOUR_S, policy.point_interval_s),
        )  # fmt: skip


@check("BH-POLICY-JOURNAL", field="journal_bytes", fix="Choose 0 (bounded by its volume), or at least 64 MiB.")
def journal_holds_a_batch(policy: ReplicationPolicy) -> Iterator[str]:
    """The bound of the journal leaves room for what is applied at once."""
    if policy.journal_bytes != 0 and policy.journal_bytes < LEAST_JOURNAL:
        yield f"a journal of {policy.journal_bytes} bytes cannot hold the before-images of one batch"


POLICY: Final = Checklist(
    "policy",
    "Saving a replication policy",
    (
        name_is_valid, interval_is_valid, retention_is_valid, retention_holds_points, count_is_valid, tiers_ascend,
        tiers_nest, threshold_is_valid, threshold_can_hold, freeze_limit_is_valid, app_interval_is_valid,
        journal_holds_a_batch,
    ),
)  # fmt: skip


def validate_policy(policy: ReplicationPolicy) -> list[Finding]:
    """All findings on the policy at once, passes included."""
    return POLICY.run(policy)
