"""The checker is right: it says yes to exactly those images that the definition of the prefix property allows.

Small histories, every image there can be, and the definition executed literally: all sets of writes that are
downward closed under *before* and hold everything acknowledged before the barrier.
"""

from __future__ import annotations

from itertools import product

from hypothesis import given, settings
from hypothesis import strategies as st

from backhaul.demo.oracle import Barrier, History, Incarnation
from backhaul.demo.oracle.acklog import Region
from backhaul.demo.oracle.checker import judge
from backhaul.demo.oracle.stamps import Content, ContentKind

BLOCKS = 3


@st.composite
def incarnations(draw: st.DrawFn) -> Incarnation:
    """Up to 6 writes on three blocks, up to three in flight, some never acknowledged."""
    made = Incarnation(1, 1, 0, machine=bytes(16), regions=[Region(0, 0, BLOCKS)], ready=True)
    flying: list[int] = []
    for position in range(draw(st.integers(1, 12))):
        busy = {made.places[index] for index in flying}
        free = [where for where in range(BLOCKS) if where not in busy]
        if free and len(made.places) < 6 and (not flying or draw(st.booleans())):
            flying.append(len(made.places))
            made.places.append(draw(st.sampled_from(free)))
            made.issued_at.append(position)
            made.acked_at.append(-1)
            made.acked_ns.append(0)
        elif flying:
            index = flying.pop(draw(st.integers(0, len(flying) - 1)))
            made.acked_at[index] = position
            made.acked_ns[index] = position
    return made


def allowed_images(made: Incarnation, barrier_ns: int) -> set[tuple[int, ...]]:
    """Per block the index of the write it holds, -1 for none; from the definition."""
    count = len(made.places)
    before = {(a, b) for a in range(count) for b in range(count) if 0 <= made.acked_at[a] < made.issued_at[b]}
    images = set()
    for chosen in product([False, True], repeat=count):
        closed = all(chosen[a] or not chosen[b] for a, b in before)
        complete = all(chosen[a] for a in range(count) if 0 <= made.acked_at[a] < barrier_ns)
        if closed and complete:
            images.add(
                tuple(
                    max((i for i in range(count) if chosen[i] and made.places[i] == where), default=-1)
                    for where in range(BLOCKS)
                )
            )
    return images


@given(made=incarnations(), barrier_ns=st.integers(0, 12))
@settings(max_examples=150, deadline=None)
def test_it_accepts_exactly_what_the_definition_allows(made: Incarnation, barrier_ns: int) -> None:
    history = History(bytes(16), {1: made})
    allowed = allowed_images(made, barrier_ns)
    choices = [[-1, *(i for i, at in enumerate(made.places) if at == where)] for where in range(BLOCKS)]
    for image in product(*choices):
        contents = {where: Content(ContentKind.STAMP, 1, index + 1) for where, index in enumerate(image) if index >= 0}
        report = judge(history, contents, Barrier.at_ns(barrier_ns))
        assert report.ok == (image in allowed), (image, report.text())
        assert report.ok == (not report.violations)
