"""The relay tells only who asked that its opening was refused."""

from __future__ import annotations

from backhaul.process_server.events import Send
from backhaul.replication import messages as m
from process_server.playbook import A, B, T, agent, says, streaming
from process_server.world import ITEM


def test_the_refusal_of_a_copy_does_not_end_the_stream_of_the_rightful_agent() -> None:
    play = streaming()
    play >> agent(B, "a-copy")
    play.skip()
    play >> says(B, m.Attach(ITEM))
    play.skip()
    play >> says(B, m.OpenRequest(ITEM), b"request")
    play.skip()
    play >> says(T, m.OpenRefused(ITEM, "BH-NOT-ACTIVE-MACHINE", {}))
    told = [command.connection for command in play.skip() if isinstance(command, Send)]
    assert told == [B]
    assert A not in told
