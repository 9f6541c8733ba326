"""`backhaul policy create`"""

from __future__ import annotations

from typing import Annotated, Any

import typer

from backhaul.cli.output import AsJson, open_vault, print_json, reporting


@reporting
def run(
    name: Annotated[str, typer.Argument(help="Name of the policy.")],
    point_interval_s: Annotated[float, typer.Option(help="Seconds between recovery points.")] = 60.0,
    retention_s: Annotated[float, typer.Option(help="Seconds for which points are kept.")] = 86400.0,
    retention_points: Annotated[int, typer.Option(help="How many points are kept at most.")] = 2000,
    tier: Annotated[
        list[str] | None,
        typer.Option(
            help="AGE:EVERY in seconds: points up to that age are thinned to one in so many seconds, 0 keeps all. "
            "Repeat it, by rising age.",
            show_default="all for 2 h, hourly for a day, two-hourly for a week, then four-hourly",
        ),
    ] = None,
    journal_bytes: Annotated[
        int,
        typer.Option(
            help="Bytes that the journal of each item may take: it keeps what older points need. 0: all its volume has."
        ),
    ] = 0,
    rpo_threshold_s: Annotated[
        float, typer.Option(help="Age of the newest point (RPO), in seconds, above which there is an alert.")
    ] = 900.0,
    freeze_limit_s: Annotated[
        float, typer.Option(help="Seconds for which writers are held at most, for one point.")
    ] = 2.0,
    app_interval_s: Annotated[
        float,
        typer.Option(help="Seconds between points for which the application is asked to hold its writes; 0: none."),
    ] = 0.0,
    as_json: AsJson = False,
) -> None:
    """Save a replication policy: how often recovery points are made, and how long they are kept.

    Example: backhaul policy create gold --point-interval-s 30 --retention-s 86400
    """
    values: dict[str, Any] = {
        "point_interval_s": point_interval_s,
        "retention_s": retention_s,
        "retention_points": retention_points,
        "journal_bytes": journal_bytes,
        "rpo_threshold_s": rpo_threshold_s,
        "freeze_limit_s": freeze_limit_s,
        "app_interval_s": app_interval_s,
    }
    if tier:
        values["tiers"] = [_tier(text) for text in tier]
    made = open_vault().create_policy(name, values)
    if as_json:
        print_json(made)
    else:
        typer.echo(f"The policy {name} was saved.")


def _tier(text: str) -> dict[str, float]:
    age, _, every = text.partition(":")
    try:
        return {"until_age_s": float(age), "every_s": float(every)}
    except ValueError:
        raise typer.BadParameter(f"{text} is no AGE:EVERY in seconds, such as 7200:0", param_hint="--tier") from None
