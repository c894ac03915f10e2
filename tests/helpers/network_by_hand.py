"""CaffeNet forwards and backwards in NumPy loops, one image, for tests of `explain`.

Written from the papers (Krizhevsky et al. 2012; Mahendran & Vedaldi 2016, section 2),
sharing nothing with the package but the names and layout of the parameters.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from twostage_jax.models import CaffeNet

ALPHA, BETA, WINDOW = 1e-4, 0.75, 5


def random_params(module, size, channels, seed=1):
    """Returns parameters so large that normalisation matters, and biases."""
    rng = np.random.default_rng(seed)
    shapes = jax.eval_shape(
        functools.partial(module.init, train=False),
        jax.random.key(0),
        jnp.zeros((1, size, size, channels)),
    )["params"]

    def draw(shape):
        spread = 1.5 / np.sqrt(max(np.prod(shape[:-1]), 1))
        return rng.normal(0, spread, shape).astype(np.float32)

    return jax.tree.map(lambda a: draw(a.shape), shapes)


def tiny_caffenet(seed=1):
    """Returns a network with every kind of layer, strong signals, and two images.

    The network is its module and variables, and the same by hand.
    """
    stem = (5, 2, 2)
    module = CaffeNet(num_classes=3, widths=(6, 6, 4, 4, 4), hidden=(5, 5), stem=stem)
    params = random_params(module, 18, 2, seed)
    images = np.random.default_rng(0).normal(0, 60, (2, 18, 18, 2)).astype(np.float32)
    return module, {"params": params}, images, NetworkByHand(params, stem)


class NetworkByHand:
    """The layers of `models.CaffeNet`, in order, for one image `[H, W, C]`."""

    def __init__(self, params, stem):
        """Takes the parameters, and kernel side, stride and padding of conv1."""
        size, stride, pad = stem
        conv = {1: (stride, pad, 1), 2: (1, 2, 2), 3: (1, 1, 1), 4: (1, 1, 2)}
        conv[5] = (1, 1, 2)
        self.params = {k: {n: np.float64(a) for n, a in p.items()}
                       for k, p in params.items()}  # fmt: skip
        self.plan = []
        for k in range(1, 6):
            self.plan += [(f"conv{k}", "conv", conv[k]), (f"relu{k}", "relu", None)]
            if k in (1, 2, 5):
                self.plan.append((f"pool{k}", "pool", None))
            if k in (1, 2):
                self.plan.append((f"norm{k}", "norm", None))
        for k in (6, 7):
            self.plan += [(f"fc{k}", "dense", None), (f"relu{k}", "relu", None)]
        self.plan.append(("head", "dense", None))

    def forward(self, image):
        """Returns every tap, and the input of each layer."""
        taps, inputs, x = {}, {}, np.float64(image)
        for name, kind, how in self.plan:
            inputs[name] = x
            if kind == "conv":
                x = convolve(x, **self.params[name], how=how)
            elif kind == "relu":
                x = np.maximum(x, 0)
            elif kind == "pool":
                x = pool(x)[0]
            elif kind == "norm":
                x = x / (1 + ALPHA / WINDOW * sums(x**2)) ** BETA
            else:
                x = x.reshape(-1) @ self.params[name]["kernel"]
                x = x + self.params[name]["bias"]
            taps[name] = x
        return taps, inputs

    def backward(self, image, tap, start, method, until=None):
        """Returns the picture `[H, W, C]` of `start` at `tap`.

        Or, with `until`, the signal at that tap.
        """
        inputs, g = self.forward(image)[1], np.float64(start)
        names = [name for name, _, _ in self.plan]
        for name, kind, how in reversed(self.plan[: names.index(tap) + 1]):
            if name == until:
                break
            x = inputs[name]
            if kind == "conv":
                g = convolve_back(g, self.params[name]["kernel"], x.shape, how)
            elif kind == "relu":
                if method in ("deconvnet", "desalinet", "guided"):
                    g = np.maximum(g, 0)
                if method in ("salinet", "desalinet", "guided"):
                    g = g * (x > 0)
            elif kind == "pool":
                g = unpool(g, pool(x)[1], x.shape)
            elif kind == "norm":
                if method in ("salinet", "guided"):
                    g = norm_back(g, x)
            else:
                g = (self.params[name]["kernel"] @ g).reshape(x.shape)
        return g


def convolve(x, kernel, bias, how):
    stride, pad, groups = how
    side, _, per_group, out = kernel.shape
    x = np.pad(x, ((pad, pad), (pad, pad), (0, 0)))
    rows, columns = ((n - side) // stride + 1 for n in x.shape[:2])
    y = np.zeros((rows, columns, out))
    for i in range(rows):
        for j in range(columns):
            window = x[i * stride : i * stride + side, j * stride : j * stride + side]
            for o in range(out):
                first = o // (out // groups) * per_group
                part = window[..., first : first + per_group]
                y[i, j, o] = (part * kernel[..., o]).sum() + bias[o]
    return y


def convolve_back(g, kernel, shape, how):
    stride, pad, groups = how
    side, _, per_group, out = kernel.shape
    back = np.zeros((shape[0] + 2 * pad, shape[1] + 2 * pad, shape[2]))
    for i, j, o in np.ndindex(g.shape):
        first = o // (out // groups) * per_group
        rows = slice(i * stride, i * stride + side)
        columns = slice(j * stride, j * stride + side)
        back[rows, columns, first : first + per_group] += g[i, j, o] * kernel[..., o]
    return back[pad : pad + shape[0], pad : pad + shape[1]]


def pool(x):
    """Returns 3x3 maxima 2 apart, the last window cut at the edge, and their places."""
    rows, columns = (max(-(-(n - 3) // 2), 0) + 1 for n in x.shape[:2])
    y = np.zeros((rows, columns, x.shape[2]))
    places = np.zeros((*y.shape, 2), int)
    for i, j, c in np.ndindex(y.shape):
        window = x[2 * i : 2 * i + 3, 2 * j : 2 * j + 3, c]
        a, b = np.unravel_index(window.argmax(), window.shape)
        y[i, j, c], places[i, j, c] = window[a, b], (2 * i + a, 2 * j + b)
    return y, places


def unpool(g, places, shape):
    back = np.zeros(shape)
    for i, j, c in np.ndindex(g.shape):
        back[*places[i, j, c], c] += g[i, j, c]
    return back


def sums(x):
    """Returns sums over the five channels around each, fewer at the ends."""
    return np.stack(
        [x[..., max(c - 2, 0) : c + 3].sum(-1) for c in range(x.shape[-1])], -1
    )


def norm_back(g, x):
    base = 1 + ALPHA / WINDOW * sums(x**2)
    inner = sums(g * x * base ** (-BETA - 1))
    return g * base**-BETA - 2 * ALPHA / WINDOW * BETA * x * inner
