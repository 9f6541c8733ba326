"""Every route with every kind of caller: those it names are let in, all others are refused, before any body is read."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from backhaul.client.errors import ClientError
from backhaul.configuration_server.callers import MEMBERS, READERS, SESSIONS, Who
from backhaul.configuration_server.guarded import ApiRoute
from backhaul.configuration_server.http_front import MAX_BODY
from backhaul.configuration_server.member import Member, MemberFolder, register
from backhaul.configuration_server.route_table import ROUTES
from backhaul.links.dialer import Address
from backhaul.links.passphrase import parse_passphrase
from backhaul.links.tls import Credentials
from backhaul.replication.errors import BackhaulError
from backhaul.replication.ports import RealClock, RealFiles, RealRandomness
from backhaul.replication.values import Role
from configuration_server.live import LiveServer

_STATUS = re.compile(r"HTTP status (\d+)")


@pytest.fixture(scope="module")
def tokens(lone_server: LiveServer) -> dict[Who, str]:
    assert lone_server.profile is not None
    changing = "still to be changed!"
    with lone_server.transport(lone_server.profile.token) as admin:
        admin.call("POST", "/accounts", {"user": "fresh", "role": "admin", "password": changing})
        fresh = admin.call("POST", "/login", {"user": "fresh", "password": changing})["token"]
    return {
        Who.ADMIN: lone_server.profile.token,
        Who.OPERATOR: lone_server.account("operator"),
        Who.READER: lone_server.account("reader"),
        Who.CHANGING: fresh,
    }


@pytest.fixture(scope="module")
def api(lone_server: LiveServer) -> Iterator[httpx.Client]:
    import ssl

    context = ssl.create_default_context(cadata=lone_server.roots)
    with httpx.Client(base_url=lone_server.server, verify=context, trust_env=False) as client:
        yield client


def path_of(server: LiveServer, row: ApiRoute) -> str:
    assert server.profile is not None
    path = re.sub(r"^/subscriptions/.*?/vaults/\{vault\}", server.profile.vault, row.path)
    return re.sub(r"\{\w+\}", "x", path) + ("?api-version=2025-08-01" if path.startswith("/subscriptions") else "")


def label(row: ApiRoute) -> str:
    return f"{row.method} {row.path.replace(ROUTES[-1].path.rpartition('/')[0], '~')}"


REFUSED = (401, 403)


def test_accounts_and_nobody(lone_server: LiveServer, tokens: dict[Who, str], api: httpx.Client) -> None:
    for row in ROUTES:
        for who in (*SESSIONS, Who.ANONYMOUS):
            admitted = who in row.who or Who.ANONYMOUS in row.who
            if admitted and row.method != "GET":
                continue  # they would act; their refusals are what counts here
            headers = {"authorization": f"Bearer {tokens[who]}"} if who in tokens else {}
            # A body that is no JSON: a refused caller's is not parsed.
            got = api.request(row.method, path_of(lone_server, row), headers=headers, content=b"{{{").status_code
            expected_refusal = 401 if who is Who.ANONYMOUS else 403
            assert (got not in REFUSED) if admitted else (got == expected_refusal), (label(row), who, got)


def test_certificates(lone_server: LiveServer, tmp_path: Path) -> None:
    async def walk() -> None:
        passphrase = parse_passphrase(lone_server.vault().passphrase())
        address, clock = Address("127.0.0.1", lone_server.port), RealClock()
        for role in (Role.AGENT, Role.PROCESS_SERVER, Role.MASTER_TARGET):
            _, identity = await register(address, passphrase, role, f"walker-{role}", "walker", clock=clock)
            folder = MemberFolder(tmp_path / role, RealFiles(), RealRandomness(), role)
            member = Member(folder, Credentials(identity, clock), address, clock)
            for row in ROUTES:
                admitted = Who(role) in row.who or Who.ANONYMOUS in row.who
                status = await status_of(member, row.method, path_of(lone_server, row), admitted)
                assert (status not in (0, *REFUSED)) if admitted else (status == 403), (label(row), role, status)
            member.close()

    asyncio.run(walk())


async def status_of(member: Member, method: str, path: str, admitted: bool) -> int:
    try:
        await member.call(method, path, b"" if method == "GET" else b"{{{" if not admitted else b"{}")
    except BackhaulError as error:
        found = _STATUS.search(str(error.params.get("reason", "")))
        return int(found[1]) if found else 0
    return 200


def test_what_no_row_names_is_not_there(lone_server: LiveServer, tokens: dict[Who, str], api: httpx.Client) -> None:
    headers = {"authorization": f"Bearer {tokens[Who.ADMIN]}"}
    for path in ("/docs", "/openapi.json", "/members/other/report", "/", "/static/x"):
        assert api.get(path, headers=headers).status_code == 404
    assert api.put("/login", headers=headers).status_code == 405
    body = api.get("/nothing", headers=headers).json()
    assert body["error"]["code"] == "BH-RESOURCE-UNKNOWN"


def test_no_row_is_made_twice_and_each_names_callers() -> None:
    keys = [(row.method, row.path.lower()) for row in ROUTES]
    assert len(keys) == len(set(keys))
    for row in ROUTES:
        assert row.who <= READERS | SESSIONS | MEMBERS | {Who.ANONYMOUS}
        assert row.who
    with pytest.raises(AssertionError):
        ApiRoute("GET", "/x", frozenset(), lambda: None)


@pytest.mark.parametrize(
    ("query", "code"),
    [
        ("", "BH-API-VERSION-MISSING"),
        ("?api-version=2021-01-01", "BH-API-VERSION-UNSUPPORTED"),
        ("?api-version=2026-01-01", "BH-API-VERSION-UNSUPPORTED"),
        ("?api-version=latest", "BH-API-VERSION-UNSUPPORTED"),
    ],
    ids=["none", "old", "new", "word"],
)
def test_api_versions(
    lone_server: LiveServer, tokens: dict[Who, str], api: httpx.Client, query: str, code: str
) -> None:
    assert lone_server.profile is not None
    headers = {"authorization": f"Bearer {tokens[Who.READER]}"}
    answer = api.get(f"{lone_server.profile.vault}/replicationFabrics{query}", headers=headers)
    assert answer.status_code == 400
    assert answer.json()["error"]["code"] == code


def test_another_vault_is_not_here(lone_server: LiveServer, tokens: dict[Who, str], api: httpx.Client) -> None:
    assert lone_server.profile is not None
    headers = {"authorization": f"Bearer {tokens[Who.READER]}"}
    path = lone_server.profile.vault + "2/replicationFabrics?api-version=2025-08-01"
    assert api.get(path, headers=headers).status_code == 404


def test_bodies_are_bounded_and_bad_ones_named(lone_server: LiveServer, api: httpx.Client) -> None:
    for content, status, code in (
        (b"x" * (MAX_BODY + 1), 413, "BH-BODY-TOO-LARGE"),
        (b"{", 400, "BH-BODY-WRONG"),
        (b'{"user": 1, "password": "x"}', 400, "BH-BODY-WRONG"),
        (b'{"user": "admin", "password": "x", "more": 1}', 400, "BH-BODY-WRONG"),
    ):
        answer = api.post("/login", content=content)
        assert (answer.status_code, answer.json()["error"]["code"]) == (status, code)


def test_filters(lone_server: LiveServer) -> None:
    vault = lone_server.vault()
    events = vault._list("replicationEvents", **{"$filter": "EventCode eq 'vault.created'"})
    assert len(events) == 1
    for wrong in ("EventCode", "Nothing eq 'x'", "EventCode eq 'x' or Severity eq 'y'"):
        with pytest.raises(ClientError, match="BH-FILTER-WRONG"):
            vault._list("replicationEvents", **{"$filter": wrong})
