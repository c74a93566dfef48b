"""Uses the rooms where only torch, numpy, safetensors and jaxtyping are installed; see test_distribution.py."""

import importlib
import importlib.util
import pkgutil
import sys
import warnings
from functools import partial
from pathlib import Path

import numpy
import torch
import torch.nn.functional as F

import steelyard
from steelyard import selectors, theory
from steelyard.bilevel import Batch, FiniteDifference, Implicit, Recorder, Truncated, Unrolled, WeightedLoss
from steelyard.checkpoint import Journal
from steelyard.cli import main
from steelyard.distributed import Processes
from steelyard.reweight import InnerRun, Maple, Reweighting, Sqrt, VREx

warnings.simplefilter("error")
warnings.filterwarnings("ignore", "Implicitly cleaning up", ResourceWarning)  # torch 2.6, when the interpreter ends
ROOMS = ("bilevel", "reweight", "selectors", "theory")
ABSENT = ("torchvision", "torchopt", "higher", "pandas", "pyarrow", "sklearn", "scipy", "matplotlib", "rich", "tyro")
ABSENT += ("PIL", "tomli", "beartype", "pytest")
NEED_MORE = {"steelyard.bilevel._higher", "steelyard.bilevel._torchopt"}

losses_of = partial(F.cross_entropy, reduction="none")


def data(n: int) -> Batch:
    generator = torch.Generator().manual_seed(n)
    inputs = torch.randn(n, 5, generator=generator, dtype=torch.float64)
    return Batch.of(inputs, torch.randint(0, 3, (n,), generator=generator), environment=torch.arange(n) % 2)


def linear() -> torch.nn.Module:
    return torch.nn.Linear(5, 3, dtype=torch.float64)


def bilevel() -> None:
    """Every estimator that needs no library answers, and those of one gradient agree; the others name the install."""
    train, held_out, model, weight = data(32), data(16), linear(), torch.ones(32, dtype=torch.float64)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    objective = WeightedLoss(losses_of)
    with Recorder(model, optimizer, objective, steps=2, full_state=True) as recorder:
        for rows in torch.arange(32).split(16):
            loss = recorder.loss(train.take(rows), weight[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        trajectory = recorder.trajectory()

    def outer(model: torch.nn.Module) -> torch.Tensor:
        return F.cross_entropy(model(held_out.inputs), held_out.targets)

    exact = Truncated(steps=2)(trajectory, outer)
    torch.testing.assert_close(Unrolled(steps=2, backend="torch")(trajectory, outer), exact)
    torch.testing.assert_close(FiniteDifference(steps=2)(trajectory, outer), exact, rtol=1e-3, atol=1e-6)
    assert bool(Implicit(damping=0.1)(trajectory, outer).isfinite().all())
    for name in ("torchopt", "higher"):
        said = error_of(lambda name=name: Unrolled(steps=2, backend=name)(trajectory, outer))
        assert said == f"Unrolled(backend={name!r}) needs {name}, which is not installed: pip install {name}", said


def reweight() -> None:
    """MAPLE learns weights, goes on from a journal, and its result is written and read."""
    inner = InnerRun(linear, partial(torch.optim.SGD, lr=0.1), WeightedLoss(losses_of), steps=5)
    maple = Maple(inner, Sqrt(VREx()), budget=8, steps=2)
    result = maple.fit(data(16), journal=Journal("journal.safetensors"))
    assert maple.fit(data(16), journal=Journal("journal.safetensors")) == result
    result.save("weights.safetensors")
    assert Reweighting.load("weights.safetensors") == result
    assert len(list(result.sampler(generator=torch.Generator().manual_seed(0)))) == 8
    said = error_of(result.to_frame)
    assert said == "Reweighting.to_frame needs pandas, which is not installed: pip install pandas", said


def select() -> None:
    """Scores and selections, from arrays too."""
    generator = torch.Generator().manual_seed(0)
    probabilities = torch.rand(20, 3, generator=generator).softmax(-1)
    assert len(selectors.top_k(selectors.entropy(probabilities), 4, generator=generator)) == 4
    assert len(selectors.k_center(torch.rand(20, 5, generator=generator).numpy(), 4, generator=generator)) == 4


def bound() -> None:
    """The bound of a class of one hypothesis, by `theorem1` and by `finite_class_bounds`."""
    losses, settings = torch.rand(1, 50, generator=torch.Generator().manual_seed(0)), {"s": 8, "q": 2, "delta": 0.1}
    generator = torch.Generator().manual_seed(0)
    (one,) = theory.finite_class_bounds(losses, **settings, loss_range=1.0, draws=20, generator=generator)
    alone = theory.theorem1(
        losses[0], **settings, loss_range=1.0, complexity=one.bound.complexity, factor=one.bound.factor
    )
    assert alone.total == one.bound.total


def ranks() -> None:
    """A group of one process."""
    torch.distributed.init_process_group("gloo", init_method=Path("group").absolute().as_uri(), rank=0, world_size=1)
    group = Processes()
    assert group.share(7).tolist() == list(range(7))
    assert group.sum(torch.tensor(3.0)).item() == 3
    torch.distributed.destroy_process_group()


def commands() -> None:
    """Bounds of an .npy file; every other command says in a line what to install."""
    numpy.save("losses.npy", torch.rand(3, 40, generator=torch.Generator().manual_seed(0)).numpy())
    assert main(["bounds", "--losses", "losses.npy", "--loss-range", "1", "--out", "bounds"]) == 0
    assert Path("bounds/terms.csv").is_file()
    Path("losses.parquet").write_bytes(b"PAR1")
    for arguments in (
        ["bounds", "--losses", "losses.parquet", "--loss-range", "1"],
        ["run", "coloured_digits/erm"],
        ["demo"],
        ["recipes"],
        ["compare", "--help"],
    ):
        assert main(arguments) == 2, arguments


def experiments() -> None:
    """What compares methods says what to install."""
    said = error_of(lambda: importlib.import_module("steelyard.experiments"))
    assert said.startswith("steelyard.experiments needs "), said
    assert said.endswith(", which is not installed: pip install 'steelyard[experiments]'"), said


def error_of(call: object) -> str:
    try:
        call()  # type: ignore[operator]
    except ImportError as error:
        return str(error)
    return "no error"


def modules(room: str) -> list[str]:
    package = importlib.import_module(f"steelyard.{room}")
    return [found.name for found in pkgutil.walk_packages(package.__path__, f"steelyard.{room}.")]


assert Path(steelyard.__file__).is_relative_to(sys.prefix), steelyard.__file__
assert [name for name in ABSENT if importlib.util.find_spec(name)] == []
for name in (name for room in ROOMS for name in modules(room) if name not in NEED_MORE):
    importlib.import_module(name)
for use in (bilevel, reweight, select, bound, ranks, commands, experiments):
    use()
    print(use.__name__, "works")
