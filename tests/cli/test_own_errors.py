"""Codes that the client and the command line give themselves: each is met once, and each is on the page of codes."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest
import typer
from typer.testing import CliRunner

from backhaul.cli import login, site_add
from backhaul.cli.exit_codes import exit_code
from backhaul.cli.secrets import secret
from backhaul.client.errors import ClientError
from backhaul.client.transport import Transport
from backhaul.client.vault import job_error
from documents.pages import REFERENCE, documented, own_client_errors

SOURCE = Path(__file__).parents[2] / "src" / "backhaul"


def answered(respond: Callable[[httpx.Request], httpx.Response]) -> None:
    """A call whose server answers so."""
    transport = Transport("https://cs.example.com", "")
    transport._http = httpx.Client(transport=httpx.MockTransport(respond), base_url="https://cs.example.com")
    with transport:
        transport.call("GET", "/health")


def refuse(request: httpx.Request) -> httpx.Response:
    raise httpx.ConnectError("connection refused")


def printed(verb: Callable[..., None], *arguments: str) -> None:
    """A run of one verb, whose printed error is raised."""
    alone = typer.Typer()
    alone.command()(verb)
    done = CliRunner().invoke(alone, arguments)
    code, _, rest = done.stderr.partition(": ")
    raise ClientError(code, rest, status=done.exit_code)


def failed(state: str) -> None:
    raise job_error({"properties": {"state": state, "errors": []}})


CASES: dict[str, Callable[[Path], object]] = {
    "BH-UNREACHABLE": lambda _: answered(refuse),
    "BH-HTTP": lambda _: answered(lambda _: httpx.Response(502, text="<html>")),
    "BH-JOB": lambda _: failed("Cancelled"),
    "BH-SECRET-FILE": lambda folder: secret("Password", folder / "none"),
    "BH-CA-FILE": lambda folder: printed(login.run, "--server", "cs.example.com", "--ca", f"{folder}/none"),
    "BH-CERTIFICATE-FILE": lambda folder: printed(
        site_add.run, "home", "--kind", "home", "--address", "h:1", "--certificate-file", f"{folder}/none"
    ),
}


@pytest.mark.parametrize("code", CASES)
def test_each_is_met(code: str, tmp_path: Path) -> None:
    with pytest.raises(ClientError) as met:
        CASES[code](tmp_path)
    assert met.value.code == code
    assert "{" not in met.value.message


def test_codes_of_source_page_and_tests_are_equal_sets() -> None:
    text = "".join(path.read_text() for folder in ("client", "cli") for path in (SOURCE / folder).glob("*.py"))
    in_source = set(re.findall(r'CODE = "(BH-[A-Z-]+)"', text))
    page = (REFERENCE / "codes.md").read_text()
    sections = page.split("\n## ")
    ours = [section for section in sections if section.startswith(("The client", "The command line"))]
    in_page = {code for section in ours for code in re.findall(r"^### (BH-[A-Z-]+)$", section, re.MULTILINE)}
    assert in_source == {error.CODE for error in own_client_errors()} == set(CASES) == in_page


def test_no_code_is_given_that_the_page_does_not_have() -> None:
    known = {code for _, code, _, _ in documented()}
    for path in [*SOURCE.glob("client/*.py"), *SOURCE.glob("cli/*.py"), SOURCE / "__main__.py"]:
        assert set(re.findall(r'"(BH-[A-Z][A-Z-]+)"', path.read_text())) <= known, path


def test_exit_codes_are_those_of_the_kind() -> None:
    with pytest.raises(ClientError) as silent:
        answered(refuse)
    with pytest.raises(ClientError) as ended:
        failed("Cancelled")
    with pytest.raises(ClientError) as other:
        secret("Password", Path("/none"))
    assert [exit_code(error.value) for error in (silent, ended, other)] == [5, 6, 1]
