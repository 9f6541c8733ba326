"""Which machine this is, from what its hypervisor, cloud and site say."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from backhaul.mobility.errors import MachineIdContradiction, MachineIdUnknown, MetadataUnreadable
from backhaul.mobility.metadata import (
    AZURE_CHASSIS,
    AzureMetadata,
    HypervisorUuid,
    MachineId,
    MetadataFile,
    in_azure,
    read_machine_id,
    read_tags,
)

UUID = "11223344-5566-7788-99aa-bbccddeeff00"
SWAPPED = "44332211-6655-8877-99aa-bbccddeeff00"


def _dmi(folder: Path, text: str) -> HypervisorUuid:
    (folder / "product_uuid").write_text(text)
    return HypervisorUuid(folder / "product_uuid")


def _file(folder: Path, content: object) -> MetadataFile:
    (folder / "metadata.json").write_text(content if isinstance(content, str) else json.dumps(content))
    return MetadataFile(folder / "metadata.json")


class Service(HTTPServer):
    """Answers as Azure's metadata service does: only with its header, only at its path."""

    status = 200
    body = json.dumps({"compute": {"vmId": UUID.upper(), "tagsList": [{"name": "ps", "value": "10.0.0.4"}]}})


class _Handler(BaseHTTPRequestHandler):
    server: Service

    def do_GET(self) -> None:
        asked_rightly = self.headers.get("Metadata") == "true" and self.path.startswith(
            "/metadata/instance?api-version="
        )
        self.send_response(self.server.status if asked_rightly else 400)
        self.end_headers()
        self.wfile.write(self.server.body.encode())

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        """Quiet."""


@pytest.fixture
def service() -> Iterator[Service]:
    with Service(("127.0.0.1", 0), _Handler) as found:
        thread = threading.Thread(target=found.serve_forever, args=(0.01,))
        thread.start()
        yield found
        found.shutdown()
        thread.join()


def _azure(service: Service) -> AzureMetadata:
    return AzureMetadata(f"http://127.0.0.1:{service.server_address[1]}", 20.0)


def test_the_hypervisors_uuid(tmp_path: Path) -> None:
    assert read_machine_id([_dmi(tmp_path, UUID.upper() + "\n")]) == MachineId(UUID, "hypervisor")


@pytest.mark.parametrize("text", ["0" * 32, "F" * 32, "03000200-0400-0500-0006-000700080009"])
def test_placeholders_of_boards_are_nobodys_id(tmp_path: Path, text: str) -> None:
    with pytest.raises(MachineIdUnknown, match="hypervisor"):
        read_machine_id([_dmi(tmp_path, text)])


def test_a_uuid_that_is_none(tmp_path: Path) -> None:
    with pytest.raises(MetadataUnreadable, match="no UUID"):
        read_machine_id([_dmi(tmp_path, "Not Specified")])


def test_azure(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
    assert read_machine_id([_azure(service)]) == MachineId(UUID, "azure")
    assert read_tags([_azure(service)]) == {"ps": "10.0.0.4"}


@pytest.mark.parametrize(("status", "body"), [(500, "{}"), (200, "<html>"), (200, "{}"), (200, '{"compute": 3}')])
def test_azure_that_makes_no_sense(service: Service, status: int, body: str) -> None:
    service.status, service.body = status, body
    with pytest.raises(MetadataUnreadable):
        read_machine_id([_azure(service)])


def test_nobody_answers_outside_of_azure(tmp_path: Path) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))  # bound but not listening: refused
        azure = AzureMetadata(f"http://127.0.0.1:{closed.getsockname()[1]}", 20.0)
        assert azure.read() is None
        assert read_machine_id([azure, _dmi(tmp_path, UUID)]).source == "hypervisor"


def test_the_local_sites_file(tmp_path: Path) -> None:
    source = _file(tmp_path, {"machine_id": "web-1", "tags": {"ps": "127.1.0.4", "port": 9443}})
    assert read_machine_id([source]) == MachineId("web-1", "file")
    assert read_tags([source]) == {"ps": "127.1.0.4", "port": "9443"}


@pytest.mark.parametrize("content", ["", "[]", "{", '{"tags": 3}', '{"machine_id": "../x y"}'])
def test_a_file_that_makes_no_sense(tmp_path: Path, content: str) -> None:
    with pytest.raises(MetadataUnreadable, match=r"metadata\.json"):
        read_machine_id([_file(tmp_path, content)])


def test_a_file_without_an_id_says_nothing_of_it(tmp_path: Path) -> None:
    assert read_machine_id([_file(tmp_path, {"tags": {}}), _dmi(tmp_path, UUID)]).source == "hypervisor"


def test_no_source_knows(tmp_path: Path) -> None:
    with pytest.raises(MachineIdUnknown, match="hypervisor, file"):
        read_machine_id([HypervisorUuid(tmp_path / "none"), MetadataFile(tmp_path / "none")])
    with pytest.raises(MachineIdUnknown):
        read_machine_id([])


def test_sources_that_contradict_each_other(tmp_path: Path, service: Service) -> None:
    other = UUID.replace("1122", "2211")
    with pytest.raises(MachineIdContradiction, match=f"azure says {UUID}, hypervisor says {other}"):
        read_machine_id([_azure(service), _dmi(tmp_path, other)])


def test_both_byte_orders_are_one_machine_and_the_first_form_counts(tmp_path: Path, service: Service) -> None:
    assert read_machine_id([_azure(service), _dmi(tmp_path, SWAPPED)]).id == UUID
    assert read_machine_id([_dmi(tmp_path, SWAPPED), _azure(service)]).id == SWAPPED


def test_the_first_source_of_a_tag_counts(tmp_path: Path, service: Service) -> None:
    file = _file(tmp_path, {"tags": {"ps": "127.1.0.9", "site": "home"}})
    assert read_tags([file, _azure(service)]) == {"ps": "127.1.0.9", "site": "home"}


def test_azure_is_known_by_its_chassis_and_nothing_is_asked_elsewhere(tmp_path: Path) -> None:
    chassis = tmp_path / "chassis_asset_tag"
    assert not in_azure(chassis)
    chassis.write_text("No Asset Tag\n")
    assert not in_azure(chassis)
    chassis.write_text(AZURE_CHASSIS + "\n")
    assert in_azure(chassis)
