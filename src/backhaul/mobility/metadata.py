"""Which machine this is, and what its site tells it, as hypervisor, cloud or site report it: not as the disk says.

Invariant: sources that contradict each other are an error; a source that is not there says nothing. Ids that are
UUIDs are compared as such, and both byte orders of the first three fields are one id: firmware tables hold them
little-endian, and hypervisors disagree on which form they show. Blocking; called from worker threads.
"""

from __future__ import annotations

import re
import urllib.error
import urllib.request
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Protocol

import msgspec

from backhaul.mobility.errors import MachineIdContradiction, MachineIdUnknown, MetadataUnreadable

DMI_PRODUCT_UUID: Final = Path("/sys/class/dmi/id/product_uuid")

AZURE_METADATA: Final = "http://169.254.169.254"
"""Link-local and the same in every virtual network, as Microsoft documents it."""

AZURE_QUERY: Final = "/metadata/instance?api-version=2021-02-01"

MAX_METADATA_BYTES: Final = 1024 * 1024
"""Azure's answer has some 5 KiB; tags are at most 50 of 768 characters."""

_ID: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
_PLACEHOLDERS: Final = {uuid.UUID(int=0), uuid.UUID(int=2**128 - 1), uuid.UUID("03000200-0400-0500-0006-000700080009")}
"""What boards report whose vendor set nothing."""


@dataclass(frozen=True)
class MachineId:
    """A machine's id, UUIDs in lower case, and the name of the source that said so first."""

    id: str
    source: str


@dataclass(frozen=True)
class Metadata:
    """What a source knows. `machine_id`: "" if not that; `tags`: names of the process servers and the like."""

    machine_id: str
    tags: dict[str, str]


class MetadataSource(Protocol):
    """A place that knows something of this machine."""

    @property
    def name(self) -> str: ...

    def read(self) -> Metadata | None:
        """None where this machine has no such source. Raises MetadataUnreadable if it has one that makes no sense."""
        ...


class HypervisorUuid:
    """The UUID that firmware hands over from the hypervisor (or the board), readable by root."""

    name = "hypervisor"

    def __init__(self, path: Path = DMI_PRODUCT_UUID) -> None:
        self._path = path

    def read(self) -> Metadata | None:
        """None without such a table, without the right to read it, or if it holds a placeholder."""
        try:
            text = self._path.read_text("ascii", "replace").strip()
        except (FileNotFoundError, PermissionError):
            return None
        except OSError as error:
            raise MetadataUnreadable(source=self._path, reason=error.strerror) from error
        found = _uuid(text)
        if found in _PLACEHOLDERS:
            return None
        if found is None:
            raise MetadataUnreadable(source=self._path, reason=f"{text[:40]!r} is no UUID")
        return Metadata(str(found), {})


AZURE_CHASSIS: Final = "7783-7084-3265-9085-8269-3286-77"
"""Chassis asset tag of every virtual machine in Azure; provisioning agents tell by it whether they are there."""


def in_azure(chassis: Path = Path("/sys/class/dmi/id/chassis_asset_tag")) -> bool:
    """Whether this machine runs in Azure. Elsewhere somebody else may answer at the metadata address, or nobody."""
    try:
        return chassis.read_text("ascii").strip() == AZURE_CHASSIS
    except (OSError, UnicodeDecodeError):
        return False


class AzureMetadata:
    """Azure's instance metadata service, or a site that answers as it does."""

    name = "azure"

    def __init__(self, address: str = AZURE_METADATA, limit_s: float = 2.0) -> None:
        """`address`: scheme, host and port. `limit_s`: outside of Azure nobody answers, and that is waited for."""
        self._address = address
        self._limit_s = limit_s

    def read(self) -> Metadata | None:
        """None where nobody answers at the address."""
        request = urllib.request.Request(self._address + AZURE_QUERY, headers={"Metadata": "true"})  # noqa: S310
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # it must never be asked through a proxy
        try:
            with opener.open(request, timeout=self._limit_s) as answer:
                content = answer.read(MAX_METADATA_BYTES)
        except urllib.error.HTTPError as error:
            with error:
                raise MetadataUnreadable(source=self._address, reason=f"status {error.code}") from error
        except OSError:
            return None  # no route, refused, or no answer in time: not in Azure
        compute = _decode(content, self._address).get("compute")
        if not isinstance(compute, dict):
            raise MetadataUnreadable(source=self._address, reason="it has no part `compute`")
        tags = {str(tag.get("name")): str(tag.get("value")) for tag in compute.get("tagsList") or []}
        return Metadata(_checked(str(compute.get("vmId", "")), self._address), tags)


class MetadataFile:
    """The file of the `local` site: JSON with `machine_id` (text) and `tags` (an object of texts)."""

    name = "file"

    def __init__(self, path: Path) -> None:
        self._path = path

    def read(self) -> Metadata | None:
        """None where there is no file."""
        try:
            with self._path.open("rb") as file:
                content = file.read(MAX_METADATA_BYTES)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise MetadataUnreadable(source=self._path, reason=error.strerror) from error
        fields = _decode(content, self._path)
        tags = fields.get("tags") or {}
        if not isinstance(tags, dict):
            raise MetadataUnreadable(source=self._path, reason="`tags` is no object")
        machine_id = str(fields.get("machine_id", ""))
        return Metadata(_checked(machine_id, self._path), {name: str(value) for name, value in tags.items()})


def read_machine_id(sources: Sequence[MetadataSource]) -> MachineId:
    """The id on which all sources that know one agree, in the form of the first.

    Raises MachineIdUnknown, MachineIdContradiction, MetadataUnreadable.
    """
    claims = [
        MachineId(known.machine_id, source.name)
        for source in sources
        if (known := source.read()) is not None and known.machine_id
    ]
    if not claims:
        raise MachineIdUnknown(sources=", ".join(source.name for source in sources) or "none")
    first = claims[0]
    if any(not same_machine(first.id, claim.id) for claim in claims):
        raise MachineIdContradiction(claims=", ".join(f"{claim.source} says {claim.id}" for claim in claims))
    return first


def read_tags(sources: Sequence[MetadataSource]) -> dict[str, str]:
    """The tags of all sources; for a name that several have, the first source's. Raises MetadataUnreadable."""
    tags: dict[str, str] = {}
    for source in sources:
        known = source.read()
        for name, value in known.tags.items() if known is not None else ():
            tags.setdefault(name, value)
    return tags


def same_machine(one: str, other: str) -> bool:
    """Whether two ids name one machine; see the module's invariant on byte order."""
    a, b = _uuid(one), _uuid(other)
    if a is None or b is None:
        return one == other
    return a == b or a.bytes == b.bytes_le


def _uuid(text: str) -> uuid.UUID | None:
    try:
        return uuid.UUID(text)
    except ValueError:
        return None


def _checked(machine_id: str, source: object) -> str:
    if not machine_id:
        return ""
    if not _ID.fullmatch(machine_id):
        raise MetadataUnreadable(source=source, reason=f"{machine_id[:40]!r} is no machine id")
    found = _uuid(machine_id)
    return machine_id if found is None else str(found)


def _decode(content: bytes, source: object) -> dict[str, Any]:
    try:
        return msgspec.json.decode(content, type=dict[str, Any])
    except msgspec.DecodeError as error:
        raise MetadataUnreadable(source=source, reason=f"no JSON object: {error}") from error
