"""TypiClust, ProbCover, BatchBALD, committees and label quality beside scikit-activeml and cleanlab; a million samples.

    python -m benchmarks.acquisition              # all rows
    python -m benchmarks.acquisition --only CRAIG # the rows whose name has the word; the others stay as they are
    python -m benchmarks.acquisition --report

Every figure is CPU time of one thread in a fresh process, medians. Both sides get the same arrays (extra `bench`). What
a selection cannot do for a million samples in minutes is not tried: its docstring has its cost.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks import _measure
from steelyard import selectors

RAW = _measure.RESULTS / "acquisition_raw.json"
MILLION = 1_000_000
CLASSES = 10


def _generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _points(n: int, features: int = 16) -> Tensor:
    return torch.randn(n, features, generator=_generator())


def _chances(*shape: int) -> Tensor:
    return torch.randn(*shape, CLASSES, generator=_generator(1)).mul_(2).softmax(-1)


def _labels(n: int) -> Tensor:
    return torch.randint(CLASSES, (n,), generator=_generator(2))


def _peer_typiclust(h: Tensor) -> Any:
    from skactiveml.pool import TypiClust

    return TypiClust(random_state=0).query(h.numpy(), np.full(len(h), np.nan), batch_size=100)


def _peer_prob_cover(h: Tensor) -> Any:
    from skactiveml.pool import ProbCover

    strategy = ProbCover(deltas=[3.0], n_classes=CLASSES, random_state=0)
    return strategy.query(h.numpy(), np.full(len(h), np.nan), batch_size=100)


def _peer_batch_bald(draws: Tensor) -> Any:
    from skactiveml.pool._bald import batch_bald

    return batch_bald(draws.numpy(), 10, n_MC_samples=1000, random_state=0)


def _peer_vote_entropy(draws: Tensor) -> Any:
    from skactiveml.pool import vote_entropy

    return vote_entropy(draws.argmax(2).T.numpy(), classes=list(range(CLASSES)))


def _peer_divergence(draws: Tensor) -> Any:
    from skactiveml.pool import average_kl_divergence

    return average_kl_divergence(draws.numpy().copy())


def _peer_margin(p: Tensor, labels: Tensor) -> Any:
    from cleanlab.rank import get_label_quality_scores

    return get_label_quality_scores(labels.numpy(), p.numpy(), method="normalized_margin")


def _tracin(gradients: Tensor, h: Tensor) -> Tensor:
    some = slice(0, 1000)
    return selectors.tracin(gradients, h, gradients[:, some], h[:, some], torch.ones(1))


def _epig(draws: Tensor) -> Tensor:
    return selectors.epig(draws, draws[:, :20])


ROWS: dict[str, tuple[Callable[[], tuple[Any, ...]], Callable[..., Any]]] = {
    "TypiClust, n = 3,000, k = 100, Steelyard": (
        lambda: (_points(3000),),
        lambda h: selectors.typiclust(h, 100, generator=_generator()),
    ),
    "TypiClust, n = 3,000, k = 100, scikit-activeml": (lambda: (_points(3000),), _peer_typiclust),
    "ProbCover, n = 3,000, k = 100, Steelyard": (
        lambda: (_points(3000),),
        lambda h: selectors.prob_cover(h, 100, radius=3.0),
    ),
    "ProbCover, n = 3,000, k = 100, scikit-activeml": (lambda: (_points(3000),), _peer_prob_cover),
    "BatchBALD, n = 2,000, 10 draws, k = 10, 1,000 vectors, Steelyard": (
        lambda: (_chances(10, 2000),),
        lambda draws: selectors.batch_bald(draws, 10, generator=_generator(), configurations=1000),
    ),
    "BatchBALD, n = 2,000, 10 draws, k = 10, 1,000 vectors, scikit-activeml": (
        lambda: (_chances(10, 2000),),
        _peer_batch_bald,
    ),
    "vote entropy, n = 48,000, 10 members, Steelyard": (lambda: (_chances(10, 48_000),), selectors.vote_entropy),
    "vote entropy, n = 48,000, 10 members, scikit-activeml": (lambda: (_chances(10, 48_000),), _peer_vote_entropy),
    "consensus KL, n = 48,000, 10 members, Steelyard": (lambda: (_chances(10, 48_000),), selectors.consensus_kl),
    "consensus KL, n = 48,000, 10 members, scikit-activeml": (lambda: (_chances(10, 48_000),), _peer_divergence),
    "normalised margin, n = 48,000, Steelyard": (
        lambda: (_chances(48_000), _labels(48_000)),
        selectors.normalised_margin,
    ),
    "normalised margin, n = 48,000, cleanlab": (lambda: (_chances(48_000), _labels(48_000)), _peer_margin),
    "self-confidence, n = 1,000,000": (lambda: (_chances(MILLION), _labels(MILLION)), selectors.self_confidence),
    "normalised margin, n = 1,000,000": (
        lambda: (_chances(MILLION), _labels(MILLION)),
        selectors.normalised_margin,
    ),
    "forgetting events, n = 1,000,000, 20 epochs": (
        lambda: (torch.randint(CLASSES, (20, MILLION), generator=_generator(), dtype=torch.int8), _labels(MILLION)),
        selectors.forgetting_events,
    ),
    "density weighting, n = 1,000,000, 16 features": (
        lambda: (torch.rand(MILLION, generator=_generator()), _points(MILLION)),
        selectors.density_weighted,
    ),
    "power sampling, n = 1,000,000, k = 1,000": (
        lambda: (torch.rand(MILLION, generator=_generator()),),
        lambda score: selectors.power_sampling(score, 1000, generator=_generator()),
    ),
    "self-influence, n = 1,000,000, one checkpoint": (
        lambda: (_chances(1, MILLION) - 0.1, _points(MILLION)[None], torch.ones(1)),
        selectors.self_influence,
    ),
    "softmax sampling, n = 1,000,000, k = 1,000": (
        lambda: (torch.rand(MILLION, generator=_generator()),),
        lambda score: selectors.softmax_sampling(score, 1000, generator=_generator()),
    ),
    "soft-rank sampling, n = 1,000,000, k = 1,000": (
        lambda: (torch.rand(MILLION, generator=_generator()),),
        lambda score: selectors.softrank_sampling(score, 1000, generator=_generator()),
    ),
    "TracIn, n = 1,000,000, one checkpoint, 1,000 targets": (
        lambda: (_chances(1, MILLION) - 0.1, _points(MILLION)[None]),
        _tracin,
    ),
    "KNN-Shapley, n = 1,000,000, 20 targets": (
        lambda: (_points(MILLION), _labels(MILLION), _points(20), _labels(20)),
        selectors.knn_shapley,
    ),
    "consensus KL, n = 1,000,000, 4 members": (lambda: (_chances(4, MILLION),), selectors.consensus_kl),
    "vote entropy, n = 1,000,000, 4 members": (lambda: (_chances(4, MILLION),), selectors.vote_entropy),
    "EPIG, n = 1,000,000, 4 draws, 20 targets": (lambda: (_chances(4, MILLION),), _epig),
    "BatchBALD, n = 1,000,000, 4 draws, k = 3": (
        lambda: (_chances(4, MILLION),),
        lambda draws: selectors.batch_bald(draws, 3, generator=_generator()),
    ),
    "GradMatch, n = 1,000,000, 16 features, k = 20": (
        lambda: (_points(MILLION),),
        lambda g: selectors.grad_match(g, 20),
    ),
    "CRAIG, n = 10,000, 16 features, k = 100": (lambda: (_points(10_000),), lambda g: selectors.craig(g, 100)),
    "BAIT, n = 10,000, 10 classes x 10 features, k = 20": (
        lambda: (_chances(10_000), _points(10_000, 10)),
        lambda p, h: selectors.bait(p, h, 20),
    ),
}


def worker(row: str) -> dict[str, Any]:
    """Measure one row in this process; libraries are loaded on the first few samples."""
    torch.set_num_threads(1)
    make, call = ROWS[row]
    given = make()
    if "n = 3,000" in row or "n = 48,000" in row:
        call(*(one[:, :500] if one.ndim == 3 else one[:500] for one in given))
    elif "n = 2,000" in row:
        call(given[0][:, :200])
    before = _measure.resident()
    _measure.reset_peak()
    spent, _ = _measure.seconds(lambda: call(*given))
    return {"seconds": spent, "memory": (_measure.peak() - before) / 2**20}


def report() -> None:
    """Write the table."""
    rows = []
    for method, runs in json.loads(RAW.read_text()).items():
        if not runs:  # a new row that `--only` did not ask for
            continue
        if "failed" in runs[0]:
            rows.append({"method": method, "note": runs[0]["failed"]})
            continue
        got = _measure.middle([run["seconds"] for run in runs])
        rows.append(
            {
                "method": method,
                "seconds": got["median"],
                "low": got["low"],
                "high": got["high"],
                "runs": got["runs"],
                "memory MiB": runs[0]["memory"],
            }
        )
    notes = [
        "10 classes, 16 features unless said otherwise, float32, the same arrays; rows without a name are ours.",
        "Memory: peak above what was resident before, without inputs. The machine was busy.",
        "That the numbers are right is tested against versions that form everything, in `tests/selectors`. Beside the",
        "packages they were compared by hand: self-confidence and normalised margin equal cleanlab's; vote entropy,",
        "consensus KL and typicality equal scikit-activeml's to rounding; BatchBALD picks the same in 5 of 5 pools;",
        "ProbCover covers 368 samples where scikit-activeml, which draws at ties, covers 371.",
    ]
    columns = ["method", "seconds", "low", "high", "runs", "memory MiB", "note"]
    _measure.write("acquisition", "Selections and scores that the leading libraries have", notes, rows, columns)


def main() -> None:
    """Parse, measure, report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--only", default="")
    parser.add_argument("--report", action="store_true")
    arguments = parser.parse_args()
    if arguments.worker:
        print(json.dumps(worker(arguments.worker)))
        return
    if not arguments.report:
        before = json.loads(RAW.read_text()) if arguments.only else {}
        asked = [name for name in ROWS if arguments.only in name]
        kept = {name: runs for name, runs in before.items() if name not in asked}
        found: dict[str, list[dict[str, Any]]] = {name: kept.get(name, []) for name in ROWS}
        for _ in range(arguments.runs):
            for name in asked:
                found[name].append(_measure.fresh("benchmarks.acquisition", "--worker", name))
        RAW.parent.mkdir(parents=True, exist_ok=True)
        RAW.write_text(json.dumps(found, indent=1) + "\n")
    report()


if __name__ == "__main__":
    main()
