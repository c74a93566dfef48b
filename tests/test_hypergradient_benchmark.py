"""What a partial run of the benchmark of hypergradients leaves of what was measured before."""

from __future__ import annotations

from typing import Any

from benchmarks.hypergradient import keep

CELL = "mlp/128/1/sgd"


def ratios(rows: list[dict[str, Any]], method: str) -> list[float]:
    return next([pair["ratio"] for pair in row["ratios"]] for row in rows if row["method"] == method)


def test_runs_of_one_engine_are_collected_and_another_engines_replaced() -> None:
    rows: list[dict[str, Any]] = [{"cell": CELL, "method": "reuse", "ratios": [{"ratio": 3.0}], "memory": 7.0}]
    keep(rows, CELL, "reuse", {"ratios": [{"ratio": 1.0}]}, engine="one")
    keep(rows, CELL, "reuse", {"ratios": [{"ratio": 1.5}]}, engine="one")
    assert ratios(rows, "reuse") == [1.0, 1.5]
    keep(rows, CELL, "reuse", {"error": 1e-7}, engine="two")
    assert ratios(rows, "reuse") == [1.0, 1.5]
    keep(rows, CELL, "reuse", {"ratios": [{"ratio": 2.0}]}, engine="two")
    assert ratios(rows, "reuse") == [2.0]
    assert rows[0]["memory"] == 7.0  # measured by neither, and said to be older
    assert rows[0]["engines"] == {"ratio": "two", "error": "two"}


def test_a_peers_runs_and_other_cells_stay() -> None:
    rows: list[dict[str, Any]] = [{"cell": CELL, "method": "torchopt", "ratios": [{"ratio": 3.0}]}]
    keep(rows, CELL, "torchopt", {"ratios": [{"ratio": 2.0}]}, engine="two")
    keep(rows, "mlp/32/1/sgd", "torchopt", {"ratios": [{"ratio": 4.0}]}, engine="two")
    assert [ratios([row], "torchopt") for row in rows] == [[3.0, 2.0], [4.0]]
