"""A kill before and after each effect of each step of each job leaves exactly one effect of each."""

from __future__ import annotations

import msgspec
import pytest

from backhaul.configuration_server.lifecycle import workflows as w
from backhaul.configuration_server.lifecycle.values import Ids, Wish
from backhaul.configuration_server.lifecycle.workflows import WORKFLOWS
from lifecycle.fake_world import ITEM, Killed, World
from lifecycle.stations import JOBS, Build


def whole(build: Build, kind: str, wish: Wish) -> tuple[World, int]:
    """The world after the undisturbed job, and how many effects there were before it."""
    world = build()
    before = len(world.effects)
    world.run(kind, "job-x", wish=wish)
    return world, before


@pytest.mark.parametrize("name", JOBS)
def test_a_kill_anywhere_leaves_one_effect_of_each(name: str) -> None:
    build, kind, wish = JOBS[name]
    reference, before = whole(build, kind, wish)
    assert len(reference.effects) > before, "a job without effects proves nothing"
    for number in range(before + 1, len(reference.effects) + 1):
        for when in ("before", "after"):
            world = build()
            world.kill_at = (number, when)
            journal: set[str] = set()
            with pytest.raises(Killed):
                world.run(kind, "job-x", journal, wish)
            world.run(kind, "job-x", journal)
            where = f"{when} effect {number}, {reference.effects[number - 1]}"
            assert world.effects == reference.effects, where
            assert world.snapshot() == reference.snapshot(), where


@pytest.mark.parametrize("name", [name for name in JOBS if JOBS[name][1] != w.PROTECT])
def test_a_job_that_failed_anywhere_is_finished_by_the_next_one(name: str) -> None:
    """As after an outage that was longer than a job is tried for: nothing is stuck. (A failed protection is ended.)"""
    build, kind, wish = JOBS[name]
    reference, before = whole(build, kind, wish)
    for number in range(before + 1, len(reference.effects) + 1):
        for when in ("before", "after"):
            world = build()
            world.kill_at = (number, when)
            with pytest.raises(Killed):
                world.run(kind, "job-x", set(), wish)
            if world.now() is reference.now():
                continue  # it had moved the item; the same again would be another move
            where = f"{when} effect {number}, {reference.effects[number - 1]}"
            world.run(kind, "job-y", set(), wish)
            assert world.now() is reference.now(), where
            assert world.running() == reference.running(), where


@pytest.mark.parametrize("name", JOBS)
def test_a_step_whose_end_was_not_noted_changes_nothing_more(name: str) -> None:
    build, kind, wish = JOBS[name]
    reference, _ = whole(build, kind, wish)
    world = build()
    world.stored = msgspec.structs.replace(world.stored, wish=wish)
    for step in WORKFLOWS[kind]:
        for _ in range(2):
            step.run(world.ports, Ids("job-x", ITEM))
    assert world.effects == reference.effects
    assert world.snapshot() == reference.snapshot()


def test_every_kind_of_job_is_in_the_matrix() -> None:
    assert {kind for _, kind, _ in JOBS.values()} == set(WORKFLOWS)


def test_step_names_are_unique_and_tokens_short() -> None:
    for steps in WORKFLOWS.values():
        assert len({step.name for step in steps}) == len(steps)
        assert all(len(step.name) < 20 for step in steps)
