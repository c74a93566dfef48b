"""Samples whose images stay on disk: the same samples as in memory, batch by batch."""

import os
from collections.abc import Iterable, Iterator
from dataclasses import replace
from functools import partial
from itertools import islice
from pathlib import Path

import pytest
import torch
from torch import Tensor

from steelyard.bilevel import Batch, Outer, Trajectory, WeightedLoss
from steelyard.checkpoint import Stopped
from steelyard.experiments.data import CelebA, Splits, Waterbirds, photographs
from steelyard.experiments.data.images import ImageList
from steelyard.experiments.data.photographs import Photographs
from steelyard.experiments.errors import DataError, RecipeError
from steelyard.experiments.methods import DFR, ERM, JTT, LfF, Maple, Method, Subset
from steelyard.experiments.methods.maple import InnerSettings, OuterRisk
from steelyard.experiments.methods.shuffled_hypergradient import ShuffledHypergradient
from steelyard.experiments.models import MLP, Logistic, ResNet18
from steelyard.experiments.priors import AUM, EL2N, LHD, PriorSettings
from steelyard.experiments.priors.computed import digest
from steelyard.experiments.runs.recipe import Recipe
from steelyard.experiments.runs.run import execute
from steelyard.experiments.training.batches import gathered, shuffled
from steelyard.experiments.training.evaluation import evaluate
from steelyard.experiments.training.problem import Problem, silent
from steelyard.experiments.training.trainer import OptimizerSettings, Training
from steelyard.reweight import InnerRun
from tests.support.layouts import write_celeba, write_waterbirds

TINY = ((3, 2, 1, 2), (1, 1, 1, 1), (1, 1, 1, 1))
LABELS = ("targets", "index", "environment", "group")
SHORT = Training(steps=2, batch_size=3, optimizer=OptimizerSettings(learning_rate=1e-4))


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("data")
    write_waterbirds(root, counts=TINY)
    write_celeba(root, counts=TINY)
    return root


@pytest.fixture(scope="module")
def on_disk(root: Path) -> Splits:
    return Waterbirds(inputs="images", workers=0).load(0, root)


@pytest.fixture(scope="module")
def in_memory(on_disk: Splits) -> Splits:
    parts = {name: getattr(on_disk, name) for name in ("train", "validation", "test")}
    return replace(on_disk, **{name: part.take(torch.arange(len(part))) for name, part in parts.items()})


def same(one: Batch, other: Batch) -> bool:
    return all(torch.equal(getattr(one, name), getattr(other, name)) for name in ("inputs", *LABELS))


def test_labels_are_known_and_no_image_is(on_disk: Splits, in_memory: Splits) -> None:
    train = on_disk.train
    assert isinstance(train, Photographs)
    assert train.inputs.shape == in_memory.train.inputs.shape == (8, 3, 224, 224)
    assert train.inputs.is_meta
    assert on_disk.groups == ("landbird, land", "landbird, water", "waterbird, land", "waterbird, water")
    assert torch.bincount(train.group).tolist() == [3, 2, 1, 2]
    assert len(train) == 8


@pytest.mark.parametrize("workers", [0, 1])
def test_streams_chunks_and_takes_give_the_samples(on_disk: Splits, in_memory: Splits, workers: int) -> None:
    train, whole = replace(on_disk.train, workers=workers), in_memory.train
    rows = list(islice(shuffled(torch.arange(8), 3, seed=1), 5))
    for found, at in zip(gathered(train, iter(rows), seed=0), rows, strict=True):
        assert same(found, whole.take(at))
    pieces = list(train.chunks(5))
    assert [len(piece) for piece in pieces] == [5, 3]
    assert same(pieces[1], whole.take(torch.arange(5, 8)))
    mask = torch.arange(8) % 3 == 0
    assert same(train.take(mask), whole.take(mask))


def test_pieces_are_small_whatever_is_asked_for(on_disk: Splits) -> None:
    train, rows = on_disk.train, torch.arange(8).repeat(10)
    many = Photographs.of_images(train.images, train.framing, False, 0, rows, train.targets[rows], None, None)
    assert [len(piece) for piece in many.chunks(10_000)] == [64, 16]


def test_only_streams_augment(root: Path, in_memory: Splits) -> None:
    train = Waterbirds(inputs="images", workers=0, augment=True).load(0, root).train
    rows = torch.tensor([4, 2])
    assert same(train.take(rows), in_memory.train.take(rows))
    assert same(next(train.chunks(8)), in_memory.train)
    drawn = [next(gathered(train, iter([rows]), seed, first)) for seed, first in ((0, 0), (0, 0), (1, 0), (0, 1))]
    assert torch.equal(drawn[0].inputs, drawn[1].inputs)
    assert not torch.equal(drawn[0].inputs, drawn[2].inputs)
    assert not torch.equal(drawn[0].inputs, drawn[3].inputs)
    assert torch.equal(drawn[0].group, in_memory.train.group[rows])


LHD_AND_AUM = PriorSettings((LHD(training=SHORT), AUM(training=SHORT)), within="errors", identification=SHORT)
METHODS = [
    ERM(training=SHORT),
    LfF(training=SHORT),
    JTT(upweight=2, identification=SHORT, training=SHORT),
    DFR(fit_on="train", retrains=1, strengths=(1.0,), training=SHORT),
    Subset(budget=5, prior=LHD_AND_AUM, training=SHORT),
]


@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.name)
def test_a_method_gives_what_it_gives_in_memory(on_disk: Splits, in_memory: Splits, method) -> None:  # type: ignore[no-untyped-def]
    found = []
    for splits in (on_disk, in_memory):
        problem, seen = Problem(splits, MLP(hidden=(2,)), 0), []
        model = method.fit(
            problem, lambda *step, p=problem, s=seen: s.append(evaluate(p, step[1], step[0], step[2]))
        ).model
        found.append((seen[-1].visible, seen[-1].test, [p.detach() for p in model.parameters()]))
    assert found[0][:2] == found[1][:2]
    assert all(torch.equal(one, other) for one, other in zip(found[0][2], found[1][2], strict=True))


INNER = InnerSettings(2, 3, optimizer=OptimizerSettings("sgd", 1e-5))


@pytest.mark.parametrize(
    "method",
    [
        Maple(budget=5, steps=3, weight_rate=0.01, inner=INNER),
        Maple(budget=6, steps=2, folds=2, retrain=True, inner=INNER),
        Maple(budget=5, steps=2, outer_split="validation", risk=OuterRisk("group_worst", "plain"), inner=INNER),
        Maple(budget=5, steps=2, prior=replace(LHD_AND_AUM, anchor=0.1, start="both"), inner=INNER),
    ],
    ids=["alone", "folds", "validation", "prior"],
)
def test_maple_gives_what_it_gives_in_memory(method: Maple, on_disk: Splits, in_memory: Splits) -> None:
    """To rounding: what is read from disk comes in chunks, and products of other sizes are rounded otherwise."""
    found = []
    for splits in (on_disk, in_memory):
        seen: list[tuple[int, dict]] = []
        fitted = method.fit(
            Problem(splits, MLP(hidden=(2,)), 0), lambda step, model, extra, seen=seen: seen.append((step, {**extra}))
        )
        found.append((seen, fitted.reweighting, fitted.model.state_dict()))
    (seen, learned, state), (expected_seen, expected, expected_state) = found
    close = partial(torch.testing.assert_close, rtol=1e-4, atol=1e-6)
    assert [step for step, _ in seen] == [step for step, _ in expected_seen]
    for (_, figures), (_, others) in zip(seen, expected_seen, strict=True):
        close(figures, others)
    close(learned.weights, expected.weights)
    close(learned.probabilities, expected.probabilities)
    assert torch.equal(learned.index, expected.index)
    close(state, expected_state)
    assert float(learned.probabilities.std()) > 1e-3  # something was learned


def test_a_net_with_batch_norm_is_swept_by_chunks_of_an_inner_batch(
    on_disk: Splits, in_memory: Splits, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where a chunk is all the samples, as in memory, the result is that in memory."""
    method = Maple(budget=6, steps=1, inner=replace(INNER, batch_size=8))
    model = ResNet18(width=1)
    found = [method.fit(Problem(splits, model, 0), silent).reweighting for splits in (on_disk, in_memory)]
    torch.testing.assert_close(found[0].probabilities, found[1].probabilities, rtol=1e-3, atol=1e-5)
    asked = []
    decode = photographs.decode

    def counting(images: ImageList, rows: Iterable[Tensor], *rest: object, **named: object) -> Iterator[Tensor]:
        for piece in decode(images, rows, *rest, **named):
            asked.append(len(piece))
            yield piece

    monkeypatch.setattr(photographs, "decode", counting)
    Maple(budget=6, steps=1, inner=INNER).fit(Problem(on_disk, model, 0), silent)
    assert max(asked) == 3
    assert asked[-3:] == [3, 3, 2]  # the sweep is what comes last


def test_the_sweep_is_in_another_order_and_its_outcome_in_the_samples_own(on_disk: Splits) -> None:
    seen: list[Tensor] = []

    def estimator(
        trajectory: Trajectory, outer: Outer, index: Tensor | None = None, samples: Batch | None = None
    ) -> Tensor:
        assert samples is not None
        seen.append(torch.cat([chunk.index for chunk in samples.chunks(3)]))
        inputs = torch.cat([chunk.inputs for chunk in samples.chunks(3)])
        assert same(on_disk.train.take(seen[-1]), Batch(inputs, *(getattr(samples, name) for name in LABELS)))
        return samples.index.double()

    problem = Problem(on_disk, Logistic(), 0)
    run = InnerRun(problem.model, partial(torch.optim.SGD, lr=0.0), WeightedLoss(problem.loss), 1, batch_size=3)
    _, trajectory = run(on_disk.train, torch.ones(8))
    for _ in range(2):
        found = ShuffledHypergradient(estimator, 0)(trajectory, lambda model: torch.zeros(()), samples=on_disk.train)
        assert torch.equal(found, on_disk.train.index.double())
    assert not torch.equal(seen[0], on_disk.train.index)
    assert torch.equal(seen[0], seen[1])


def test_a_prior_of_images_knows_its_files(root: Path, tmp_path: Path) -> None:
    """It is filed under the training images and labels; one that was changed makes it another's."""
    folder = write_waterbirds(tmp_path / "data", counts=TINY)

    def digests() -> str:
        problem = Problem(Waterbirds(inputs="images", workers=0).load(0, tmp_path / "data"), Logistic(), 0)
        return digest(problem, LHD_AND_AUM, 5)

    images = Waterbirds(inputs="images", workers=0).load(0, tmp_path / "data").test.images
    before = digests()
    (folder / images.files[-1]).write_bytes(b"a test image, which is no part of it")
    assert digests() == before
    os.utime(folder / images.files[2], (0, 0))
    assert digests() != before


def test_a_damaged_image_is_named_when_its_batch_comes(tmp_path: Path) -> None:
    folder = write_waterbirds(tmp_path, counts=TINY)
    splits = Waterbirds(inputs="images", workers=0).load(0, tmp_path)
    (folder / splits.train.images.files[4]).write_bytes(b"")
    with pytest.raises(DataError, match="line 6"):
        ERM(training=Training(steps=9, batch_size=3)).fit(Problem(splits, Logistic(), 0), lambda *_: None)


def test_the_device_is_that_of_the_labels(on_disk: Splits) -> None:
    moved = on_disk.train.to("meta")
    assert isinstance(moved, Photographs)
    assert all(labels.is_meta for labels in (moved.targets, moved.index, moved.environment, moved.group))
    assert next(Problem(on_disk, Logistic(), 0).model().parameters()).device == on_disk.train.index.device


def test_few_images_of_celeba(root: Path) -> None:
    splits = CelebA(inputs="images", per_group=1, workers=0).load(0, root)
    assert [torch.bincount(p.group).tolist() for p in (splits.train, splits.validation, splits.test)] == [[1] * 4] * 3


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"workers": -1}, "workers"),
        ({"per_group": -1}, "per_group"),
        ({"augment": True}, "augment draws .* inputs = 'images'"),
    ],
)
def test_settings_out_of_range_are_refused(settings: dict, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        Waterbirds(**settings)


IN_ERRORS = PriorSettings((LHD(training=SHORT),), within="errors")


@pytest.mark.parametrize(
    ("method", "words"),
    [
        (ERM(), r"erm needs a batch_size above 0 .*\(set method\.training\.batch_size\)"),
        (JTT(training=SHORT), r"jtt needs .*\(set method\.identification\.batch_size\)"),
        (JTT(), r"\(set method\.identification\.batch_size, method\.training\.batch_size\)"),
        (Maple(budget=5), r"maple needs .*\(set method\.inner\.batch_size\)"),
        (
            Maple(budget=5, inner=INNER, prior=PriorSettings((LHD(training=SHORT), AUM()))),
            r"\(set method\.prior\.scores\[1\]\.training\.batch_size\)",
        ),
        (Maple(budget=5, inner=INNER, prior=IN_ERRORS), r"\(set method\.prior\.identification\.batch_size\)"),
        (
            Maple(budget=5, inner=INNER, prior=PriorSettings((EL2N(training=SHORT),))),
            r"method\.prior\.scores\[0\]: 'el2n' .* take 'lhd', 'aum', or a 'file'",
        ),
    ],
    ids=lambda value: getattr(value, "name", ""),
)
def test_methods_that_hold_all_samples_are_refused_images(method: Method, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        Recipe(CelebA(inputs="images"), Logistic(), method)
    Recipe(CelebA(), Logistic(), method)
    assert issubclass(RecipeError, ValueError)


def test_maple_on_images_is_refused_what_it_cannot_differentiate() -> None:
    method = Maple(budget=5, inner=INNER)
    with pytest.raises(ValueError, match=r"data\.augment = true .* maple .*: set data\.augment = false"):
        Recipe(CelebA(inputs="images", augment=True), Logistic(), method)
    unused = PriorSettings((LHD(training=SHORT), EL2N(weight=0.0)))  # neither computed nor batched
    Recipe(CelebA(inputs="images"), Logistic(), replace(method, prior=unused))


def test_a_resumed_run_draws_the_augmentation_of_an_uninterrupted_one(root: Path, tmp_path: Path) -> None:
    method = ERM(training=replace(SHORT, steps=5))
    recipe = Recipe(Waterbirds(inputs="images", augment=True, workers=0), Logistic(), method, selection="last")
    execute(recipe, tmp_path / "whole", name="test", data_root=root)
    answers = iter([0, 0, 2, 2, 2])
    with pytest.raises(Stopped):
        execute(recipe, tmp_path / "resumed", name="test", data_root=root, stop=lambda: next(answers))
    execute(recipe, tmp_path / "resumed", name="test", data_root=root, resume=True)
    one, other = ((tmp_path / run / "model.safetensors").read_bytes() for run in ("whole", "resumed"))
    assert one == other
