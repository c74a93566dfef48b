"""MRM: the subnetwork that its third training is held to, the frozen weights of its second, and what it does."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from steelyard.experiments.methods import ERM, MRM, VREx
from steelyard.experiments.methods import mrm as module
from steelyard.experiments.models import MLP
from steelyard.experiments.training.evaluation import evaluate
from steelyard.experiments.training.masked_model import MaskedModel
from steelyard.experiments.training.trainer import Anneal, OptimizerSettings, Training
from tests.experiments.training.test_trainer import PROBLEM
from tests.support.biased import biased_problem, worst_group

NET = replace(PROBLEM, model_settings=MLP(hidden=(16,)))
ADAM = OptimizerSettings("adam", 0.02)
SHORT = Training(20, evaluate_every=1, optimizer=ADAM)


def half() -> torch.Tensor:
    return (torch.arange(48) % 2).float()


def test_a_fixed_mask_holds_in_both_modes_and_prunes_the_weights_for_good() -> None:
    model = MaskedModel(NET.model(), 0.7, seed=0)
    model.fix(half())
    plain, inputs = NET.model(), torch.randn(5, 2, generator=torch.Generator().manual_seed(0))
    hidden = F.relu(F.linear(inputs, plain[1].weight * half()[:32].reshape(16, 2), plain[1].bias))
    expected = F.linear(hidden, plain[3].weight * half()[32:].reshape(1, 16), plain[3].bias)
    for mode in (True, False):
        torch.testing.assert_close(model.train(mode)(inputs), expected)
    assert not model.scores.requires_grad
    optimizer = torch.optim.Adam(model.parameters(), lr=0.1, weight_decay=0.1)
    for _ in range(5):
        optimizer.zero_grad()
        model(inputs).square().sum().backward()
        optimizer.step()
    weights = torch.cat([model.model[1].weight.flatten(), model.model[3].weight.flatten()]).detach()
    assert torch.equal(weights != 0, half().bool())
    again = MaskedModel(NET.model(), 0.7, seed=5)
    again.load_state_dict(model.state_dict())  # all that evaluation needs
    torch.testing.assert_close(again.eval()(inputs), model.eval()(inputs))


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        (torch.ones(47), "48 entries"),
        (torch.full((48,), 0.5), "each 0 or 1"),
        (torch.cat([torch.ones(32), torch.zeros(16)]), "nothing of '3.weight'"),
    ],
)
def test_masks_that_do_not_fit_are_refused(mask: torch.Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        MaskedModel(NET.model(), 0.7, seed=0).fix(mask)


def trainings(monkeypatch: pytest.MonkeyPatch, method: MRM) -> list[tuple[dict, dict]]:
    """Run `method`; return the model's state before and after each of its trainings."""
    seen = []

    def spy(problem, settings, observe, *, model, **rest):  # type: ignore[no-untyped-def]
        before = {name: value.detach().clone() for name, value in model.state_dict().items()}
        result = real(problem, settings, observe, model=model, **rest)
        seen.append((before, {name: value.detach().clone() for name, value in model.state_dict().items()}))
        return result

    real = module.train
    monkeypatch.setattr(module, "train", spy)
    method.fit(NET, lambda step, model, extra: None)
    return seen


def test_the_three_trainings(monkeypatch: pytest.MonkeyPatch) -> None:
    search = Training(20, optimizer=OptimizerSettings("adam", 0.1))
    method = MRM(sparsity=0.3, penalty=Anneal(100.0, 1.0, 5), full=SHORT, search=search, training=SHORT)
    (start, whole), (before, after), (sub_start, sub_end) = trainings(monkeypatch, method)
    weights = [name for name, value in start.items() if value.ndim > 1]
    assert all(not torch.equal(whole[name], start[name]) for name in weights)
    for name in start:  # the search moves no weight of the trained network
        assert torch.equal(before[f"model.{name}"], whole[name])
        assert torch.equal(after[f"model.{name}"], whole[name])
    assert not torch.equal(before["scores"], after["scores"])
    mask = (after["scores"] >= 0.5).float()
    assert 0 < float(mask.mean()) < 1
    assert torch.equal(sub_start["scores"], mask)
    assert torch.equal(sub_end["scores"], mask)
    pieces = dict(zip(weights, mask.split([start[name].numel() for name in weights]), strict=True))
    for name, value in start.items():  # the third begins where the first did, and stays in the mask
        kept = pieces[name].reshape(value.shape) if name in pieces else torch.ones_like(value)
        assert torch.equal(sub_start[f"model.{name}"], value * kept)
        assert not bool(sub_end[f"model.{name}"][kept == 0].any())
        assert not torch.equal(sub_end[f"model.{name}"], value * kept)


def kept(sparsity: float) -> float:
    found: list[float] = []
    search = Training(60, evaluate_every=60, optimizer=ADAM)
    method = MRM("mrm", "mean", sparsity, full=Training(60, optimizer=ADAM), search=search, training=SHORT)
    method.fit(NET, lambda step, model, extra: found.append(extra["kept"]))
    assert len(set(found)) == 1
    assert len(found) == SHORT.steps
    return found[0]


def test_more_sparsity_keeps_fewer_weights() -> None:
    shares = [kept(sparsity) for sparsity in (0.0, 0.03, 0.3)]
    assert shares[0] > shares[1] > shares[2] > 0
    with pytest.raises(ValueError, match="nothing of"):
        kept(1e6)


def test_without_sparsity_the_search_keeps_what_training_needs() -> None:
    problem = biased_problem(hidden=16)
    long = Training(100, evaluate_every=100, optimizer=ADAM)
    method = MRM(risk="mean", sparsity=0.0, full=long, search=long, training=long)
    erm = ERM(training=long).fit(problem, lambda step, model, extra: None).model
    ours = method.fit(problem, lambda step, model, extra: None).model
    assert worst_group(problem, ours) == pytest.approx(worst_group(problem, erm), abs=0.1)


@pytest.mark.parametrize("risk", ["irmv1", "vrex"])
def test_with_a_penalty_it_leaves_the_shortcut_that_erm_takes(risk: str) -> None:
    long = Training(150, evaluate_every=150, optimizer=ADAM)
    penalty = Anneal(1e3, 1.0, 20)
    method = MRM(risk=risk, sparsity=0.01, penalty=penalty, full=long, search=long, training=long)  # type: ignore[arg-type]
    erm, ours = (
        evaluate(NET, m.fit(NET, lambda step, model, extra: None).model, 1, {}) for m in (ERM(training=long), method)
    )
    assert erm.test.accuracy < 0.3
    assert ours.test.accuracy > erm.test.accuracy + 0.2
    assert ours.visible.validation.vrex < erm.visible.validation.vrex


def test_with_every_weight_kept_it_is_the_plain_method() -> None:
    """The third training then repeats the first: the same net, batches and penalty."""
    seen: list[nn.Module] = []
    search = Training(1, optimizer=OptimizerSettings("adam", 1e-6))
    method = MRM(risk="vrex", sparsity=0.0, penalty=Anneal(10.0, 1.0, 5), full=SHORT, search=search, training=SHORT)
    method.fit(NET, lambda step, model, extra: seen.append(model))
    plain = VREx(training=SHORT, penalty=Anneal(10.0, 1.0, 5)).fit(NET, lambda step, model, extra: None).model
    for ours, theirs in zip(seen[-1].parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs)


def test_settings_out_of_range_are_refused() -> None:
    with pytest.raises(ValueError, match="sparsity must be"):
        MRM(sparsity=-1.0)
