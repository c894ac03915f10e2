"""Two-stage feature transfer on embedded data: the default, minutes on a CPU.

    python -m twostage_jax.main --config=configs/two_stage.py

trains the four arms of Suzuki et al. 2018 (arXiv 1810.06282) on data that the package
makes itself: formula-driven images, procedural textures, and HRCT phantoms of diffuse
lung disease. `--config=configs/two_stage.py:study` compares them with five seeds and at
four sizes of the training set, in half an hour; `:smoke` is the smallest size that still
runs every part. Every setting can be overridden: `--config.a.b=value`.
"""

from ml_collections import ConfigDict

from twostage_jax.config import IMPORT


def get_config(variant: str = "") -> ConfigDict:
    """Returns the settings; `variant` is '', 'study' or 'smoke'."""
    if variant not in ("", "study", "smoke"):
        raise ValueError(
            f"configs/two_stage.py has no variant '{variant}', only 'study' and 'smoke'."
        )
    config = ConfigDict()
    config.name = "two_stage"  # names the default workdir, runs/two_stage

    config.model = ConfigDict()
    # alexnet, caffenet, caffenet_small, convnext_tiny, densenet121, efficientnet_lite0,
    # resnet18, resnet34, resnet50
    config.model.name = "caffenet_small"
    config.model.channels = 1  # of the whole chain: 1 = grey, 3 = RGB
    config.model.image_size = 32  # input height and width, pixels
    # '' = the network's own; resnets: batch or group; Caffe networks: local or batch
    config.model.norm = ""
    # '' = the network's own; Caffe networks, alexnet: orderless or dense; others: mean
    # or orderless
    config.model.head = ""
    config.model.dropout = 0.2  # of the fully connected layers
    config.model.dtype = "float32"  # of the computation: float32 or bfloat16

    config.stages = ConfigDict()

    natural = config.stages.natural = stage("natural_surrogate", steps=500)
    natural.data.per_class = 500  # images of each of the 12 classes
    natural.augment.flip = "horizontal"

    texture = config.stages.texture = stage("textures", steps=400)
    texture.data.samples_per_class = 32  # pieces of each of the 16 materials
    texture.data.views_per_sample = 8  # images of each piece
    texture.augment.flip = "dihedral"
    texture.augment.brightness = 0.1
    texture.augment.contrast = 0.2

    target = config.stages.target = stage("phantoms", steps=400)
    # Many patients of one section each: intervals need every class in at least three
    # patients of a split, and a section costs the same for any patient.
    target.data.patients = 72  # phantom patients; each has up to three diseases
    target.data.slices = 1  # sections per patient
    target.data.per_class = 24  # most patches per class and patient
    target.data.validation = 0.25
    target.augment.flip = "dihedral"
    # 30 HU, more than scanners differ by. With 0.1, densities cannot be told apart, which
    # costs ten points: experiments/heads.md.
    target.augment.window = 0.02
    target.augment.average = True
    target.train.balance = True

    # Arm -> its chain of stages. All end at 'target'; shared beginnings train once.
    config.arms = ConfigDict()
    config.arms.scratch = "target"
    config.arms.natural = "natural > target"
    config.arms.texture = "texture > target"
    config.arms.two_stage = "natural > texture > target"

    config.study = ConfigDict()
    config.study.arms = ()  # names of the arms to run; empty = all
    config.study.seeds = (0,)  # every arm runs once per seed
    config.study.fractions = (1.0,)  # fractions of the target's training set, nested
    config.study.draw = "group"  # fractions by whole 'group' (patient) or by 'patch'
    config.study.folds = 0  # of the target by group, redrawn per seed; 0 = one split
    config.study.split_seed = 0  # of the splits into train, validation, test
    # Settings of the target stage to choose among on validation groups, once per arm:
    # (('optim.learning_rate', (0.001, 0.003)), ...). Empty = none.
    config.study.grid = ()
    # Primary endpoint, named before the run: first arm minus second, over all sizes.
    config.study.primary = ("two_stage", "scratch", "balanced_accuracy")
    # On the same splits: majority, mean_grey, descriptors (texture), frozen (networks of
    # the source stages and a random one), each with a linear classifier. () = none.
    # 'frozen' takes as long as training here, so only the other configs have it.
    config.study.baselines = ("majority", "mean_grey", "descriptors")
    config.study.side_by_side = (
        0  # runs at once; 0: one per device, 1: all devices for one
    )

    # Statements that the report prints; empty ones are reported as missing.
    config.report = ConfigDict()
    config.report.reference_standard = ""  # how, and by whom, classes were determined
    config.report.ethics = ""
    config.report.funding = ""

    if variant == "study":
        config.name = "two_stage_study"
        config.study.baselines += ("frozen",)
        add_long_natural(config)
        config.study.seeds = (0, 1, 2, 3, 4)
        config.study.fractions = (1.0, 0.5, 0.25, 0.1)
        # A disease is in a third of the patients: a tenth of these would lack some.
        config.study.draw = "patch"
        target.data.patients = 48
        target.data.slices = 3
        target.data.validation = 0.2

    if variant == "smoke":
        config.name = "two_stage_smoke"
        natural.data.per_class = 12
        texture.data.samples_per_class = 5
        texture.data.views_per_sample = 2
        target.data.patients = 12
        target.data.per_class = 6
        for name in config.stages:
            config.stages[name].train.steps = 20
            config.stages[name].train.eval_every = 10
            config.stages[name].train.save_every = 10
            config.stages[name].train.batch_size = 16
            config.stages[name].optim.warmup_steps = 2
    return config


def add_long_natural(config: ConfigDict) -> None:
    """Adds the compute-matched control of two-stage: one source stage, as many steps.

    Two-stage is trained longer than the arms of one source stage. What it gains over
    `natural_long` is not the gain of longer training.
    """
    stages = config.stages
    stages.natural_long = stages.natural.copy_and_resolve_references()
    # The same objects: the control follows every override of the two stages.
    for block in ("data", "transfer", "optim", "augment"):
        stages.natural_long[block] = stages.natural[block]
    # An imported natural stage has no such control: the arm is then that of `natural`,
    # and skipped.
    for name in IMPORT:
        stages.natural_long[name] = stages.natural.get_ref(name)
    for name in set(stages.natural.train) - {"steps"}:
        stages.natural_long.train[name] = stages.natural.train.get_ref(name)
    stages.natural_long.train.steps = stages.natural.train.get_ref(
        "steps"
    ) + stages.texture.train.get_ref("steps")
    config.arms.natural_long = "natural_long > target"


def stage(source: str, steps: int) -> ConfigDict:
    """Returns the settings of one stage, each with its meaning."""
    stage = ConfigDict()

    stage.data = data(source)
    stage.weights = ""  # file of public weights to import instead of training
    # Of images in [0, 1], per channel, in the training of the weights; () = as stated in
    # the file (written by `export`), or those of the network's public weights (ImageNet).
    stage.weights_mean = ()
    stage.weights_deviation = ()
    stage.weights_licence = ""  # such as bsd-3-clause; empty = as stated in the file

    stage.transfer = transfer = ConfigDict()
    transfer.reinitialise = "head"  # head, or dense: all fully connected layers
    transfer.rules = ()  # ((path pattern, action), ...) that precede the default

    stage.optim = optim = ConfigDict()
    optim.name = "adamw"  # sgd (with momentum) or adamw
    optim.learning_rate = 0.002  # at its peak
    optim.momentum = 0.9  # of sgd
    optim.weight_decay = 5e-4  # biases and normalisation layers are exempt
    optim.warmup_steps = 20  # linear
    optim.schedule = "cosine"  # after the warm-up: cosine or constant
    optim.clip_norm = 1.0  # largest gradient norm; 0 = no clipping
    optim.lr_factors = ()  # ((path pattern, factor), ...), such as (('conv.*', 0.1),)
    optim.freeze = ()  # path patterns of arrays that stay bit-identical
    optim.head_steps = 0  # initial steps that train only the head
    optim.l2_sp = 0.0  # L2 penalty on changes of transferred kernels

    stage.train = train = ConfigDict()
    train.steps = steps  # optimiser steps
    train.epochs = 0  # most passes over the data set, limits steps; 0 = no limit
    train.batch_size = 64  # over all devices
    train.eval_every = 50  # steps between evaluations on the validation split
    train.save_every = 100  # steps between saved states
    train.select = "last"  # parameters kept: last, or best on validation
    train.label_smoothing = 0.0  # fraction of the target spread over all classes
    train.balance = False  # whether rare classes count as much as frequent ones

    stage.augment = augment = ConfigDict()
    augment.flip = "none"  # none, horizontal, or dihedral (flips and quarter turns)
    augment.shift = 2  # largest shift of the crop, pixels
    augment.brightness = 0.0  # largest change, as a fraction of the full range
    augment.contrast = 0.0  # largest relative change
    augment.window = 0.0  # largest relative change of the HU window
    # Whether final predictions are means over the orientations of `flip`, and over
    # windows that cover an image larger than model.image_size; otherwise the centre is
    # used.
    augment.average = False
    return stage


def add_image_folders(config: ConfigDict) -> tuple[ConfigDict, ConfigDict]:
    """Makes the source stages read folders of images; returns their data settings."""
    natural = config.stages.natural.data = data("folder")
    natural.path = ""  # folder of class sub-folders, optionally below train/ and test/

    texture = config.stages.texture.data = data("folder")
    texture.path = ""  # folder of class sub-folders
    texture.name = "texture_folder"  # names the prepared set
    texture.kind = "texture"
    texture.crop = 64  # side of the crops cut from an image, pixels
    texture.stride = 32  # distance between crops, pixels
    texture.group_regex = ""  # its first group, in 'class/file', is the sample
    return natural, texture


def lengthen_sources(config: ConfigDict) -> None:
    """Gives the source stages the steps that real images need.

    With 1,500 and 800 they were worth less: experiments/positive_control.md.
    """
    for stage, steps in ((config.stages.natural, 4000), (config.stages.texture, 2000)):
        stage.train.steps = steps
        stage.train.epochs = 100  # small sets take fewer steps
        stage.train.eval_every = stage.train.save_every = 500


def data(source: str) -> ConfigDict:
    """Returns the data settings that all sources have in common."""
    data = ConfigDict()
    data.source = source  # natural_surrogate, textures, phantoms, folder, slices, ...
    data.validation = 0.2  # fraction of the training groups for model selection
    data.test = 0.25  # fraction of the groups held out, if the set lacks a test split
    data.normalise = "fixed"  # fixed, dataset, patch (structure only), or weights
    data.window = (-600.0, 1500.0)  # (centre, width) in HU; only images in HU
    data.image_size = 0  # of this stage, pixels; 0 = model.image_size
    return data
