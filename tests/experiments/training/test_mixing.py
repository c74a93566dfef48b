"""Mixed samples against sums written out; partners that are what LISA asks for; draws that depend on the step alone."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from steelyard.bilevel.batch import Batch
from steelyard.experiments.errors import DataError
from steelyard.experiments.training.mixing import MixBatch, MixHalves, Partners, mixed

MODEL = nn.Identity()
INPUTS = torch.arange(24.0).reshape(8, 3)
LABELS = torch.tensor([0, 0, 0, 0, 1, 1, 1, 2])
PLACES = torch.tensor([0, 0, 1, 1, 0, 1, 1, 2])
DATA = Batch.of(INPUTS, LABELS, environment=PLACES, group=2 * LABELS)


def test_a_mixture_by_numpy() -> None:
    order, share = torch.tensor([3, 7, 1, 0, 2, 5, 4, 6]), torch.linspace(0, 1, 8)
    found = mixed(DATA, DATA.take(order), share, 3)
    w, x, y = share.numpy()[:, None], INPUTS.numpy(), np.eye(3)[LABELS.numpy()]
    np.testing.assert_allclose(found.inputs.numpy(), w * x + (1 - w) * x[order.numpy()], rtol=1e-6)
    np.testing.assert_allclose(found.targets.numpy(), w * y + (1 - w) * y[order.numpy()], rtol=1e-6)
    assert torch.equal(found.index, DATA.index)
    images = Batch.of(INPUTS[:, :, None, None].expand(8, 3, 2, 2), LABELS)
    assert torch.equal(mixed(images, images.take(order), share, 3).inputs[:, :, 1, 0], found.inputs)


def test_a_batch_is_mixed_with_itself_by_one_share() -> None:
    found = MixBatch(0.5, 3, seed=4)(MODEL, DATA, step=2)
    np.testing.assert_allclose(found.targets.sum(1).numpy(), 1.0, rtol=1e-6)
    np.testing.assert_allclose(found.inputs.sum(0).numpy(), INPUTS.sum(0).numpy(), rtol=1e-5)  # another order of it
    np.testing.assert_allclose(found.targets.sum(0).numpy(), [4, 3, 1], rtol=1e-5)
    shares = found.targets.unique().tolist()
    assert len([one for one in shares if 0 < one < 1]) <= 2  # lambda and 1 - lambda


def test_an_alpha_of_zero_mixes_nothing() -> None:
    found = MixBatch(0.0, 3, seed=0)(MODEL, DATA, step=0)
    assert torch.equal(found.inputs, INPUTS)
    assert torch.equal(found.targets.argmax(1), LABELS)
    halves = MixHalves(0.0, 3, seed=0)(MODEL, DATA, step=0)
    assert torch.equal(halves.inputs, INPUTS[:4])


@pytest.mark.parametrize("alpha", [0.2, 2.0])
def test_shares_are_of_the_beta_distribution(alpha: float) -> None:
    """Its mean is 1/2 and its variance 1 / (4 (2 alpha + 1)), for each of 4,000 samples of one batch."""
    count = 4_000
    data = Batch.of(torch.zeros(2 * count, 1), torch.arange(2 * count) // count)
    share = MixHalves(alpha, 2, seed=1)(MODEL, data, step=0).targets[:, 0].double()
    variance = 1 / (4 * (2 * alpha + 1))
    assert float(share.mean()) == pytest.approx(0.5, abs=5 * (variance / count) ** 0.5)
    assert float(share.var()) == pytest.approx(variance, rel=0.1)


@pytest.mark.parametrize("kind", [MixBatch, MixHalves])
def test_draws_depend_on_the_seed_and_the_step_alone(kind: type) -> None:
    def at(seed: int, step: int) -> torch.Tensor:
        return kind(0.7, 3, seed)(MODEL, DATA, step).inputs

    assert torch.equal(at(0, 5), at(0, 5))
    assert not torch.equal(at(0, 5), at(0, 6))
    assert not torch.equal(at(0, 5), at(1, 5))


def test_partners_have_one_label_and_another_place_or_one_place_and_another_label() -> None:
    rows = torch.arange(8).repeat(200)
    same_label, same_place = (Partners(DATA, share, seed=0).of(rows, 3) for share in (1.0, 0.0))
    alone = LABELS[rows] == 2  # its label is in one place, and its place has one label
    assert torch.equal(same_label[alone], rows[alone])
    assert torch.equal(same_place[alone], rows[alone])
    rows, same_label, same_place = rows[~alone], same_label[~alone], same_place[~alone]
    assert torch.equal(LABELS[same_label], LABELS[rows])
    assert bool((PLACES[same_label] != PLACES[rows]).all())
    assert torch.equal(PLACES[same_place], PLACES[rows])
    assert bool((LABELS[same_place] != LABELS[rows]).all())
    of_four = same_label[rows == 4]  # label 1 in place 0: 5 and 6, each as likely
    assert torch.bincount(of_four).tolist()[5:] == pytest.approx([100, 100], abs=40)


def test_a_batch_is_of_one_kind_and_the_kinds_have_their_shares() -> None:
    partners, rows = Partners(DATA, 0.3, seed=0), torch.arange(7)
    kinds = []
    for step in range(400):
        same = LABELS[partners.of(rows, step)] == LABELS[:7]
        assert bool(same.all()) or not bool(same.any())
        kinds.append(bool(same[0]))
    assert sum(kinds) / 400 == pytest.approx(0.3, abs=0.1)


def test_pairs_follow_the_rows_that_they_are_given() -> None:
    rows = [torch.tensor([0, 5]), torch.tensor([2, 4])]
    partners = Partners(DATA, 0.5, seed=2)
    found = list(partners.paired(iter(rows)))
    assert [one[:2].tolist() for one in found] == [[0, 5], [2, 4]]
    assert all(torch.equal(one[2:], partners.of(row, k)) for k, (one, row) in enumerate(zip(found, rows, strict=True)))


def test_data_without_a_pair_are_refused_with_what_works() -> None:
    one_place = Batch.of(INPUTS, LABELS, environment=torch.zeros(8, dtype=torch.long))
    with pytest.raises(DataError, match="no class is in two environments: take intra_label = 0, or mixup"):
        Partners(one_place, 0.5, seed=0)
    assert len(Partners(one_place, 0.0, seed=0).of(torch.arange(8), 0)) == 8
    apart = Batch.of(INPUTS, LABELS, environment=LABELS)
    with pytest.raises(DataError, match="no environment has two classes: take intra_label = 1, or mixup"):
        Partners(replace_places(apart), 0.5, seed=0)
    with pytest.raises(DataError, match="needs environment ids"):
        Partners(Batch.of(INPUTS, LABELS), 0.5, seed=0)


def replace_places(data: Batch) -> Batch:
    """Class 0 in two places of its own, the others in one each."""
    return Batch.of(data.inputs, data.targets, environment=torch.tensor([0, 0, 3, 3, 1, 1, 1, 2]))
