"""Realistic trees of image folders: classes, splits and skipped folders."""

import os
import unicodedata

import numpy as np
import pytest
from PIL import Image

from twostage_jax.data import image_folder
from twostage_jax.data.class_folders import split_word
from twostage_jax.data.store import prepare
from twostage_jax.errors import UserError

CLASSES = ("emphysema", "fibrosis", "normal")


def put(root, *paths, value=5):
    for path in paths:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((8, 8), value, np.uint8)).save(root / path)


def tree(root, *folders, classes=CLASSES):
    """Writes two images into each class folder below each folder."""
    for above in folders:
        for name in classes:
            put(
                root,
                *(f"{above}/{name}/{os.path.basename(above)}{i}.png" for i in "01"),
            )
    return root


def splits_of(root, **settings):
    """Returns {split: class names}, by the examples of the set."""
    recipe = image_folder.recipe(path=str(root), size=8, **settings)
    found = {}
    for task in recipe.tasks:
        for example in recipe.make(task):
            name = recipe.class_names[example.label]
            found.setdefault(example.split, set()).add(name)
    return {split: tuple(sorted(names)) for split, names in found.items()}


def where_refused(root, **settings):
    with pytest.raises(UserError) as error:
        image_folder.recipe(path=str(root), **settings)
    return error.value.where


@pytest.mark.parametrize(
    ("train", "validation", "test"),
    [
        ("seg_train", "seg_val", "seg_test"),
        ("Training Data", "Validation Data", "Test Data"),
        ("train_images", "valid_images", "test_images"),
        ("data_train", "data_valid", "data_test"),
        ("TRAIN", "VAL", "TEST"),
        ("TrainSet", "ValSet", "TestSet"),
        ("trainset", "validset", "testset"),
        ("training", "Val", "testing"),
        ("1_train", "2_val", "3_test"),
        ("covid-train", "covid-val", "covid-test"),
    ],
)
def test_split_words_in_names_are_the_sets_own_splits(
    tmp_path, train, validation, test
):
    tree(tmp_path, train, validation, test)
    assert splits_of(tmp_path) == dict.fromkeys(
        ("train", "validation", "test"), CLASSES
    )


def test_words_that_only_begin_like_a_split_say_nothing():
    for name in (
        "trainable",
        "contest",
        "valley",
        "latest",
        "training_test",
        "invalid",
    ):
        assert split_word(name) == ""


def test_test_folder_may_lack_a_class(tmp_path):
    tree(tmp_path, "seg_train")
    tree(tmp_path, "seg_test", classes=CLASSES[:2])
    assert splits_of(tmp_path) == {"train": CLASSES, "test": CLASSES[:2]}


def test_folders_around_the_set_are_passed_through(tmp_path):
    tree(tmp_path / "a", "archive/seg_train/seg_train", "archive/seg_test/seg_test")
    assert splits_of(tmp_path / "a") == {"train": CLASSES, "test": CLASSES}
    tree(tmp_path / "b", "archive/data")
    assert splits_of(tmp_path / "b") == {"train": CLASSES}
    tree(tmp_path / "c", "archive/train")
    assert splits_of(tmp_path / "c") == {"train": CLASSES}


def test_splits_may_lie_below_the_classes(tmp_path):
    for name in CLASSES:
        put(
            tmp_path,
            f"{name}/train/1.png",
            f"{name}/Test/2.png",
            f"{name}/test2.txt.png",
        )
        (tmp_path / name / "test2.txt.png").unlink()
    assert splits_of(tmp_path) == {"train": CLASSES, "test": CLASSES}
    put(tmp_path, "other/1.png")
    assert where_refused(tmp_path) == str(tmp_path)


@pytest.mark.parametrize(
    "folders",
    [
        [f"fold_{i}" for i in range(1, 6)],
        ["split0", "split1"],
        ["cv1", "cv2", "cv3"],
        ["Tokyo", "Osaka"],
        ["seg_train", "seg_rest"],
        ["train_1", "train_2", "test"],
        ["part_a", "part_b"],
        ["train_test", "other"],
    ],
)
def test_folders_over_the_same_classes_are_not_classes(tmp_path, folders):
    tree(tmp_path, *folders)
    assert where_refused(tmp_path) == str(tmp_path)


def test_nearly_the_same_classes_are_refused_too(tmp_path):
    tree(tmp_path, "Tokyo")
    tree(tmp_path, "Osaka", classes=CLASSES[1:])
    assert where_refused(tmp_path) == str(tmp_path)


def test_splits_next_to_another_folder_are_refused(tmp_path):
    tree(tmp_path, "seg_train", "seg_test")
    tree(tmp_path, "more", classes=("x", "y"))
    assert where_refused(tmp_path) == str(tmp_path)


def test_an_image_that_was_not_fetched_is_named(tmp_path):
    put(tmp_path, "a/1.png", "b/1.png")
    os.symlink("../.git/annex/objects/x", tmp_path / "b" / "2.png")
    assert where_refused(tmp_path) == str(tmp_path / "b" / "2.png")


def test_linked_class_folders_are_read(tmp_path):
    put(tmp_path / "store", "a/1.png", "b/1.png")
    (tmp_path / "set").mkdir()
    for name in "ab":
        os.symlink(tmp_path / "store" / name, tmp_path / "set" / name)
    assert splits_of(tmp_path / "set") == {"train": ("a", "b")}


def test_an_empty_linked_class_folder_is_refused(tmp_path):
    put(tmp_path / "set", "a/1.png", "b/1.png")
    (tmp_path / "empty").mkdir()
    os.symlink(tmp_path / "empty", tmp_path / "set" / "c")
    assert where_refused(tmp_path / "set") == str(tmp_path / "set" / "c")


@pytest.mark.parametrize(
    ("target", "link"), [("set/a", "c"), ("store", "y"), ("set/a/p1", "b/p1")]
)
def test_a_folder_linked_twice_is_refused(tmp_path, target, link):
    """It would be missing in one of its two places."""
    put(tmp_path, "store/1.png", "set/a/p1/1.png", "set/b/p2/1.png")
    os.symlink(tmp_path / "store", tmp_path / "set" / "x")
    os.symlink(tmp_path / target, tmp_path / "set" / link)
    assert where_refused(tmp_path / "set") == str(tmp_path / "set" / link)


@pytest.mark.parametrize(
    "names", [("Normal", "normal"), ("grade 1", "Grade 01"), ("a", "a\u200b")]
)
def test_class_names_that_differ_in_spelling_are_refused(tmp_path, names):
    put(tmp_path, *(f"{name}/{name}.png" for name in (*names, "fibrosis")))
    if len(list(tmp_path.iterdir())) < 3:
        pytest.skip("The file system ignores case.")
    assert where_refused(tmp_path) == str(tmp_path)


def test_unlabelled_images_next_to_splits_are_refused(tmp_path):
    tree(tmp_path / "intel", "seg_train/seg_train", "seg_test/seg_test")
    put(tmp_path / "intel", "seg_pred/seg_pred/1.png")
    assert where_refused(tmp_path / "intel") == str(tmp_path / "intel")
    tree(tmp_path / "kaggle", "train")
    put(tmp_path / "kaggle", "test/1.png")
    assert where_refused(tmp_path / "kaggle") == str(tmp_path / "kaggle")


@pytest.mark.parametrize(
    "folders",
    [("train", "test"), ("seg_train", "seg_test"), ("lung_train", "lung_test")],
)
def test_splits_without_classes_are_refused(tmp_path, folders):
    put(tmp_path, *(f"{name}/1.png" for name in folders))
    assert where_refused(tmp_path) == str(tmp_path)


def test_a_test_folder_next_to_the_classes_is_refused(tmp_path):
    tree(tmp_path, "", "test_data")
    assert where_refused(tmp_path) == str(tmp_path)


@pytest.mark.parametrize(
    "folders",
    [
        ("images", "masks"),
        ("train_images", "train_masks"),
        ("ct", "lungs"),
        ("Images", "Labels", "Original"),
    ],
)
def test_images_next_to_their_masks_are_refused(tmp_path, folders):
    put(tmp_path, *(f"{name}/{i}.png" for name in folders for i in "01"))
    assert where_refused(tmp_path) == str(tmp_path)


def test_masks_within_the_classes_are_refused(tmp_path):
    for name in ("COVID", "Normal"):
        put(tmp_path, f"{name}/images/1.png", f"{name}/masks/1.png")
    assert where_refused(tmp_path) == str(tmp_path)
    assert where_refused(tmp_path, classes="COVID,Normal") == str(tmp_path / "COVID")


@pytest.mark.parametrize(
    ("image", "mask"),
    [
        ("benign ({}).png", "benign ({})_mask.png"),
        ("benign ({}).png", "benign ({})_mask_1.png"),
        ("{}.jpg", "{}_segmentation.png"),
        ("{}.png", "{}-seg.PNG"),
        ("p{}/ct.tif", "p{}/ct.Mask.tif"),
        ("p{}.npy", "p{}_gt.npy"),
        ("p{}.png", "p{}/label.png"),
    ],
)
def test_masks_next_to_their_images_are_refused(tmp_path, image, mask):
    for name in ("benign", "normal"):
        put(tmp_path, f"{name}/other.png")
    for number in "12":
        for name in (image, mask):
            path = tmp_path / "benign" / name.format(number)
            path.parent.mkdir(exist_ok=True)
            path.write_bytes((tmp_path / "normal" / "other.png").read_bytes())
    assert where_refused(tmp_path) == str(tmp_path / "benign")


@pytest.mark.parametrize(
    "paths",
    [
        # Classes whose names contain words of splits, or of images and masks.
        ("test_strip/1.png", "control/1.png"),
        ("train_station/1.png", "test_tube/1.png"),
        ("train/1.png", "bus/1.png", "test_bench/1.png"),
        ("with_mask/1.png", "without_mask/1.png"),
        ("images_with_mask/1.png", "images_without_mask/1.png"),
        # Files whose names contain such words, but not the name of another file.
        *(
            (f"a/1{end}.png", f"a/2{end}.png", "a/3.png", "b/4.png")
            for end in ("_mask", "_seg", "_label_1")
        ),
        ("a/face.png", "a/face_mask.png", "a/face_masked.png", "b/1.png"),
        ("a/p1.png", "a/p1_1.png", "a/p1_left.png", "a/p1_2.png", "b/1.png"),
        # Folders within classes.
        ("fibrosis/a/1.png", "fibrosis/b/1.png", "normal/c/1.png"),
        ("fibrosis/sub/1.png", "normal/sub/1.png"),
        ("fibrosis/1.png", "fibrosis/test/2.png", "normal/1.png"),
        ("fibrosis/left/1.png", "fibrosis/right/1.png", "normal/left/1.png"),
        # Patients with both classes.
        *(
            tuple(
                f"{name}/{p}/1.png" for name in ("fibrosis", "normal") for p in patients
            )
            for patients in (("p1", "p2"), ("A002304", "A027284", "A046441"))
        ),
    ],
)
def test_classes_that_look_unusual_stay_classes(tmp_path, paths):
    put(tmp_path, *paths)
    names = tuple(sorted({path.split("/")[0] for path in paths}))
    assert splits_of(tmp_path) == {"train": names}


def test_patients_within_classes_are_noted(tmp_path):
    for name in ("fibrosis", "normal"):
        put(tmp_path / "set", f"{name}/p1/1.png", f"{name}/p2/1.png", value=99)
    made = prepare(
        image_folder.recipe(path=str(tmp_path / "set"), size=8), tmp_path, workers=1
    )
    (note,) = made.notes
    assert "fibrosis, normal" in note and "2 sub-folders" in note
    assert "p1" not in note


def test_classes_may_be_given(tmp_path):
    tree(tmp_path, "left", "right", classes=("a", "b"))
    assert where_refused(tmp_path) == str(tmp_path)
    assert splits_of(tmp_path, classes="left,right") == {"train": ("left", "right")}
    assert where_refused(tmp_path, classes="a,b") == "classes"


def put_twice(root):
    for name in ("fibrosis", "normal"):
        for i in range(3):
            put(
                root,
                f"{name}/" + unicodedata.normalize("NFD", f"Müller_{i}.png"),
                value=i,
            )
    return root


def test_decomposed_names_match_a_composed_table(tmp_path):
    root = put_twice(tmp_path / "set")
    names = [f"{c}/Müller_{i}.png" for c in ("fibrosis", "normal") for i in range(3)]
    lines = [unicodedata.normalize("NFC", f"{name},g{name[-5]}") for name in names]
    table = tmp_path / "groups.csv"
    table.write_text("\n".join(["path,group", *lines]), encoding="utf-8")
    recipe = image_folder.recipe(path=str(root), size=8, group_csv=str(table))
    found = [e for task in recipe.tasks for e in recipe.make(task)]
    assert {(e.group, int(e.image[0, 0, 0])) for e in found} == {
        ("g0", 0), ("g1", 1), ("g2", 2)
    }  # fmt: skip
    assert [e.id for e in found] == [unicodedata.normalize("NFC", n) for n in names]
    by_regex = image_folder.recipe(path=str(root), size=8, group_regex="(Müller_.)")
    assert len({file.group for task in by_regex.tasks for file in task}) == 3


def test_class_folders_in_two_forms_are_one_class(tmp_path):
    composed, decomposed = (unicodedata.normalize(f, "fibröse") for f in ("NFC", "NFD"))
    put(tmp_path, f"train/{composed}/1.png", f"test/{decomposed}/1.png")
    put(tmp_path, "train/normal/1.png", "test/normal/1.png")
    both = (composed, "normal")
    assert splits_of(tmp_path) == {"train": both, "test": both}


@pytest.mark.parametrize("paths", [("é/1.png", "b/1.png"), ("a/é.png", "b/1.png")])
def test_names_that_are_the_same_text_are_refused(tmp_path, paths):
    put(
        tmp_path,
        *(unicodedata.normalize(f, paths[0]) for f in ("NFC", "NFD")),
        paths[1],
    )
    if len(list(tmp_path.rglob("*.png"))) < 3:
        pytest.skip("The file system takes both forms for one name.")
    assert where_refused(tmp_path) == paths[0].removesuffix("/1.png")


def latin1(path, name):
    """Renames a file to its name in Latin-1, as in old ZIP archives."""
    target = os.fsencode(path.parent) + b"/" + name.encode("latin-1")
    try:
        os.rename(os.fsencode(path), target)
    except OSError:
        pytest.skip("The file system takes UTF-8 only.")


def test_names_that_are_not_utf_8_are_read_and_shown_escaped(tmp_path):
    root = tmp_path / "set"
    for i in range(10):
        put(root, f"fibrosis/{i}.png", f"normal/{i}.png")
    put(root, "fibrosis/tmp.png", value=77)
    latin1(root / "fibrosis" / "tmp.png", "Größe_1.png")
    made = prepare(image_folder.recipe(path=str(root), size=8), tmp_path, workers=1)
    assert len(made) == 21
    (place,) = np.flatnonzero(made.images[:, 0, 0, 0] == 77)
    assert made.ids[place] == r"fibrosis/Gr\xf6\xdfe_1.png"


def test_broken_file_whose_name_is_not_utf_8_is_named(tmp_path):
    put(tmp_path, "a/1.png", "b/1.png")
    (tmp_path / "a" / "tmp.png").write_bytes(b"<html>404</html>")
    latin1(tmp_path / "a" / "tmp.png", "Größe.png")
    recipe = image_folder.recipe(path=str(tmp_path), size=8)
    with pytest.raises(UserError) as error:
        [recipe.make(task) for task in recipe.tasks]
    str(error.value).encode("utf-8")
    assert r"Gr\xf6\xdfe.png" in str(error.value)


def test_class_folder_whose_name_is_not_utf_8(tmp_path):
    put(tmp_path / "set", "tmp/1.png", "b/1.png")
    latin1(tmp_path / "set" / "tmp", "fibröse")
    assert splits_of(tmp_path / "set") == {"train": ("b", r"fibr\xf6se")}


def test_every_suffix_of_jpeg_is_read(tmp_path):
    image = Image.fromarray(np.full((8, 8), 9, np.uint8))
    for i, end in enumerate(("jpg", "JPG", "jpeg", "jfif", "JFIF", "jpe", "jif")):
        put(tmp_path, f"a/{i}.png")
        (tmp_path / "b").mkdir(exist_ok=True)
        image.save(tmp_path / "b" / f"{i}.{end}", format="JPEG")
    recipe = image_folder.recipe(path=str(tmp_path), size=8)
    made = [e for task in recipe.tasks for e in recipe.make(task)]
    assert sum(e.label for e in made) == 7


@pytest.mark.parametrize("end", ["heic", "HEIC", "dcm", "mha", "nrrd", "npz", "nef"])
def test_images_of_other_kinds_are_refused(tmp_path, end):
    put(tmp_path, "a/1.png", "b/1.png")
    (tmp_path / "b" / f"2.{end}").write_bytes(b"x")
    assert where_refused(tmp_path) == str(tmp_path / "b")


def test_litter_is_skipped_and_links_are_read(tmp_path):
    root = tmp_path / "set"
    for name in ("fibrosis", "normal"):
        put(root, *(f"{name}/{i:03d}.PNG" for i in range(10)))
        put(root, f"{name}/.ipynb_checkpoints/000.png", f"{name}/sub folder/é 1.png")
        for litter in (".DS_Store", "Thumbs.db", "desktop.ini", "._000.PNG"):
            (root / name / litter).write_bytes(b"\0\5\26\7")
        os.symlink(root / name / "000.PNG", root / name / "link.png")
    put(root, ".ipynb_checkpoints/a.png", "__MACOSX/fibrosis/._000.png")
    colour = Image.fromarray(np.full((8, 8, 3), 60, np.uint8))
    colour.convert("CMYK").save(root / "normal" / "cmyk.jpg")
    colour.convert("P").save(root / "normal" / "palette.png")
    colour.convert("LA").save(root / "normal" / "la.png")
    colour.convert("1").save(root / "normal" / "one.tif", compression="group4")
    made = prepare(image_folder.recipe(path=str(root), size=8), tmp_path, workers=1)
    assert made.class_names == ("fibrosis", "normal")
    assert np.bincount(made.labels).tolist() == [12, 16]
    notes = " ".join(made.notes)
    assert "2 .db" in notes and "2 .ini" in notes


def test_images_outside_class_folders_are_counted(tmp_path):
    root = tree(tmp_path / "set", "train", "test")
    put(root, "cover.png", "train/cover.png")
    made = prepare(image_folder.recipe(path=str(root), size=8), tmp_path, workers=1)
    assert len(made) == 12
    assert any("outside the class folders: 2" in note for note in made.notes)
