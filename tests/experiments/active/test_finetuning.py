"""Fine-tuning: who is confident, whose labels, what is trained on, what is measured, and where nobody is confident."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from steelyard import selectors
from steelyard.bilevel.batch import Batch
from steelyard.checkpoint import Journal
from steelyard.experiments.active import finetuning
from steelyard.experiments.active.finetuning import (
    Algorithm2,
    FineTuned,
    FineTuning,
    MoreEpochs,
    augmented,
    pseudo_labelled,
)
from steelyard.experiments.active.fitting import Epochs, Fitting, Learned, train_epochs
from steelyard.experiments.data.augmented import Distortion
from steelyard.experiments.training.seeds import derived, global_state


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
    data, confident = pseudo_labelled(state, logit, Algorithm2(), seeded())
    assert torch.equal(data.inputs, logit[[0, 5, 6]])
    assert confident == 3
    assert data.targets.tolist() == [1, 0, 0]  # the average says the opposite of the main model


def test_the_threshold_itself_is_not_confident_enough() -> None:
    state = learned(torch.zeros(2, 1), torch.zeros(2, 1))
    data, confident = pseudo_labelled(state, torch.ones(4, 1), Algorithm2(confidence=0.5), seeded())
    assert (len(data), confident) == (0, 0)
    assert len(pseudo_labelled(state, torch.ones(4, 1), Algorithm2(confidence=0.499), seeded())[0]) == 4
    assert len(pseudo_labelled(state, torch.ones(0, 1), Algorithm2(), seeded())[0]) == 0


def test_at_most_so_many_samples_drawn_by_the_generator() -> None:
    state = learned(torch.tensor([[0.0], [1.0]]), torch.tensor([[0.0], [1.0]]))
    inputs = 3 + torch.arange(50.0)[:, None]
    some, confident = pseudo_labelled(state, inputs, Algorithm2(samples=20), seeded())
    assert (len(some), confident) == (20, 50)
    assert len(some.inputs.unique()) == 20
    other = pseudo_labelled(state, inputs, Algorithm2(samples=20), seeded(1))[0]
    assert not torch.equal(some.inputs, other.inputs)


@pytest.mark.parametrize("channels", [1, 3])
def test_augmented_images_keep_shape_and_range_and_follow_the_seed(channels: int) -> None:
    images = torch.rand(12, channels, 8, 8, generator=seeded())

    def make(seed: int) -> Tensor:
        with global_state(seed, torch.device("cpu")):
            return augmented(images, Algorithm2())

    one, same, other = make(0), make(0), make(1)
    assert one.shape == images.shape
    assert float(one.min()) >= 0
    assert float(one.max()) <= 1
    assert torch.equal(one, same)
    assert not torch.equal(one, other)


def test_cutout_alone_grays_a_square_of_its_share() -> None:
    images = torch.ones(5, 1, 8, 8)
    cut = augmented(images, Algorithm2(operations=0))
    for image in cut:
        rows, columns = (image[0] == 0.5).nonzero().unbind(1)
        assert len(rows) == 16  # a quarter of 64
        assert int(rows.max() - rows.min()) == int(columns.max() - columns.min()) == 3
    assert torch.equal(augmented(images, Algorithm2(operations=0, cutout=0.0)), images)


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

    settings = Algorithm2(confidence=0.6, operations=1, cutout=0.0, epochs=Epochs(2, 8, 1e-2, 1.1))
    labelled, rest = data.take(torch.arange(20)), data.inputs[20:]
    tuned = FineTuned(first, settings, first)(labelled, rest, None, 3)
    assert tuned.facts["confident"] == tuned.facts["tuned"] == 40
    assert tuned.facts["tuned_epochs"] == 2
    assert int(tuned.average.n_averaged) == int(made[0].average.n_averaged) + 2 * 5
    assert not torch.equal(tuned.model[1].weight, made[0].model[1].weight)
    again = FineTuned(first, settings, first)(labelled, rest, None, 3)
    assert torch.equal(again.model[1].weight, tuned.model[1].weight)
    assert torch.equal(made[0].model[1].weight, made[1].model[1].weight)


def test_where_nobody_is_confident_the_first_training_stands() -> None:
    data = stripes(10)
    first = Fitting(lambda seed: linear(torch.zeros(2, 64)), Epochs(1, 8, 1e-9))
    tuned = FineTuned(first, Algorithm2(), first)(data, data.inputs, None, 0)
    plain = first(data, data.inputs, None, 0)
    assert torch.equal(tuned.model[1].weight, plain.model[1].weight)
    assert tuned.facts["confident"] == tuned.facts["tuned_epochs"] == 0


def fit(epochs: int = 30, **settings: Any) -> Fitting:
    return Fitting(lambda seed: linear(torch.zeros(2, 64)), Epochs(epochs, 8, 1e-2), **settings)


STILL = Distortion(shear=0.0, shift=0.0, rotation=0.0, cutout=0.0)


def tuned_on(
    monkeypatch: pytest.MonkeyPatch, settings: FineTuning, after: Fitting | None = None
) -> tuple[Any, Learned]:
    """The data of the fine-tuning, 20 labelled samples and 40 others, and what it returns."""
    data, given = stripes(60), []

    def listen(model: nn.Module, average: Any, some: Batch, *rest: Any, **more: Any) -> tuple[int, float]:
        given.append(some)
        return train_epochs(model, average, some, *rest, **more)

    monkeypatch.setattr(finetuning, "train_epochs", listen)
    labelled = data.take(torch.arange(20))
    learned = FineTuned(fit(), settings, after or fit(3, start="warm"))(labelled, data.inputs[20:], None, 3)
    return given, learned


def test_labelled_samples_are_in_the_set_under_predicted_labels(monkeypatch: pytest.MonkeyPatch) -> None:
    data = stripes(60)
    given, learned = tuned_on(monkeypatch, FineTuning(confidence=0.6, distortion=STILL, epochs=Epochs(2, 8, 1e-2, 1.1)))
    (some,) = given
    assert len(some) == 60
    assert torch.equal(some.inputs, data.inputs)  # labelled ones first, all confident ones after them
    base = fit()(data.take(torch.arange(20)), data.inputs[20:], None, 3)
    assert torch.equal(some.targets, base.model(data.inputs).argmax(1))
    assert learned.facts["confident"] == 40
    assert learned.facts["tuned"] == 60


def test_labels_that_are_noise_are_replaced() -> None:
    data = stripes(60)
    wrong = replace(data, targets=torch.where(torch.arange(60) % 5 == 0, 1 - data.targets, data.targets))
    labelled = wrong.take(torch.arange(20))
    tuned = FineTuned(fit(60), FineTuning(confidence=0.5, epochs=Epochs(10, 8, 1e-2)), fit(1, start="warm"))
    learned = tuned(labelled, data.inputs[20:], None, 0)
    assert torch.equal(learned.model(data.inputs).argmax(1), data.targets)


def test_what_selects_and_what_is_measured_are_two_models(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = FineTuning(confidence=0.6, epochs=Epochs(2, 8, 1e-2, 1.1))
    _, learned = tuned_on(monkeypatch, settings)
    assert learned.measured is not None
    assert learned.result is learned.measured
    assert not torch.equal(learned.model[1].weight, learned.measured.model[1].weight)
    data = stripes(60)
    again = fit(3, start="warm")(data.take(torch.arange(20)), data.inputs[20:], learned, derived(3, 6))
    assert torch.equal(again.model[1].weight, learned.measured.model[1].weight)
    assert learned.facts["after_epochs"] == again.facts["epochs"]
    copied = learned.copy()
    assert copied.measured is not learned.measured
    assert torch.equal(copied.result.model[1].weight, learned.result.model[1].weight)


def test_every_epoch_sees_other_images(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Tensor] = []
    settings = FineTuning(confidence=0.6, epochs=Epochs(3, 64, 1e-2, 1.1))

    class Listening(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            if self.training and len(x) == 60:
                seen.append(x.detach())
            return super().forward(x)

    def build(seed: int) -> nn.Module:
        return nn.Sequential(nn.Flatten(), Listening(64, 2))

    data = stripes(60)
    first = Fitting(build, Epochs(30, 8, 1e-2))
    FineTuned(first, settings, replace(first, start="warm"))(data.take(torch.arange(20)), data.inputs[20:], None, 0)
    assert len(seen) == 3
    means = [one.mean() for one in seen]
    assert len(set(map(float, means))) == 3


def test_whose_predictions_the_labels_are() -> None:
    state = learned(torch.tensor([[0.0], [1.0]]), torch.tensor([[1.0], [0.0]]))
    logit = torch.tensor([[3.0], [4.0]])
    for labels, expected in (("main", [1, 1]), ("average", [0, 0])):
        data, _ = pseudo_labelled(state, logit, FineTuning(labels=labels), seeded())
        assert data.targets.tolist() == expected


def test_where_nobody_is_confident_there_is_one_model() -> None:
    data = stripes(10)
    first = Fitting(lambda seed: linear(torch.zeros(2, 64)), Epochs(1, 8, 1e-9))
    found = FineTuned(first, FineTuning(), replace(first, start="warm"))(data, data.inputs, None, 0)
    assert found.measured is None
    assert found.facts["tuned"] == found.facts["after_epochs"] == 0


def test_the_control_trains_on_the_labelled_samples_alone() -> None:
    data = stripes(60)
    labelled = data.take(torch.arange(20))
    found = FineTuned(fit(3), MoreEpochs(epochs=Epochs(4, 8, 1e-2, 1.1)), fit())(labelled, data.inputs[20:], None, 0)
    plain = fit(3)(labelled, data.inputs[20:], None, 0)
    assert found.facts["tuned"] == 20
    assert found.facts["tuned_epochs"] == 4
    assert int(found.average.n_averaged) == int(plain.average.n_averaged) + 4 * 3
    other = FineTuned(fit(3), MoreEpochs(epochs=Epochs(4, 8, 1e-2, 1.1)), fit())(labelled, data.inputs[:0], None, 0)
    assert torch.equal(other.model[1].weight, found.model[1].weight)  # whatever the pool holds


def test_what_is_no_image_is_refused() -> None:
    for shape in ((4, 2), (4, 2, 8, 8)):
        with pytest.raises(ValueError, match="images"):
            augmented(torch.zeros(shape), Algorithm2())
    for name, value in (("confidence", 1.0), ("operations", -1), ("magnitude", 31), ("cutout", 1.0), ("samples", -1)):
        with pytest.raises(ValueError, match=name):
            Algorithm2(**{name: value})
