"""Algorithm 1's training: the average's recursion, the stop rule, epochs that leave nobody out."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from steelyard import selectors
from steelyard.bilevel.batch import Batch
from steelyard.experiments.active.fitting import Epochs, Fitting, Learned, train_epochs
from tests.experiments.active.conftest import net


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def blobs(n: int = 65) -> Batch:
    targets = torch.arange(n) % 3
    centres = torch.tensor([[0.0, 0.0], [3.0, 0.0], [0.0, 3.0]])
    return Batch.of(centres[targets] + 0.3 * torch.randn(n, 2, generator=seeded()), targets)


@pytest.mark.parametrize("decay", [0.5, 0.9, 0.999])
def test_the_average_follows_its_recursion(decay: float) -> None:
    model = net(0)[:2].append(nn.Linear(12, 3))  # without dropout: a forward pass for each step, and nothing else
    seen: list[Tensor] = []
    model.register_forward_pre_hook(lambda module, inputs: seen.append(_flat(module)))
    average = selectors.ema(model, decay, bias_corrected=True)
    train_epochs(model, average, blobs(), Epochs(3, 16, 1e-2, 1.1), seeded())
    after = [*seen[1:], _flat(model)]  # what each step left behind
    beta = after[0]
    for step, theta in enumerate(after):
        keep = min(1 - 1 / (step + 1), decay)
        beta = keep * beta + (1 - keep) * theta
    assert len(after) == 3 * 5  # 65 samples in 5 batches of at most 16
    torch.testing.assert_close(_flat(average.module), beta, rtol=1e-5, atol=1e-6)


def _flat(model: nn.Module) -> Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in model.parameters()]).clone()


def test_an_epoch_takes_every_sample_once_in_batches_of_nearly_equal_size() -> None:
    model, data, seen = net(0), blobs(65), []
    model.register_forward_hook(lambda module, inputs, outputs: seen.append(inputs[0]))
    train_epochs(model, selectors.ema(model), data, Epochs(2, 64, 1e-3, 1.1), seeded())
    assert [len(inputs) for inputs in seen] == [33, 32] * 2
    for epoch in (seen[:2], seen[2:]):
        rows = torch.cat(epoch)
        assert torch.equal(rows[rows[:, 0].argsort()], data.inputs[data.inputs[:, 0].argsort()])
    assert not torch.equal(seen[0], seen[2])


def test_training_stops_with_the_first_epoch_that_is_right_often_enough() -> None:
    def run(epochs: int, stop: float) -> tuple[int, float]:
        model = net(1)[:2].append(nn.Linear(12, 3))
        torch.manual_seed(0)
        nn.init.normal_(model[2].weight, generator=seeded(1))
        nn.init.zeros_(model[2].bias)
        return train_epochs(model, selectors.ema(model), blobs(), Epochs(epochs, 16, 1e-2, stop), seeded())

    epochs, accuracy = run(200, 0.99)
    assert 1 < epochs < 200
    assert accuracy >= 0.99
    assert run(epochs - 1, 0.99)[1] < 0.99
    assert run(epochs + 20, 1.01)[0] == epochs + 20


def test_a_round_depends_on_its_seed_alone(fit: Fitting) -> None:
    data = blobs()
    torch.manual_seed(1)
    before = torch.get_rng_state()
    one = fit(data, data.inputs[:0], None, seed=5)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    same, other = (fit(data, data.inputs[:0], None, seed=seed) for seed in (5, 6))
    assert torch.equal(_flat(one.model), _flat(same.model))
    assert torch.equal(_flat(one.average), _flat(same.average))
    assert not torch.equal(_flat(one.model), _flat(other.model))


def test_warm_starts_go_on_and_cold_ones_begin_anew_and_neither_changes_its_start() -> None:
    still = Epochs(1, 8, 1e-12, 1.1)
    start = Learned(net(7), selectors.ema(net(7), 0.999, bias_corrected=True))
    kept = copy.deepcopy(start.model.state_dict())
    data = blobs()
    warm = Fitting(net, still, start="warm")(data, data.inputs[:0], start, seed=0)
    cold = Fitting(net, still, start="scratch")(data, data.inputs[:0], start, seed=0)
    torch.testing.assert_close(_flat(warm.model), _flat(start.model), rtol=0, atol=1e-9)
    assert float((_flat(cold.model) - _flat(start.model)).abs().max()) > 0.1
    assert all(torch.equal(value, kept[name]) for name, value in start.model.state_dict().items())
    assert int(start.average.n_averaged) == 0
    assert int(warm.average.n_averaged) == 9


def test_bad_settings_name_themselves() -> None:
    for name, value in (("epochs", 0), ("batch_size", 1), ("learning_rate", 0.0), ("stop_accuracy", 0.0)):
        with pytest.raises(ValueError, match=name):
            Epochs(**{name: value})
