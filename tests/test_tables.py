"""Tables: read in every form that people save them in, and written inert."""

import unicodedata

import numpy as np
import pytest
from ct_files import SERIES, write_ct
from PIL import Image

from twostage_jax import io
from twostage_jax.ct import annotations
from twostage_jax.ct import dicom as ct_dicom
from twostage_jax.ct.regions import base
from twostage_jax.ct.regions import table as roi_table
from twostage_jax.data import ct_patches, slices
from twostage_jax.errors import UserError

LABEL = "Überblähung"
ROWS = [
    ["patient", "series", "slice", "label", "points"],
    ["AA-01", "1.2.3", "2", LABEL, "9.5 9.5 29.5 9.5 29.5 29.5 9.5 29.5"],
    ["AA-01", "1.2.3", "4", "normal", "9.5 9.5 29.5 9.5 29.5 29.5 9.5 29.5"],
]


def text(separator, end="\r\n"):
    return end.join(separator.join(row) for row in ROWS) + end


def upper(table):
    return table.replace(",".join(ROWS[0]), " Patient, SERIES ,Slice, Label,Points")


READ = {
    "plain": text(",").encode(),
    "byte order mark": text(",").encode("utf-8-sig"),
    "two marks": b"\xef\xbb\xbf" + text(",").encode("utf-8-sig"),
    "semicolons": text(";").encode("utf-8-sig"),
    "tabs in UTF-16": text("\t").encode("utf-16"),
    "UTF-16, big end first": b"\xfe\xff" + text(";").encode("utf-16-be"),
    "UTF-32": text(",").encode("utf-32"),
    "line ends of old": text(",", "\r").encode(),
    "line ends of Unix": text(",", "\n").encode(),
    "a line that names the separator": b"sep=;\r\n" + text(";").encode(),
    "another separator, named": b"sep=|\r\n" + text("|").encode(),
    "blank lines": b"\r\n" + text(",").encode() + b"\r\n  \r\n",
    "trailing commas and an empty row": "\r\n".join(
        ",".join(row) + ",,," for row in ROWS
    ).encode()
    + b"\r\n,,,,,,,\r\n",
    "header in other case": upper(text(",")).encode(),
    "quoted": "\n".join(",".join(f'"{v}"' for v in row) for row in ROWS).encode(),
    "another column": "\n".join(",".join(["note", *row]) for row in ROWS).encode(),
    "decomposed": unicodedata.normalize("NFD", text(",")).encode(),
}


@pytest.mark.parametrize("form", READ)
def test_forms_of_one_table_are_the_same_table(tmp_path, form):
    path = tmp_path / "rois.csv"
    path.write_bytes(READ[form])
    rows = [row for _, row in io.read(path, ROWS[0])]
    assert rows == [dict(zip(ROWS[0], row, strict=True)) for row in ROWS[1:]]


def test_rows_know_their_line(tmp_path):
    path = tmp_path / "x.csv"
    path.write_bytes(b'\nsite,path\n\na,1\n"b\nc",2\n,\nd,3\n')
    assert [line for line, _ in io.read(path, ("path", "site"))] == [4, 6, 8]
    path.write_bytes(b"sep=,\na,b\n1,2\n")
    assert [line for line, _ in io.read(path, ("a", "b"))] == [3]


REFUSED = {
    # (bytes, facts that the message must name)
    "Latin-1": (text(",").encode("latin-1"), ["line 2", "0xDC", "UTF-8"]),
    "Shift-JIS": ("path,group\n肺気腫/1.png,2\n".encode("shift-jis"), ["line 2"]),
    "UTF-16 without a mark": (text(",").encode("utf-16-le"), ["UTF-16"]),
    "cut UTF-16": (text(",").encode("utf-16")[:-1], ["UTF-16"]),
    "workbook": (b"PK\3\4\24\0\6\0\10\0\0\0!\0", ["workbook"]),
    "empty": (b"", ["empty"]),
    "only a mark": (b"\xef\xbb\xbf", ["empty"]),
    "missing column": (b"path,site\na,b\n", ["group", "'site'"]),
    "other separator": (b"path|group\na|b\n", ["path", "'path|group'"]),
    "doubled column": (b"path,group,Group\na,b,c\n", ["group", "twice"]),
    "empty cell": (b"path,group\na,b\n,c\n", ["line 3", "'path'"]),
    "short row": (b"path,group\na,b\nc\n", ["line 3", "'group'"]),
    "comma in a cell": (b"path,group\na,1.png,p1\n", ["line 2"]),
    "comma in a cell, trailing commas": (b"path,group,,\na,1.png,p1,\n", ["line 2"]),
    "other separator below": (b"path,group\na;b\n", ["line 2"]),
    "open quote": (b'path,group\na,b\n"c,d\ne,f\n', ["line"]),
    "text behind a quote": (b'path,group\n"a"x,b\n', ["line 2"]),
}


@pytest.mark.parametrize("form", REFUSED)
def test_what_cannot_be_read_names_the_file_and_the_cause(tmp_path, form):
    data, facts = REFUSED[form]
    path = tmp_path / "x.csv"
    path.write_bytes(data)
    columns = ROWS[0] if b"patient" in data or b"p\0a" in data else ("path", "group")
    with pytest.raises(UserError) as error:
        io.read(path, columns)
    assert error.value.where == str(path)
    for fact in facts:
        assert fact in str(error.value)


def test_missing_table_is_named(tmp_path):
    with pytest.raises(UserError) as error:
        io.read(tmp_path / "x.csv", ("path",))
    assert error.value.where == str(tmp_path / "x.csv")


@pytest.mark.parametrize(
    "data",
    [
        b"\xef\xbb\xbfvalue,name\r\n1,fibrosis\r\n2,normal\r\n",
        b"value;name\n2;normal\n1;fibrosis\n",
        b"Name\tVALUE\nnormal\t2.0\nfibrosis\t1.0\n",
        "value,name,colour\n1,fibrosis,\n2,normal,red\n,,\n".encode("utf-16"),
    ],
)
def test_class_tables(tmp_path, data):
    (tmp_path / "classes.csv").write_bytes(data)
    assert annotations.given_classes(tmp_path, "") == ("fibrosis", "normal")


def test_class_lists_with_a_mark_and_names_with_commas(tmp_path):
    data = '["fibrosis, mild", "normal"]'.encode("utf-8-sig")
    (tmp_path / "classes.json").write_bytes(data)
    assert annotations.given_classes(tmp_path, "") == ("fibrosis, mild", "normal")
    (tmp_path / "c.csv").write_text('value,name\n1,"fibrosis, mild"\n2,normal\n')
    assert annotations.given_classes(tmp_path, "c.csv") == ("fibrosis, mild", "normal")


@pytest.mark.parametrize(
    "data",
    [
        b"value,name\n1,a\n1,b\n",
        b"value,name\n1,a\n3,b\n",
        b"value,name\n0,a\n1,b\n",
        b"value,name\nx,a\n",
        b"value,name\n1,a\n2,A\n",
        b"value,name\n1,a\n2,\n",
        "value,name\n1,Fibröse\n2,Fibro\u0308se\n".encode(),
        b"value,name\n",
    ],
)
def test_class_tables_that_name_no_classes(tmp_path, data):
    path = tmp_path / "classes.csv"
    path.write_bytes(data)
    with pytest.raises(UserError) as error:
        annotations.given_classes(tmp_path, "")
    assert error.value.where == str(path)


def test_class_names_match_the_labels_of_regions_in_either_form(tmp_path):
    """The label decomposed, the class composed, and the other way round."""
    composed, decomposed = (unicodedata.normalize(f, LABEL) for f in ("NFC", "NFD"))
    for label, name in ((composed, decomposed), (decomposed, composed)):
        folder = tmp_path / ascii(label)
        (folder / "rois").mkdir(parents=True)
        write_ct(folder / "1.dcm", np.zeros((8, 8), np.int16), InstanceNumber=1)
        (folder / "rois" / "r.csv").write_text(
            "patient,series,slice,label,points\n"
            f"Smith^1,{SERIES},1,{label},-1 -1; 9 -1; 9 9; -1 9\n"
        )
        recipe = ct_patches.recipe(path=str(folder), classes=name, size=4, stride=4)
        assert recipe.class_names == (composed.lower(),) or recipe.class_names == (
            composed,
        )
        assert len([e for task in recipe.tasks for e in recipe.make(task)]) == 4


def test_slice_tables(tmp_path):
    for name in ("ct", "lungs", "infection"):
        (tmp_path / name).mkdir()
    image = Image.fromarray(np.full((8, 8), 1, np.uint8))
    # The table composed, the files from a Mac.
    for name in ("ct", "lungs", "infection"):
        image.save(tmp_path / name / unicodedata.normalize("NFD", "Müller.png"))
    table = "slice;patient\r\nMüller.png;p1\r\n".encode("utf-16")
    (tmp_path / "slices.csv").write_bytes(table)
    recipe = slices.recipe(path=str(tmp_path), size=4, stride=4)
    assert len(recipe.make(recipe.tasks[0])) == 4


def test_two_files_of_one_name_are_refused(tmp_path):
    for form in ("NFC", "NFD"):
        (tmp_path / unicodedata.normalize(form, "Müller.png")).write_bytes(b"")
    if len(list(tmp_path.iterdir())) < 2:
        pytest.skip("The file system takes both forms for one name.")
    with pytest.raises(UserError) as error:
        io.on_disk(tmp_path / "Müller.png")
    assert error.value.where == str(tmp_path / "Müller.png")


def polygons(tmp_path, *texts):
    """Returns the masks of polygons given as points, one per slice, `[N, 12, 12]`."""
    series = tmp_path / "ct"
    series.mkdir()
    headers = []
    for i in range(len(texts)):
        path = write_ct(
            series / f"{i}.dcm", np.zeros((12, 12), np.int16), uid=i + 1,
            InstanceNumber=i + 1, ImagePositionPatient=[0, 0, i],
        )  # fmt: skip
        headers.append(ct_dicom.read_headers(path)[0])
    lines = [f'Smith^1;{SERIES};{i + 1};a;"{t}"' for i, t in enumerate(texts)]
    path = tmp_path / "rois.csv"
    path.write_text("\n".join(["patient;series;slice;label;points", *lines]))
    draws = roi_table.draw(base.Query(path, headers, ["a"]))
    found = [base.merge(draws[h.key](), h.shape) for h in headers]
    return np.stack([labels.mask for labels in found])


# Columns 2 to 8 and rows 2 to 5, by hand.
RECTANGLE = np.zeros((12, 12), int)
RECTANGLE[2:6, 2:9] = 1


@pytest.mark.parametrize(
    "points",
    [
        "1.5 1.5; 8.5 1.5; 8.5 5.5; 1.5 5.5",
        "1.5 1.5 8.5 1.5 8.5 5.5 1.5 5.5",
        "1.5;1.5;8.5;1.5;8.5;5.5;1.5;5.5;",
        "1.5,1.5 8.5,1.5 8.5,5.5 1.5,5.5",
        "1.5,1.5; 8.5,1.5; 8.5,5.5; 1.5,5.5",
        "1.5, 1.5; 8.5, 1.5; 8.5, 5.5; 1.5, 5.5",
        "1.5, 1.5, 8.5, 1.5, 8.5, 5.5, 1.5, 5.5",
        "1.5,1.5,8.5,1.5,8.5,5.5,1.5,5.5",
        "1.5 1.5, 8.5 1.5, 8.5 5.5, 1.5 5.5",
        "1.5 1.5\n8.5 1.5\n8.5 5.5\n1.5 5.5",
        # Decimal commas, of which a separator cannot be made.
        "1,5 1,5; 8,5 1,5; 8,5 5,5; 1,5 5,5",
        "1,5 1,5; 8,5 1,5; 8,500 5,5; 1,5 5,5",
        "2 1,5 9 1,5 9 5,5 2 5,5",
        "2;1,5;9;1,5;9;5,5;2;5,5",
    ],
)
def test_points_in_any_clear_form_are_the_same_region(tmp_path, points):
    np.testing.assert_array_equal(polygons(tmp_path, points)[0], RECTANGLE)


@pytest.mark.parametrize(
    "points",
    [
        # Four corners with decimal commas, or eight of whole numbers.
        "1,5 1,5 8,5 1,5 8,5 5,5 1,5 5,5",
        "1,5, 1,5, 8,5, 1,5, 8,5, 5,5, 1,5, 5,5",
        "1,5,1,5,8,5,1,5,8,5,5,5,1,5,5,5",
        "1,5;1,5;8,5;1,5;8,5;5,5;1,5;5,5",
        # Both marks.
        "1.5 1,5; 8.5 1.5; 8.5 5.5; 1.5 5.5",
        # Not in pairs: all columns, then all rows.
        "1.5 8.5 8.5 1.5; 1.5 1.5 5.5 5.5",
        "1.5 1.5; 8.5 1.5; 8.5 5.5 1.5 5.5",
    ],
)
def test_points_that_may_mean_two_regions_are_refused(tmp_path, points):
    with pytest.raises(UserError) as error:
        polygons(tmp_path, points)
    assert error.value.where == str(tmp_path / "rois.csv")
    assert "line 2" in str(error.value)


def test_one_clear_polygon_says_how_a_table_writes_numbers(tmp_path):
    decimals = "1,5 1,5 8,5 1,5 8,5 5,5 1,5 5,5"
    masks = polygons(tmp_path, decimals, "2 1,5 9 1,5 9 5,5 2 5,5")
    np.testing.assert_array_equal(masks, [RECTANGLE] * 2)


def test_whole_numbers_in_pairs_stay_pairs(tmp_path):
    """Six corners could be three with decimal commas; the triangle could not."""
    six = "2,2 5,2 9,2 9,6 5,6 2,6"
    masks = polygons(tmp_path, six, "2,2 8,2 8,5")
    np.testing.assert_array_equal(masks[0], RECTANGLE)


def test_a_table_that_writes_numbers_in_two_ways_is_refused(tmp_path):
    doubtful = "1,5 1,5 8,5 1,5 8,5 5,5 1,5 5,5"
    with pytest.raises(UserError) as error:
        polygons(tmp_path, "2,2 8,2 8,5", doubtful, "2 1,5 9 1,5 9 5,5 2 5,5")
    assert "line 3" in str(error.value)


@pytest.mark.parametrize("before", ["", "\t", " ", "\r", "\0", "\u200b"])
@pytest.mark.parametrize("text", ["=1+1", "+1", "-1", "@a"])
def test_text_never_becomes_a_formula(before, text):
    assert io.inert(before + text) == f"'{text}"


def test_text_becomes_one_line_and_keeps_its_letters():
    assert io.inert("a=1") == "a=1"
    assert io.inert("Größe\n<b>\x07 of\u202e it") == "Größe <b> of it"
