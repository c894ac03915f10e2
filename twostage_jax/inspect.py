"""Shows the plan of a study, without training.

    python -m twostage_jax.inspect --config=configs/two_stage.py
    python -m twostage_jax.inspect --config=configs/two_stage.py --stage=texture \\
        --source=runs/two_stage/stages/natural-0123456789ab

prints the tree of stage runs and, for every transition, the report of the planned
transfer. With --source (a finished stage run, a checkpoint of another program, or a file
of public weights from torchvision, timm, RadImageNet or MedMNIST), it plans the transfer
of those parameters into --stage.
"""

from collections.abc import Sequence
from pathlib import Path

from ml_collections import ConfigDict

from twostage_jax import cli


# Not `config.TARGET`: `--help` should not wait for NumPy.
def inspect(config: ConfigDict, *, source: str = "", stage: str = "target") -> None:
    """Prints the plan of a study, or of the transfer of a source's parameters.

    Args:
      config: Config file, with a function `get_config` that returns the settings.
      source: Source of the parameters: the folder of a finished stage run, an Orbax
        checkpoint, a msgpack file of Flax, or public weights of the config's network
        (.safetensors, .npz, .pth).
      stage: Stage that receives the parameters of --source.

    Raises:
      UserError: A setting is invalid, the source cannot be read, or the transfer is
        impossible as planned.
    """
    # Imports jax, which --help should not wait for.
    from twostage_jax.data import sources
    from twostage_jax.study import plan

    settings = cli.parsed_config(config)
    plan.check(settings)
    settings = sources.sized(settings)
    if source:
        print(plan.transfer_from(settings, Path(source), stage))
    else:
        print(plan.tree(settings))


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the command line."""
    cli.run(inspect, argv)


if __name__ == "__main__":
    main()
