"""Samples whose images stay on disk: the same samples as in memory, batch by batch."""

from dataclasses import replace
from itertools import islice
from pathlib import Path

import pytest
import torch

from steelyard.bilevel.batch import Batch
from steelyard.experiments.batches import gathered, shuffled
from steelyard.experiments.data import CelebA, Splits, Waterbirds
from steelyard.experiments.data.photographs import Photographs
from steelyard.experiments.errors import DataError, RecipeError
from steelyard.experiments.evaluation import evaluate
from steelyard.experiments.methods import DFR, ERM, JTT, LfF
from steelyard.experiments.models import MLP, Logistic
from steelyard.experiments.problem import Problem
from steelyard.experiments.recipe import Recipe
from steelyard.experiments.run import execute
from steelyard.experiments.trainer import OptimizerSettings, Training
from steelyard.journal import Stopped
from tests.experiments.layouts import write_celeba, write_waterbirds

TINY = ((3, 2, 1, 2), (1, 1, 1, 1), (1, 1, 1, 1))
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
    names = ("inputs", "targets", "index", "environment", "group")
    return all(torch.equal(getattr(one, name), getattr(other, name)) for name in names)


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
    many = Photographs.of_images(on_disk.train.images, torch.arange(8).repeat(10), augment=False, workers=0)
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


METHODS = [
    ERM(training=SHORT),
    LfF(training=SHORT),
    JTT(upweight=2, identification=SHORT, training=SHORT),
    DFR(fit_on="train", retrains=1, strengths=(1.0,), training=SHORT),
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


def test_methods_that_hold_all_samples_are_refused_images() -> None:
    from steelyard.experiments.methods import Maple

    for method in (ERM(), JTT(training=SHORT), Maple(budget=5)):
        with pytest.raises(ValueError, match=f"{method.name} needs a batch_size above 0"):
            Recipe(CelebA(inputs="images"), Logistic(), method)
        Recipe(CelebA(), Logistic(), method)
    assert issubclass(RecipeError, ValueError)


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
