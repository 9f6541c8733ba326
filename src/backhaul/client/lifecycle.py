"""Moving items, for the faces: one method per thing to be done or shown. Blocking."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any
from urllib.parse import quote

from backhaul.client.profile import Profile
from backhaul.client.transport import Transport

Resource = dict[str, Any]


class Lifecycle:
    """The moves of a vault's items, with a session."""

    def __init__(self, profile: Profile) -> None:
        self._transport = Transport(profile.server, profile.ca_pem, profile.token)
        self._path = profile.vault

    def __enter__(self) -> Lifecycle:
        return self

    def __exit__(self, *_: object) -> None:
        self._transport.close()

    def begin(self, kind: str, items: Sequence[str], wish: Resource) -> str:
        """Begin a job of one item, or of many; its id. `wish` in the API's words: point, processServer, ... With a
        `network` in it, and no items, the server chooses all items of that virtual network.
        """
        one = len(items) == 1
        below = f"backhaulItems/{_quoted(items[0])}/actions/{kind}" if one else f"backhaulItems/actions/{kind}"
        body = wish if one else wish | {"items": list(items)}
        return self._transport.begin("POST", f"{self._path}/{below}", body)

    def protect(self, item: str, agent: str, policy: str, home: Resource, cloud: Resource) -> str:
        """Begin to protect a machine whose both sides are told; the job's id."""
        body = {"agent": agent, "policy": policy, "home": home, "cloud": cloud}
        return self._transport.begin("PUT", f"{self._path}/backhaulItems/{_quoted(item)}", body)

    def protect_at_sites(self, item: str, wanted: Resource) -> str:
        """Begin to protect a machine whose places follow from its sites; the job's id. `wanted` in the API's words:
        agent, policy, cloudNetwork, and what cannot be found out.
        """
        path = f"{self._path}/backhaulItems/{_quoted(item)}/protection"
        return self._transport.begin("PUT", path, wanted)

    def items_of_network(self, network: str, active_side: str = "") -> list[str]:
        """Names of the items that an action for this virtual network would mean; `active_side` empty: either."""
        below = f"backhaulNetworks/{_quoted(network)}/items"
        rows = self._get(below + (f"?activeSide={_quoted(active_side)}" if active_side else ""))["value"]
        return [str(row["name"]) for row in rows]

    def preflight(self, kind: str, item: str, wish: Resource | None = None) -> Resource:
        """The findings before a job, and what it would lose. `wish` as for `begin`."""
        told = {name: value for name, value in (wish or {}).items() if value not in (None, "", False)}
        query = {name: "true" if value is True else str(value) for name, value in told.items()}
        path = f"{self._path}/backhaulItems/{_quoted(item)}/preflight/{kind}"
        shown: Resource = self._transport.call("GET", path, query=query)
        return shown

    def ending(self, kind: str, item: str) -> Resource:
        """What ending the protection would throw away now, and why it is not possible."""
        return self._get(f"backhaulItems/{_quoted(item)}/ending/{kind}")

    def plan(self, item: str) -> Resource:
        """Where the machine is and would be, and what is possible now."""
        return self._get(f"backhaulItems/{_quoted(item)}/plan")

    def set_plan(self, item: str, home: Resource, cloud: Resource) -> None:
        """Say where the machine is and where it shall run."""
        plan = {"home": home, "cloud": cloud}
        self._transport.call("PUT", f"{self._path}/backhaulItems/{_quoted(item)}/plan", plan)

    def set_agent(self, item: str, side: str, agent: str) -> None:
        """Another agent sends when this side is active."""
        body = {"side": side, "agent": agent}
        self._transport.call("PUT", f"{self._path}/backhaulItems/{_quoted(item)}/agent", body)

    def integrity(self, item: str) -> Resource:
        """The newest integrity report."""
        return self._get(f"backhaulItems/{_quoted(item)}/integrity")

    def children(self, job: str) -> Resource:
        """The jobs of each item of a job of many."""
        return self._get(f"backhaulJobs/{_quoted(job)}/children")

    def sites(self) -> list[Resource]:
        """The sites."""
        rows: list[Resource] = self._get("backhaulSites")["value"]
        return rows

    def set_site(self, name: str, kind: str, address: str, certificate: str, token: str) -> None:
        """Add a site, or say where it answers now."""
        body = {"kind": kind, "address": address, "certificate": certificate, "token": token}
        self._transport.call("PUT", f"{self._path}/backhaulSites/{_quoted(name)}", body)

    def _get(self, below: str) -> Resource:
        shown: Resource = self._transport.call("GET", f"{self._path}/{below}")
        return shown


def _quoted(name: str) -> str:
    return quote(name, safe="")
