"""Standard sets prepared by TFDS, read without TensorFlow."""

import io
import sys

import numpy as np
import pytest
import tensorflow_datasets as tfds
from basics import refused_at
from PIL import Image

from twostage_jax.data import tfds as tfds_sets
from twostage_jax.data.store import prepare
from twostage_jax.errors import UserError


def picture(split, i):
    rng = np.random.default_rng([len(split), i])
    return rng.integers(0, 256, (6, 10, 3)).astype(np.uint8)


def encoded(pixels):
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, format="PNG")
    file.seek(0)
    return file


class TinySet(tfds.core.GeneratorBasedBuilder):
    """Set of six train, two validation and three test examples, one without a label."""

    VERSION = tfds.core.Version("1.2.0")
    pkg_dir_path = None
    SIZES = {"train": 6, "validation": 2, "test": 3, "extra": 2}

    def _info(self):
        return tfds.core.DatasetInfo(
            builder=self,
            features=tfds.features.FeaturesDict(
                {
                    "image": tfds.features.Image(shape=(None, None, 3)),
                    "label": tfds.features.ClassLabel(names=["cat", "dog"]),
                }
            ),
        )

    def _split_generators(self, dl_manager):
        return {name: self._generate_examples(name) for name in self.SIZES}

    def _generate_examples(self, split):
        for i in range(self.SIZES[split]):
            label = -1 if (split, i) == ("test", 0) else i % 2
            yield i, {"image": encoded(picture(split, i)), "label": label}


class NoLabels(TinySet):
    """Set of the same images without labels."""

    def _info(self):
        features = {"image": tfds.features.Image(shape=(None, None, 3))}
        return tfds.core.DatasetInfo(
            builder=self, features=tfds.features.FeaturesDict(features)
        )

    def _generate_examples(self, split):
        for i in range(self.SIZES[split]):
            yield i, {"image": encoded(picture(split, i))}


def build(builder_class, home):
    builder = builder_class(data_dir=home)
    builder.download_and_prepare(
        file_format="array_record",
        download_config=tfds.download.DownloadConfig(try_download_gcs=False),
    )


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    path = tmp_path_factory.mktemp("tfds")
    for builder_class in (TinySet, NoLabels):
        build(builder_class, path)
    return path


def test_read_with_its_own_splits_and_without_unlabelled_examples(home, tmp_path):
    recipe = tfds_sets.recipe(name="tiny_set", size=6, channels=3, tfds_dir=str(home))
    data = prepare(recipe, tmp_path, workers=1)
    assert data.class_names == ("cat", "dog")
    assert data.groups is None
    names, counts = np.unique(data.splits, return_counts=True)
    assert dict(zip(names, counts, strict=True)) == {
        "train": 6,
        "validation": 2,
        "test": 2,
    }
    # TFDS shuffles the examples; images are the central squares.
    for split in ("train", "validation", "test"):
        wanted = {
            (picture(split, i)[:, 2:8].tobytes(), i % 2)
            for i in range(TinySet.SIZES[split])
            if (split, i) != ("test", 0)
        }
        held = data.splits == split
        found = zip(data.images[held], data.labels[held], strict=True)
        assert {(image.tobytes(), label) for image, label in found} == wanted
    assert "tensorflow" not in sys.modules


def test_workers_open_the_set_themselves(home, tmp_path, monkeypatch):
    monkeypatch.setattr(tfds_sets, "EXAMPLES_A_TASK", 4)
    recipe = tfds_sets.recipe(name="tiny_set:1.2.0", size=3, tfds_dir=str(home))
    assert recipe.tasks == [
        ("train", 0, 4),
        ("train", 4, 6),
        ("validation", 0, 2),
        ("test", 0, 3),
    ]
    assert prepare(recipe, tmp_path, workers=2).images.shape == (10, 3, 3, 1)


def test_folder_from_the_environment(home, monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", str(home))
    assert tfds_sets.recipe(name="tiny_set").name == "tiny_set"


def test_key_follows_the_settings(home):
    def key(**options):
        return tfds_sets.recipe(name="tiny_set", tfds_dir=str(home), **options).key

    assert len({key(), key(size=8), key(channels=3), key(kind="ct")}) == 4
    assert key() == key()


def test_error_of_a_missing_set_gives_the_command(tmp_path):
    with pytest.raises(UserError) as error:
        tfds_sets.recipe(name="cifar10", tfds_dir=str(tmp_path))
    assert "pip install tensorflow" in str(error.value)
    command = f"tfds build cifar10 --file_format=array_record --data_dir={tmp_path}"
    assert command in str(error.value)


def test_missing_version_is_refused(home):
    with refused_at("tiny_set:9.9.9"):
        tfds_sets.recipe(name="tiny_set:9.9.9", tfds_dir=str(home))


def test_other_file_formats_are_named(home, tmp_path):
    folder = tmp_path / "tiny_set" / "1.0.0"
    folder.mkdir(parents=True)
    (folder / "dataset_info.json").touch()
    (folder / "tiny_set-train.tfrecord-00000-of-00001").touch()
    with refused_at(folder):
        tfds_sets.recipe(name="tiny_set", tfds_dir=str(tmp_path))


def test_several_configurations_are_listed(tmp_path):
    for config in ("small", "large"):
        folder = tmp_path / "sets" / config / "1.0.0"
        folder.mkdir(parents=True)
        (folder / "dataset_info.json").touch()
    with refused_at("sets"):
        tfds_sets.recipe(name="sets", tfds_dir=str(tmp_path))


def test_set_without_labels_is_refused(home):
    with refused_at("no_labels"):
        tfds_sets.recipe(name="no_labels", tfds_dir=str(home))
