"""Algorithm 2: who is confident, whose labels, and what happens where nobody is."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from steelyard import selectors
from steelyard.bilevel.batch import Batch
from steelyard.checkpoint import Journal
from steelyard.experiments.active.finetuning import FineTuned, FineTuning, augmented, pseudo_labelled
from steelyard.experiments.active.fitting import Epochs, Fitting, Learned
from steelyard.experiments.training.seeds import global_state


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def linear(weight: Tensor) -> nn.Module:
    model = nn.Sequential(nn.Flatten(), nn.Linear(weight.shape[1], weight.shape[0], bias=False))
    model[1].weight.data.copy_(weight)
    return model


def learned(main: Tensor, average: Tensor) -> Learned:
    return Learned(linear(main), selectors.ema(linear(average)))


def test_confidence_is_the_main_models_and_the_label_the_averages() -> None:
    logit = torch.tensor([-2.0, -1.0, 0.0, 1.0, 1.38, 1.39, 2.0])[:, None]  # sigmoid(1.386) = 0.8
    state = learned(torch.tensor([[0.0], [1.0]]), torch.tensor([[1.0], [0.0]]))
    data, confident = pseudo_labelled(state, logit, FineTuning(), seeded())
    assert torch.equal(data.inputs, logit[[0, 5, 6]])
    assert confident == 3
    assert data.targets.tolist() == [1, 0, 0]  # the average says the opposite of the main model


def test_the_threshold_itself_is_not_confident_enough() -> None:
    state = learned(torch.zeros(2, 1), torch.zeros(2, 1))
    data, confident = pseudo_labelled(state, torch.ones(4, 1), FineTuning(confidence=0.5), seeded())
    assert (len(data), confident) == (0, 0)
    assert len(pseudo_labelled(state, torch.ones(4, 1), FineTuning(confidence=0.499), seeded())[0]) == 4
    assert len(pseudo_labelled(state, torch.ones(0, 1), FineTuning(), seeded())[0]) == 0


def test_at_most_so_many_samples_drawn_by_the_generator() -> None:
    state = learned(torch.tensor([[0.0], [1.0]]), torch.tensor([[0.0], [1.0]]))
    inputs = 3 + torch.arange(50.0)[:, None]
    some, confident = pseudo_labelled(state, inputs, FineTuning(samples=20), seeded())
    assert (len(some), confident) == (20, 50)
    assert len(some.inputs.unique()) == 20
    other = pseudo_labelled(state, inputs, FineTuning(samples=20), seeded(1))[0]
    assert not torch.equal(some.inputs, other.inputs)


@pytest.mark.parametrize("channels", [1, 3])
def test_augmented_images_keep_shape_and_range_and_follow_the_seed(channels: int) -> None:
    images = torch.rand(12, channels, 8, 8, generator=seeded())

    def make(seed: int) -> Tensor:
        with global_state(seed, torch.device("cpu")):
            return augmented(images, FineTuning())

    one, same, other = make(0), make(0), make(1)
    assert one.shape == images.shape
    assert float(one.min()) >= 0
    assert float(one.max()) <= 1
    assert torch.equal(one, same)
    assert not torch.equal(one, other)


def test_cutout_alone_grays_a_square_of_its_share() -> None:
    images = torch.ones(5, 1, 8, 8)
    cut = augmented(images, FineTuning(operations=0))
    for image in cut:
        rows, columns = (image[0] == 0.5).nonzero().unbind(1)
        assert len(rows) == 16  # a quarter of 64
        assert int(rows.max() - rows.min()) == int(columns.max() - columns.min()) == 3
    assert torch.equal(augmented(images, FineTuning(operations=0, cutout=0.0)), images)


def stripes(n: int) -> Batch:
    targets = torch.arange(n) % 2
    images = torch.zeros(n, 1, 8, 8)
    images[targets == 0, :, :, :4] = 1
    images[targets == 1, :, :, 4:] = 1
    return Batch.of((images + 0.1 * torch.rand(images.shape, generator=seeded())).clamp(max=1), targets)


def test_fine_tuning_trains_on_and_leaves_the_first_training_as_it_was() -> None:
    data, made = stripes(60), []

    def first(labelled: Batch, unlabelled: Tensor, start: Learned | None, seed: int, journal: Journal) -> Learned:
        made.append(
            Fitting(lambda s: linear(torch.zeros(2, 64)), Epochs(30, 8, 1e-2))(labelled, unlabelled, None, seed)
        )
        return made[-1]

    settings = FineTuning(confidence=0.6, operations=1, cutout=0.0, epochs=Epochs(2, 8, 1e-2, 1.1))
    labelled, rest = data.take(torch.arange(20)), data.inputs[20:]
    tuned = FineTuned(first, settings)(labelled, rest, None, 3)
    assert tuned.facts["confident"] == tuned.facts["tuned"] == 40
    assert tuned.facts["tuned_epochs"] == 2
    assert int(tuned.average.n_averaged) == int(made[0].average.n_averaged) + 2 * 5
    assert not torch.equal(tuned.model[1].weight, made[0].model[1].weight)
    again = FineTuned(first, settings)(labelled, rest, None, 3)
    assert torch.equal(again.model[1].weight, tuned.model[1].weight)
    assert torch.equal(made[0].model[1].weight, made[1].model[1].weight)


def test_where_nobody_is_confident_the_first_training_stands() -> None:
    data = stripes(10)
    first = Fitting(lambda seed: linear(torch.zeros(2, 64)), Epochs(1, 8, 1e-9))
    tuned = FineTuned(first, FineTuning())(data, data.inputs, None, 0)
    plain = first(data, data.inputs, None, 0)
    assert torch.equal(tuned.model[1].weight, plain.model[1].weight)
    assert tuned.facts["confident"] == tuned.facts["tuned_epochs"] == 0


def test_what_is_no_image_is_refused() -> None:
    for shape in ((4, 2), (4, 2, 8, 8)):
        with pytest.raises(ValueError, match="images"):
            augmented(torch.zeros(shape), FineTuning())
    for name, value in (("confidence", 1.0), ("operations", -1), ("magnitude", 31), ("cutout", 1.0), ("samples", -1)):
        with pytest.raises(ValueError, match=name):
            FineTuning(**{name: value})
