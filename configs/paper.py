"""The chain of the paper: ILSVRC2012 > CUReT > HRCT patches, CaffeNet at 227 pixels.

    python -m twostage_jax.main --config=configs/paper.py \
        --config.stages.natural.weights=bvlc_reference_caffenet.caffemodel \
        --config.stages.texture.data.path=CURET \
        --config.stages.target.data.path=HRCT

Suzuki, Sakanashi, Kido, Shouno 2018 (arXiv 1810.06282). The natural stage is the file of
Caffe's reference weights if one is given (`.caffemodel`, or `caffenet-12.onnx` of the ONNX
Model Zoo). Otherwise it is trained on ILSVRC2012 from TFDS: prepare it once with
`tfds build imagenet2012 --file_format=array_record`. CURET holds a folder of images for
each of the 61 materials; HRCT a folder of DICOM files for each patient, with ROIs (see
`data/ct_patches.py`), for example the MedGIFT database.

Known of the paper's recipe: CaffeNet, fine-tuned as a whole in every stage; three arms
(scratch, natural, two-stage); CUReT as textures; seven classes of HRCT patches. Not known:
the patients, the size of a patch, the schedule, the split, and so the accuracies to
compare with. What is not known is a starting point here.

Without the file, for several accelerators: the natural stage alone is 450,000 steps of 256
images, with the learning rate of Caffe's reference model. This file has been run to the end
for two steps per stage, on phantoms and with random weights of these shapes: check the
schedule before you trust it.
"""

from pathlib import Path

from ml_collections import ConfigDict

from twostage_jax.config import config_file

two_stage = config_file(Path(__file__).with_name("two_stage.py"))


def get_config() -> ConfigDict:
    """Returns the settings of `two_stage.py` with the paper's network and data."""
    config = two_stage.get_config()
    config.name = "paper"

    config.model.name = "caffenet"
    config.model.channels = 3
    config.model.image_size = 227
    config.model.head = "dense"  # the paper's network
    config.model.dropout = 0.5
    config.model.dtype = "bfloat16"

    natural = config.stages.natural
    natural.data = two_stage.data("tfds")
    natural.data.name = "imagenet2012"
    natural.data.size = (
        256  # stored; training crops at random, evaluation in the centre
    )
    natural.data.test = 0.04  # the TFDS set lacks a labelled test split
    natural.optim.name = "sgd"
    natural.optim.learning_rate = 0.01
    natural.train.steps = 450_000
    natural.train.batch_size = 256
    natural.train.eval_every = 5_000
    natural.train.save_every = 5_000
    natural.augment.shift = 0

    texture = config.stages.texture
    texture.data = two_stage.data("folder")
    texture.data.path = ""  # folder of CUReT: sampleNN/NN-MMM.png
    texture.data.name = "curet"
    texture.data.kind = "texture"
    texture.data.size = 256
    texture.augment.shift = 0

    target = config.stages.target
    target.data = two_stage.data("dicom")
    target.data.path = ""  # folder of patients
    target.data.classes = ""  # empty: classes.json, or all labels of MedGIFT ROIs
    target.data.spacing = 0.1  # mm per pixel: 227 pixels are 23 mm, some 32 of the scan
    target.data.stride = 57  # distance between neighbouring patches, pixels
    target.data.per_class = 100  # most patches per class and patient
    target.augment.shift = 8

    for stage in (natural, texture, target):
        stage.data.validation = 0.1
        stage.data.normalise = "weights"
        # One window per channel: lung, wide, mediastinal. Only images in HU have them.
        stage.data.window = (-600.0, 1500.0, -160.0, 500.0, 40.0, 400.0)

    for stage in (texture, target):
        stage.optim.name = "sgd"
        stage.optim.learning_rate = 0.001
        stage.train.steps = 10_000
        stage.train.eval_every = 500
        stage.train.save_every = 500

    config.study.seeds = (0, 1, 2)
    config.study.fractions = (1.0, 0.5, 0.25, 0.1)
    config.study.folds = 5
    return config
