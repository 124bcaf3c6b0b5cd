"""A data set of the hub, without the hub: what is streamed becomes documents, and goes on where it was cut off."""

from __future__ import annotations

import sys
import types
from collections.abc import Iterator
from pathlib import Path

import pytest

from epan.data import hub
from epan.data.building import Request, build, read_manifest
from epan.errors import EpanError


class Rows:
    """As a streamed data set; breaks off after so many rows."""

    def __init__(self, count: int, breaks: int | None, skipped: int = 0) -> None:
        self.count, self.breaks, self.skipped = count, breaks, skipped

    def skip(self, count: int) -> Rows:
        return Rows(self.count, self.breaks, count)

    def __iter__(self) -> Iterator[dict[str, object]]:
        for number in range(self.skipped, self.count):
            if number == self.breaks:
                raise ConnectionError("the network is gone")
            yield {"text": f"story {number}\nof the sea", "id": number}


@pytest.fixture
def library(monkeypatch: pytest.MonkeyPatch) -> types.SimpleNamespace:
    """A library ``datasets`` that has one data set, and remembers how it was asked."""
    state = types.SimpleNamespace(breaks=None, asked=[])

    def load_dataset(name: str, subset: str | None, *, split: str, streaming: bool) -> Rows:
        state.asked.append((name, subset, split, streaming))
        if name != "owner/stories":
            raise FileNotFoundError(f"{name} does not exist")
        return Rows(45, state.breaks)

    monkeypatch.setitem(sys.modules, "datasets", types.SimpleNamespace(load_dataset=load_dataset))
    monkeypatch.setattr(hub, "PART", 10)
    return state


def test_a_data_set_becomes_documents(library: types.SimpleNamespace) -> None:
    built = build(Request("hf:owner/stories:small", split="none"))
    assert library.asked == [("owner/stories", "small", "train", True)]
    assert read_manifest(built)["splits"]["train"]["documents"] == 45
    content = (built / "train.bin").read_bytes()[::2]
    assert content.startswith(b"\0story 0\nof the sea\0story 1\n")
    assert content.endswith(b"\0story 44\nof the sea")
    # What is there is not asked for again.
    assert build(Request("hf:owner/stories:small", split="none")) == built
    assert len(library.asked) == 1


def test_what_was_cut_off_goes_on(library: types.SimpleNamespace, cache: Path) -> None:
    library.breaks = 25
    with pytest.raises(EpanError, match=r"the network is gone.*goes on"):
        build(Request("hf:owner/stories", split="none"))
    assert len(list(cache.glob("text/*/part-*.jsonl"))) == 2
    library.breaks = None
    whole = build(Request("hf:owner/stories", split="none"))
    assert read_manifest(whole)["splits"]["train"]["documents"] == 45


def test_only_so_many(library: types.SimpleNamespace) -> None:
    built = build(Request("hf:owner/stories", split="none", limit=13))
    assert read_manifest(built)["splits"]["train"]["documents"] == 13


def test_what_is_not_there(library: types.SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(EpanError, match="cannot be read: owner/none does not exist"):
        build(Request("hf:owner/none"))
    with pytest.raises(EpanError, match=r"no text in the field 'body'.*Allowed: text"):
        build(Request("hf:owner/stories", field="body"))
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(EpanError, match="pip install datasets"):
        build(Request("hf:owner/other"))
