"""Deployed process servers, for the faces: one method per thing to be done or shown. Blocking."""

from __future__ import annotations

from typing import Any
from urllib.parse import quote

from backhaul.client.profile import Profile
from backhaul.client.transport import Transport

Resource = dict[str, Any]


class Deployments:
    """The deployed process servers of a vault, with a session."""

    def __init__(self, profile: Profile) -> None:
        self._transport = Transport(profile.server, profile.ca_pem, profile.token)
        self._vault = profile.vault
        self._path = f"{profile.vault}/backhaulProcessServerDeployments"

    def __enter__(self) -> Deployments:
        return self

    def __exit__(self, *_: object) -> None:
        self._transport.close()

    def offers(self) -> list[Resource]:
        """Networks with failed-over machines: `name`, `machines`, `healthy`, `form`; those without a server first."""
        rows: list[Resource] = self._transport.call("GET", f"{self._vault}/backhaulProcessServerOffers")["value"]
        return rows

    def validate(self, name: str, form: Resource) -> Resource:
        """`findings` on a form, and the `form` as filled in. `form` in the API's words: network, user, password, ..."""
        found: Resource = self._transport.call("POST", f"{self._one(name)}/validate", form)
        return found

    def deploy(self, name: str, form: Resource) -> str:
        """Begin to deploy; the job's id. The same form again goes on where it stopped."""
        return self._transport.begin("PUT", self._one(name), form)

    def list(self) -> list[Resource]:
        """Every deployed process server."""
        rows: list[Resource] = self._transport.call("GET", self._path)["value"]
        return rows

    def get(self, name: str) -> Resource:
        """One of them: `properties.state` is deploying, deleting, failed, unregistered or registered."""
        shown: Resource = self._transport.call("GET", self._one(name))
        return shown

    def delete_findings(self, name: str) -> Resource:
        """What speaks for and against deleting it."""
        found: Resource = self._transport.call("GET", f"{self._one(name)}/deleteFindings")
        return found

    def delete(self, name: str) -> str:
        """Begin to delete; the job's id."""
        return self._transport.begin("DELETE", self._one(name))

    def switch(self, item: str, process_server: str) -> None:
        """Have an item replicate through another process server, by id or name."""
        path = f"{self._vault}/backhaulItems/{quote(item, safe='')}/processServer"
        self._transport.call("PUT", path, {"processServer": process_server})

    def _one(self, name: str) -> str:
        return f"{self._path}/{quote(name, safe='')}"
