"""One list of names as editors, spreadsheets and programs write it."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from typing import TYPE_CHECKING

import pytest

from deploykit.core.errors import DataError
from deploykit.images import read_class_names
from deploykit.images.label_files import (
    read_class_names_with_note,
    read_folder_names,
    read_text,
)

if TYPE_CHECKING:
    from pathlib import Path

NAMES = ("red", "Grün", "bleu clair")


@pytest.mark.parametrize("newline", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("last", ["", "END", "END END"])
@pytest.mark.parametrize(
    "encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32", "utf-16-le+mark", "utf-16-be+mark"]
)
def test_one_name_per_line(tmp_path: Path, newline: str, last: str, encoding: str) -> None:
    text = newline.join(NAMES) + newline * last.count("END")
    codec, _, mark = encoding.partition("+")
    (tmp_path / "names.txt").write_bytes((f"\ufeff{text}" if mark else text).encode(codec))
    assert read_class_names(tmp_path / "names.txt") == NAMES


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("l.json", json.dumps({str(index): name for index, name in enumerate(NAMES)})),
        ("l.json", json.dumps(dict(reversed([(n, i) for i, n in enumerate(NAMES)])))),
        ("l.json", json.dumps(NAMES, ensure_ascii=False)),
        ("l.json", json.dumps({str(i): [f"n0000000{i}", name] for i, name in enumerate(NAMES)})),
        ("config.json", json.dumps({"x": 1, "id2label": {"2": NAMES[2], "0": "red", "1": "Grün"}})),
        ("map.csv", "0,red\n1,Grün\n2,bleu clair\n"),
        ("map.csv", "2,bleu clair\n0,red\n1,Grün\n"),
        ("map.csv", 'index,name\n1,"Grün"\n0,red\n2,bleu clair'),
        ("map.csv", "name;id\nred;0\nbleu clair;2\nGrün;1\n"),
        ("map.csv", '"red"\nGrün\n"bleu clair"\n'),
        ("map.tsv", "0\tred\n1\tGrün\n2\tbleu clair\n"),
        ("map.txt", "0,red\n1,Grün\n2,bleu clair\n"),
        ("map.txt", "1; Grün\n0; red\n2; bleu clair\n"),
        ("map.txt", " red\t\nGrün \n\tbleu clair\n\n\n"),
        ("map.txt", "0: red\n1: Grün\n2: bleu clair\n"),
        ("map.txt", "2:bleu clair\n0:red\n1:Grün\n"),
        ("map.txt", "0 red\n1 Grün\n2 bleu clair\n"),
        ("map.txt", "0. red\n1. Grün\n2. bleu clair\n"),
        ("map.txt", "0 - red\n1 - Grün\n2 - bleu clair\n"),
        ("map.txt", "{0: 'red', 1: 'Grün', 2: 'bleu clair'}"),
        ("map.txt", "{0: 'red',\n 2: \"bleu clair\",\n\n 1: 'Grün',}\n"),
        ("map.txt", "{'red': 0, 'Grün': 1, 'bleu clair': 2}"),
    ],
)
def test_names_with_their_numbers(tmp_path: Path, name: str, text: str) -> None:
    (tmp_path / name).write_text(text, encoding="utf-8")
    assert read_class_names(tmp_path / name) == NAMES


@pytest.mark.parametrize(
    ("name", "text", "names"),
    [
        ("l.txt", "tench, Tinca tinca\ngoldfish, carp\n", ("tench, Tinca tinca", "goldfish, carp")),
        ("l.csv", "tench, Tinca tinca\ngoldfish, carp\n", ("tench, Tinca tinca", "goldfish, carp")),
        ("l.csv", "a,b,c\nd\n", ("a,b,c", "d")),
        ("l.txt", "bird\u2028of prey\nlast\x85\n\n", ("bird\u2028of prey", "last\x85")),
        ("l.txt", "10\n2\n1\n", ("10", "2", "1")),
        ("l.txt", "2,4-D\n1,2-dichloroethane\n7,8-x\n", ("2,4-D", "1,2-dichloroethane", "7,8-x")),
        ("l.txt", "", ()),
        ("l.txt", "1 star\n2 stars\n3 stars\n", ("1 star", "2 stars", "3 stars")),
        ("l.txt", "0 red\ngreen\n", ("0 red", "green")),
        ("l.txt", "0 red\n2 green\n", ("0 red", "2 green")),
        ("l.txt", "0 red\n0 green\n", ("0 red", "0 green")),
        ("l.txt", "7 up", ("7 up",)),
        ("l.txt", "0 red", ("0 red",)),
        ("l.txt", "2,4-D", ("2,4-D",)),
        ("l.txt", "{odd}", ("{odd}",)),
        ("l.txt", "{1, 2}", ("{1, 2}",)),
        ("l.txt", "{0: 1.5}", ("{0: 1.5}",)),
        ("l.txt", "{(0, 1): 'a'}", ("{(0, 1): 'a'}",)),
    ],
)
def test_names_that_only_look_numbered(
    tmp_path: Path, name: str, text: str, names: tuple[str, ...]
) -> None:
    (tmp_path / name).write_text(text, encoding="utf-8", newline="")
    assert read_class_names(tmp_path / name) == names


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        (
            "latin1.txt",
            "red\nGrün".encode("latin-1"),
            (
                r"line 2 is not UTF-8 \(byte 0xfc\)\nexpected UTF-8 .*: one class name per "
                r"line\nconvert it: iconv -f cp1252 -t utf-8 latin1\.txt > NEW; line 2 is 'Grün' "
                r"in cp1252"
            ),
        ),
        ("cp.txt", b"caf\x82\n", r"line 1 is not UTF-8 \(byte 0x82\)"),
        ("no.txt", b"\xff\x01\x81\n", r"iconv -f ENCODING -t utf-8 no\.txt > NEW$"),
        ("one.txt", b"1: red\n2: green\n", "numbers 2 classes from 1 to 2\nexpected each"),
        ("gap.txt", b"{0: 'red', 2: 'green'}", "numbers 2 classes from 0 to 2"),
        ("empty.txt", b"{0: 'red', 1: ' '}", "the name of class 1 is empty"),
        ("le.txt", "red\ngreen".encode("utf-16-le"), "NUL characters; is it utf-16le.*\nexpected"),
        ("cut.txt", "red".encode("utf-16")[:-1], "it is cut off, or not UTF-16 as its first bytes"),
        (
            "one.csv",
            b"1,red\n2,green\n",
            "numbers 2 classes from 1 to 2\nexpected each number of 0",
        ),
        (
            "one.txt",
            b"1,red\n2,green\n",
            "numbers 2 classes from 1 to 2\nexpected each number of 0",
        ),
        ("gap.csv", b"0,red\n2,green\n", "numbers 2 classes from 0 to 2"),
        ("gap.json", b'{"0": "red", "3": "green"}', "numbers 2 classes from 0 to 3"),
        ("twice.json", b'{"red": 0, "green": 0}', "numbers 2 classes from 0 to 0"),
        ("odd.json", b"{", "it is no JSON, Expecting .*\nexpected a list of names"),
        ("odd.json", b'{"a": "b"}', "has no class names\nexpected a list of names"),
        ("odd.json", b"[1, 2]", "has no class names"),
        ("odd.json", b"{}", "has no class names"),
        (
            "l.txt",
            b"red\n\nblue\n",
            r"l\.txt, line 2: the line is empty.*\nexpected one class name",
        ),
        ("l.txt", b"\r\nred\r\nblue", r"line 1: the line is empty.*\n.*: remove the line, or"),
        ("l.txt", b"red\n \t\nblue\n\n", r"line 2: the line is empty, and names no class"),
        ("l.txt", b"0,red\n1,green\n\n2,blue\n", r"line 3: the line is empty"),
        ("l.txt", b"0,red\n1,\n2,blue\n", r"the name of class 1 is empty\nexpected a name for"),
        ("l.csv", b"index,name\n0,red\n\n1,blue\n", r"line 3: the line is empty"),
        ("l.csv", b'index,name\n0,red\n1," "\n', r"the name of class 1 is empty"),
        ("l.csv", b'""\nred\n', r"the name of class 0 is empty"),
        ("l.json", b'["red", "", "blue"]', r"the name of class 1 is empty"),
        ("l.json", b'{"0": " ", "1": "red"}', r"the name of class 0 is empty"),
        ("quote.csv", b'"red\n', "unexpected end of data\nexpected one class name per line"),
    ],
)
def test_what_cannot_be_read_says_what_is_wanted(
    tmp_path: Path, name: str, content: bytes, said: str
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=said):
        read_class_names(tmp_path / name)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"cannot read .*x\.csv: No such file.*\nexpected numbers"):
        read_text(tmp_path / "x.csv", "numbers")


@pytest.mark.parametrize("names", [NAMES, ("猫", "狗", "鸟"), ("a",), ("Œuvre", "naïve", "ÿ")])
@pytest.mark.parametrize("byte_order", ["le", "be"])
def test_wide_text_without_its_mark(
    tmp_path: Path, names: tuple[str, ...], byte_order: str
) -> None:
    """Read as Latin-1 it would be names with a NUL behind each letter."""
    path = tmp_path / "names.txt"
    path.write_bytes(("\n".join(names) + "\n").encode(f"utf-16-{byte_order}"))
    said = rf"it has \d+ NUL characters; is it utf-16{byte_order}\?\nexpected UTF-8 .*\n.*-f utf-16"
    with pytest.raises(DataError, match=said):
        read_text(path, "names")


@pytest.mark.parametrize(
    ("encoding", "names"),
    [
        ("cp1252", ("red", "Œuvre naïve")),
        ("cp932", ("赤い花", "ｶﾀｶﾅと猫", "青")),
        ("shift_jis", ("りんご", "みかん")),
        ("gbk", ("狗", "猫", "热带鱼")),
        ("gb2312", ("向日葵", "玫瑰")),
        ("big5", ("貓頭鷹", "熱帶魚")),
        ("cp949", ("고양이", "강아지")),
        ("cp1251", ("кошка", "собака")),
    ],
)
def test_another_encoding_is_refused_with_the_line_as_it_would_be(
    tmp_path: Path, encoding: str, names: tuple[str, ...]
) -> None:
    """Whose file it is sees which reading is right; what was meant is among them."""
    path = tmp_path / "names.txt"
    path.write_bytes("\n".join(names).encode(encoding))
    with pytest.raises(DataError) as caught:
        read_text(path, "names")
    first = next(name for name in names if not name.isascii())
    line, byte = names.index(first) + 1, first.encode(encoding)[0]
    text = str(caught.value)
    assert f"cannot read {path}: line {line} is not UTF-8 (byte 0x{byte:02x})" in text
    known = {"shift_jis": "cp932", "gb2312": "gbk"}.get(encoding, encoding)
    assert f"{first!r} in {known}" in text
    assert "convert it: iconv -f " in text


def test_what_a_message_offers_is_what_iconv_does(tmp_path: Path) -> None:
    iconv = shutil.which("iconv")
    if iconv is None:
        pytest.skip("there is no iconv here")
    (tmp_path / "names.txt").write_bytes("狗\n猫".encode("gbk"))
    with pytest.raises(DataError, match=r"'狗' in gbk") as caught:
        read_class_names(tmp_path / "names.txt")
    for reading, encoding in re.findall(r"'([^']*)' in (\w+)", str(caught.value)):
        called = (iconv, "-f", encoding, "-t", "utf-8", tmp_path / "names.txt")
        converted = subprocess.run(called, capture_output=True, check=True)
        assert converted.stdout.decode("utf-8").splitlines()[0] == reading


@pytest.mark.parametrize("text", ["0: red\n1: blue", "0 red\n1 blue", "{0: 'red', 1: 'blue'}"])
def test_numbers_that_are_left_out_are_said(tmp_path: Path, text: str) -> None:
    (tmp_path / "names.txt").write_text(text)
    found = read_class_names_with_note(tmp_path / "names.txt")
    assert found.names == ("red", "blue")
    assert found.note is not None
    assert found.note.startswith("names.txt numbers its classes, as ")
    assert found.note.endswith(": class 0 is called 'red'")
    (tmp_path / "names.txt").write_text("red\nblue")
    assert read_class_names_with_note(tmp_path / "names.txt").note is None


def test_folders_may_be_called_by_number_and_name(tmp_path: Path) -> None:
    (tmp_path / "classes.txt").write_text("0 red\n1 blue\n")
    assert read_folder_names(tmp_path / "classes.txt") == ("0 red", "1 blue")
    (tmp_path / "classes.txt").write_text("1,blue\n0,red\n")
    assert read_folder_names(tmp_path / "classes.txt") == ("red", "blue")
