"""Inner runs trained as one are those by themselves: models, records, hypergradients; what cannot be one is not."""

from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from steelyard.bilevel import Batch, Truncated, WeightedLoss
from steelyard.checkpoint import Journal
from steelyard.reweight import CrossFit, InnerRun, Maple, OuterRisk, Sqrt, VREx, fit_together
from steelyard.reweight.together import Together
from tests.support.environments import CROSS_ENTROPY, spurious

D = torch.float64
SGD = partial(torch.optim.SGD, lr=0.3, momentum=0.9, weight_decay=0.01)
ADAM = partial(torch.optim.Adam, lr=0.05)


class Words(nn.Module):
    """The mean of the embeddings of an image's rounded pixels."""

    def __init__(self):
        super().__init__()
        self.words, self.last = nn.Embedding(5, 4, dtype=D), nn.Linear(4, 3, dtype=D)

    def forward(self, images):
        return self.last(self.words((images.flatten(1) + 2).round().clamp(0, 4).long()).mean(1))


class Centred(nn.Module):
    """A layer that takes from each row the mean over the batch."""

    def forward(self, rows):
        return rows - rows.mean(0)


def mlp(*layers):
    """Linear layers, and between them those that the functions `layers` make."""
    more = [make() for make in layers]
    return nn.Sequential(nn.Flatten(), nn.Linear(9, 5, dtype=D), nn.Tanh(), *more, nn.Linear(5, 3, dtype=D))


def convolution():
    return nn.Sequential(nn.Conv2d(1, 2, 2, dtype=D), nn.Tanh(), nn.Flatten(), nn.Linear(8, 3, dtype=D))


def problem(samples=24, tasks=3, seed=0):
    """Images of 3 x 3, three classes, and for every task weights of which some are 0, not equally many."""
    g = torch.Generator().manual_seed(seed)
    inputs = torch.randn(samples, 1, 3, 3, generator=g, dtype=D)
    data = Batch.of(inputs, torch.randint(0, 3, (samples,), generator=g))
    weights = torch.rand(tasks, samples, generator=g, dtype=D)
    return data, weights * (torch.rand(tasks, samples, generator=g, dtype=D) < 0.6)


def run(make=mlp, optimizer=SGD, objective=None, steps=5, **options):
    return InnerRun(make, optimizer, objective or WeightedLoss(CROSS_ENTROPY), steps, **options)


def outer(data, model):
    return F.cross_entropy(model(data.inputs), data.targets.flip(0))


def hypergradients(trained, data, steps):
    asked = {"samples": data} if steps == 1 else {"index": data.index}
    return [Truncated(steps)(trajectory, partial(outer, data), **asked) for _, trajectory in trained]


@pytest.mark.parametrize("normalise", ["weights", "batch", "none"])
@pytest.mark.parametrize(("size", "window"), [(None, 1), (4, 3)])
@pytest.mark.parametrize("optimizer", [SGD, ADAM], ids=["sgd", "adam"])
@pytest.mark.parametrize("make", [mlp, convolution, Words])
def test_models_and_hypergradients_are_those_of_each_run(make, optimizer, size, window, normalise):
    data, weights = problem()
    inner = run(make, optimizer, WeightedLoss(CROSS_ENTROPY, normalise), batch_size=size, window=window)
    inners = [inner, inner.fresh(), inner.fresh(seed=5)]
    together = Together(inners)
    trained = list(together([data] * 3, weights))
    assert together.apart == ""
    found = hypergradients(trained, data, window)
    for one, weight, (model, trajectory), gradient in zip(inners, weights, trained, found, strict=True):
        alone = one.fresh()(data, weight)
        torch.testing.assert_close(dict(model.named_parameters()), dict(alone[0].named_parameters()))
        torch.testing.assert_close(trajectory.index, alone[1].index)
        (expected,) = hypergradients([alone], data, window)
        assert float((gradient - expected).abs().max()) < 1e-9 * float(expected.abs().max())


def test_hypergradients_against_plain_retraining():
    data, weights = problem(samples=8, tasks=2)
    inner = run(steps=4, window=4)
    trained = Together([inner, inner.fresh(seed=3)])([data, data], weights)
    found = [one[weight > 0] for one, weight in zip(hypergradients(trained, data, 4), weights, strict=True)]

    def retrained(seed, weight):
        torch.manual_seed(seed)
        model = mlp()
        optimizer = SGD(model.parameters())
        for _ in range(4):
            losses = CROSS_ENTROPY(model(data.inputs), data.targets)
            optimizer.zero_grad()
            ((weight * losses).sum() / weight.sum()).backward()
            optimizer.step()
        return outer(data, model).item()

    for seed, weight, gradient in zip((0, 3), weights, found, strict=True):
        for place, value in zip(weight.nonzero().flatten().tolist(), gradient.tolist(), strict=True):
            moved = torch.zeros_like(weight).index_fill(0, torch.tensor(place), 1e-5)
            difference = (retrained(seed, weight + moved) - retrained(seed, weight - moved)) / 2e-5
            assert abs(difference - value) < 1e-7


def listening():
    model = mlp()
    model[1].register_forward_hook(lambda *_: None)
    return model


def held_back():
    """Gradients are clipped as they are summed up."""
    model = mlp()
    for p in model.parameters():
        p.register_post_accumulate_grad_hook(clipped)
    return model


def clipped(p):
    p.grad.clamp_(-1.0, 1.0)


def own_step(parameters):
    """An optimizer that steps by a function of its own."""
    optimizer = SGD(parameters)
    step = optimizer.step
    optimizer.step = lambda *given: step(*given)
    return optimizer


class Small(nn.Linear):
    """Answers otherwise where it is given few rows."""

    def __init__(self):
        super().__init__(9, 3, dtype=D)

    def forward(self, images):
        return super().forward(images.flatten(1)) * (1 if len(images) > 3 else 2)


def checkpointed():
    model, last = mlp(), nn.Linear(3, 3, dtype=D)

    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.last = model, last

        def forward(self, rows):
            return self.last(torch.utils.checkpoint.checkpoint(self.first, rows, use_reentrant=False))

    return Twice()


def _same(model):
    return model


class Own(torch.optim.SGD):
    """A class that torch does not know."""


@pytest.mark.parametrize(
    ("inner", "reason"),
    [
        (run(partial(mlp, partial(nn.BatchNorm1d, 5, dtype=D))), "couples samples"),
        (run(partial(mlp, partial(nn.BatchNorm1d, 5, dtype=D, track_running_stats=False))), "couples samples"),
        (run(partial(mlp, nn.Dropout)), "vmap"),
        (run(partial(mlp, Centred)), "losses are others"),
        (run(listening), "hooks"),
        (run(held_back), "hooks"),
        (run(optimizer=own_step), "hooks of the optimizer"),
        (run(Small, batch_size=5), "batch of its own"),
        (run(checkpointed), "vmap"),
        (run(optimizer=partial(Own, lr=0.1)), "Own has no closed form"),
        (run(objective=WeightedLoss(CROSS_ENTROPY, regulariser=lambda m: m[1].weight.square().sum())), "inner loss"),
        (run(restart=False), "warm start"),
        (run(partial(_same, mlp())), "share a tensor"),
    ],
    ids=[
        *("batch norm", "no buffers", "dropout", "centred", "hooks", "gradient hooks", "own step", "size"),
        *("checkpoint", "own", "l2", "warm", "one module"),
    ],
)
def test_what_cannot_be_one_pass_is_trained_apart_with_the_same_result(inner, reason):
    data, weights = problem(tasks=2)
    together = Together([inner, inner.fresh()], together=True)
    trained = list(together([data, data], weights))
    assert reason in together.apart
    for weight, (model, _) in zip(weights, trained, strict=True):
        expected, _ = inner.fresh()(data, weight)
        torch.testing.assert_close(
            dict(model.named_parameters()), dict(expected.named_parameters()), rtol=0, atol=1e-14
        )


def test_a_frozen_layer_that_the_optimizer_does_not_have():
    def make():
        model = mlp()
        model[1].requires_grad_(False)
        return model

    def head(parameters):
        return SGD([p for p in parameters if p.requires_grad])

    data, weights = problem(tasks=2)
    inner = run(make, head, window=2)
    together = Together([inner, inner.fresh(seed=3)])
    found = hypergradients(together([data, data], weights), data, 2)
    assert together.apart == ""
    expected = hypergradients(
        [run(make, head, window=2, seed=s)(data, w) for s, w in zip((0, 3), weights, strict=True)], data, 2
    )
    torch.testing.assert_close(found, expected)


def test_a_tensor_of_the_optimizer_that_no_model_has_is_refused_as_by_a_run_alone():
    other = nn.Parameter(torch.zeros(2, dtype=D))
    inner = run(optimizer=lambda parameters: SGD([*parameters, other]))
    data, weights = problem(tasks=2)
    with pytest.raises(ValueError, match="tensor 4 of optimizer group 0.* is not a parameter of the model"):
        list(Together([inner, inner.fresh()])([data, data], weights))


def test_draws_start_at_the_same_parameters_where_the_function_that_makes_nets_draws_by_itself():
    data, _ = spurious(40)

    def fitted(together):
        draw = torch.Generator().manual_seed(0)

        def make():
            model = nn.Linear(2, 2, dtype=D)
            nn.init.normal_(model.weight, generator=draw)
            return model

        inner = InnerRun(make, SGD, WeightedLoss(CROSS_ENTROPY), 10)
        found = Maple(inner, Sqrt(VREx()), budget=20, steps=2, draws=3, together=together)
        return found.fit(data), found.apart

    expected, _ = fitted(False)
    for together in ("auto", True):
        found, apart = fitted(together)
        assert apart == ""
        torch.testing.assert_close(found.probabilities, expected.probabilities)


def test_runs_of_other_settings_and_large_nets_are_trained_apart():
    data, weights = problem(tasks=2)
    other = Together([run(), run(steps=6)])
    assert [len(trajectory.steps) for _, trajectory in other([data, data], weights)] == [1, 1]
    assert other.apart == "the runs differ in steps"
    wide = run(
        lambda: nn.Sequential(nn.Flatten(), nn.Linear(9, 500_000, dtype=D), nn.Linear(500_000, 3, dtype=D)), steps=1
    )
    large = Together([wide])
    next(large([data, data], weights))
    assert "multiplies" in large.apart
    switched = Together([run()], together=False)
    next(switched([data, data], weights))
    assert switched.apart == "together=False"


def test_samples_that_would_fill_the_memory_are_not_held_for_all_at_once():
    class First(nn.Module):
        def __init__(self):
            super().__init__()
            self.last = nn.Linear(9, 3, dtype=D)

        def forward(self, rows):
            return self.last(rows[:, :9])

    data = Batch.of(torch.zeros(24, 1, dtype=D).expand(24, 1_000_000), torch.arange(24) % 3)
    together, weights = Together([run(First)]), torch.ones(2, 24, dtype=D)
    assert together.trained([data] * 2, weights) is None
    assert together.apart == "the samples of a step take 3.84e+08 bytes, more than 2.68e+08"
    few = Together([run(First, batch_size=2)])
    assert few.trained([data] * 2, weights) is not None


class Maker:
    """Makes nets whose function between the layers it knows, and holds a seed that the recipe's problems hold, too."""

    def __init__(self, seed, between=nn.Tanh):
        self.seed, self.between = seed, between

    def make(self):
        torch.manual_seed(self.seed)
        return nn.Sequential(nn.Flatten(), nn.Linear(9, 5, dtype=D), self.between(), nn.Linear(5, 3, dtype=D))


def test_models_may_come_from_functions_that_know_their_seed_and_must_be_alike():
    data, weights = problem(tasks=2)
    seeds = [run(Maker(seed).make, seed=seed) for seed in (0, 1)]
    together = Together(seeds)
    trained = list(together([data, data], weights))
    assert together.apart == ""
    for one, weight, (model, _) in zip(seeds, weights, trained, strict=True):
        expected, _ = one.fresh()(data, weight)
        torch.testing.assert_close(dict(model.named_parameters()), dict(expected.named_parameters()))
    other = Together([run(Maker(0).make), run(Maker(0, nn.ReLU).make)])
    list(other([data, data], weights))
    assert other.apart == "the models differ"


@pytest.mark.parametrize(("folds", "draws"), [(3, 1), (2, 2), (1, 3)])
def test_maple_together_and_apart(folds, draws):
    data, _ = spurious(40)
    inner = InnerRun(lambda: nn.Linear(2, 2, dtype=D), SGD, WeightedLoss(CROSS_ENTROPY), 10, batch_size=7)
    seen = {}
    for together in ("auto", False):
        maple = Maple(
            inner.fresh(), Sqrt(VREx()), budget=20, steps=3, draws=draws, folds=folds, seed=1, together=together
        )
        models = []
        result = maple.fit(data, callbacks=[lambda step, models=models: models.append(step.model.weight.clone())])
        seen[together] = (result, models)
        assert (maple.apart == "") is (together == "auto")
    (one, models), (other, expected) = seen.values()
    torch.testing.assert_close(one.weights, other.weights)
    torch.testing.assert_close(one.probabilities, other.probabilities)
    torch.testing.assert_close(models, expected)
    assert [row["kept"] for row in one.history] == [row["kept"] for row in other.history]


def test_cross_fit_of_several_weights_is_one_call_for_each():
    data, _ = spurious(30)
    inner = InnerRun(lambda: nn.Linear(2, 2, dtype=D), ADAM, WeightedLoss(CROSS_ENTROPY), 8)
    outer_risk = OuterRisk(Sqrt(VREx()), data, CROSS_ENTROPY)
    weights = [torch.rand(30, dtype=D).bernoulli() for _ in range(2)]
    apart, together = CrossFit(inner, 3, together=False), CrossFit(inner, 3)
    expected = [apart(Truncated(), outer_risk, data, one, torch.Generator().manual_seed(4)) for one in weights]
    folds = [apart.split(one, torch.Generator().manual_seed(4)) for one in weights]
    own = together.tasks(weights, folds)
    trained = together.together([data] * len(own), own)
    found = list(together.each(Truncated(), outer_risk, data, weights, folds, trained))
    assert together.together.apart == ""
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one.gradient, other.gradient)
        assert one.value == pytest.approx(other.value)


def maple(seed, steps=3, lr=0.3, **options):
    inner = InnerRun(
        lambda: nn.Linear(2, 2, dtype=D), partial(torch.optim.SGD, lr=lr), WeightedLoss(CROSS_ENTROPY), 8, seed=seed
    )
    return Maple(inner, Sqrt(VREx()), budget=20, steps=steps, seed=seed, **options)


@pytest.mark.parametrize("options", [{}, {"folds": 2}, {"draws": 2}], ids=["plain", "folds", "draws"])
def test_seeds_together_are_each_seed_alone(options):
    data = [spurious(40 + 3 * seed, seed)[0] for seed in range(3)]
    lengths = (3, 2, 3)  # one ends before the others
    alone = [maple(s, n, **options).fit(one) for s, n, one in zip(range(3), lengths, data, strict=True)]
    several = [maple(s, n, **options) for s, n in zip(range(3), lengths, strict=True)]
    seen = [[], [], []]
    watch = [[lambda step, into=into: into.append(step.row["outer_loss"])] for into in seen]
    found = fit_together(several, data, callbacks=watch)
    for one, other, losses in zip(found, alone, seen, strict=True):
        torch.testing.assert_close(one.weights, other.weights)
        torch.testing.assert_close(one.probabilities, other.probabilities)
        assert losses == [row["outer_loss"] for row in one.history]


def test_seeds_that_cannot_be_trained_as_one_train_their_own():
    data = spurious(40)[0]
    several = [maple(0, folds=2), maple(1, folds=2, lr=0.1)]
    found = fit_together(several, [data, data])
    for one, (seed, rate) in zip(found, [(0, 0.3), (1, 0.1)], strict=True):
        expected = maple(seed, folds=2, lr=rate).fit(data)
        assert torch.equal(one.probabilities, expected.probabilities)
    assert several[0].apart == ""  # the folds of one are


def test_seeds_whose_schedules_are_one_function_made_with_other_numbers_train_their_own():
    def falling(rate):
        return lambda progress: 1 - rate * progress

    def several():
        inners = [
            run(lambda: nn.Linear(2, 2, dtype=D), schedule=falling(rate), steps=8, seed=seed)
            for seed, rate in enumerate((0.0, 0.9))
        ]
        return [Maple(inner, Sqrt(VREx()), budget=20, steps=2) for inner in inners]

    data = spurious(40)[0]
    for one, alone in zip(fit_together(several(), [data, data]), several(), strict=True):
        torch.testing.assert_close(one.probabilities, alone.fit(data).probabilities)


@pytest.mark.parametrize("error", [KeyboardInterrupt, OverflowError])
def test_an_error_of_one_run_ends_all_and_a_ctrl_c_writes_every_journal(tmp_path, error):
    data = spurious(40)[0]

    def stop(step):
        if step.step == 1:
            raise error

    def journals():
        return [Journal(tmp_path / f"{number}.safetensors", every=1000) for number in range(2)]

    with pytest.raises(error):
        fit_together([maple(0), maple(1)], [data] * 2, callbacks=[[], [stop]], journals=journals())
    written = [path.exists() for path in (tmp_path / "0.safetensors", tmp_path / "1.safetensors")]
    assert written == [error is KeyboardInterrupt] * 2
    resumed = fit_together([maple(0), maple(1)], [data] * 2, callbacks=[[], []], journals=journals())
    plain = fit_together([maple(0), maple(1)], [data] * 2)
    assert all(torch.equal(one.probabilities, two.probabilities) for one, two in zip(resumed, plain, strict=True))


def test_as_many_of_everything_as_runs():
    data = spurious(40)[0]
    with pytest.raises(ValueError, match="train has 1 entries for 2 runs: give one for each"):
        fit_together([maple(0), maple(1)], [data])
