"""Which files are the text, who is held out, and that pieces are the whole text, each byte once."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from prose import prose

from epan.data.sources import Plan, documents, find_files, make_plan
from epan.data.splitting import Rule
from epan.errors import EpanError


def passages(plan: Plan) -> list[tuple[str, str, bool]]:
    """(split, text, whether a document begins) of all pieces."""
    return [
        (passage.split, passage.text, passage.begins)
        for shard in plan.shards
        for piece in shard
        for passage in documents(plan, piece)
    ]


def test_a_folder_a_glob_and_a_file(tmp_path: Path) -> None:
    for name in ("b.txt", "sub/a.txt", "c.md", ".hidden/x.txt", "picture.png"):
        path = tmp_path / "in" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("x")
    assert [name for _, name in find_files(str(tmp_path / "in"))] == ["b.txt", "c.md", "sub/a.txt"]
    assert [name for _, name in find_files(str(tmp_path / "in" / "**" / "*.txt"))] == ["b.txt", "sub/a.txt"]
    assert [name for _, name in find_files(str(tmp_path / "in" / "picture.png"))] == ["picture.png"]


@pytest.mark.parametrize(
    ("where", "message"),
    [("nowhere", "There is no such text"), ("empty", "has no text"), ("*.txt", "There is no such text")],
)
def test_no_text(tmp_path: Path, where: str, message: str) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(EpanError, match=message):
        find_files(str(tmp_path / where))


def test_one_novel_in_ten_is_held_out() -> None:
    """96 novels: the last of each tenth by name, in turn for validation and test."""
    rule = Rule.choose("every:10", 96)
    held = {number: split for number in range(96) if (split := rule.split_of(number, "")) != "train"}
    assert list(held) == [9, 19, 28, 38, 47, 57, 67, 76, 86, 95]
    assert list(held.values()) == ["validation", "test"] * 5


def test_every_document_in_ten_of_many() -> None:
    rule = Rule.choose("every:10", 1000)
    held = [number for number in range(1000) if rule.split_of(number, "") != "train"]
    assert held == list(range(9, 1000, 10))


def test_equal_documents_stay_together_by_hash() -> None:
    import hashlib

    rule = Rule.choose("hash", 4000)
    found = [rule.split_of(number, hashlib.sha256(str(number).encode()).hexdigest()) for number in range(4000)]
    # A twentieth each; the standard deviation of 200 is 14.
    assert all(150 < found.count(split) < 250 for split in ("validation", "test"))
    assert rule.split_of(5, "00" * 32) == rule.split_of(77, "00" * 32) == "test"


@pytest.mark.parametrize("split", ["often", "every:1", "every:", "every:x"])
def test_an_unknown_way_to_split(split: str) -> None:
    with pytest.raises(EpanError, match="Unknown way to split"):
        Rule.choose(split, 100)


def test_pieces_are_the_whole_text(books: Callable[..., Path], small_shards: int) -> None:
    folder = books(12, 400)
    plan = make_plan(find_files(str(folder)))
    assert len(plan.shards) > 12
    found = passages(plan)
    whole = "".join(path.read_bytes().decode() for path in sorted(folder.iterdir()))
    assert "".join(text for _, text, _ in found) == whole
    assert sum(begins for _, _, begins in found) == 12
    # No word is cut.
    assert all(
        text[0].isspace() and not before[-1].isspace()
        for (_, before, _), (_, text, begins) in zip(found, found[1:], strict=False)
        if not begins
    )


def test_few_documents_lose_their_ends(tmp_path: Path) -> None:
    text = prose(0, 3000)
    (tmp_path / "one.txt").write_text(text, "utf-8", newline="")
    plan = make_plan(find_files(str(tmp_path / "one.txt")))
    found = passages(plan)
    assert [split for split, _, _ in found] == ["train", "validation", "test"]
    assert "".join(part for _, part, _ in found) == text
    sizes = [len(part.encode()) / len(text.encode()) for _, part, _ in found]
    assert sizes == pytest.approx([0.9, 0.05, 0.05], abs=0.01)


def test_names_globs_and_other_files_are_held_out(books: Callable[..., Path], tmp_path: Path) -> None:
    folder = books(5)
    (tmp_path / "else.txt").write_text("somewhere else")
    chosen = {"validation": ["book0[12].txt"], "test": [str(tmp_path / "else.txt"), "book04.txt"]}
    plan = make_plan(find_files(str(folder)), held_out=chosen)
    splits = {plan.files[piece.file].name: piece.split for shard in plan.shards for piece in shard}
    assert splits == {
        "book00.txt": "train", "book01.txt": "validation", "book02.txt": "validation", "book03.txt": "train",
        "book04.txt": "test", "else.txt": "test",
    }  # fmt: skip
    with pytest.raises(EpanError, match="neither a name in the text nor a path"):
        make_plan(find_files(str(folder)), held_out={"test": ["bok01.txt"]})
    with pytest.raises(EpanError, match="held out twice"):
        make_plan(find_files(str(folder)), held_out={"test": ["book01.txt"], "validation": ["*1.txt"]})


def test_json_lines_are_a_document_each(tmp_path: Path, small_shards: int) -> None:
    texts = [prose(number, 30) for number in range(200)]
    lines = [json.dumps({"id": number, "body": text}) for number, text in enumerate(texts)]
    lines[7:7] = ["", "   "]
    (tmp_path / "all.jsonl").write_text("\n".join(lines), "utf-8")
    plan = make_plan(find_files(str(tmp_path / "all.jsonl")), split="every:10", field="body")
    assert len(plan.shards) > 5
    found = passages(plan)
    assert [text for _, text, _ in found] == texts
    assert all(begins for _, _, begins in found)
    # Who is held out does not depend on how the file was divided.
    assert [number for number, (split, _, _) in enumerate(found) if split != "train"] == list(range(9, 200, 10))


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"text": 3}', r"no text in the field 'text'.*offset 14"),
        ('{"text": "broken', "is no JSON"),
        ("[1, 2]", "no text in the field"),
        ('{"body": "x"}', "Allowed: body"),
    ],
)
def test_a_line_without_text(tmp_path: Path, line: str, message: str) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "a"}\n' + line + "\n" + '{"text": "c"}\n' * 8)
    plan = make_plan(find_files(str(tmp_path / "a.jsonl")))
    with pytest.raises(EpanError, match=message):
        passages(plan)


def test_damaged_bytes_are_named(tmp_path: Path, small_shards: int) -> None:
    content = bytearray(prose(0, 2000).encode())
    place = content.index(b" the ", 5000) + 1
    content[place] = 0xFF
    path = tmp_path / "damaged.txt"
    path.write_bytes(content)
    with pytest.raises(EpanError, match=rf"byte 0xff at offset {place:,} of {path}"):
        passages(make_plan(find_files(str(path))))
    replaced = "".join(text for _, text, _ in passages(make_plan(find_files(str(path)), errors="replace")))
    assert replaced.count("\ufffd") == 1


def test_an_empty_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("text")
    (tmp_path / "b.txt").write_text(" \n")
    with pytest.raises(EpanError, match=r"empty.*b\.txt"):
        make_plan(find_files(str(tmp_path)))


def test_ends_of_lines_and_the_mark_of_an_encoding(tmp_path: Path) -> None:
    (tmp_path / "dos.txt").write_bytes(b"\xef\xbb\xbfone\r\ntwo\r\n")
    found = passages(make_plan(find_files(str(tmp_path)), split="none"))
    assert found == [("train", "one\ntwo\n", True)]


def test_a_plan_survives_its_file(books: Callable[..., Path]) -> None:
    plan = make_plan(find_files(str(books())))
    again = Plan.from_dict(json.loads(json.dumps(plan.to_dict())))
    assert again == plan
    assert again.identity() == plan.identity()
