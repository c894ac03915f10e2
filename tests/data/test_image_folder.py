"""A folder of class folders of images."""

import logging
import os
import pickle
import shutil

import numpy as np
import pytest
from basics import refused_at
from PIL import Image

from twostage_jax.data import image_files, image_folder
from twostage_jax.data.store import prepare


def save(path, pixels, **kwargs):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.asarray(pixels)).save(path, **kwargs)


def grey(value, height=8, width=8):
    return np.full((height, width), value, np.uint8)


def examples(recipe):
    return {e.id: e for task in recipe.tasks for e in recipe.make(task)}


@pytest.fixture
def root(tmp_path):
    for label, name in enumerate(("cat", "dog")):
        for i in range(3):
            save(tmp_path / "set" / name / f"p{i}_{label}.png", grey(100 * label + i))
    return tmp_path / "set"


def test_classes_are_folders_and_ids_are_paths(root):
    recipe = image_folder.recipe(path=str(root), size=8)
    assert recipe.class_names == ("cat", "dog")
    found = examples(recipe)
    assert set(found) == {
        f"{name}/p{i}_{label}.png"
        for label, name in enumerate(("cat", "dog"))
        for i in range(3)
    }
    example = found["dog/p2_1.png"]
    assert (example.label, example.group, example.split) == (1, "", "train")
    np.testing.assert_array_equal(example.image, np.full((8, 8, 1), 102, np.uint8))


def test_prepared_like_any_other_set(root, tmp_path):
    recipe = pickle.loads(pickle.dumps(image_folder.recipe(path=str(root), size=4)))
    data = prepare(recipe, tmp_path, workers=1)
    assert data.images.shape == (6, 4, 4, 1)
    assert data.labels.tolist() == [0, 0, 0, 1, 1, 1]
    assert data.images[:, 0, 0, 0].tolist() == [0, 1, 2, 100, 101, 102]


def test_split_folders_are_the_sets_own_splits(tmp_path):
    for split in ("Train", "val", "test"):
        for name in ("a", "b"):
            save(tmp_path / split / name / "1.png", grey(5))
    found = examples(image_folder.recipe(path=str(tmp_path), size=8))
    assert {id: e.split for id, e in found.items()} == {
        "Train/a/1.png": "train",
        "Train/b/1.png": "train",
        "val/a/1.png": "validation",
        "val/b/1.png": "validation",
        "test/a/1.png": "test",
        "test/b/1.png": "test",
    }


def test_a_class_may_be_called_test(tmp_path):
    for name in ("test", "control"):
        save(tmp_path / name / "sub" / "1.png", grey(5))
    recipe = image_folder.recipe(path=str(tmp_path), size=8, group_regex="^(.*)/1")
    assert recipe.class_names == ("control", "test")
    assert examples(recipe)["test/sub/1.png"].group == "test/sub"


def test_crops_lie_on_a_centred_grid_and_share_the_images_group(tmp_path):
    pixels = np.arange(9 * 12, dtype=np.uint8).reshape(9, 12)
    for name in ("a", "b"):
        save(tmp_path / name / "x.png", pixels)
    recipe = image_folder.recipe(path=str(tmp_path), size=4, crop=4, stride=3)
    found = examples(recipe)
    # 9 - 4 = 5 = 1 * 3 + 2 spare rows, 1 above; 12 - 4 = 8 = 2 * 3 + 2 columns, 1 left.
    corners = [(y, x) for y in (1, 4) for x in (1, 4, 7)]
    assert set(found) == {
        f"{c}/x.png@{y:05d},{x:05d}" for c in ("a", "b") for y, x in corners
    }
    for y, x in corners:
        example = found[f"b/x.png@{y:05d},{x:05d}"]
        assert example.group == "b/x.png"
        np.testing.assert_array_equal(
            example.image[..., 0], pixels[y : y + 4, x : x + 4]
        )


def test_crops_are_resized_to_size(tmp_path):
    checks = np.kron(np.array([[0, 200], [100, 50]]), np.ones((8, 8))).astype(np.uint8)
    save(tmp_path / "a" / "x.png", checks)
    save(tmp_path / "b" / "x.png", checks)
    found = examples(image_folder.recipe(path=str(tmp_path), size=2, crop=8))
    values = [found[f"a/x.png@{y:05d},{x:05d}"].image for y in (0, 8) for x in (0, 8)]
    for image, value in zip(values, (0, 200, 100, 50), strict=True):
        np.testing.assert_array_equal(image, np.full((2, 2, 1), value))


def test_whole_images_lose_their_longer_sides_ends(tmp_path):
    wide = np.full((4, 20), 255, np.uint8)
    wide[:, 8:12] = 10
    for name in ("a", "b"):
        save(tmp_path / name / "x.bmp", wide)
        save(tmp_path / name / "y.bmp", wide.T)
    for example in examples(image_folder.recipe(path=str(tmp_path), size=4)).values():
        np.testing.assert_array_equal(example.image, np.full((4, 4, 1), 10))


RED = np.zeros((6, 6, 3), np.uint8) + np.array([255, 0, 0], np.uint8)


def test_formats_and_modes_become_8_bit_grey_or_rgb(tmp_path):
    ramp = np.linspace(0, 65535, 36).round().astype(np.uint16).reshape(6, 6)
    scaled = (ramp / 65535 * 255).round().astype(np.uint8)
    palette = Image.fromarray(RED).quantize(4)
    alpha = np.dstack([RED, np.zeros((6, 6), np.uint8)])
    save(tmp_path / "16.png", ramp)
    save(tmp_path / "16.tif", ramp)
    save(tmp_path / "16.pgm", ramp)
    save(tmp_path / "rgb.png", RED)
    save(tmp_path / "rgba.png", alpha)
    save(tmp_path / "la.png", np.dstack([grey(7, 6, 6), grey(0, 6, 6)]))
    save(tmp_path / "l.pgm", grey(7, 6, 6))
    save(tmp_path / "1.png", np.eye(6, dtype=bool))
    palette.save(tmp_path / "p.png")
    palette.save(tmp_path / "transparent.png", transparency=0)

    def read(name, channels):
        return np.asarray(image_files.read(tmp_path / name, channels))

    for name in ("16.png", "16.tif", "16.pgm"):
        np.testing.assert_array_equal(read(name, 1), scaled)
        np.testing.assert_array_equal(read(name, 3), np.dstack([scaled] * 3))
    for name in ("rgb.png", "rgba.png", "p.png", "transparent.png"):
        np.testing.assert_array_equal(read(name, 3), RED)
        # 0.299 * 255 = 76.2
        np.testing.assert_array_equal(read(name, 1), grey(76, 6, 6))
    for name in ("la.png", "l.pgm"):
        np.testing.assert_array_equal(read(name, 1), grey(7, 6, 6))
        np.testing.assert_array_equal(read(name, 3), np.full((6, 6, 3), 7))
    np.testing.assert_array_equal(read("1.png", 1), 255 * np.eye(6))


def test_groups_by_regex_and_by_csv(root, tmp_path):
    by_name = image_folder.recipe(path=str(root), group_regex=r"(p\d)_")
    assert {e.group for e in examples(by_name).values()} == {"p0", "p1", "p2"}
    table = tmp_path / "groups.csv"
    lines = [f"{name},{name.split('/')[1][:2]}" for name in examples(by_name)]
    table.write_text("\n".join(["path,group", *lines]), encoding="utf-8-sig")
    by_table = image_folder.recipe(path=str(root), group_csv=str(table))
    assert examples(by_table)["dog/p2_1.png"].group == "p2"
    for text in (
        "\n".join(["path,group", *lines[1:]]),
        "file,patient\na,b\n",
        "path,group\ncat/p0_0.png,1\ncat/p0_0.png,2\n",
    ):
        table.write_text(text)
        with refused_at(table):
            image_folder.recipe(path=str(root), group_csv=str(table))
    with refused_at("none.csv"):
        image_folder.recipe(path=str(root), group_csv="none.csv")


def test_group_in_train_and_test_is_refused(tmp_path):
    for split in ("train", "test"):
        for name in ("a", "b"):
            save(tmp_path / split / name / f"p1_{name}.png", grey(5))
    with refused_at(tmp_path):
        image_folder.recipe(path=str(tmp_path), group_regex=r"(p\d)_")
    # Crops of equally named images in different folders are different groups.
    image_folder.recipe(path=str(tmp_path), crop=8)


def test_other_files_are_skipped_counted_and_listed(root, tmp_path, caplog):
    (root / "cat" / "Thumbs.db").write_bytes(b"x")
    (root / "cat" / "notes.txt").write_bytes(b"x")
    (root / "cat" / "._p1.png").write_bytes(b"x")
    (root / ".git").mkdir()
    save(root / "cover.png", grey(1))
    with caplog.at_level(logging.WARNING):
        recipe = image_folder.recipe(path=str(root), size=8)
    assert len(examples(recipe)) == 6
    for name in ("cat/._p1.png", "cat/Thumbs.db", "cat/notes.txt", ".git", "cover.png"):
        assert name in caplog.text
    notes = " ".join(prepare(recipe, tmp_path, workers=1).notes)
    for fact in ("outside the class folders: 1", "2 hidden", "1 .db", "1 .txt"):
        assert fact in notes
    assert "notes.txt" not in notes


@pytest.mark.parametrize(
    ("options", "where"),
    [
        ({"group_regex": "("}, "group_regex"),
        ({"group_regex": "p."}, "group_regex"),
        ({"group_regex": "(q)"}, "group_regex"),
        ({"group_regex": "(p)", "group_csv": "x.csv"}, "group_csv"),
        ({"crop": -1}, "crop"),
        ({"stride": 4}, "stride"),
        ({"units": "HU"}, "units"),
        ({"offset": -1024.0}, "offset"),
        ({"classes": "cat,cow"}, "classes"),
        ({"size": -1}, "size"),
        ({"channels": 2}, "channels"),
        ({"kind": "xray"}, "kind"),
    ],
)
def test_impossible_settings_are_refused(root, options, where):
    with refused_at(where):
        image_folder.recipe(path=str(root), **options)


def refused(path, where):
    with refused_at(where):
        image_folder.recipe(path=str(path))


def test_invalid_folders_are_refused(root, tmp_path):
    refused(tmp_path / "nowhere", tmp_path / "nowhere")
    refused(root / "cat", root / "cat")
    (root / "cow").mkdir()
    refused(root, root / "cow")
    (root / "cow").rmdir()
    save(root / "train" / "cat" / "1.png", grey(0))
    refused(root, root)
    only_test = tmp_path / "only"
    save(only_test / "test" / "cat" / "1.png", grey(0))
    refused(only_test, only_test)
    save(only_test / "train" / "dog" / "1.png", grey(0))
    refused(only_test, only_test / "test" / "cat")


def run(path, **options):
    return examples(image_folder.recipe(path=str(path), **options))


def test_bits_of_16_bit_grey_are_measured_unless_given(tmp_path):
    for name, value in (("a", 1000), ("b", 4095)):
        save(tmp_path / "set" / name / "1.png", np.full((8, 8), value, np.uint16))
    for bits, expected in ((0, 255), (12, 255), (16, 16)):
        recipe = image_folder.recipe(path=str(tmp_path / "set"), size=8, bits=bits)
        made = prepare(recipe, tmp_path / "out", workers=1, progress=False)
        assert made.measures == {"bits": bits or 12}
        assert made.images[1].max() == expected  # 4095 / 65535 of 255 is 15.9
    with refused_at("bits"):
        image_folder.recipe(path=str(tmp_path / "set"), size=8, bits=17)


def test_bad_images_are_named(root, monkeypatch):
    bad = root / "dog" / "bad.png"
    bad.write_bytes(b"no image")
    with refused_at(bad):
        run(root)
    bad.unlink()
    with refused_at(root / "cat" / "p0_0.png"):
        run(root, crop=9)
    for dtype in (np.float32, np.int32):
        save(bad.with_suffix(".tif"), np.ones((4, 4), dtype))
        for units in ("", "grey"):
            with refused_at(bad.with_suffix(".tif")):
                run(root, units=units)
    bad.with_suffix(".tif").unlink()
    for limit in (40, 10):
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
        with refused_at(root / "cat" / "p0_0.png"):
            run(root)


def test_one_small_image_does_not_cut_all_others(root):
    assert image_folder.recipe(path=str(root), size=0).side == 8
    save(root / "cat" / "thumbnail.png", grey(7, 3, 8))
    with refused_at(root / "cat" / "thumbnail.png"):
        image_folder.recipe(path=str(root), size=0)
    assert image_folder.recipe(path=str(root), size=8).side == 8
    save(root / "cat" / "thumbnail.png", grey(7, 4, 8))
    assert image_folder.recipe(path=str(root), size=0).side == 4


@pytest.mark.parametrize("expression", ["(cat|dog)", r"(c|\d)", r"([a-z]+)"])
def test_an_expression_that_finds_the_class_is_refused(root, expression):
    """Also in the files of one class only, as in '19' of 'covid19'."""
    with refused_at("group_regex"):
        image_folder.recipe(path=str(root), size=8, group_regex=expression)


def test_a_patient_named_together_with_the_class_is_refused(tmp_path):
    """Otherwise, 'fibrosis/p1' and 'normal/p1' would be two patients."""
    for name in ("fibrosis", "normal"):
        for i in range(2):
            save(tmp_path / name / f"p1_{i}.png", grey(5))
            save(tmp_path / name / f"p2_{i}.png", grey(5))
    for expression in (r"(.*)_\d", r"(s/p\d|l/p\d)"):
        with refused_at("group_regex"):
            run(tmp_path, kind="ct", group_regex=expression)
    found = run(tmp_path, kind="ct", group_regex=r"(/p\d)_")
    assert {e.group for e in found.values()} == {"/p1", "/p2"}
    # Samples of materials may be numbered per class.
    found = run(tmp_path, kind="texture", group_regex=r"(.*)_\d")
    assert len({e.group for e in found.values()}) == 4
    for i in range(2):
        (tmp_path / "normal" / f"p1_{i}.png").unlink()
        (tmp_path / "fibrosis" / f"p2_{i}.png").unlink()
    found = run(tmp_path, kind="ct", group_regex=r"(.*)_\d")
    assert {e.group for e in found.values()} == {"fibrosis/p1", "normal/p2"}


@pytest.mark.parametrize(("expression", "noted"), [(r"/(p\d_\d)", 1), (r"/(p\d)", 0)])
def test_groups_of_one_file_each_are_noted(root, tmp_path, expression, noted):
    recipe = image_folder.recipe(path=str(root), size=8, group_regex=expression)
    notes = prepare(recipe, tmp_path, workers=1).notes
    assert sum("group_regex" in note for note in notes) == noted


def test_colours_read_as_grey_are_noted(tmp_path):
    ramp = np.tile(np.arange(0, 256, 4, dtype=np.uint8), (64, 1))
    stained = np.dstack([ramp, ramp // 2, ramp])
    for name, pixels in (("a", np.dstack([ramp] * 3)), ("b", stained)):
        save(tmp_path / "set" / name / "1.jpg", pixels)
    notes = {}
    for channels in (1, 3):
        recipe = image_folder.recipe(path=str(tmp_path / "set"), channels=channels)
        notes[channels] = " ".join(prepare(recipe, tmp_path, workers=1).notes)
    assert "1 of 2 images are in colour" in notes[1] and "colour" not in notes[3]


def test_key_follows_settings_and_files(root):
    def key(**options):
        return image_folder.recipe(path=str(root), **options).key

    keys = {
        key(),
        key(size=16),
        key(channels=3),
        key(crop=4),
        key(crop=4, stride=2),
        key(kind="texture"),
        key(group_regex=r"(p\d)_"),
    }
    assert len(keys) == 7
    assert key() in keys
    assert key(crop=4, stride=4) == key(crop=4)
    os.utime(root / "cat" / "p0_0.png", ns=(1, 1))
    assert key() not in keys


def test_folders_with_equal_names_sizes_and_times_are_different_sets(root, tmp_path):
    """As unpacked from two archives with fixed times."""
    other, link = tmp_path / "other", tmp_path / "link"
    shutil.copytree(root, other)
    link.symlink_to(root)
    for path in [*root.rglob("*.png"), *other.rglob("*.png")]:
        os.utime(path, ns=(1, 1))
    keys = [image_folder.recipe(path=str(f)).key for f in (root, other, link)]
    assert keys[0] == keys[2] != keys[1]


def test_real_folders_are_understood(real_data):
    natural = image_folder.recipe(path=str(real_data / "cifar10"), channels=3)
    assert len(natural.class_names) == 10
    assert sum(len(task) for task in natural.tasks) == 24_000
    (first, *_) = natural.make(natural.tasks[-1][-1:])
    assert (first.image.shape, first.split) == ((32, 32, 3), "train")
    textures = image_folder.recipe(
        path=str(real_data / "kth_tips_gray"), crop=64, stride=32, kind="texture"
    )
    crops = textures.make(textures.tasks[0][:1])
    assert len(crops) == 25
    assert {e.group for e in crops} == {textures.tasks[0][0].path}
