"""Online methods: Learning to Reweight against central differences and plain implementations, and what all share."""

from __future__ import annotations

import copy
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.func import functional_call

from steelyard.bilevel import Batch, Streamed, WeightedLoss
from steelyard.checkpoint import CheckpointError, Journal, Stopped
from steelyard.distributed import Ranks
from steelyard.reweight import Balanced, GroupWorst, LearningToReweight, MetaWeightNet, Reweighting
from steelyard.reweight.lookahead import Alignment, LookAhead
from tests.support.clean_samples import (
    OBJECTIVE,
    OBJECTIVE_OF_ROWS,
    OPTIMIZERS,
    batches_of,
    differences,
    mean_loss,
    net,
    retrained,
    some,
    warmed,
)
from tests.support.environments import CROSS_ENTROPY


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("options", [{}, {"dropout": 0.5}, {"norm": True}], ids=["plain", "dropout", "batchnorm"])
def test_weights_are_the_clipped_derivative_of_retraining(optimizer: str, options: dict) -> None:
    model = net(**options)
    made = warmed(optimizer, model)
    batch, clean = some(12, seed=1, flips=0.4), some(20, seed=2)
    online = LearningToReweight(model, made, OBJECTIVE, clean, look_ahead="optimizer")
    zero = torch.zeros(12, dtype=torch.float64)
    helps = -differences(lambda weight: retrained(model, made, batch, weight, clean), zero)
    assert helps.min() < 0 < helps.max()
    kept = helps.clamp(min=0)
    torch.testing.assert_close(online.weights(batch), 12 * kept / kept.sum(), rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("optimizer", ["momentum", "adam"])
def test_looking_ahead_along_the_gradient_is_plain_descent(optimizer: str) -> None:
    model = net()
    made = warmed(optimizer, model)
    plain = torch.optim.SGD(model.parameters(), lr=0.1)
    batch, clean = some(12, seed=1, flips=0.4), some(20, seed=2)
    zero = torch.zeros(12, dtype=torch.float64)
    kept = -differences(lambda weight: retrained(model, plain, batch, weight, clean), zero).clamp(max=0)
    found = LearningToReweight(model, made, OBJECTIVE, clean).weights(batch)
    torch.testing.assert_close(found, 12 * kept / kept.sum(), rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("options", [{}, {"dropout": 0.5}, {"norm": True}], ids=["plain", "dropout", "batchnorm"])
def test_the_alignment_of_gradients_is_the_derivative_of_a_plain_step(options: dict) -> None:
    model = net(**options)
    plain = torch.optim.SGD(model.parameters(), lr=1.0)
    batch, clean = some(12, seed=1, flips=0.4), some(20, seed=2)
    outer, objective = partial(mean_loss, data=clean), OBJECTIVE_OF_ROWS
    expected = LookAhead(model, plain, objective)(batch, torch.zeros(12, dtype=torch.float64), outer)
    alignment = Alignment(model, plain, objective)
    torch.testing.assert_close(alignment(batch, outer), expected, rtol=1e-9, atol=1e-12)
    assert (alignment.losses is None) == bool(options)
    if not options:
        torch.testing.assert_close(alignment.losses, CROSS_ENTROPY(model(batch.inputs), batch.targets), rtol=0, atol=0)


def test_an_outer_risk_of_nothing_that_is_trained_is_refused() -> None:
    model = net()
    alignment = Alignment(model, torch.optim.SGD(model[:2].parameters(), lr=1.0), OBJECTIVE_OF_ROWS)
    with pytest.raises(ValueError, match="none of the parameters"):
        alignment(some(12), lambda module: module[3].bias.sum())


def test_frozen_parameters_are_not_looked_at_and_new_groups_are() -> None:
    """The products of gradients are those of what an ordinary step would move, at each step."""
    model, batch, clean = net(), some(12, seed=1, flips=0.4), some(20, seed=2)
    optimizer = torch.optim.SGD(model[0].parameters(), lr=0.1)
    online = LearningToReweight(model, optimizer, OBJECTIVE, clean)
    for change in (
        lambda: None,
        lambda: optimizer.add_param_group({"params": list(model[-1].parameters())}),
        lambda: model[0].weight.requires_grad_(False),
    ):
        change()
        moved = [p for group in optimizer.param_groups for p in group["params"] if p.requires_grad]
        slope = torch.autograd.grad(mean_loss(model, clean), moved)
        losses = CROSS_ENTROPY(model(batch.inputs), batch.targets)
        rows = [torch.autograd.grad(one, moved, retain_graph=True) for one in losses]
        products = [float(sum((g * u).sum() for g, u in zip(row, slope, strict=True))) for row in rows]
        helps = torch.tensor(products, dtype=torch.float64).clamp(min=0)
        torch.testing.assert_close(online.weights(batch), 12 * helps / helps.sum(), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("method", [LearningToReweight, MetaWeightNet])
def test_another_optimizer_or_model_needs_another_method(method) -> None:
    model, batch, clean = net(), some(12, seed=1), some(20, seed=2)
    online = method(model, torch.optim.SGD(model.parameters(), lr=0.1), OBJECTIVE, clean, clean_size=5)
    online.step(batch)
    online.optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    with pytest.raises(ValueError, match="optimizer is another one .* load_state_dict"):
        online.step(batch)
    again = method(model, online.optimizer, OBJECTIVE, clean, clean_size=5)
    again.load_state_dict(online.state_dict())
    assert again.step(batch).step == 1
    again.model = net(1)
    with pytest.raises(ValueError, match="model is another one"):
        again.weights(batch)


@pytest.mark.parametrize("options", [{}, {"dropout": 0.5}, {"norm": True}], ids=["plain", "dropout", "batchnorm"])
@pytest.mark.parametrize("method", [LearningToReweight, MetaWeightNet])
def test_a_forward_pass_that_is_used_twice_changes_nothing(method, options: dict, monkeypatch) -> None:
    train, clean = some(60, flips=0.4), some(20, seed=2)
    trained = []
    for used_twice in (True, False):
        model = net(**options)
        online = method(model, OPTIMIZERS["momentum"](model.parameters()), OBJECTIVE, clean)
        if not used_twice:
            monkeypatch.setattr(online, "_loss_of", partial(OBJECTIVE_OF_ROWS, model))
        torch.manual_seed(0)
        online.fit(train, epochs=2, batch_size=10)
        trained.append(model.state_dict())
        assert online._losses is None
    torch.testing.assert_close(*trained, rtol=1e-12, atol=1e-14)


def plain_learning_to_reweight(model, optimizer, batches, clean) -> None:
    """The method in a few lines, by double backward."""
    for batch in batches:
        epsilon = torch.zeros(len(batch), dtype=torch.float64, requires_grad=True)
        theta = dict(model.named_parameters())
        losses = CROSS_ENTROPY(functional_call(model, theta, batch.inputs), batch.targets)
        slope = torch.autograd.grad((epsilon * losses).sum(), list(theta.values()), create_graph=True)
        ahead = {name: p - 0.1 * g for (name, p), g in zip(theta.items(), slope, strict=True)}
        value = CROSS_ENTROPY(functional_call(model, ahead, clean.inputs), clean.targets).mean()
        weight = (-torch.autograd.grad(value, epsilon)[0]).clamp(min=0)
        if weight.sum() > 0:
            optimizer.zero_grad()
            (weight / weight.sum() * CROSS_ENTROPY(model(batch.inputs), batch.targets)).sum().backward()
            optimizer.step()


@pytest.mark.parametrize("optimizer", ["momentum", "adam"])
def test_training_equals_the_plain_implementation(optimizer: str) -> None:
    train, clean = some(60, flips=0.4), some(20, seed=2)
    ours, theirs = net(), net()
    online = LearningToReweight(ours, OPTIMIZERS[optimizer](ours.parameters()), OBJECTIVE, clean)
    for batch in batches_of(train, 8):
        online.step(batch)
    plain_learning_to_reweight(theirs, OPTIMIZERS[optimizer](theirs.parameters()), batches_of(train, 8), clean)
    torch.testing.assert_close(ours.state_dict(), theirs.state_dict(), rtol=1e-9, atol=1e-11)


def everything(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict:
    return copy.deepcopy(
        {
            "model": model.state_dict(),
            "optimizer": optimizer.state_dict(),
            "gradients": [p.grad for p in model.parameters()],
            "random": torch.get_rng_state(),
        }
    )


@pytest.mark.parametrize(
    "method", [LearningToReweight, partial(LearningToReweight, look_ahead="optimizer"), MetaWeightNet]
)
@pytest.mark.parametrize("optimizer", ["adam", "momentum"])
def test_weights_leave_no_trace(method, optimizer: str) -> None:
    model = net(dropout=0.5, norm=True)
    made = warmed(optimizer, model)
    steps = []
    made.register_step_post_hook(lambda *_: steps.append(1))
    online = method(model, made, OBJECTIVE, some(20, seed=2))
    before = everything(model, made)
    online.weights(some(12, seed=1))
    torch.testing.assert_close(everything(model, made), before, rtol=0, atol=0)
    assert not steps


def test_a_failed_look_ahead_leaves_no_trace_either() -> None:
    model = net()
    made = warmed("momentum", model)
    broken = some(20, seed=2)
    broken.inputs[3, 1] = float("nan")
    online = LearningToReweight(model, made, OBJECTIVE, broken)
    before = everything(model, made)
    with pytest.raises(FloatingPointError, match="outer is nan"):
        online.weights(some(12, seed=1))
    torch.testing.assert_close(everything(model, made), before, rtol=0, atol=0)
    assert len(online.result()) == 0


def test_loss_stands_in_a_loop_of_ones_own() -> None:
    train, clean = some(60, flips=0.4), some(20, seed=2)
    models = [net(), net()]
    online, other = (
        LearningToReweight(model, OPTIMIZERS["adam"](model.parameters()), OBJECTIVE, clean) for model in models
    )
    for batch in batches_of(train, 5):
        online.step(batch)
        loss = other.loss(batch)
        other.optimizer.zero_grad()
        loss.backward()
        other.optimizer.step()
    torch.testing.assert_close(models[0].state_dict(), models[1].state_dict(), rtol=0, atol=0)
    assert online.result() == other.result()


def test_no_step_where_no_sample_helps() -> None:
    clean = some(20, seed=2)
    model = nn.Linear(4, 2).double()
    nn.init.zeros_(model.weight), nn.init.zeros_(model.bias)
    made = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=0.1)
    online = LearningToReweight(model, made, OBJECTIVE, clean)
    wrong = Batch(clean.inputs.mean(0, keepdim=True) + 0 * clean.inputs, clean.targets, clean.index)
    wrong = Batch(clean.inputs[:1], 1 - clean.targets[:1], clean.index[:1])
    seen = online.step(wrong)
    assert seen.weights.tolist() == [0.0]
    assert seen.loss == 0.0
    assert not model.weight.any()
    result = online.result()
    assert (result.probabilities.tolist(), result.weights.tolist()) == ([0.0], [1.0])
    loss = online.loss(wrong)
    loss.backward()
    assert not model.weight.grad.any()


def test_an_epoch_in_which_no_sample_helps_is_said() -> None:
    train, model = Batch.of(torch.ones(8, 2), torch.zeros(8, dtype=torch.long)), nn.Linear(2, 2)
    clean = Batch.of(torch.ones(4, 2), torch.ones(4, dtype=torch.long))
    online = LearningToReweight(model, OPTIMIZERS["sgd"](model.parameters()), OBJECTIVE, clean)
    with pytest.warns(UserWarning, match="no step of epoch 0 was taken: the weights of all its samples were 0"):
        online.fit(train, epochs=1, batch_size=4)


@pytest.mark.parametrize("method", [LearningToReweight, MetaWeightNet])
def test_the_result_sums_up_what_each_sample_was_given(method) -> None:
    train, model = some(50, flips=0.3), net()
    online = method(model, OPTIMIZERS["adam"](model.parameters()), OBJECTIVE, some(20, seed=2))
    given: dict[int, list[float]] = {number: [] for number in range(50)}

    def note(seen) -> None:
        for one, weight in zip(seen.index.tolist(), seen.weights.tolist(), strict=True):
            given[one].append(weight)

    result = online.fit(train, epochs=3, batch_size=10, callbacks=[note])
    assert all(len(weights) == 3 for weights in given.values())
    means = torch.tensor([sum(weights) / 3 for weights in given.values()], dtype=torch.float64)
    shares = torch.tensor([sum(one > 0 for one in weights) / 3 for weights in given.values()], dtype=torch.float64)
    _, share, mean = online.visits.of(train.index)
    torch.testing.assert_close(share * mean, means)
    torch.testing.assert_close(result.probabilities, shares)
    if method is MetaWeightNet:
        torch.testing.assert_close(result.expected_weights, means)
    else:
        assert result.weights.tolist() == [1.0] * 50
        assert means.mean().item() == pytest.approx(1.0)  # of every batch in which some sample helps the mean is 1
    assert [row["epoch"] for row in result.history] == [0, 1, 2]
    assert result.history[-1]["skipped"] == 0
    assert 0 < result.history[-1]["kept"] < 1 or method is MetaWeightNet
    assert isinstance(result, Reweighting)
    assert len(list(result.sampler(20, torch.Generator().manual_seed(0)))) == 20


def test_wrong_labels_are_found_and_the_model_does_without_them() -> None:
    train, test = some(120, flips=0.4), some(400, seed=9)
    accuracy = {}
    for clean in (None, some(20, seed=2)):
        model = net()
        optimizer = torch.optim.Adam(model.parameters(), lr=0.05)
        if clean is None:
            for batch in batches_of(train, 200):
                optimizer.zero_grad()
                mean_loss(model, batch).backward()
                optimizer.step()
        else:
            online = LearningToReweight(model, optimizer, OBJECTIVE, clean)
            result = online.fit(train, epochs=12, batch_size=12)
        accuracy[clean is None] = (model.eval()(test.inputs).argmax(1) == test.targets).double().mean().item()
    assert accuracy[False] > 0.97 > accuracy[True]
    wrong = torch.arange(120) < 48
    assert wrong[result.suspects(40)].double().mean() > 0.95
    assert result.probabilities[wrong].median() < 0.2 < 0.7 < result.probabilities[~wrong].median()


def test_rows_of_one_sample_are_weighed_apart() -> None:
    train, clean = some(8, flips=0.5), some(20, seed=2)
    model = net()
    online = LearningToReweight(model, OPTIMIZERS["sgd"](model.parameters()), OBJECTIVE, clean)
    once = online.weights(train)
    twice = online.weights(train.take([*range(8), 7]))
    assert twice[8] == pytest.approx(twice[7])
    torch.testing.assert_close(twice[:8] / twice.sum(), once / (once.sum() + once[7]))


def test_samples_that_were_never_seen_are_as_in_ordinary_training() -> None:
    train, model = some(40), net()
    online = LearningToReweight(model, OPTIMIZERS["sgd"](model.parameters()), OBJECTIVE, some(20, seed=2))
    result = online.fit(train, epochs=2, batch_size=10, callbacks=[lambda seen: True])
    visited = online.result()
    assert len(visited) == 10
    assert len(result) == 40
    assert visited.index.tolist() == sorted(visited.index.tolist())
    others = ~torch.isin(result.index, visited.index)
    assert result.weights[others].tolist() == result.probabilities[others].tolist() == [1.0] * 30
    assert len(result.history) == 1


def test_clean_samples_may_be_drawn_and_streamed() -> None:
    train, clean = some(40, flips=0.3), some(20, seed=2)
    found = []
    for data, judge in ((train, clean), (_streamed(train), _streamed(clean))):
        model = net()
        online = LearningToReweight(model, OPTIMIZERS["adam"](model.parameters()), OBJECTIVE, judge, clean_size=7)
        found.append(online.fit(data, epochs=2, batch_size=16))
    assert found[0] == found[1]


def _streamed(data: Batch) -> Streamed:
    return Streamed.of([*data.inputs], data.targets)


@pytest.mark.parametrize("method", [LearningToReweight, MetaWeightNet])
@pytest.mark.parametrize("stop", [3, 4, 7])
def test_a_training_resumes_bit_for_bit(method, stop: int, tmp_path) -> None:
    def begin(**options):
        torch.manual_seed(7)
        model = net(dropout=0.3, norm=True)
        optimizer = OPTIMIZERS["adam"](model.parameters())
        online = method(model, optimizer, OBJECTIVE, some(20, seed=2), clean_size=8)
        return model, online.fit(some(40, flips=0.3), epochs=2, batch_size=10, **options)

    with torch.random.fork_rng():
        model, expected = begin()
        done = [0]

        def count(seen) -> None:
            done[0] += 1

        with pytest.raises(Stopped):
            path = tmp_path / "run.safetensors"
            begin(callbacks=[count], journal=Journal(path, stop=lambda: int(done[0] >= stop)))
        assert done == [stop]
        resumed, result = begin(journal=Journal(path))
    assert result == expected
    torch.testing.assert_close(resumed.state_dict(), model.state_dict(), rtol=0, atol=0)


def test_another_training_is_not_resumed(tmp_path) -> None:
    train, clean = some(40), some(20, seed=2)
    model = net()
    optimizer = OPTIMIZERS["adam"](model.parameters())
    LearningToReweight(model, optimizer, OBJECTIVE, clean).fit(
        train, epochs=1, batch_size=10, journal=Journal(tmp_path / "run.safetensors")
    )
    other = LearningToReweight(model, optimizer, OBJECTIVE, clean, look_ahead="optimizer")
    with pytest.raises(CheckpointError, match="look_ahead"):
        other.fit(train, epochs=1, batch_size=10, journal=Journal(tmp_path / "run.safetensors"))


def test_called_again_the_training_goes_on_in_another_order() -> None:
    train, model = some(40), net()
    online = LearningToReweight(model, OPTIMIZERS["sgd"](model.parameters()), OBJECTIVE, some(20, seed=2))
    orders = []
    for _ in range(2):
        seen: list[int] = []
        online.fit(train, epochs=1, batch_size=10, callbacks=[lambda one, seen=seen: seen.extend(one.index.tolist())])
        orders.append(seen)
    assert sorted(orders[0]) == sorted(orders[1]) == list(range(40))
    assert orders[0] != orders[1]
    assert [row["epoch"] for row in online.result().history] == [0, 1]


def test_a_regulariser_is_part_of_the_step() -> None:
    train, clean = some(60, flips=0.4), some(20, seed=2)
    decayed, regularised = net(), net()
    sgd = partial(torch.optim.SGD, lr=0.1)
    norm = WeightedLoss(
        CROSS_ENTROPY, regulariser=lambda model: 0.05 * sum(p.square().sum() for p in model.parameters())
    )
    online = [
        LearningToReweight(
            decayed, sgd(decayed.parameters(), weight_decay=0.1), OBJECTIVE, clean, look_ahead="optimizer"
        ),
        LearningToReweight(regularised, sgd(regularised.parameters()), norm, clean, look_ahead="optimizer"),
    ]
    for batch in batches_of(train, 4):
        for one in online:
            assert one.step(batch).weights.any()
    torch.testing.assert_close(decayed.state_dict(), regularised.state_dict(), rtol=1e-9, atol=1e-11)


def test_the_clean_risk_may_be_that_of_the_worst_group() -> None:
    model, batch = net(), some(12, seed=1)
    clean = some(20, seed=2)
    grouped = Batch.of(clean.inputs, clean.targets, group=clean.targets)
    optimizer = OPTIMIZERS["sgd"](model.parameters())
    worst = max((0, 1), key=lambda one: mean_loss(model, clean.take(clean.targets == one)).item())
    expected = LearningToReweight(model, optimizer, OBJECTIVE, clean.take(clean.targets == worst)).weights(batch)
    found = LearningToReweight(model, optimizer, OBJECTIVE, grouped, risk=GroupWorst()).weights(batch)
    torch.testing.assert_close(found, expected)


def test_balanced_batches_have_as_many_of_each_class() -> None:
    data = some(101)
    rare = Batch(data.inputs, (data.index % 50 == 0).long(), data.index, group=data.index % 3)
    g = torch.Generator().manual_seed(0)
    for by, classes in (("targets", 2), ("group", 3)):
        drawn = Balanced(rare, by, each=40).draw(g)
        assert torch.bincount(getattr(drawn, by)).tolist() == [40] * classes
        assert all(torch.equal(rare.inputs[one], x) for one, x in zip(drawn.index, drawn.inputs, strict=True))
    many = torch.cat([Balanced(rare, each=40).draw(g).index for _ in range(20)])
    assert len(many.unique()) > 95  # all the common ones, in time


def test_balanced_training_samples_help_the_rare_class() -> None:
    g = torch.Generator().manual_seed(0)
    labels = (torch.arange(200) % 10 == 0).long()
    inputs = torch.randn(200, 4, generator=g, dtype=torch.float64) + 0.6 * labels[:, None]
    train, model = Batch.of(inputs, labels), net()
    online = LearningToReweight(model, OPTIMIZERS["adam"](model.parameters()), OBJECTIVE, Balanced(train))
    helped = online.fit(train, epochs=3, batch_size=25).probabilities
    assert helped[labels == 1].mean() > helped[labels == 0].mean() + 0.2
    _, share, mean = online.visits.of(train.index)
    given = share * mean
    assert given[labels == 1].mean() > 2 * given[labels == 0].mean()


class _Two(Ranks):
    size = 2


CLEAN = some(20, seed=2)


@pytest.mark.usefixtures("unchecked_shapes")
@pytest.mark.parametrize(
    ("arguments", "error", "said"),
    [
        ({"model": lambda: net()}, TypeError, "model must be a module"),
        ({"optimizer": torch.optim.SGD}, TypeError, "optimizer must be a torch.optim optimizer"),
        ({"optimizer": torch.optim.SGD(net().parameters(), 0.1)}, ValueError, "moves no parameter of model"),
        ({"objective": CROSS_ENTROPY}, TypeError, "objective must be a WeightedLoss"),
        ({"objective": WeightedLoss(CROSS_ENTROPY, ranks=_Two())}, NotImplementedError, "learn the weights with Maple"),
        ({"clean": CLEAN.take([])}, ValueError, "clean is empty"),
        ({"clean": CLEAN.inputs}, TypeError, "clean must be a Batch of clean samples, or Balanced"),
        ({"clean_size": 21}, ValueError, r"clean_size must be in \[1, 20\], got 21"),
        ({"clean": Balanced(CLEAN), "clean_size": 4}, ValueError, "each="),
        ({"risk": F.cross_entropy}, TypeError, "risk must be a Risk"),
        ({"look_ahead": "adam"}, ValueError, "look_ahead must be"),
        ({"seed": -1}, ValueError, "seed must be"),
    ],
)
def test_arguments_are_refused_with_a_remedy(arguments: dict, error: type, said: str) -> None:
    model = net()
    usual = {
        "model": model,
        "optimizer": torch.optim.SGD(model.parameters(), 0.1),
        "objective": OBJECTIVE,
        "clean": CLEAN,
    }
    with pytest.raises(error, match=said):
        LearningToReweight(**{**usual, **arguments})


@pytest.mark.usefixtures("unchecked_shapes")
@pytest.mark.parametrize(
    ("by", "said"),
    [("group", "samples have no group: give Batch.of"), ("label", "by must be"), ("targets", "one id a sample")],
)
def test_what_cannot_be_balanced_is_refused(by: str, said: str) -> None:
    data = Batch.of(CLEAN.inputs, CLEAN.inputs) if by == "targets" else CLEAN
    with pytest.raises(ValueError, match=said):
        Balanced(data, by)


@pytest.mark.usefixtures("unchecked_shapes")
def test_calls_are_refused_with_a_remedy() -> None:
    model = net()
    online = LearningToReweight(model, OPTIMIZERS["sgd"](model.parameters()), OBJECTIVE, CLEAN)
    with pytest.raises(TypeError, match=r"batch must be a Batch: Batch\(inputs, targets, index\)"):
        online.step((CLEAN.inputs, CLEAN.targets))
    with pytest.raises(ValueError, match="batch is empty; leave it out"):
        online.step(CLEAN.take([]))
    with pytest.raises(ValueError, match="distinct samples, got 2 with 1 ids"):
        online.fit(CLEAN.take([0, 0]), epochs=1, batch_size=1)
    with pytest.raises(ValueError, match="epochs must be >= 1"):
        online.fit(CLEAN, epochs=0, batch_size=1)
    with pytest.raises(TypeError, match="needs a closure"):
        LearningToReweight(model, torch.optim.LBFGS(model.parameters()), OBJECTIVE, CLEAN, look_ahead="optimizer")
    with pytest.raises(NotImplementedError, match="LBFGS steps by a closure; take SGD"):
        LearningToReweight(model, torch.optim.LBFGS(model.parameters()), OBJECTIVE, CLEAN).step(CLEAN)
    with pytest.raises(TypeError, match="journal must be a Journal"):
        online.fit(CLEAN, epochs=1, batch_size=1, journal="run.safetensors")


def test_a_batch_that_is_not_finite_is_named() -> None:
    model, batch = net(), some(6)
    batch.inputs[2] = float("inf")
    online = LearningToReweight(model, OPTIMIZERS["sgd"](model.parameters()), OBJECTIVE, CLEAN)
    with pytest.raises(FloatingPointError, match="sample 2"):
        online.step(batch)
