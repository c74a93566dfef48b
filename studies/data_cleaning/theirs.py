"""The solvers of benchopt/benchmark_bilevel, run as they are from a checkout of that benchmark: error against time.

    XLA_FLAGS="--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1" \\
        python -m studies.data_cleaning.theirs CHECKOUT DATA_ROOT OUT.json [SECONDS TUNING_SECONDS SOLVER,SOLVER]

It needs jax, benchopt and scikit-learn, in an environment of its own, and nothing of steelyard. Times are CPU seconds
of the process, evaluation and compilation left out. Stopped and started again it resumes.
"""

from __future__ import annotations

import gzip
import importlib.util
import json
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

import numpy

__all__ = ["main", "their_data"]

_PUBLISHED = {
    "SOBA": ("soba", {"step_size": 1.0, "outer_ratio": 1e-4}),
    "SABA": ("saba", {"step_size": 0.1, "outer_ratio": 1e-3}),
    "StocBiO": ("stocbio", {"step_size": 0.01, "outer_ratio": 1e-5, "n_inner_steps": 10, "n_shia_steps": 10}),
    "FSLA": ("fsla", {"step_size": 1.0, "outer_ratio": 1e-4}),
    "F2SA": ("f2sa", {"step_size": 0.1, "outer_ratio": 1e-4, "delta_lmbda": 1.0, "n_inner_steps": 10}),
}
_GRID = [
    {"step_size": step, "outer_ratio": ratio} for step, ratio in ((0.1, 1e-5), (0.1, 1e-6), (1.0, 1e-4), (1.0, 1e-5))
]
_EVERY = 64
_TUNED_ON, _MEASURED_ON = 0, 101


def main(checkout: Path, root: Path, out: Path, seconds: float, tuning_seconds: float, names: tuple[str, ...]) -> None:
    """Measure at our penalty with settings chosen on validation images, then at theirs with the published settings."""
    sys.path.insert(0, str(checkout))
    digits = _read(root)
    curves: list[dict[str, Any]] = json.loads(out.read_text()) if out.exists() else []
    there = {(one["problem"], one["solver"]) for one in curves}

    def keep(problem: str, name: str, settings: dict[str, Any], curve: list[dict[str, float]]) -> None:
        curves.append({"problem": problem, "solver": name, "settings": settings, "curve": curve})
        out.write_text(json.dumps(curves, indent=1) + "\n")
        sys.stderr.write(f"{problem} {name} {settings} {curve[-1]}\n")

    for name in ("SOBA", "SABA", "F2SA", "StocBiO"):
        if ("ours", name) in there or name not in names:
            continue
        data = _our_data(digits, _TUNED_ON)
        tried = [
            (_run(checkout, name.lower(), settings, data, 1e-3, tuning_seconds)[-1]["validation"], number)
            for number, settings in enumerate(_GRID)
        ]
        sys.stderr.write(f"{name} {tried}\n")
        best = _GRID[min(tried)[1]]
        keep("ours", name, best, _run(checkout, name.lower(), best, _our_data(digits, _MEASURED_ON), 1e-3, seconds))
    data = their_data(digits)
    for name, (file, settings) in _PUBLISHED.items():
        if ("theirs", name) not in there and name in names:
            keep("theirs", name, settings, _run(checkout, file, settings, data, 0.2, seconds))


def _run(
    checkout: Path, file: str, settings: dict[str, Any], data: dict[str, Any], l2: float, seconds: float
) -> list[dict[str, float]]:
    """Return test error and CPU seconds every `_EVERY` iterations; at the end, the error on validation images, too."""
    import jax.numpy as jnp

    solver = _solver(checkout, file)
    defaults = {name: values[0] for name, values in type(solver).parameters.items()}
    for name, value in (defaults | {"batch_size": 64} | settings | {"eval_freq": _EVERY}).items():
        setattr(solver, name, value)
    inner, outer = _objectives(data, l2)
    count, dimension = data["x"].shape
    solver.run_once = lambda *given: None
    solver.set_objective(inner, outer, count, len(data["clean"]), jnp.zeros(dimension * 10), -2 * jnp.ones(count))
    curve: list[dict[str, float]] = []
    spent, since, compiled = 0.0, 0.0, 0

    def callback() -> bool:
        nonlocal spent, since, compiled
        theta = numpy.asarray(solver.inner_var).reshape(-1, 10)  # waits for what is computed
        if compiled > 1:  # the first call compiles
            spent += time.process_time() - since
        compiled += 1
        point = {"iteration": _EVERY * (compiled - 1), "seconds": spent}
        going = spent < seconds and bool(numpy.isfinite(theta).all())
        if not going:
            logits = data["clean"] @ theta
            logits -= logits.max(1, keepdims=True)
            losses = numpy.log(numpy.exp(logits).sum(1)) - logits[numpy.arange(len(logits)), data["clean_y"]]
            point["outer"] = float(losses.mean())
        for part, x, y in (("test", "test", "test_y"), ("validation", "clean", "clean_y")):
            if part == "test" or not going:
                point[part] = float(((data[x] @ theta).argmax(1) != data[y]).mean())
        curve.append(point)
        since = time.process_time()
        return going

    solver.inner_var = jnp.zeros(dimension * 10)
    solver.run(callback)
    return curve


def _solver(checkout: Path, file: str) -> Any:
    specification = importlib.util.spec_from_file_location(f"theirs_{file}", checkout / "solvers" / f"{file}.py")
    assert specification is not None
    assert specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module.Solver()


def _objectives(data: dict[str, Any], l2: float) -> tuple[Any, Any]:
    """Return both levels in the form that the solvers take: (theta, x, start, batch_size) -> scalar."""
    import jax
    import jax.numpy as jnp

    x, clean = jnp.asarray(data["x"]), jnp.asarray(data["clean"])
    y, clean_y = jax.nn.one_hot(data["y"], 10), jax.nn.one_hot(data["clean_y"], 10)

    def losses(theta: Any, rows: Any, labels: Any) -> Any:
        return -(jax.nn.log_softmax(rows @ theta.reshape(-1, 10)) * labels).sum(1)

    def cut(values: Any, start: Any, size: int) -> Any:
        return jax.lax.dynamic_slice_in_dim(values, start, size)

    @partial(jax.jit, static_argnames=("batch_size",))
    def inner(theta: Any, outer_var: Any, start: Any = 0, batch_size: int = 1) -> Any:
        weight = jax.nn.sigmoid(cut(outer_var, start, batch_size))
        found = losses(theta, cut(x, start, batch_size), cut(y, start, batch_size))
        return (weight * found).mean() + l2 * (theta**2).sum()

    @partial(jax.jit, static_argnames=("batch_size",))
    def outer(theta: Any, outer_var: Any, start: Any = 0, batch_size: int = 1) -> Any:
        return losses(theta, cut(clean, start, batch_size), cut(clean_y, start, batch_size)).mean()

    return inner, outer


def their_data(digits: dict[str, Any]) -> dict[str, Any]:
    """Return the benchmark's own split, corruption (a half of the labels) and scaling, of MNIST as `_read` has it."""
    from sklearn.model_selection import train_test_split
    from sklearn.preprocessing import StandardScaler

    random = numpy.random.RandomState(32)
    x, clean, y, clean_y = train_test_split(
        digits["train_images"], digits["train_labels"], test_size=5000, train_size=20000, random_state=random
    )
    wrong = random.rand(20000) < 0.5
    y = y.copy()
    y[wrong] = random.randint(0, 10, wrong.sum())
    scaler = StandardScaler()
    x = scaler.fit_transform(x)
    own = {"x": x, "clean": scaler.transform(clean), "test": scaler.transform(digits["test_images"])}
    single = {name: value.astype(numpy.float32) for name, value in own.items()}
    return {**single, "y": y, "clean_y": clean_y, "test_y": digits["test_labels"]}


def _our_data(digits: dict[str, Any], seed: int) -> dict[str, Any]:
    """Return the study's problem (`problem.Digits.problem`): the same split and corruption, a half of the labels."""
    random = numpy.random.RandomState(seed)
    order = random.permutation(60000)
    train, clean = order[:20000], order[20000:25000]
    y = digits["train_labels"][train].copy()
    drawn = random.rand(20000) < 0.5
    y[drawn] = random.randint(0, 10, int(drawn.sum()))

    def rows(images: Any) -> Any:
        return numpy.concatenate([images.astype(numpy.float32) / 255, numpy.ones((len(images), 1), numpy.float32)], 1)

    images = digits["train_images"]
    own = {"x": rows(images[train]), "clean": rows(images[clean]), "test": rows(digits["test_images"])}
    return {**own, "y": y, "clean_y": digits["train_labels"][clean], "test_y": digits["test_labels"]}


def _read(root: Path) -> dict[str, Any]:
    raw, found = root / "MNIST" / "raw", {}
    for part, stem in (("train", "train"), ("test", "t10k")):
        for what, kind, offset in (("images", "images-idx3", 16), ("labels", "labels-idx1", 8)):
            with gzip.open(raw / f"{stem}-{kind}-ubyte.gz") as file:
                values = numpy.frombuffer(file.read(), numpy.uint8, offset=offset)
            found[f"{part}_{what}"] = values.reshape(-1, 784) if what == "images" else values.astype(numpy.int64)
    return found


if __name__ == "__main__":
    main(
        Path(sys.argv[1]),
        Path(sys.argv[2]),
        Path(sys.argv[3]),
        float(sys.argv[4]) if len(sys.argv) > 4 else 25.0,
        float(sys.argv[5]) if len(sys.argv) > 5 else 6.0,
        tuple(sys.argv[6].split(",")) if len(sys.argv) > 6 else tuple(_PUBLISHED),
    )
