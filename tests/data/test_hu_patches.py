"""Realistic folders of patches in HU: TIFF, NumPy and NIfTI files."""

from pathlib import Path

import nibabel
import numpy as np
import pytest
import tifffile
from basics import refused_at
from PIL import Image

from twostage_jax import config as configs
from twostage_jax.config import (
    Config,
    DataConfig,
    ModelConfig,
    StageConfig,
    StudyConfig,
    config_file,
)
from twostage_jax.data import image_folder, sources, splits
from twostage_jax.data.store import prepare
from twostage_jax.errors import UserError

CLASSES = ("emphysema", "fibrosis")
SIDE = 12


def hu(seed, side=SIDE):
    """Returns noise around the HU of lung, `[side, side]` whole numbers."""
    noise = np.random.default_rng(seed).normal(-700, 150, (side, side))
    return np.rint(noise)


def save_imagej(path, values):
    """Writes signed pixels as ImageJ does: unsigned, with a calibration."""
    text = (
        "ImageJ=1.54f\nmin=-1500.0\nmax=2220.0\ncf=0\nc0=-32768.0\nc1=1.0\n"
        "vunit=gray value\n"
    )
    stored = (values + 32768).astype(np.uint16)
    tifffile.imwrite(path, stored, description=text, metadata=None)


def save_nifti(path, values, dtype=np.int16, axes=3):
    array = values.T.astype(dtype)
    nibabel.save(
        nibabel.Nifti1Image(array[..., None] if axes == 3 else array, None), path
    )


FORMS = {
    "int16.tif": lambda path, v: tifffile.imwrite(path, v.astype(np.int16)),
    "int32.tif": lambda path, v: tifffile.imwrite(path, v.astype(np.int32)),
    "float32.tif": lambda path, v: tifffile.imwrite(path, v.astype(np.float32)),
    "float64.tiff": lambda path, v: tifffile.imwrite(path, v),
    "big.TIF": lambda path, v: tifffile.imwrite(path, v.astype(">i2"), byteorder=">"),
    "deflated.tif": lambda path, v: tifffile.imwrite(
        path, v.astype(np.int16), compression="zlib", predictor=True
    ),
    "lzw.tif": lambda path, v: Image.fromarray(v.astype(np.int32)).save(
        path, compression="tiff_lzw"
    ),
    "float-packbits.tif": lambda path, v: Image.fromarray(v.astype(np.float32)).save(
        path, compression="packbits"
    ),
    "imagej.tif": save_imagej,
    "int16.npy": lambda path, v: np.save(path, v.astype(np.int16)),
    "big.npy": lambda path, v: np.save(path, v.astype(">i4")),
    "float32.npy": lambda path, v: np.save(path, v.astype(np.float32)),
    "float16.npy": lambda path, v: np.save(path, (v // 8 * 8).astype(np.float16)),
    "channel.npy": lambda path, v: np.save(path, v.astype(np.int16)[..., None]),
    "one.npy": lambda path, v: np.save(path, v.astype(np.int16)[None]),
    "torch.npy": lambda path, v: np.save(path, v.astype(np.int16)[None, None]),
    "columns.npy": lambda path, v: np.save(path, np.asfortranarray(v.astype(np.int16))),
    "int16.nii": save_nifti,
    "int16.nii.gz": save_nifti,
    "flat.nii.gz": lambda path, v: save_nifti(path, v, axes=2),
    "float.nii.gz": lambda path, v: save_nifti(path, v, np.float32),
}


def study(image_size, source, **options):
    target = StageConfig(DataConfig(source, options=options))
    model = ModelConfig(image_size=image_size)
    return Config("name", model, {"target": target}, {}, StudyConfig())


def write(root, form="x.npy", count=3, values=hu, save=None):
    """Writes `count` patches into each class folder, of patients p0, p1, ..."""
    save = save or FORMS.get(form, FORMS["int16.npy"])
    for label, name in enumerate(CLASSES):
        (root / name).mkdir(parents=True, exist_ok=True)
        for i in range(count):
            save(root / name / f"p{i}_{form}", values(10 * label + i))
    return root


def made(root, **settings):
    recipe = image_folder.recipe(
        path=str(root), **{"size": 0, "kind": "ct", **settings}
    )
    return {e.id: e for task in recipe.tasks for e in recipe.make(task)}


def refused(root, **settings):
    with pytest.raises(UserError) as error:
        made(root, **settings)
    return error.value


@pytest.mark.parametrize("form", FORMS)
def test_every_format_gives_the_same_hu(tmp_path, form):
    found = made(write(tmp_path, form))
    assert len(found) == 6
    example = found[f"fibrosis/p2_{form}"]
    expected = hu(12) // 8 * 8 if form == "float16.npy" else hu(12)
    assert example.image.dtype == np.int16
    np.testing.assert_array_equal(example.image[..., 0], expected)


def test_nifti_slope_and_intercept_are_applied(tmp_path):
    """Values as stored by scanners, with the intercept in the header."""

    def save(path, values):
        stored = (values.T + 1024)[..., None].astype(np.int16)
        image = nibabel.Nifti1Image(stored, None)
        nibabel.save(image, path)
        raw = bytearray(path.read_bytes())
        # Bytes 112 and 116 of the header: scl_slope and scl_inter.
        raw[112:120] = np.array([1, -1024], "<f4").tobytes()
        path.write_bytes(raw)

    found = made(write(tmp_path, "x.nii", save=save))
    np.testing.assert_array_equal(found["emphysema/p1_x.nii"].image[..., 0], hu(1))


def test_fractions_are_rounded(tmp_path):
    save = FORMS["float32.npy"]
    found = made(write(tmp_path, values=lambda seed: hu(seed) + 0.4, save=save))
    np.testing.assert_array_equal(found["emphysema/p0_x.npy"].image[..., 0], hu(0))


def test_pages_and_stacks_are_patches_of_one_group(tmp_path):
    def save(path, values):
        stack = np.stack([values, values + 1]).astype(np.int16)
        if path.suffix == ".tif":
            tifffile.imwrite(path, stack, photometric="minisblack")
        else:
            np.save(path, stack)

    write(tmp_path, "x.tif", 1, save=save)
    write(tmp_path, "y.npy", 1, save=save)
    found = made(tmp_path)
    assert len(found) == 8
    for name in ("x.tif", "y.npy"):
        for index in (0, 1):
            example = found[f"fibrosis/p0_{name}#{index:05d}"]
            np.testing.assert_array_equal(example.image[..., 0], hu(10) + index)
            assert example.group == f"fibrosis/p0_{name}"
    by_patient = made(tmp_path, group_regex="(p.)_")
    assert {e.group for e in by_patient.values()} == {"p0"}


@pytest.mark.parametrize(
    "shape", [(3,), (2, 3, 8, 8), (5, 300, 300), (8, 8, 3), (0, 8, 8), (2, 8), ()]
)
def test_arrays_that_are_not_patches_are_refused(tmp_path, shape):
    write(tmp_path)
    np.save(tmp_path / "fibrosis" / "z.npy", np.full(shape, -500, np.int16))
    assert refused(tmp_path).where == str(tmp_path / "fibrosis" / "z.npy")


@pytest.mark.parametrize("dtype", [np.int16, np.float32])
def test_stacks_along_the_last_axis_are_refused(tmp_path, dtype):
    """As `[N, H, W]`, they would be 12 patches of 12 x 10 pixels."""
    write(tmp_path)
    path = tmp_path / "fibrosis" / "z.npy"
    patches = np.stack([hu(seed) for seed in range(10)])
    np.save(path, np.moveaxis(patches, 0, -1).astype(dtype))
    assert refused(tmp_path).where == str(path)
    np.save(path, patches.astype(dtype))
    image = made(tmp_path)["fibrosis/z.npy#00009"].image[..., 0]
    np.testing.assert_array_equal(image, hu(9))


def test_as_many_patches_as_rows_are_read(tmp_path):
    """Square ones; and 12 pages of 12 x 10 pixels, whose order of axes is certain."""
    write(tmp_path)
    stack = np.stack([hu(seed) for seed in range(SIDE)]).astype(np.int16)
    np.save(tmp_path / "fibrosis" / "y.npy", stack)
    np.save(tmp_path / "fibrosis" / "z.npy", stack[..., None])
    pages = np.ascontiguousarray(stack[:, :, :10])
    tifffile.imwrite(tmp_path / "fibrosis" / "z.tif", pages, photometric="minisblack")
    assert len(made(tmp_path, size=SIDE)) == 6 + 3 * SIDE


def test_volumes_are_refused(tmp_path):
    write(tmp_path)
    path = tmp_path / "fibrosis" / "volume.nii.gz"
    nibabel.save(nibabel.Nifti1Image(np.zeros((16, 16, 9), np.int16), None), path)
    assert refused(tmp_path).where == str(path)


def test_units_are_required_without_negative_values(tmp_path):
    """Only the user knows the meaning of 0 to 200 in a signed type."""
    write(tmp_path, values=lambda seed: np.abs(hu(seed)) % 200)
    error = refused(tmp_path)
    assert error.where == "units"
    assert "199" in str(error) and "units='hu'" in str(error)
    assert len(made(tmp_path, units="hu")) == 6


@pytest.mark.parametrize(
    "values",
    [
        lambda seed: (hu(seed) + 700) / 150,
        lambda seed: (hu(seed) + 700) / 1000,
        lambda seed: np.clip(hu(seed) + 700, -128, 127),
    ],
    ids=["standardised", "scaled", "centred grey"],
)
def test_negative_values_alone_do_not_prove_hu(tmp_path, values):
    write(tmp_path, values=values, save=FORMS["float32.npy"])
    assert refused(tmp_path).where == "units"


def test_scaled_values_declared_as_hu_are_refused(tmp_path):
    write(tmp_path, values=lambda seed: hu(seed) / 1000, save=FORMS["float32.npy"])
    assert refused(tmp_path, units="hu").where == "units"


def test_lost_intercept_is_refused_and_an_offset_restores_it(tmp_path):
    write(tmp_path, values=lambda seed: np.maximum(hu(seed) + 1024, 0) + 400)
    assert refused(tmp_path).where == "units"
    error = refused(tmp_path, units="hu")
    assert error.where == "units" and "offset" in str(error)
    found = made(tmp_path, units="hu", offset=-1424.0)
    image = found["emphysema/p0_x.npy"].image[..., 0]
    np.testing.assert_array_equal(image, np.maximum(hu(0), -1024))


def test_lost_intercept_of_some_files_is_noted(tmp_path):
    write(tmp_path / "set")
    stored = (hu(5) + 1424).astype(np.int16)
    np.save(tmp_path / "set" / "fibrosis" / "p9.npy", stored)
    recipe = image_folder.recipe(
        path=str(tmp_path / "set"), size=0, group_regex="/(p.)"
    )
    (note,) = prepare(recipe, tmp_path, workers=1).notes
    assert note.startswith("1 of 7 files")


def mixed(root, values, dtype=np.int16):
    """Writes a set whose second class, of 3 files, has other values than lung."""
    write(root)
    for i in range(3):
        np.save(root / "fibrosis" / f"p{i}_x.npy", values(hu(i)).astype(dtype))
    return root


@pytest.mark.parametrize("units", ["", "hu"])
def test_a_class_without_air_is_noted(tmp_path, units):
    """Grey values of the window -1350 to 150, or soft tissue."""
    root = mixed(tmp_path / "set", lambda v: np.clip((v + 1350) / 1500 * 255, 0, 255))
    recipe = image_folder.recipe(
        path=str(root), size=0, group_regex="/(p.)", units=units
    )
    (note,) = prepare(recipe, tmp_path, workers=1).notes
    assert "fibrosis (3 files)" in note and "emphysema" not in note


@pytest.mark.parametrize("low", [0, -1])
@pytest.mark.parametrize("offset", [0.0, -1024.0])
def test_files_scaled_to_1_are_refused_among_files_in_hu(tmp_path, low, offset):
    write(tmp_path, values=lambda seed: hu(seed) - offset)
    path = tmp_path / "fibrosis" / "z.npy"
    np.save(path, np.linspace(low, 1, SIDE**2).reshape(SIDE, SIDE).astype(np.float32))
    assert refused(tmp_path, units="hu", offset=offset).where == str(path)


@pytest.mark.parametrize(
    "values",
    [np.linspace(0, 100, SIDE**2), np.linspace(-0.5, 2, SIDE**2), np.zeros(SIDE**2)],
    ids=["soft tissue", "water", "constant"],
)
def test_small_values_are_not_refused_among_files_in_hu(tmp_path, values):
    write(tmp_path)
    np.save(tmp_path / "fibrosis" / "z.npy", values.reshape(SIDE, SIDE))
    image = made(tmp_path)["fibrosis/z.npy"].image[..., 0]
    np.testing.assert_array_equal(image.ravel(), np.rint(values))


def test_16_bit_png_with_an_offset(tmp_path):
    """Grey by default: DeepLesion, for example, stores HU + 32768."""

    def save(path, values):
        Image.fromarray((values + 32768).astype(np.uint16)).save(path)

    write(tmp_path, "x.png", save=save)
    assert made(tmp_path)["fibrosis/p0_x.png"].image.dtype == np.uint8
    found = made(tmp_path, units="hu", offset=-32768.0)
    np.testing.assert_array_equal(found["fibrosis/p0_x.png"].image[..., 0], hu(10))


@pytest.mark.parametrize("most", [300, 4095, 32767, 65534, 65535])
@pytest.mark.parametrize("plain", [True, False])
def test_pgm_values_are_those_of_the_file_whatever_its_maximum(tmp_path, most, plain):
    least = max(0, most - 30_000)
    ramp = np.linspace(least, most, SIDE**2).round().astype(int)
    stored, offset = ramp.reshape(SIDE, SIDE), -1024 - least

    def save(path, _):
        text = " ".join(map(str, stored.ravel())).encode()
        body = text if plain else stored.astype(">u2").tobytes()
        head = f"P{2 if plain else 5}\n{SIDE} {SIDE}\n{most}\n"
        path.write_bytes(head.encode() + body)

    found = made(write(tmp_path, "x.pgm", save=save), units="hu", offset=offset)
    image = found["fibrosis/p0_x.pgm"].image[..., 0]
    np.testing.assert_array_equal(image, stored + offset)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -32768, 40000])
def test_impossible_hu_are_refused(tmp_path, bad):
    write(tmp_path, save=FORMS["float32.npy"])
    values = hu(3).astype(np.float32)
    values[0, 0] = bad
    path = tmp_path / "fibrosis" / "bad.npy"
    np.save(path, values)
    assert refused(tmp_path).where == str(path)


@pytest.mark.parametrize(
    ("name", "save"),
    [
        ("a.png", lambda path: Image.new("L", (SIDE, SIDE)).save(path)),
        ("z.jpg", lambda path: Image.new("L", (SIDE, SIDE)).save(path)),
        ("z.tif", lambda path: Image.new("L", (SIDE, SIDE)).save(path)),
        ("z.tif", lambda path: Image.new("RGB", (SIDE, SIDE)).save(path)),
        ("z.npy", lambda path: np.save(path, np.zeros((SIDE, SIDE), np.uint8))),
        ("z.npy", lambda path: np.save(path, np.zeros((SIDE, SIDE), bool))),
        ("z.npy", lambda path: np.save(path, np.zeros((SIDE, SIDE), complex))),
        ("z.npy", lambda path: path.write_bytes(b"")),
        ("z.tif", lambda path: path.write_bytes(b"II*\0junk")),
        ("z.nii.gz", lambda path: path.write_bytes(b"<html>")),
    ],
)
def test_other_images_in_a_set_in_hu_are_refused(tmp_path, name, save):
    write(tmp_path)
    save(tmp_path / "fibrosis" / name)
    assert refused(tmp_path).where == str(tmp_path / "fibrosis" / name)


def test_pickled_arrays_are_never_loaded(tmp_path):
    write(tmp_path)
    path = tmp_path / "fibrosis" / "z.npy"
    np.save(path, np.array([{}], object), allow_pickle=True)
    assert refused(tmp_path).where == str(path)


def test_one_array_among_pictures_is_refused(tmp_path):
    write(tmp_path, "x.png", save=lambda p, v: Image.new("L", (8, 8)).save(p))
    np.save(tmp_path / "fibrosis" / "features.npy", np.zeros((8, 8), np.float32))
    assert refused(tmp_path).where == str(tmp_path / "fibrosis" / "features.npy")
    assert refused(tmp_path, units="grey").where.endswith("features.npy")
    assert refused(tmp_path, units="hu").where == "units"


def test_signed_tiffs_after_an_unsigned_one_are_refused_with_advice_for_hu(tmp_path):
    write(tmp_path, "int16.tif")
    first, second = (tmp_path / "emphysema" / f"p{i}_int16.tif" for i in (0, 1))
    tifffile.imwrite(first, hu(0).clip(0).astype(np.uint16))
    error = refused(tmp_path)
    assert error.where == str(second)
    assert "in HU" in str(error)


def test_unsigned_tiffs_stay_grey(tmp_path):
    def save(path, values):
        tifffile.imwrite(path, (values + 2000).astype(np.uint16))

    assert made(write(tmp_path, "x.tif", save=save))[
        "fibrosis/p0_x.tif"
    ].image.dtype == (np.uint8)


def test_nothing_is_resized_where_the_size_is_kept(tmp_path):
    """The largest centred square in all images: 12 of 12, 13 and 16 x 14 pixels."""
    write(tmp_path / "set")
    np.save(tmp_path / "set" / "fibrosis" / "p7.npy", hu(7, 13).astype(np.int16))
    wide = hu(8, 16)[:14].astype(np.int16)
    np.save(tmp_path / "set" / "fibrosis" / "p8.npy", wide)
    recipe = image_folder.recipe(
        path=str(tmp_path / "set"), size=0, group_regex="/(p.)"
    )
    data = prepare(recipe, tmp_path, workers=1)
    images = dict(zip(data.ids, data.images[..., 0], strict=True))
    np.testing.assert_array_equal(images["fibrosis/p7.npy"], hu(7, 13)[:12, :12])
    np.testing.assert_array_equal(images["fibrosis/p8.npy"], wide[1:13, 2:14])
    (note,) = data.notes
    assert note.startswith("2 of 8 images") and "12 x 12" in note


def test_resizing_is_noted_and_keeps_hu(tmp_path):
    write(tmp_path / "set", values=lambda seed: np.full((12, 12), -800.0 - seed))
    recipe = image_folder.recipe(
        path=str(tmp_path / "set"), size=6, kind="ct", group_regex="/(p.)"
    )
    data = prepare(recipe, tmp_path, workers=1)
    assert data.images.shape == (6, 6, 6, 1) and data.units == "hu"
    assert set(np.unique(data.images)) == {-800, -801, -802, -810, -811, -812}
    (note,) = data.notes
    assert note.startswith("6 of 6 images") and "6 x 6" in note


def test_crops_of_hu_lie_where_those_of_pictures_do(tmp_path):
    found = made(write(tmp_path), size=5, crop=5, stride=4)
    corners = [(r, c) for r in (1, 5) for c in (1, 5)]
    assert len(found) == 6 * len(corners)
    for r, c in corners:
        np.testing.assert_array_equal(
            found[f"fibrosis/p1_x.npy@{r:05d},{c:05d}"].image[..., 0],
            hu(11)[r : r + 5, c : c + 5],
        )


def test_grey_patches_keep_their_size_too(tmp_path):
    def save(path, values):
        Image.fromarray((values % 256).astype(np.uint8)).save(path)

    found = made(write(tmp_path, "x.png", save=save))
    np.testing.assert_array_equal(
        found["fibrosis/p0_x.png"].image[..., 0], hu(10) % 256
    )


def test_patches_without_patients_are_noted(tmp_path):
    write(tmp_path / "set")
    recipe = image_folder.recipe(path=str(tmp_path / "set"), size=0, kind="ct")
    (note,) = prepare(recipe, tmp_path, workers=1).notes
    assert "group_regex" in note


def test_patches_smaller_than_the_network_are_refused(tmp_path):
    write(tmp_path / "set")
    options = {"path": str(tmp_path / "set"), "size": 0, "group_regex": "/(p.)"}
    data = DataConfig("folder", options=options)
    with refused_at("config.model.image_size") as error:
        sources.load(data, ModelConfig(image_size=32), tmp_path)
    assert "12" in str(error.value)
    own = "config.stages.target.data.image_size"
    with refused_at(own):
        sources.load(data, ModelConfig(image_size=32), tmp_path, own)
    assert len(sources.load(data, ModelConfig(image_size=12), tmp_path)) == 6


@pytest.mark.parametrize(("side", "seen"), [(12, 12), (70, sources.LARGEST)])
def test_network_sees_whole_patches_by_default(tmp_path, side, seen):
    write(tmp_path / "set", values=lambda seed: hu(seed, side))
    options = {"path": str(tmp_path / "set"), "size": 0, "group_regex": "/(p.)"}
    assert sources.sized(study(0, "folder", **options)).model.image_size == seen
    told = study(8, "folder", **options)
    assert sources.sized(told) == told


def test_images_that_are_made_to_size_need_a_size():
    with refused_at("config.model.image_size"):
        sources.sized(study(0, "phantoms"))


def test_crop_of_the_network_is_printed(tmp_path, capsys):
    write(tmp_path / "set")
    options = {"path": str(tmp_path / "set"), "size": 0, "kind": "ct"}
    data = DataConfig("folder", options={**options, "group_regex": "/(p.)"})
    sources.load(data, ModelConfig(image_size=8), tmp_path)
    assert "8 x 8 of 12 pixels" in capsys.readouterr().out


@pytest.mark.parametrize(("side", "count"), [(61, 15), (32, 40)])
def test_the_config_needs_paths_and_the_rule_of_groups_only(tmp_path, side, count):
    write(tmp_path / "set", count=count, values=lambda seed: hu(seed, side))
    path = Path(__file__).parents[2] / "configs" / "patches.py"
    raw = config_file(path).get_config("smoke")
    for name in ("natural", "texture"):
        raw.stages[name].data.path = str(tmp_path)
    raw.stages.target.data.path = str(tmp_path / "set")
    raw.stages.target.data.group_regex = r"(p\d+)_"
    config = sources.sized(configs.parse(raw))
    assert config.network("target").image_size == side
    assert config.network("texture").image_size == 32
    data = config.stages["target"].data
    sources.check(data, "data")
    found = sources.load(data, config.model, tmp_path)
    assert found.images.shape == (2 * count, side, side, 1)
    assert found.units == "hu" and len(np.unique(found.groups)) == count


@pytest.mark.parametrize("patients", [{"fibrosis": 1}, {"fibrosis": 1, "emphysema": 1}])
def test_a_class_of_too_few_patients_is_counted(tmp_path, patients):
    root = write(tmp_path / "set", count=0)
    for label, name in enumerate(CLASSES):
        for i in range(12):
            patient = i % patients.get(name, 12)
            path = root / name / f"{name[0]}{patient}_{i}.npy"
            np.save(path, hu(20 * label + i).astype(np.int16))
    recipe = image_folder.recipe(path=str(root), size=0, group_regex=r"([ef]\d+)_")
    with pytest.raises(UserError) as error:
        splits.split(prepare(recipe, tmp_path, workers=1), seed=0)
    if len(patients) == 1:
        assert "'emphysema' has 12" in str(error.value)
        assert "'fibrosis' has 1" in str(error.value)
