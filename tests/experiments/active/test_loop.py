"""The loop: oracle labels, nobody twice, resume, and selectors that see no label they did not ask for."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from steelyard.bilevel.batch import Batch
from steelyard.checkpoint import Journal
from steelyard.experiments.active import SELECTORS, Fitting, Learned, Past, Pool, Round, Schedule, active_learning

PLAN = Schedule(initial=12, per_round=6, rounds=3)


def run(pool: Pool, fit: Fitting, selector: str, seed: int = 0, past: Past | None = None) -> list[Round]:
    return list(active_learning(pool, PLAN, fit, SELECTORS[selector], seed, past=past))


def same_models(one: Learned, other: Learned) -> bool:
    pairs = zip(
        (*one.model.state_dict().values(), *one.average.state_dict().values()),
        (*other.model.state_dict().values(), *other.average.state_dict().values()),
        strict=True,
    )
    return all(torch.equal(a, b) for a, b in pairs)


@pytest.mark.parametrize("selector", SELECTORS)
def test_every_selector_labels_each_sample_once_and_asks_before_it_looks(
    pool: Pool, fit: Fitting, selector: str
) -> None:
    rounds = run(pool, fit, selector)
    ids = torch.cat([done.picked for done in rounds])
    assert [len(done.picked) for done in rounds] == [12, 6, 6, 6]
    assert len(ids.unique()) == len(ids) == PLAN.total
    assert [done.metrics["labelled"] for done in rounds] == [12, 18, 24, 30]
    # Other labels for all that was never asked for: nothing may change.
    asked = torch.zeros(len(pool.data), dtype=torch.bool)
    asked[ids] = True
    other = torch.where(asked, pool.data.targets, (pool.data.targets + 1) % 3)
    again = run(replace(pool, data=Batch.of(pool.data.inputs, other)), fit, selector)
    assert torch.equal(torch.cat([done.picked for done in again]), ids)
    assert same_models(rounds[-1].learned, again[-1].learned)


def test_a_round_trains_on_the_oracles_labels_and_sees_the_rest_without(pool: Pool, fit: Fitting) -> None:
    calls: list[tuple[Batch, Tensor]] = []

    def spy(labelled: Batch, unlabelled: Tensor, start: Learned | None, seed: int, journal: Journal) -> Learned:
        calls.append((labelled, unlabelled))
        return fit(labelled, unlabelled, start, seed, journal)

    rounds = list(active_learning(pool, PLAN, spy, SELECTORS["marg"], 0))
    ids = torch.cat([done.picked for done in rounds])
    for count, (labelled, unlabelled) in zip((12, 18, 24, 30), calls, strict=True):
        assert torch.equal(labelled.index, ids[:count])
        assert torch.equal(labelled.targets, pool.data.targets[ids[:count]])
        rest = [k for k in range(90) if k not in set(ids[:count].tolist())]
        assert torch.equal(unlabelled, pool.data.inputs[rest])


@pytest.mark.parametrize("done", [1, 2, 3])
def test_a_loop_that_goes_on_equals_the_uninterrupted_one(pool: Pool, fit: Fitting, done: int) -> None:
    for one in (fit, replace(fit, start="warm")):
        whole = run(pool, one, "bald")
        torch.manual_seed(done)
        past = Past([earlier.picked for earlier in whole[:done]], whole[done - 1].learned)
        rest = run(pool, one, "bald", past=past)
        assert [later.number for later in rest] == list(range(done, 4))
        for expected, found in zip(whole[done:], rest, strict=True):
            assert torch.equal(expected.picked, found.picked)
            assert same_models(expected.learned, found.learned)


def test_the_first_round_is_the_same_for_all_selectors_and_differs_by_seed(pool: Pool, fit: Fitting) -> None:
    first = [run(pool, fit, selector)[0] for selector in ("rand", "lhd")]
    assert torch.equal(first[0].picked, first[1].picked)
    assert same_models(first[0].learned, first[1].learned)
    assert not torch.equal(first[0].picked, run(pool, fit, "rand", seed=1)[0].picked)


def test_figures_of_a_round(pool: Pool, fit: Fitting) -> None:
    rounds = run(pool, fit, "conf")
    clean = ~pool.noisy
    for done in rounds:
        counts = torch.bincount(pool.data.targets[done.picked], minlength=3).double() / len(done.picked)
        entropy = -sum(p * math.log(p) for p in counts.tolist() if p)
        assert done.metrics["class_balance"] == pytest.approx(entropy / math.log(3))
        assert done.metrics["clean_share"] == pytest.approx(float(clean[done.picked].double().mean()))
    assert math.isnan(rounds[0].metrics["clean_share_selected"])
    selected = torch.cat([done.picked for done in rounds[1:]])
    assert rounds[-1].metrics["clean_share_selected"] == pytest.approx(float(clean[selected].double().mean()))


def test_least_confidence_takes_the_least_confident(pool: Pool, fit: Fitting) -> None:
    rounds = run(pool, fit, "conf")
    model = rounds[0].learned.model.eval()
    with torch.no_grad():
        confidence = model(pool.data.inputs).softmax(1).amax(1)
    open_ = [k for k in range(90) if k not in rounds[0].picked.tolist()]
    least = sorted(open_, key=lambda k: float(confidence[k]))[:6]
    assert sorted(rounds[1].picked.tolist()) == sorted(least)


def test_what_does_not_fit_is_refused(pool: Pool, fit: Fitting) -> None:
    with pytest.raises(ValueError, match=r"labels 100 samples, the pool has 90"):
        list(active_learning(pool, Schedule(50, 10, 5), fit, SELECTORS["rand"], 0))
    for wrong in (torch.zeros(6, dtype=torch.long), torch.arange(5)):
        with pytest.raises(ValueError, match="6 different candidates"):
            list(active_learning(pool, PLAN, fit, lambda view, k, generator, wrong=wrong: wrong, 0))
    with pytest.raises(ValueError, match="rounds"):
        Schedule(rounds=-1)
