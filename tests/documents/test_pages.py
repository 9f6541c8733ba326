"""The rendered reference pages say what the source says."""

from __future__ import annotations

from pathlib import Path

import pytest

from documents.pages import documented, pages


@pytest.mark.parametrize(("path", "content"), [pytest.param(*page, id=page[0].name) for page in pages()])
def test_the_page_is_what_the_source_says(path: Path, content: str) -> None:
    assert path.read_text() == content, "run scripts/render"


def test_a_code_names_one_error_and_every_error_says_what_to_do() -> None:
    codes = [code for _, code, _, _ in documented()]
    assert len(codes) == len(set(codes)), sorted(code for code in codes if codes.count(code) > 1)
    for _, code, message, fix in documented():
        assert code.startswith("BH-")
        assert message
        assert fix
