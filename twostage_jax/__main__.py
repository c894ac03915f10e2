"""Program `twostage`, also run by `python -m twostage_jax`."""

import importlib
import inspect
import sys

from twostage_jax import __version__, cli
from twostage_jax.errors import did_you_mean


def main() -> None:
    """Runs the command that the first argument names."""
    name, *rest = sys.argv[1:] or [""]
    if name in cli.COMMANDS:
        command = importlib.import_module(cli.COMMANDS[name])
        command.main([f"twostage {name}", *rest])
    elif name in cli.HELP:
        cli.show(usage())
    elif name == "--version":
        cli.show(f"twostage_jax {__version__}")
    elif name:
        known = did_you_mean(name, cli.COMMANDS)
        sys.exit(_fail(f"error: '{name}': unknown command.{known}"))
    else:
        sys.exit(_fail(usage()))


def _fail(text: str) -> int:
    print(text, file=sys.stderr)
    return 2


def usage() -> str:
    """Returns all commands, each with the first line of its help."""
    lines = ["usage: twostage COMMAND [FLAGS]", ""]
    for name, module in cli.COMMANDS.items():
        text = inspect.getdoc(importlib.import_module(module)) or ""
        lines.append(f"  {name:8} {text.split(chr(10))[0]}")
    lines += ["", "twostage COMMAND --help explains a command and its flags."]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
