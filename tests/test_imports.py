"""Layers of the package: no import runs upwards, and no test imports another test.

The scripts of `experiments/`, which no test runs, use names that the package has.
"""

import ast
import graphlib
import importlib
import subprocess
import sys

import pytest
from basics import REPOSITORY

PACKAGE = REPOSITORY / "twostage_jax"
# From the bottom. Rooms of one layer may import one another, but not in a circle.
LAYERS = (
    ("__init__", "errors", "notices", "io", "folders", "runtime"),
    ("models", "ct", "transfer", "stats", "config"),
    ("train", "data", "baselines"),
    ("explain", "maps", "report", "study"),
    ("cli", "main", "inspect", "prepare", "predict", "export", "__main__"),
)
# The command lines of two rooms: front doors, apart from their rooms.
FRONT_DOORS = (
    "explain.__init__",
    "explain.__main__",
    "report.__init__",
    "report.__main__",
)
# (room, what it never imports), beyond the order of the layers.
NEVER = {
    *((room, library) for room in ("ct", "stats", "report", "config", "transfer", "io")
      for library in ("+jax", "+flax", "+optax", "+orbax", "runtime", "models")),
    ("study", "report"), ("report", "explain"), ("report", "study"),
}  # fmt: skip

# Libraries that only training, baselines and reports need, and that are slow to load: a
# finished run, which prints its table again, must not wait for them.
SLOW = {
    "jinja2", "matplotlib", "pandas", "scipy.ndimage", "scipy.stats", "skimage.morphology",
    "sklearn", "tensorboardX",
}  # fmt: skip


def room(module):
    """Returns the room of a module of the package; a library's name with a '+'."""
    package, _, module = module.partition(".")
    if package != "twostage_jax":
        return f"+{package}"
    return "main" if module in FRONT_DOORS else module.partition(".")[0]


def imports(path, known):
    """Yields (line, full name of module) of what a file imports, also in functions."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        for name in names:
            # A module, a package, or a name in either.
            above = name.rpartition(".")[0]
            modules = (name, f"{name}.__init__", above, f"{above}.__init__")
            yield node.lineno, next((m for m in modules if m in known), name)


@pytest.fixture(scope="module")
def arrows():
    """(module, line, what it imports) of every import in the package."""
    files = {
        ".".join(path.relative_to(REPOSITORY).with_suffix("").parts): path
        for path in sorted(PACKAGE.rglob("*.py"))
    }
    return [
        (name, line, target)
        for name, path in files.items()
        for line, target in imports(path, files)
    ]


def test_no_import_runs_upwards(arrows):
    layer = {name: number for number, rooms in enumerate(LAYERS) for name in rooms}
    wrong = [
        f"{name}:{line} imports {target}"
        for name, line, target in arrows
        if layer.get(room(target), 0) > layer[room(name)]
        or (room(name), room(target)) in NEVER
    ]
    assert not wrong, "\n".join(wrong)


def test_no_circle_of_modules_or_rooms(arrows):
    for of in (lambda module: module.removesuffix(".__init__"), room):
        graph = {}
        for name, _, target in arrows:
            if of(name) != of(target):
                graph.setdefault(of(name), set()).add(of(target))
        graphlib.TopologicalSorter(graph).prepare()


def test_a_finished_run_loads_no_library_that_it_does_not_need():
    program = "import sys; import twostage_jax.main, twostage_jax.study.run"
    program += "; import twostage_jax.report.run; print(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert not SLOW & set(done.stdout.split())


def test_no_test_imports_another_test():
    tests = sorted((REPOSITORY / "tests").rglob("*.py"))
    wrong = [
        f"{path.relative_to(REPOSITORY)}:{line} imports {target}"
        for path in tests
        for line, target in imports(path, {})
        if target.startswith("test_")
    ]
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize(
    "script",
    sorted((REPOSITORY / "experiments").glob("*.py")),
    ids=lambda path: path.name,
)
def test_scripts_use_names_that_the_package_has(script):
    nodes = list(ast.walk(ast.parse(script.read_text())))
    modules, missing = {}, []
    for node in nodes:
        if isinstance(node, ast.ImportFrom) and f"{node.module}.".startswith(
            f"{PACKAGE.name}."
        ):
            for alias in node.names:
                try:
                    found = importlib.import_module(f"{node.module}.{alias.name}")
                    modules[alias.asname or alias.name] = found
                except ModuleNotFoundError:
                    if not hasattr(importlib.import_module(node.module), alias.name):
                        missing.append(f"{node.module}.{alias.name}")
    for node in nodes:
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            module = modules.get(node.value.id)
            if module is not None and not hasattr(module, node.attr):
                missing.append(f"{module.__name__}.{node.attr}")
    assert not missing
