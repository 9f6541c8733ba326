"""What the operator reads off a server's console."""

from __future__ import annotations

from backhaul.demo.operator import one_time_password

START = "The vault was made. Log in as admin with this one-time password; it is not shown again:\n  {}\n"
SERVING = "Serving on port 443. Roots for clients: server/ca.pem\n"


def test_of_a_server_that_was_killed_in_its_first_start_the_newest_password_holds() -> None:
    assert one_time_password("") is None
    assert one_time_password(SERVING) is None
    assert one_time_password(START.format("first-one") + SERVING) == "first-one"
    assert one_time_password(START.format("first-one") + START.format("second-one") + SERVING + SERVING) == "second-one"
