"""Measures images per second of training, compared with PyTorch.

    python experiments/throughput.py --out=experiments/throughput.md

Measures each network three times: the training step (augmentation, forward, backward,
update; the data on the device), whole epochs through `train.loop.fit` (order of
examples, feed, steps in chunks, metrics read), and epochs of several stage runs side by
side, one on each device, as a study trains them. On a CPU each core is a device, as in
the program; a run on its own uses all cores. Where torch and timm are installed, their
networks do the same with all cores: same layers, batch, augmentation, clipping, SGD with
momentum and decay of kernels. All take turns within each round, so that other load on
the machine affects all; ratios are taken within rounds. Without torch its columns stay
empty. A few minutes on a CPU; `--large` adds the networks of full size. On an
accelerator, leave one device visible: torch uses one.
"""

import argparse
import os
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

# Torch needs some of the accelerator's memory.
os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")

import jax
import numpy as np
import pages

from twostage_jax import cli, models
from twostage_jax.config import AugmentConfig, ModelConfig, OptimConfig, TrainConfig
from twostage_jax.data.dataset import Dataset
from twostage_jax.train import loop, parallel
from twostage_jax.train import steps as training
from twostage_jax.train.feed import feed, order
from twostage_jax.train.parallel import Placement

try:
    import torch
    import torch_twins
    from torch.nn import functional
except ImportError:
    torch = None

CLASSES = 12
SHIFT = 2
# Settings of configs/two_stage.py, with a constant rate, so that the length is irrelevant.
OPTIM = OptimConfig(learning_rate=0.02, clip_norm=1.0, schedule="constant")
AUGMENT = AugmentConfig(flip="horizontal", shift=SHIFT)


class Case(NamedTuple):
    """Settings of one row of the table; `size` is the side of the images, pixels."""

    model: str
    size: int
    channels: int
    batch: int
    dtype: str


class Runner(NamedTuple):
    """Implementation of training; both functions run a number of steps to the end.

    Attributes:
      step: Trains on the same batches.
      epoch: Trains as the program does.
      parameters: Number of values in the network.
      runs: Networks trained at once.
    """

    step: Callable[[int], None]
    epoch: Callable[[int], None]
    parameters: int
    runs: int = 1


def cases(batch: int, large_batch: int, large: bool, accelerator: bool) -> list[Case]:
    """Returns the cases: float32 and, on an accelerator, bfloat16."""
    rows = [
        ("caffenet_small", 32, 1, batch),
        ("caffenet_small", 64, 1, batch),
        ("resnet18", 32, 1, batch),
        ("efficientnet_lite0", 64, 3, large_batch),
        ("convnext_tiny", 64, 3, large_batch),
    ]
    if large:
        rows += [
            ("caffenet", 227, 3, large_batch),
            ("resnet18", 224, 3, large_batch),
            ("resnet50", 224, 3, large_batch),
            ("densenet121", 224, 3, large_batch),
        ]
    dtypes = ("float32", "bfloat16") if accelerator else ("float32",)
    return [Case(*row, dtype) for row in rows for dtype in dtypes]


def make_dataset(case: Case, steps: int) -> Dataset:
    """Returns `steps` batches of noise, as a data set."""
    generator = np.random.default_rng(0)
    count = steps * case.batch
    shape = (count, case.size, case.size, case.channels)
    return Dataset(
        name="noise",
        kind="natural",
        class_names=tuple(f"class{k}" for k in range(CLASSES)),
        images=generator.integers(0, 256, shape, np.uint8),
        labels=generator.integers(0, CLASSES, count).astype(np.int32),
        groups=None,
        ids=np.arange(count).astype(str),
        splits=np.full(count, "train"),
        fingerprint="",
    )


class _NoStore:
    """Checkpoints that are neither saved nor restored."""

    def steps(self) -> list[int]:
        return []

    def discard_after(self, step: None) -> None:
        del step

    def restore(self, step: None, template: Any) -> None:
        del step, template


def jax_runner(
    case: Case, dataset: Dataset, chunk: int, placement: Placement
) -> Runner:
    """Returns the package's own training; `chunk` is the steps of one device call."""
    model = ModelConfig(case.model, case.channels, case.size, dtype=case.dtype)
    module = training.build_model(model, CLASSES, None)
    variables = models.init(module, jax.random.key(0), case.size, case.channels)
    settings = training.StepSettings(
        model=model,
        optim=OPTIM,
        augment=AUGMENT,
        steps=1_000_000,
        num_classes=CLASSES,
        normalise="fixed",
        window=(),
        label_smoothing=0.0,
        transferred=frozenset(),
    )
    programs = parallel.programs(settings, placement.axis_name)
    source = feed(dataset, placement.devices)
    moments = [np.full(case.channels, value, np.float32) for value in (0.5, 0.25)]
    run = loop.Run(
        name="throughput",
        state=training.create_state(settings, variables),
        indices=np.arange(len(dataset)),
        order_seed=(0,),
        key=np.asarray(jax.random.key_data(jax.random.key(1))),
        constants=training.Constants(np.zeros(CLASSES, np.float32), *moments),
        store=_NoStore(),
    )
    runs = [run] * placement.runs
    state = placement.put([run.state for run in runs])
    key = placement.put([run.key for run in runs])
    constants = placement.put([run.constants for run in runs])
    same = order(len(dataset), case.batch, (0,), 0, chunk).astype(np.int32)
    items = placement.arrange(np.stack([same] * placement.runs))

    def step(steps: int) -> None:
        nonlocal state
        for _ in range(steps // chunk):
            state, metrics = programs.train(state, source.data, items, key, constants)
        jax.block_until_ready((state, metrics))

    def epoch(steps: int) -> None:
        task = loop.Task(
            settings=TrainConfig(
                steps=steps,
                batch_size=case.batch,
                eval_every=steps,
                save_every=2 * steps,
                select="last",
            ),
            programs=programs,
            feed=source,
            placement=placement,
            runs=runs,
            score=lambda _: [{"loss": 0.0, "balanced_accuracy": 0.0}] * len(runs),
        )
        loop.fit(task, loop.Watch(lambda *_: None, lambda: False))

    count = sum(leaf.size for leaf in jax.tree.leaves(variables["params"]))
    return Runner(step, epoch, count, placement.runs)


def torch_runner(case: Case, dataset: Dataset, chunk: int) -> Runner:
    """Returns the same training in torch; metrics are read every `chunk` steps."""
    device = torch.device("cpu" if jax.default_backend() == "cpu" else "cuda")
    # As in jax on a GPU: TensorFloat-32 products, and the fastest kernel by trial.
    torch.set_float32_matmul_precision("high")
    torch.backends.cudnn.benchmark = True
    network = torch_twins.twin(case.model, CLASSES, case.size, case.channels)
    network = network.to(device, memory_format=torch.channels_last)
    kernels = [p for p in network.parameters() if p.ndim > 1]
    others = [p for p in network.parameters() if p.ndim == 1]
    groups = [
        {"params": kernels, "weight_decay": OPTIM.weight_decay},
        {"params": others, "weight_decay": 0.0},
    ]
    optimiser = torch.optim.SGD(
        groups, lr=OPTIM.learning_rate, momentum=OPTIM.momentum, fused=True
    )
    images = torch.from_numpy(dataset.images).permute(0, 3, 1, 2).to(device)
    labels = torch.from_numpy(dataset.labels.astype(np.int64)).to(device)
    reduced = torch.autocast(
        device.type, torch.bfloat16, enabled=case.dtype == "bfloat16"
    )

    def one(indices: np.ndarray) -> torch.Tensor:
        chosen = torch.from_numpy(indices).to(device)
        inputs = (torch_twins.augmented(images[chosen], SHIFT) - 0.5) / 0.25
        inputs = inputs.contiguous(memory_format=torch.channels_last)
        targets = labels[chosen]
        with reduced:
            logits = network(inputs)
        loss = functional.cross_entropy(logits.float(), targets)
        optimiser.zero_grad()
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(network.parameters(), OPTIM.clip_norm)
        optimiser.step()
        right = (logits.argmax(-1) == targets).float().mean()
        return torch.stack((loss.detach(), right, norm.detach()))

    def run(batches: np.ndarray) -> None:
        for first in range(0, len(batches), chunk):
            steps = [one(indices) for indices in batches[first : first + chunk]]
            torch.stack(steps).cpu()

    same = order(len(dataset), case.batch, (0,), 0, chunk)
    return Runner(
        lambda steps: run(np.tile(same, (steps // chunk, 1))),
        lambda steps: run(order(len(dataset), case.batch, (0,), 0, steps)),
        sum(p.numel() for p in network.parameters()),
    )


def measure(case: Case, rounds: int, seconds: float) -> dict[str, Any]:
    """Returns the measurements of a case.

    Under 'seconds_an_image', by 'jax', 'together' (side by side) or 'torch' and 'step' or
    'epoch', a list of rounds.

    Each measurement lasts about `seconds` of the package's steps; before each, one
    shorter run brings the caches and threads back to the one whose turn it is.
    """
    # As many steps per call as in `fit`; on a CPU, steps are slow and one is enough.
    chunk = 1 if jax.default_backend() == "cpu" else loop.MAX_CHUNK
    dataset = make_dataset(case, 2 * loop.MAX_CHUNK)
    runners = {"jax": jax_runner(case, dataset, chunk, parallel.alone())}
    compiling = _time(runners["jax"].step, chunk)
    if jax.local_device_count() > 1:
        together = parallel.side_by_side(jax.local_device_count())
        runners["together"] = jax_runner(case, dataset, chunk, together)
        runners["together"].step(chunk)
    if torch and (jax.default_backend() == "cpu" or torch.cuda.is_available()):
        runners["torch"] = torch_runner(case, dataset, chunk)
        runners["torch"].step(chunk)
        if runners["torch"].parameters != runners["jax"].parameters:
            raise ValueError(f"{case.model}: the twin's parameters are not as many.")
    runners["jax"].step(chunk)
    step = _time(runners["jax"].step, 2 * chunk) / (2 * chunk)
    steps = max(2, round(seconds / step))
    if chunk > 1 or steps > loop.MAX_CHUNK:
        steps = max(1, steps // loop.MAX_CHUNK) * loop.MAX_CHUNK
    times = {who: {"step": [], "epoch": []} for who in runners}
    for i in range(rounds):
        for what in ("step", "epoch"):
            # The machine may be faster for the first one, so the order alternates.
            for who in sorted(runners, reverse=bool(i % 2)):
                runners[who].step(chunk)
                spent = _time(getattr(runners[who], what), steps)
                images = steps * case.batch * runners[who].runs
                times[who][what].append(spent / images)
    return {
        **case._asdict(),
        "parameters": runners["jax"].parameters,
        "first_step_s": compiling,
        "steps": steps,
        "seconds_an_image": times,
    }


def _time(run: Callable[[int], None], steps: int) -> float:
    start = time.perf_counter()
    run(steps)
    return time.perf_counter() - start


HEADER = """\
| network | pixels | dtype | batch | parameters | first step s \
| step | epoch | epoch / step | side by side | torch, epoch \
| epoch / torch | side by side / torch |
|---|--:|---|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|"""


def row(found: dict[str, Any]) -> str:
    """Returns a row of the table: images/s 'median (best)', ratios 'median [range]'."""
    times = found["seconds_an_image"]
    ours, together, theirs = (times.get(who) for who in ("jax", "together", "torch"))

    def speed(of: dict[str, list[float]] | None, what: str) -> str:
        if of is None:
            return ""
        return f"{1 / statistics.median(of[what]):,.0f} ({1 / min(of[what]):,.0f})"

    def ratio(of: dict[str, list[float]] | None) -> str:
        if theirs is None or of is None:
            return ""
        return _spread(theirs["epoch"], of["epoch"])

    cells = [
        found["model"], f"{found['size']} x {found['size']} x {found['channels']}",
        found["dtype"], str(found["batch"]), f"{found['parameters']:,}",
        f"{found['first_step_s']:.1f}",
        speed(ours, "step"), speed(ours, "epoch"), _spread(ours["step"], ours["epoch"]),
        speed(together, "epoch"), speed(theirs, "epoch"), ratio(ours), ratio(together),
    ]  # fmt: skip
    return f"| {' | '.join(cells)} |"


def _spread(above: list[float], below: list[float]) -> str:
    """Returns the ratios of rounds as 'median [range]'."""
    values = [a / b for a, b in zip(above, below, strict=True)]
    middle = statistics.median(values)
    return f"**{middle:.2f}** [{min(values):.2f}, {max(values):.2f}]"


def machine() -> dict[str, Any]:
    """Returns the machine and the versions, on which the numbers depend."""
    devices = jax.devices()
    kind = devices[0].device_kind
    versions = {"Python": platform.python_version(), "jax": jax.__version__}
    if torch:
        versions["torch"] = f"{torch.__version__} ({torch.get_num_threads()} threads)"
    return {
        "devices": f"{len(devices)} x {_processor() if kind == 'cpu' else kind}",
        "cores": len(os.sched_getaffinity(0)),
        "versions": versions,
    }


def heading(rounds: int, large: bool, host: dict[str, Any]) -> str:
    """Returns the title, the meaning of the columns, and the machine."""
    versions = ", ".join(f"{name} {is_}" for name, is_ in host["versions"].items())
    flags = f"{'--large ' * large}--rounds={rounds} --out=experiments/throughput.md"
    return f"""# Training speed

    python experiments/throughput.py {flags}

Images per second, median of {rounds} rounds and (best); ratios of the two within a \
round, median [range]; above 1, jax is faster. "Step" has the data on the device; \
"epoch" is the whole loop of `train.loop.fit` with one network on all cores; their ratio \
is the fraction of time in which the device is busy. "Side by side" trains a network on \
each core, as a study does. "First step" is the compilation, in seconds, unless jax's \
cache has it already. PyTorch runs one network on all cores, eagerly, channels last, with \
fused SGD. Every round: [throughput.json](throughput.json).

{host["devices"]}, {host["cores"]} processor cores. {versions}."""


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or "cpu"
    names = [line.split(":")[1].strip() for line in lines if "model name" in line]
    return names[0] if names else "cpu"


def main() -> None:
    """Measures, prints each row once it is finished, and writes the page."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--large_batch", type=int, default=16)
    parser.add_argument("--large", action="store_true", help="also 227 and 224 pixels")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=2.0, help="of a measurement")
    parser.add_argument("--out", type=Path, help="the page, .md; JSON goes next to it")
    args = parser.parse_args()
    cli.use_cores()
    accelerator = jax.default_backend() != "cpu"
    host, found = machine(), []
    lines = [heading(args.rounds, args.large, host), "", HEADER]
    for case in cases(args.batch, args.large_batch, args.large, accelerator):
        found.append(measure(case, args.rounds, args.seconds))
        lines.append(row(found[-1]))
        print(lines[-1], flush=True)
    numbers = {**host, "rounds": args.rounds, "rows": found}
    pages.leave(args.out, numbers, "\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
