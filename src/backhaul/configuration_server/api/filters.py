"""`$filter`: `Field eq 'value'` joined by `and`, as Site Recovery's clients send it."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Final, TypeVar

from backhaul.configuration_server.errors import FilterWrong

T = TypeVar("T")
MAX_FILTER: Final = 1000
_TERM: Final = re.compile(r"\s*(\w+)\s+eq\s+'?([^']*?)'?\s*", re.IGNORECASE)


def filtered(rows: Iterable[T], wanted: str, fields: Mapping[str, Callable[[T], Any]]) -> Sequence[T]:
    """The rows that the filter lets through; field names in any case. Raises FilterWrong."""
    if len(wanted) > MAX_FILTER:
        raise FilterWrong(filter=wanted[:100], reason="it is too long")
    known = {name.lower(): read for name, read in fields.items()}
    for term in re.split(r"\band\b", wanted, flags=re.IGNORECASE) if wanted.strip() else ():
        match = _TERM.fullmatch(term)
        if match is None:
            raise FilterWrong(filter=wanted[:200], reason=f"{term.strip()!r} is no comparison")
        read = known.get(match[1].lower())
        if read is None:
            raise FilterWrong(filter=wanted[:200], reason=f"{match[1]} is none of {', '.join(fields)}")
        rows = [row for row in rows if str(read(row)).lower() == match[2].lower()]
    return list(rows)
