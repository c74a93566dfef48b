"""BADGE, LHD and CORESET seeding: time and memory beside scikit-activeml and scikit-learn, with the bandwidth floor.

    python -m benchmarks.selectors                 # n = 48,000, 10 classes, 128 features, 1,000 picks
    python -m benchmarks.selectors --million       # also n = 1,000,000 in parts (BADGE)
    python -m benchmarks.selectors --report

Every figure is CPU time of one thread in a fresh process, medians. scikit-activeml's (extra `bench`) BADGE is timed on
its first `PEER_PICKS` picks and scaled: its cost is the same for every pick. The floor of a loop that reads the data
once a pick is n (C + d) floats times the picks over the bandwidth measured in the same process; ours reads once a
round. Rows of `results/benchmarks/selectors_outside.json` were measured by hand on the same `data` and are added.
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
from steelyard.selectors import badge, k_center, kmeans_plus_plus, partitioned

N, CLASSES, FEATURES, PICKS = 48_000, 10, 128, 1_000
PEER_PICKS = 20
LARGE = "BADGE, n = 1,000,000 in 20 parts, Steelyard"
RAW = _measure.RESULTS / "selectors_raw.json"
OUTSIDE = _measure.RESULTS / "selectors_outside.json"


def data(n: int = N, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Return softmax outputs ``(n, classes)`` and ReLU embeddings ``(n, features)``, float32, in clusters."""
    generator = torch.Generator().manual_seed(seed)
    centres = torch.randn(CLASSES, FEATURES, generator=generator)
    label = torch.randint(0, CLASSES, (n,), generator=generator)
    embeddings = (centres[label] + torch.randn(n, FEATURES, generator=generator)).relu_()
    logits = embeddings @ centres.T / 8 + 0.5 * torch.randn(n, CLASSES, generator=generator)
    return logits.softmax(1), embeddings


def _generator() -> torch.Generator:
    return torch.Generator().manual_seed(1)


def _peer_badge(probabilities: Tensor, embeddings: Tensor) -> int:
    from skactiveml.base import SkactivemlClassifier
    from skactiveml.pool import Badge

    class Given(SkactivemlClassifier):
        """Hands out the outputs that are given, so that the seeding alone is timed."""

        def fit(self, X: Any, y: Any, sample_weight: Any = None) -> Given:
            """Nothing to fit."""
            return self

        def predict_proba(self, X: Any) -> Any:
            """Return them."""
            return probabilities.numpy()

    unlabelled = np.full(len(embeddings), np.nan)
    query = Badge(random_state=0).query
    query(embeddings.numpy(), unlabelled, Given(classes=list(range(CLASSES))), fit_clf=False, batch_size=PEER_PICKS)
    return PEER_PICKS


def _peer_core_set(probabilities: Tensor, embeddings: Tensor) -> int:
    from skactiveml.pool import CoreSet

    labels = np.full(len(embeddings), np.nan)
    labels[0] = 0.0
    return len(CoreSet(random_state=0).query(embeddings.numpy(), labels, batch_size=PICKS))


def _peer_kmeans(probabilities: Tensor, embeddings: Tensor) -> int:
    from sklearn.cluster import kmeans_plusplus as peer

    return len(peer(embeddings.numpy(), min(PICKS, len(embeddings)), random_state=0, n_local_trials=1)[1])


def _ours(select: Callable[[Tensor, Tensor], Tensor]) -> Callable[[Tensor, Tensor], int]:
    return lambda probabilities, embeddings: len(select(probabilities, embeddings))


METHODS: dict[str, Callable[[Tensor, Tensor], int]] = {
    "BADGE, Steelyard": _ours(lambda p, h: badge(p, h, PICKS, generator=_generator())),
    "BADGE, scikit-activeml": _peer_badge,
    "LHD (k-means++ seeding), Steelyard": _ours(lambda p, h: kmeans_plus_plus(h, PICKS, generator=_generator())),
    "k-means++ seeding (one trial), scikit-learn": _peer_kmeans,
    "CORESET, Steelyard": _ours(lambda p, h: k_center(h[1:], PICKS, labelled=h[:1])),
    "CORESET, scikit-activeml": _peer_core_set,
}


def million(probabilities: Tensor, embeddings: Tensor) -> int:
    """BADGE on a million samples in 20 random parts."""

    def select(index: Tensor, count: int) -> Tensor:
        return badge(probabilities[index], embeddings[index], count, generator=_generator())

    return len(partitioned(select, len(embeddings), PICKS, parts=20, generator=_generator()))


def bandwidth() -> float:
    """Return the bytes a second that one thread reads in a sum over 256 MiB."""
    values = torch.ones(1 << 26)
    return max(values.nbytes / _measure.seconds(values.sum)[0] for _ in range(5))


def worker(method: str) -> dict[str, Any]:
    """Measure one method in this process."""
    torch.set_num_threads(1)
    large = method == "million"
    probabilities, embeddings = data(1_000_000 if large else N)
    function = million if large else METHODS[method]
    function(probabilities[:2000], embeddings[:2000])  # libraries load
    before = _measure.resident()
    _measure.reset_peak()
    spent, picks = _measure.seconds(lambda: function(probabilities, embeddings))
    memory = (_measure.peak() - before) / 2**20
    width = FEATURES + (CLASSES if "BADGE" in method else 0)
    return {
        "seconds": spent * PICKS / picks,
        "memory": memory,
        "floor": len(embeddings) * width * 4 * PICKS / bandwidth(),
        "picks": picks,
    }


def report() -> None:
    """Write the table."""
    rows = []
    for method, runs in json.loads(RAW.read_text()).items():
        if "failed" in runs[0]:
            rows.append({"method": method, "note": runs[0]["failed"]})
            continue
        got = _measure.middle([run["seconds"] for run in runs])
        scaled = "" if runs[0]["picks"] == PICKS else f"{runs[0]['picks']} picks, scaled"
        rows.append(
            {
                "method": LARGE if method == "million" else method,
                "seconds": got["median"],
                "low": got["low"],
                "high": got["high"],
                "runs": got["runs"],
                "memory MiB": runs[0]["memory"],
                "note": scaled,
                "one read a pick, s": min(run["floor"] for run in runs) if method != "million" else None,
            }
        )
    if OUTSIDE.exists():
        rows += json.loads(OUTSIDE.read_text())
    notes = [
        f"n = {N:,}, C = {CLASSES}, d = {FEATURES}, {PICKS:,} picks, float32.",
        "Memory: peak above what was resident before, without inputs. The other core was busy; bandwidth is shared.",
        "That draws follow the same distribution is tested by chi-square in `tests/selectors/test_seeding.py`, that",
        "CORESET gives the exact trace in `test_coreset.py`. The authors' BADGE draws from the same distribution;",
        "scikit-activeml's keeps a centre at the origin.",
    ]
    columns = ["method", "seconds", "low", "high", "runs", "one read a pick, s", "memory MiB", "note"]
    _measure.write("selectors", "Seeding of BADGE, LHD and CORESET", notes, rows, columns)


def main() -> None:
    """Parse, measure, report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--million", action="store_true")
    parser.add_argument("--report", action="store_true")
    arguments = parser.parse_args()
    if arguments.worker:
        print(json.dumps(worker(arguments.worker)))
        return
    if not arguments.report:
        names = [*METHODS, *(["million"] if arguments.million else [])]
        found: dict[str, list[dict[str, Any]]] = {name: [] for name in names}
        for _ in range(arguments.runs):
            for name in names:
                if name != "million" or not found[name]:
                    found[name].append(_measure.fresh("benchmarks.selectors", "--worker", name))
        RAW.parent.mkdir(parents=True, exist_ok=True)
        RAW.write_text(json.dumps(found, indent=1) + "\n")
    report()


if __name__ == "__main__":
    main()
