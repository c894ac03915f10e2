"""Checkpoints of other programs for `inspect --source`: read, or refused by name."""

import pickle
import shutil

import jax
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest
from basics import refused_at
from flax import nnx, serialization
from flax.training.train_state import TrainState

from twostage_jax import models
from twostage_jax.errors import UserError
from twostage_jax.train import checkpoint

PARAMS = {
    "conv1": {
        "kernel": np.arange(36, dtype=np.float32).reshape(3, 3, 1, 4),
        "bias": np.zeros(4, np.float32),
    }
}
STATISTICS = {"norm1": {"mean": np.ones(4, np.float32)}}


def state():
    """A TrainState, whose optimiser repeats the tree of the parameters."""
    return TrainState.create(apply_fn=None, params=PARAMS, tx=optax.adam(1e-3))


def save(folder, tree):
    with ocp.PyTreeCheckpointer() as checkpointer:
        checkpointer.save(folder, tree)
    return folder


def save_steps(folder, save_args, **options):
    """Saves two steps with a CheckpointManager; those of step 3 are zero."""
    with ocp.CheckpointManager(
        folder, options=ocp.CheckpointManagerOptions(**options)
    ) as manager:
        zero = jax.tree.map(np.zeros_like, PARAMS)
        manager.save(3, args=save_args(zero))
        manager.save(20, args=save_args(PARAMS))
        manager.wait_until_finished()
    return folder


def assert_params(variables):
    assert set(variables) == {"params", "batch_stats"}
    jax.tree.map(np.testing.assert_array_equal, variables["params"], PARAMS)


@pytest.mark.parametrize(
    ("tree", "place"),
    [
        ({"params": PARAMS}, ""),
        (PARAMS, ""),
        ({"model": PARAMS, "step": 3}, "model"),
        ({"state": {"params": PARAMS}}, "state/params"),
        ({"params": {"params": PARAMS}, "opt_state": {"params": PARAMS}}, ""),
        ({"model": {"params": PARAMS}, "rng": jax.random.key(0), "name": "a"}, "model"),
        (state(), ""),
    ],
)
def test_tree_of_orbax_is_read_wherever_the_parameters_are(tmp_path, tree, place):
    variables, found = checkpoint.load_source(save(tmp_path / "saved", tree))
    assert_params(variables)
    assert found.startswith(place) and bool(found) == bool(place)


def test_statistics_of_the_parameters_come_along(tmp_path):
    tree = {"state": {"params": PARAMS, "batch_stats": STATISTICS}}
    variables, _ = checkpoint.load_source(save(tmp_path / "saved", tree))
    np.testing.assert_array_equal(variables["batch_stats"]["norm1"]["mean"], 1)


def test_module_of_nnx_is_read(tmp_path):
    class Network(nnx.Module):
        def __init__(self):
            self.conv1 = nnx.Conv(1, 4, (3, 3), rngs=nnx.Rngs(0))

    network = Network()
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "saved", nnx.state(network))
    variables, _ = checkpoint.load_source(tmp_path / "saved")
    kernel = variables["params"]["conv1"]["kernel"]
    np.testing.assert_array_equal(kernel, network.conv1.kernel[...])


@pytest.mark.parametrize(
    ("save_args", "options", "step"),
    [
        (ocp.args.StandardSave, {}, "20"),
        (lambda p: ocp.args.StandardSave({"state": {"params": p}}), {}, "20"),
        (
            lambda p: ocp.args.Composite(
                params=ocp.args.StandardSave(p), notes=ocp.args.JsonSave({"a": 1})
            ),
            {"step_prefix": "ckpt", "step_format_fixed_length": 6},
            "ckpt_000020",
        ),
    ],
)
def test_latest_step_of_a_manager_is_taken_and_named(
    tmp_path, save_args, options, step
):
    folder = save_steps(tmp_path / "saved", save_args, **options)
    (folder / "31.orbax-checkpoint-tmp-17").mkdir()  # A save that was interrupted.
    variables, place = checkpoint.load_source(folder)
    assert_params(variables)
    assert place.startswith(f"{step}: ")
    assert_params(checkpoint.load_source(folder / step)[0])


@pytest.mark.parametrize("tree", [PARAMS, {"params": PARAMS}, state()])
def test_msgpack_is_read(tmp_path, tree):
    (tmp_path / "saved").write_bytes(serialization.to_bytes(tree))
    assert_params(checkpoint.load_source(tmp_path / "saved")[0])
    # As flax.training.checkpoints names them.
    (tmp_path / "checkpoint_9").write_bytes(serialization.to_bytes({}))
    (tmp_path / "saved").rename(tmp_path / "checkpoint_10")
    variables, place = checkpoint.load_source(tmp_path)
    assert_params(variables)
    assert place.startswith("checkpoint_10: ")


def test_flat_names_are_read(tmp_path):
    flat = {f"params/conv1/{name}": value for name, value in PARAMS["conv1"].items()}
    (tmp_path / "saved").write_bytes(serialization.to_bytes(flat))
    assert_params(checkpoint.load_source(tmp_path / "saved")[0])


class Trap:
    """Unpickling it is noticed."""

    def __reduce__(self):
        return pytest.fail, ("a pickle was loaded",)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"4",
        b"text",
        pickle.dumps(Trap()),
        serialization.to_bytes({"epoch": 3, "loss": np.ones(2)}),
        serialization.to_bytes({"params": {}}),
        serialization.to_bytes({"00000": np.ones(2), "00001": np.ones(3)}),
    ],
)
def test_other_files_are_refused(tmp_path, content):
    (tmp_path / "saved").write_bytes(content)
    with pytest.raises(UserError) as refused:
        checkpoint.load_source(tmp_path / "saved")
    assert refused.value.where == str(tmp_path / "saved")


def test_parameters_in_several_places_are_named(tmp_path):
    tree = {"generator": {"params": PARAMS}, "critic": {"params": PARAMS}}
    with pytest.raises(UserError) as refused:
        checkpoint.load_source(save(tmp_path / "saved", tree))
    assert refused.value.where == str(tmp_path / "saved")
    assert "'generator'" in str(refused.value) and "'critic'" in str(refused.value)


def test_damaged_folder_is_refused_without_advice_to_delete_it(tmp_path):
    folder = save(tmp_path / "saved", PARAMS)
    for spared in ("_METADATA", "manifest.ocdbt"):
        damaged = shutil.copytree(folder, tmp_path / spared)
        for file in damaged.rglob("*"):
            if file.is_file() and file.name != spared:
                file.write_bytes(b"")
        with pytest.raises(UserError) as refused:
            checkpoint.load_source(damaged)
        assert refused.value.where == str(damaged)
        assert "elete" not in str(refused.value)


@pytest.mark.parametrize(
    ("made", "fact"),
    [
        ((), "empty"),
        (("notes.txt",), "'notes.txt'"),
        (("stages/target-0123/", "results.json"), "stages/"),
        (("states/6/", "lineage.json"), "unfinished"),
    ],
)
def test_other_folders_are_described(tmp_path, made, fact):
    for name in made:
        path = tmp_path / name
        if name.endswith("/"):
            path.mkdir(parents=True)
        else:
            path.touch()
    with pytest.raises(UserError) as refused:
        checkpoint.load_source(tmp_path)
    assert refused.value.where == str(tmp_path)
    assert fact in str(refused.value) and "elete" not in str(refused.value)


def test_state_is_restored_by_the_names_of_its_arrays(tmp_path):
    """Two arrays of equal shape change neither places nor names unnoticed."""
    store = checkpoint.StateStore(tmp_path / "states")
    one, two = np.zeros(3, np.float64), np.ones(3, np.float64)
    store.save(4, {"a": one, "b": two}, {"losses": [1.0]})
    same, progress = store.restore(4, {"b": one, "a": one})
    np.testing.assert_array_equal(same["a"], one)
    np.testing.assert_array_equal(same["b"], two)
    assert type(same["b"]) is np.ndarray and same["b"].dtype == two.dtype
    assert progress == {"losses": [1.0]}
    for other in (
        {"a": one, "c": one},
        (one, one),
        {"a": one},
        {"a": one, "b": two[:2]},
    ):
        with pytest.raises(UserError) as refused:
            store.restore(4, other)
        assert refused.value.where == str(tmp_path / "states" / "4")
    store.close()


def test_variables_of_another_network_are_refused(tmp_path):
    module = models.build("caffenet_small", num_classes=2, head="dense")
    variables = models.init(module, jax.random.key(0), 16, 1)
    checkpoint.export_variables(tmp_path / "own", variables)
    same = checkpoint.load_network(tmp_path / "own", module, 16, 1)
    jax.tree.map(np.testing.assert_array_equal, same["params"], variables["params"])
    del variables["params"]["norm3"]["bias"]
    checkpoint.export_variables(tmp_path / "other", variables)
    with pytest.raises(UserError) as refused:
        checkpoint.load_network(tmp_path / "other", module, 16, 1)
    assert refused.value.where == str(tmp_path / "other")
    assert "params/norm3/bias" in str(refused.value)


@pytest.mark.parametrize("what", ["arrays/*.ocdbt", "progress/metadata"])
def test_a_damaged_state_is_named_and_the_one_before_is_left(tmp_path, what):
    store = checkpoint.StateStore(tmp_path)
    random = np.random.default_rng(0).normal(size=(100, 100)).astype(np.float32)
    for step in (4, 8):
        store.save(step, {"a": step * random}, {"losses": [0.5]})
    store.close()
    for path in (tmp_path / "8").glob(what):
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    store = checkpoint.StateStore(tmp_path)
    with refused_at(tmp_path / "8"):
        store.restore(8, {"a": random})
    store.close()
    shutil.rmtree(tmp_path / "8")
    store = checkpoint.StateStore(tmp_path)
    (newest,) = store.steps()
    tree, progress = store.restore(newest, {"a": random})
    store.close()
    np.testing.assert_array_equal(tree["a"], 4 * random)
    assert progress == {"losses": [0.5]}
