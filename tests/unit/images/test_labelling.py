"""ImageNet's own layouts: which class an image has, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
from PIL import Image

from deploykit import images
from deploykit.core.errors import DataError, UnknownNameError, UsageError
from deploykit.images import LabelledData, ModelClasses

if TYPE_CHECKING:
    from collections.abc import Iterable

SYNSETS = ("n01440764", "n01443537", "n01484850", "n01491361", "n01494475")
WORDS = ("tench, Tinca tinca", "goldfish", "great white shark", "tiger shark", "hammerhead")
MAPPING = "\n".join(f"{synset} {words}" for synset, words in zip(SYNSETS, WORDS, strict=True))
FLAT = tuple(f"ILSVRC2012_val_{number:08}.JPEG" for number in range(1, 5))


def save(file: Path) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (4, 4)).save(file, "JPEG")


def by_synset(folder: Path, synsets: Iterable[str]) -> Path:
    """One image in the first folder, two in the second, and so on."""
    for count, synset in enumerate(synsets, 1):
        for number in range(count):
            save(folder / synset / f"{synset}_{number}.JPEG")
    return folder


@pytest.fixture
def flat(tmp_path: Path) -> Path:
    for name in reversed(FLAT):
        save(tmp_path / "val" / name)
    return tmp_path / "val"


def write(file: Path, text: str) -> Path:
    file.write_text(text, encoding="utf-8")
    return file


def open_labels(data: LabelledData, count: int | None, *names: str) -> list[int]:
    source = images.open_labelled(data, ModelClasses(count, names or None))
    assert source.labels is not None
    assert source.labels.dtype == np.int64
    assert not source.labels.flags.writeable
    assert len(source.labels) == len(source)
    return [int(label) for label in source.labels]


def with_file(flat: Path, text: str, count: int | None = 5, *names: str) -> list[int]:
    file = write(flat.parent / "labels.csv", text)
    return open_labels(LabelledData(flat, file), count, *names)


# --- a folder per synset


def test_all_synsets_are_numbered_by_their_sorted_order(tmp_path: Path) -> None:
    folder = by_synset(tmp_path, reversed(SYNSETS))
    source = images.open_labelled(LabelledData(folder), ModelClasses(5))
    assert source.labels is not None
    assert np.bincount(source.labels).tolist() == [5, 4, 3, 2, 1]
    assert source.classes == SYNSETS


@pytest.mark.parametrize("place", ["beside", "inside", "given", "bare"])
def test_some_synsets_keep_the_numbers_of_the_list(tmp_path: Path, place: str) -> None:
    folder = by_synset(tmp_path / "val", (SYNSETS[1], SYNSETS[4]))
    if place in {"beside", "inside"}:
        where = tmp_path if place == "beside" else folder
        write(where / "LOC_synset_mapping.txt", MAPPING)
        data = LabelledData(folder)
    else:
        text = MAPPING if place == "given" else "\n".join(SYNSETS)
        data = LabelledData(folder, None, write(tmp_path / "classes.txt", f"\ufeff{text}\n\n"))
    assert open_labels(data, 5) == [1, 4, 4]


def test_the_list_beside_a_relative_folder_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    by_synset(tmp_path / "val", (SYNSETS[3],))
    write(tmp_path / "LOC_synset_mapping.txt", MAPPING)
    monkeypatch.chdir(tmp_path / "val")
    assert open_labels(LabelledData(Path()), 5) == [3]


def test_some_synsets_without_a_list_say_nothing(tmp_path: Path) -> None:
    folder = by_synset(tmp_path, SYNSETS[1:3])
    with pytest.raises(
        DataError,
        match=r"has 2 class folders, the model has 1000 classes: sorting does not tell which\n"
        r"give --classes FILE: one folder name or synset per line, in the order of the model's "
        r"outputs\n\(LOC_synset_mapping.txt is such a file",
    ):
        images.open_labelled(LabelledData(folder), ModelClasses(1000))


def test_a_list_of_more_classes_than_the_model_has_is_not_taken_by_itself(tmp_path: Path) -> None:
    """A network of five chosen classes, beside the list of ImageNet's thousand."""
    folder = by_synset(tmp_path / "val", SYNSETS)
    write(tmp_path / "LOC_synset_mapping.txt", f"n00000001 before all\n{MAPPING}")
    assert set(open_labels(LabelledData(folder), 5)) == {0, 1, 2, 3, 4}
    list_of_one = write(tmp_path / "classes.txt", SYNSETS[0])
    with pytest.raises(DataError, match=r"classes.txt lists 1 classes, the model has 5\nexpected"):
        images.open_labelled(LabelledData(folder, None, list_of_one), ModelClasses(5))


def test_folders_with_the_models_own_names_have_its_numbers(tmp_path: Path) -> None:
    folder = by_synset(tmp_path, ("cat", "dog"))
    assert open_labels(LabelledData(folder), 3, "dog", "fox", "cat") == [2, 0, 0]


def test_a_name_that_stands_twice_numbers_nothing(tmp_path: Path) -> None:
    folder = by_synset(tmp_path, ("crane",))
    with pytest.raises(DataError, match="has 1 class folders, the model has 2 classes"):
        images.open_labelled(LabelledData(folder), ModelClasses(2, ("crane", "crane")))


def test_folders_of_a_model_that_does_not_say_its_classes(tmp_path: Path) -> None:
    assert open_labels(LabelledData(by_synset(tmp_path, SYNSETS[:2])), None) == [0, 1, 1]


def test_a_folder_that_the_list_does_not_have(tmp_path: Path) -> None:
    folder = by_synset(tmp_path / "val", (SYNSETS[0], "n99999999"))
    data = LabelledData(folder, None, write(tmp_path / "classes.txt", MAPPING))
    with pytest.raises(
        DataError,
        match=r"n99999999 is none of the 5 classes of .*classes.txt\nexpected .* 'n01440764'",
    ):
        images.open_labelled(data, ModelClasses(5))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"\n \n", r"classes.txt lists no classes\nexpected one per line"),
        (b"n01440764 a\nn01440764 b", r"lists 'n01440764' 2 times\nexpected each class once"),
        (b"\xff\xfe\xfa", r"cannot read .*classes.txt: it is cut off, or not UTF-16 as its first"),
        (None, r"cannot read .*classes.txt: .*No such file"),
    ],
)
def test_lists_of_classes_that_cannot_be_used(
    tmp_path: Path, content: bytes | None, message: str
) -> None:
    folder = by_synset(tmp_path / "val", SYNSETS)
    file = tmp_path / "classes.txt"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(DataError, match=message):
        images.open_labelled(LabelledData(folder, None, file), ModelClasses(5))


def test_a_list_of_classes_needs_something_to_number(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", images=np.zeros((2, 4, 4, 3), np.uint8), labels=np.arange(2))
    file = write(tmp_path / "classes.txt", MAPPING)
    with pytest.raises(UsageError, match=r"--classes does not apply to .*a.npz\nit numbers the"):
        images.open_labelled(LabelledData(tmp_path / "a.npz", None, file), ModelClasses(5))


def test_other_layouts_are_as_they_were(tmp_path: Path, flat: Path) -> None:
    np.savez(tmp_path / "a.npz", images=np.zeros((2, 4, 4, 3), np.uint8), labels=np.array([7, 1]))
    assert open_labels(LabelledData(tmp_path / "a.npz"), 10) == [7, 1]
    assert images.open_labelled(LabelledData(flat), ModelClasses(10)).labels is None


# --- a flat folder and a label file


@pytest.mark.parametrize("header", ["", "label\n"])
def test_numbers_are_in_the_order_of_the_file_names(flat: Path, header: str) -> None:
    assert with_file(flat, f"{header}4\n0\n\n2\n1\n") == [4, 0, 2, 1]


def test_synsets_may_stand_for_numbers(flat: Path) -> None:
    write(flat.parent / "LOC_synset_mapping.txt", MAPPING)
    text = "\n".join(SYNSETS[at] for at in (4, 0, 4, 1))
    assert with_file(flat, text) == [4, 0, 4, 1]


@pytest.mark.parametrize("header", ["", "ImageId,PredictionString\n"])
def test_the_solution_of_kaggle_is_read_in_any_order(flat: Path, header: str) -> None:
    write(flat.parent / "LOC_synset_mapping.txt", MAPPING)
    lines = [
        f"{Path(FLAT[2]).stem},{SYNSETS[3]} 85 1 499 272 {SYNSETS[3]} 1 2 3 4 ",
        f"{Path(FLAT[0]).stem},{SYNSETS[1]} 0 0 9 9 ",
        f"{Path(FLAT[3]).stem},{SYNSETS[3]} 1 1 2 2 ",
        f"{Path(FLAT[1]).stem},{SYNSETS[0]} 1 1 2 2 ",
    ]
    assert with_file(flat, header + "\n".join(lines)) == [1, 0, 3, 3]


@pytest.mark.parametrize("separator", [",", ", ", " ", "\t"])
def test_file_and_number_with_a_comma_or_a_space(flat: Path, separator: str) -> None:
    pairs = zip(FLAT, (3, 1, 0, 2), strict=True)
    text = "\n".join(f"val/{name}{separator}{label}" for name, label in pairs)
    assert with_file(flat, text) == [3, 1, 0, 2]


def test_synsets_of_every_class_need_no_list(flat: Path) -> None:
    text = "\n".join(SYNSETS[at] for at in (3, 0, 2, 1))
    assert with_file(flat, text, 4) == [3, 0, 2, 1]


def test_the_models_names_may_stand_in_the_file(flat: Path) -> None:
    text = "\n".join(f"{name},{label}" for name, label in zip(FLAT, ["a b", "c"] * 2, strict=True))
    assert with_file(flat, text, 2, "c", "a b") == [1, 0, 1, 0]


@pytest.mark.parametrize("count", [5, None])
def test_some_synsets_in_a_file_need_a_list(flat: Path, count: int | None) -> None:
    text = "\n".join([SYNSETS[0], SYNSETS[4]] * 2)
    how_many = "an unknown number of" if count is None else count
    with pytest.raises(
        DataError,
        match=rf"names 2 synsets, the model has {how_many} classes: .*\ngive --classes FILE",
    ):
        with_file(flat, text, count)
    data = LabelledData(flat, flat.parent / "labels.csv", write(flat.parent / "c.txt", MAPPING))
    assert open_labels(data, count) == [0, 4, 0, 4]


LINES = [f"{name},{label}\n" for label, name in enumerate(FLAT)]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", r"labels.csv has no labels\nexpected one per line, or lines of file,label"),
        ("1\n2\n", r"has 2 labels for 4 images: the first image without one is .*_00000003.JPEG"),
        ("1\n2\n3\n4\n0\n", r"has 5 labels for 4 images: the first without an image is in line 5"),
        ("1\n2\n5\n4\n", r"line 3: label 5\nexpected 0 to 4, .*development kit\nare in another"),
        ("1\n-1\n0\n4\n", r"line 2: label -1\nexpected 0 to 4"),
        ("1\n2.5\n0\n4\n", r"line 2: unknown label '2.5'\nexpected a number from 0 up, a synset"),
        (f"1\n{SYNSETS[0]}\n0\nfish\n", r"line 4: unknown label 'fish'\nexpected"),
        ("1\n2\na.JPEG,3\n4\n", r"line 3: file and label, unlike the lines before\nexpected one"),
        ("".join(LINES[:3]) + "3\n", r"line 4: one cell, unlike the lines before\nexpected one"),
        ("".join(LINES[:3]), r"has no label for ILSVRC2012_val_00000004.JPEG and 0 more images"),
        ("".join(LINES) + "ILSVRC2012_val_00000009.JPEG,1",
         r"line 5: there is no image '.*_00000009.JPEG'\nexpected .* the 4 images, such as ILSV"),
        ("".join(LINES) + LINES[1], r"line 5: .*_00000002.JPEG' has a label already, in line 2\n"),
        ("missing.JPEG,fish\n" + "".join(LINES), r"line 1: there is no image 'missing.JPEG'"),
        (LINES[0] + "a,b,c\n", r"line 2: 3 columns\nexpected file,label"),
    ],
)  # fmt: skip
def test_label_files_that_do_not_fit(flat: Path, text: str, message: str) -> None:
    with pytest.raises(DataError, match=message) as caught:
        with_file(flat, text)
    assert len(str(caught.value).splitlines()) <= 3


def test_a_label_below_0_where_the_classes_are_unknown(flat: Path) -> None:
    with pytest.raises(DataError, match=r"line 1: label -3\nexpected 0 up, places"):
        with_file(flat, "-3\n1\n1\n1\n", None)
    assert with_file(flat, "3000\n1\n1\n1\n", None) == [3000, 1, 1, 1]


def test_the_label_file_itself_is_missing(flat: Path) -> None:
    with pytest.raises(DataError, match=r"cannot read .*nowhere.txt"):
        images.open_labelled(LabelledData(flat, flat / "nowhere.txt"), ModelClasses(5))


def test_a_stem_of_two_images_is_none(flat: Path) -> None:
    Image.new("RGB", (4, 4)).save(flat / "ILSVRC2012_val_00000001.png")
    text = "\n".join(f"{Path(name).stem},1" for name in FLAT)
    with pytest.raises(DataError, match="line 1: there is no image 'ILSVRC2012_val_00000001'"):
        with_file(flat, text)


def test_images_that_have_labels_take_no_file(tmp_path: Path, flat: Path) -> None:
    labels = write(tmp_path / "labels.txt", "1\n1\n1\n1\n")
    folder = by_synset(tmp_path / "train", SYNSETS)
    with pytest.raises(
        UsageError, match=r"--labels-file does not apply: .*train has labels of its"
    ):
        images.open_labelled(LabelledData(folder, labels), ModelClasses(5))
    np.savez(tmp_path / "a.npz", images=np.zeros((4, 4, 4, 3), np.uint8))
    with pytest.raises(
        UsageError, match=r"a.npz is not a folder of images\nexpected a folder with"
    ):
        images.open_labelled(LabelledData(tmp_path / "a.npz", labels), ModelClasses(5))


# --- names with numbers in them


def by_number(folder: Path, names: Iterable[str]) -> Path:
    for name in names:
        save(folder / name / "1.JPEG")
    return folder


AMBIGUOUS = (
    ([str(k) for k in range(12)], "0, 1, 2 ... as numbers, 0, 1, 10 ... as text"),
    ([f"class{k}" for k in range(1, 11)], "class1, class2 ... as numbers, class1, class10 ... as"),
    (["-1", "-2", "-10"], "-1, -2 ... as numbers, -1, -10 ... as text"),
    (["v1.9", "v1.10"], "v1.9 ... as numbers, v1.10 ... as text"),
)


@pytest.mark.parametrize(("names", "said"), AMBIGUOUS)
def test_folders_with_two_orders_are_refused(tmp_path: Path, names: list[str], said: str) -> None:
    folder = by_number(tmp_path / "data", names)
    for count in (len(names), None):
        with pytest.raises(DataError, match=r"class folders of .* have two orders: ") as caught:
            images.open_labelled(LabelledData(folder), ModelClasses(count))
        assert said in str(caught.value)
        assert "--class-order natural, or text" in str(caught.value)
        assert "or give --classes FILE" in str(caught.value)


@pytest.mark.parametrize("names", [names for names, _ in AMBIGUOUS])
def test_the_order_asked_for_numbers_the_folders(tmp_path: Path, names: list[str]) -> None:
    folder, count = by_number(tmp_path / "data", names), len(names)
    found = {}
    for order in ("natural", "text"):
        data = LabelledData(folder, class_order=order)
        source = images.open_labelled(data, ModelClasses(count))
        assert isinstance(source, images.FileImages)
        assert source.labels is not None
        folders = [path.parent.name for path in source.paths]
        found[order] = dict(zip(folders, source.labels.tolist(), strict=True))
        assert source.classes == tuple(sorted(names, key=found[order].__getitem__))
    assert found["natural"] == {name: number for number, name in enumerate(names)}
    assert found["text"] == {name: number for number, name in enumerate(sorted(names))}


def test_a_list_or_the_models_names_number_folders_with_two_orders(tmp_path: Path) -> None:
    names = [str(k) for k in range(11)]
    folder = by_number(tmp_path / "data", names)
    listed = write(tmp_path / "classes.txt", "\n".join(reversed(names)))
    expected = [10 - int(name) for name in sorted(names)]
    assert open_labels(LabelledData(folder, None, listed), 11) == expected
    assert open_labels(LabelledData(folder), 11, *reversed(names)) == expected
    # An order that is asked for is that of the folders, whatever names the model has.
    wanted = LabelledData(folder, class_order="natural")
    assert open_labels(wanted, 11, *reversed(names)) == [int(name) for name in sorted(names)]
    with pytest.raises(UsageError, match=r"--classes .*classes\.txt numbers the folders already"):
        open_labels(LabelledData(folder, None, listed, "text"), 11)


@pytest.mark.parametrize("names", [["01", "02", "10"], ["0", "1", "9"], ["n01", "n02"], ["a", "b"]])
def test_folders_with_one_order_need_no_choice(tmp_path: Path, names: list[str]) -> None:
    folder = by_number(tmp_path / "data", names)
    assert open_labels(LabelledData(folder), len(names)) == list(range(len(names)))


def test_labels_line_by_line_for_images_with_two_orders(tmp_path: Path) -> None:
    for number in (1, 2, 10):
        save(tmp_path / f"val/img{number}.JPEG")
    lines = write(tmp_path / "labels.txt", "0\n1\n2\n")
    with pytest.raises(
        DataError, match=r"the images that .*labels\.txt labels line by line have"
    ) as e:
        open_labels(LabelledData(tmp_path / "val", lines), 3)
    assert "img1.JPEG, img2.JPEG ... as numbers, img1.JPEG, img10.JPEG ... as text" in str(e.value)
    assert "or give lines of file,label" in str(e.value)
    # The images are in the order of their text: 1, 10, 2.
    for order, expected in (("natural", [0, 2, 1]), ("text", [0, 1, 2])):
        data = LabelledData(tmp_path / "val", lines, class_order=order)
        assert open_labels(data, 3) == expected
    named = write(tmp_path / "named.csv", "img10.JPEG,2\nimg2.JPEG,1\nimg1.JPEG,0\n")
    assert open_labels(LabelledData(tmp_path / "val", named), 3) == [0, 2, 1]


def test_an_order_needs_something_to_number(tmp_path: Path) -> None:
    np.savez(tmp_path / "set.npz", images=np.zeros((1, 4, 4, 3), np.uint8), labels=[0])
    with pytest.raises(UsageError, match=r"--class-order does not apply to .*set\.npz"):
        images.open_labelled(LabelledData(tmp_path / "set.npz", class_order="text"), ModelClasses())


def test_an_unknown_order(tmp_path: Path) -> None:
    with pytest.raises(UnknownNameError, match="unknown order 'naturally'"):
        images.open_labelled(LabelledData(tmp_path, class_order="naturally"), ModelClasses())
