"""Definitions and the ledger: what cannot work is refused, what is logged stays."""

from __future__ import annotations

import sqlite3
from pathlib import Path
from typing import Any

import msgspec
import pytest

from backhaul.replication.ports import RealClock
from backhaul.sites.errors import SiteDefinitionWrong
from backhaul.sites.local.daemon import read_definition
from backhaul.sites.local.definition import (
    GroupRecord,
    Mode,
    NetworkDefinition,
    SubnetDefinition,
    SubscriptionDefinition,
    check_definition,
)
from backhaul.sites.local.ledger import Call, Ledger
from sites.site_world import OWNER, definition


def network(prefix: str, subnet: str, name: str = "n") -> dict[str, Any]:
    """A definition's change: one network."""
    return {"networks": (NetworkDefinition(name, "prod", "rg", "here", prefix, (SubnetDefinition("s", subnet),)),)}


@pytest.mark.parametrize(
    "change",
    [
        {"subscriptions": (SubscriptionDefinition("other"),)},
        {"name": "a/b"},
        {"fabric": ""},
        {"mode": Mode.NAMESPACES},
        network("10.0.0.0/24", "10.0.0.0/24"),
        network("127.1.0.0/24", "127.2.0.0/24"),
        network("127.1.0.0/24", "127.1.0.0/29"),
        network("127.1.0.1/24", "127.1.0.0/24"),
        network("x", "y"),
        network("127.1.0.0/24", "127.1.0.0/24", name="x" * 25),
    ],
    ids=lambda change: next(iter(change)),
)
def test_definitions_that_cannot_work(change: dict[str, Any]) -> None:
    check_definition(definition())
    with pytest.raises(SiteDefinitionWrong):
        check_definition(definition(**change))


def test_definition_files(tmp_path: Path) -> None:
    path = tmp_path / "definition.json"
    path.write_bytes(msgspec.json.encode(definition()))
    assert read_definition(path) == definition()
    for wrong in (b"{", b"{}", b'{"name": 5}'):
        path.write_bytes(wrong)
        with pytest.raises(SiteDefinitionWrong):
            read_definition(path)
    with pytest.raises(SiteDefinitionWrong):
        read_definition(tmp_path / "none")


def ledger(folder: Path) -> tuple[Ledger, list[BaseException]]:
    """A ledger whose failures are noted instead of ending the process."""
    failures: list[BaseException] = []
    return Ledger(folder / "ledger.sqlite", RealClock(), failures.append), failures


CALL = Call(OWNER, "op", "token", "digest")


def test_a_transaction_is_all_or_nothing(tmp_path: Path) -> None:
    book, failures = ledger(tmp_path)

    def half() -> None:
        with book.transaction() as tx:
            tx.put(GroupRecord("k", "s", "n", "r"))
            tx.finish(CALL, "r", b"1", effect=True)
            raise RuntimeError

    with pytest.raises(RuntimeError):
        half()
    with book.transaction() as tx:
        assert tx.get(GroupRecord, "k") is None
        assert tx.answer(CALL) is None
        assert tx.effects(0, 10) == []
    assert failures == [], "the caller's error is none of the ledger's"
    book.close()


def test_the_log_of_effects_is_append_only(tmp_path: Path) -> None:
    book, _ = ledger(tmp_path)
    with book.transaction() as tx:
        tx.finish(CALL, "r", b"1", effect=True)
    book.close()
    with sqlite3.connect(tmp_path / "ledger.sqlite") as database:
        for change in ("DELETE FROM effects", "UPDATE effects SET token='x'"):
            with pytest.raises(sqlite3.IntegrityError, match="append only"):
                database.execute(change)
    database.close()


def test_a_failed_commit_ends_the_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    book, failures = ledger(tmp_path)

    def fail() -> None:
        raise sqlite3.OperationalError("disk I/O error")

    monkeypatch.setattr(book, "_commit", fail)
    with pytest.raises(sqlite3.OperationalError), book.transaction() as tx:
        tx.put(GroupRecord("k", "s", "n", "r"))
    assert [str(failure) for failure in failures] == ["disk I/O error"]
    book.close()
