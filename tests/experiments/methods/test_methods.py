"""What each method adds to the trainer, against loops written out, and its behaviour where a shortcut misleads ERM."""

from dataclasses import replace

import pytest
import torch

from steelyard import reweight
from steelyard.bilevel.batch import Batch
from steelyard.experiments.data import ColouredDigits
from steelyard.experiments.errors import DataError
from steelyard.experiments.methods import ERM, JTT, KLDRO, CVaRDRO, GroupDRO, LfF, OrderedSGD, UpWeighting
from steelyard.experiments.training.batches import Gather, expanding, group_balanced_subset, sampled, shuffled
from steelyard.experiments.training.group_labels import counts, with_groups
from steelyard.experiments.training.misclassified import misclassified
from steelyard.experiments.training.trainer import Learner, OptimizerSettings, Training, train
from tests.support.biased import biased_problem, plain_loss, worst_group

PROBLEM = biased_problem()
SGD = OptimizerSettings("sgd", 0.5)
SHORT = Training(steps=30, evaluate_every=30, optimizer=SGD)
BATCHES = replace(SHORT, batch_size=60, steps=60)


def ignore(step, model, extra) -> None:  # type: ignore[no-untyped-def]
    """Observe nothing."""


def fitted(method, problem=PROBLEM) -> torch.nn.Module:  # type: ignore[no-untyped-def]
    steps = []
    model = method.fit(problem, lambda step, model, extra: steps.append(step)).model
    assert steps[-1] == method.last_step
    return model


@pytest.mark.parametrize(
    "method",
    [
        UpWeighting(training=SHORT),
        UpWeighting(balance="batches", training=BATCHES),
        CVaRDRO(alpha=0.1, training=SHORT),
        GroupDRO(step=0.5, training=SHORT),
        GroupDRO(step=0.1, adjustment=1.0, balanced=True, training=BATCHES),
        KLDRO(temperature=1.0, training=SHORT),
        KLDRO(temperature=0.5, memory=0.5, training=BATCHES),
        OrderedSGD(q=60, training=SHORT),
        JTT(upweight=20, identification=replace(SHORT, steps=2), training=SHORT),
    ],
    ids=lambda method: method.name,
)
def test_each_method_lifts_the_worst_group_above_erm(method) -> None:  # type: ignore[no-untyped-def]
    erm = worst_group(PROBLEM, fitted(ERM(training=method.training)))
    assert worst_group(PROBLEM, fitted(method)) > erm + 0.1


def test_lff_lifts_the_worst_group_of_a_net() -> None:
    """On a linear model the biased and the debiased one hardly differ; a net's do (and both overfit in the end)."""
    problem = biased_problem(hidden=32)
    training = Training(steps=300, batch_size=60, evaluate_every=300, optimizer=OptimizerSettings("adam", 0.01))
    erm, ours = (worst_group(problem, fitted(m, problem)) for m in (ERM(training=training), LfF(training=training)))
    assert ours > erm + 0.05


def test_cvar_with_a_whole_batch_and_kl_with_a_high_temperature_are_erm() -> None:
    erm = fitted(ERM(training=SHORT))
    limits = (CVaRDRO(alpha=1.0), KLDRO(temperature=1e7), OrderedSGD(600))
    for method in (replace(method, training=SHORT) for method in limits):
        for ours, theirs in zip(fitted(method).parameters(), erm.parameters(), strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-6)


def test_lff_by_a_loop() -> None:
    """Both models by hand, full batches: generalised cross-entropy for one, weights for the other."""
    ours = fitted(LfF(training=replace(SHORT, steps=6)))
    data = PROBLEM.splits.train
    biased, debiased = replace(PROBLEM, seed=1).model(), PROBLEM.model()
    averages = None
    for _ in range(6):
        both = [plain_loss(m(data.inputs), data.targets) for m in (biased, debiased)]
        now = torch.stack(both).detach()
        averages = now if averages is None else 0.7 * averages + 0.3 * now
        ratio = averages.clone()
        for c in (0, 1):
            ratio[:, data.targets == c] /= averages[:, data.targets == c].amax(1, keepdim=True)
        weight = ratio[0] / (ratio[0] + ratio[1])
        generalised = ((1 - torch.exp(-0.7 * both[0])) / 0.7).mean()
        for model, loss in ((biased, generalised), (debiased, (weight * both[1]).mean())):
            gradients = torch.autograd.grad(loss, list(model.parameters()))
            with torch.no_grad():
                for parameter, gradient in zip(model.parameters(), gradients, strict=True):
                    parameter -= 0.5 * gradient
    for mine, theirs in zip(ours.parameters(), debiased.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-5)


def test_lff_weighs_what_the_shortcut_gets_wrong() -> None:
    data = PROBLEM.splits.train
    biased = Learner(replace(PROBLEM, seed=1).model(), PROBLEM.loss, SHORT, rule=reweight.GeneralisedCrossEntropy(0.7))
    difficulty = reweight.RelativeDifficulty(data.targets, 0.7)
    debiased = Learner(PROBLEM.model(), PROBLEM.loss, SHORT)
    for _ in range(30):
        weight = difficulty(biased.step(data)[1], debiased.step(data)[1], data)
    agrees = data.group % 2 == data.targets
    assert float(weight[~agrees].mean()) > float(weight[agrees].mean())


def test_jtt_retrains_with_the_errors_repeated() -> None:
    first = replace(SHORT, steps=2)
    method, told = JTT(upweight=7, identification=first, training=SHORT), []
    ours = method.fit(PROBLEM, lambda step, model, extra: told.append(extra["error_set"])).model
    data = PROBLEM.splits.train
    early = train(PROBLEM, first, ignore)
    with torch.no_grad():
        wrong = (early(data.inputs)[:, 0] > 0).long() != data.targets
    assert 0 < int(wrong.sum()) < 300
    assert torch.equal(misclassified(PROBLEM, early), wrong)
    assert told[-1] == int(wrong.sum())
    model = PROBLEM.model()
    weight = torch.where(wrong, 7.0, 1.0)
    for _ in range(30):
        loss = (weight * plain_loss(model(data.inputs), data.targets)).sum() / weight.sum()
        gradients = torch.autograd.grad(loss, list(model.parameters()))
        with torch.no_grad():
            for parameter, gradient in zip(model.parameters(), gradients, strict=True):
                parameter -= 0.5 * gradient
    for mine, theirs in zip(ours.parameters(), model.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-5)


def test_balanced_batches_have_groups_in_equal_shares() -> None:
    data = PROBLEM.splits.train
    chance = 1 / torch.bincount(data.group)[data.group]
    stream = sampled(500, chance, seed=0)
    drawn = torch.cat([data.group[next(stream)] for _ in range(20)])  # 10,000 draws: 4 standard errors are 0.017
    assert (torch.bincount(drawn) / len(drawn)).tolist() == pytest.approx([0.25] * 4, abs=0.018)
    assert torch.equal(next(sampled(500, chance, seed=0)), next(sampled(500, chance, seed=0)))


def test_expanding_starts_with_the_first_part_and_ends_with_all() -> None:
    data = PROBLEM.splits.train
    first = group_balanced_subset(data.group, torch.Generator().manual_seed(0))
    assert len(set(torch.bincount(data.group[first]).tolist())) == 1
    assert torch.bincount(data.group[first])[0] == torch.bincount(data.group).min()
    stream = expanding(len(data), first, 0, warm_up=3, every=2, add=100, seed=0)
    sizes, last = [], set()
    for _ in range(17):
        rows = next(stream)
        found = set(rows.tolist())
        assert len(found) == len(rows)
        assert last <= found
        last = found
        sizes.append(len(rows))
    k = len(first)
    assert sizes[:7] == [k] * 3 + [k + 100] * 2 + [k + 200] * 2
    assert sizes[-1] == 600


def test_groups_of_coloured_images_are_label_and_colour() -> None:
    splits = ColouredDigits().load(seed=0)
    data = with_groups(splits.train)
    colour = (splits.facts["colour_agrees"].long() == splits.train.targets).long()
    assert torch.equal(data.group, 2 * splits.train.targets + colour)
    assert with_groups(PROBLEM.splits.train) is PROBLEM.splits.train
    assert counts(data, "group").sum() == len(data)
    assert counts(data, "environment").tolist() == torch.bincount(data.environment).tolist()


def test_methods_that_need_groups_say_so() -> None:
    bare = Batch.of(torch.zeros(4, 3), torch.tensor([0, 1, 0, 1]))
    with pytest.raises(DataError, match="needs group labels"):
        with_groups(bare)
    with pytest.raises(DataError, match="needs environment ids"):
        counts(bare, "environment")
    with pytest.raises(DataError, match="group 1 has no training sample"):
        counts(replace(bare, group=torch.tensor([0, 0, 2, 2])), "group")


def test_by_environment_reads_the_environments() -> None:
    for method in (UpWeighting(by="environment", training=SHORT), GroupDRO(by="environment", training=SHORT)):
        bare = replace(PROBLEM.splits.train, group=None)
        problem = replace(PROBLEM, splits=replace(PROBLEM.splits, train=bare))
        method.fit(problem, ignore)


@pytest.mark.parametrize(
    "make",
    [
        lambda: UpWeighting(balance="batches", training=SHORT),
        lambda: GroupDRO(balanced=True, training=SHORT),
        lambda: GroupDRO(step=0.0),
        lambda: CVaRDRO(alpha=0.0),
        lambda: KLDRO(temperature=-1.0),
        lambda: OrderedSGD(q=0),
        lambda: OrderedSGD(q=61, training=BATCHES),
        lambda: LfF(q=2.0),
        lambda: JTT(upweight=0),
    ],
)
def test_settings_out_of_range_are_refused(make) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(ValueError, match="must be|batch_size"):
        make()


def test_full_batches_go_on_for_ever_and_copy_nothing() -> None:
    data = PROBLEM.splits.train
    gather, stream = Gather(data), shuffled(torch.arange(len(data)), 0, 0)
    assert gather(next(stream)) is gather(next(stream)) is data
    repeated = torch.tensor([0, 0, 1])
    assert gather(repeated) is gather(repeated)
    assert gather(repeated).index.tolist() == [0, 0, 1]
    assert torch.equal(gather(torch.arange(len(data)).flip(0)).index, data.index.flip(0))


def test_shuffled_gives_each_position_once_an_epoch_and_leaves_out_the_rest() -> None:
    positions = torch.tensor([7, 3, 9, 1, 5])
    stream = shuffled(positions, 2, seed=0)
    for _ in range(20):
        drawn = torch.cat([next(stream), next(stream)]).tolist()
        assert len(set(drawn)) == 4
        assert set(drawn) <= set(positions.tolist())
