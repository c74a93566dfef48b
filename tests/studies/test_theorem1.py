"""Theorem 1's study: its tables, claims and command."""

import json

import pandas
import pytest
import torch

from steelyard.theory import ThresholdProblem, require_fixed
from studies.theorem1.__main__ import main
from studies.theorem1.claims import claims
from studies.theorem1.networks import ramp
from studies.theorem1.study import theorem1
from studies.theorem1.thresholds import KINDS, corruption, coverage, factor_signs, gaps, settings
from tests.support.places import RESULTS


def nothing():
    pass


@pytest.fixture(scope="module")
def quick(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bounds")
    return folder, theorem1(folder, quick=True, progress=False)


@pytest.mark.slow
def test_one_command_writes_every_table_figure_and_claim(quick):
    folder, tables = quick
    for name in tables:
        pandas.testing.assert_frame_equal(
            pandas.read_csv(folder / f"{name}.csv"), tables[name], check_dtype=False, rtol=1e-4
        )
    for name in ("coverage", "gaps", "factor_signs", "terms", "certificates", "networks"):
        assert (folder / f"{name}.png").read_bytes().startswith(b"\x89PNG")
    readme = (folder / "README.md").read_text()
    assert readme.count("### ") >= 15
    assert "NOT REPRODUCED" not in readme
    rows = json.loads((folder / "summary.json").read_text())
    keys = {"recipe", "dataset", "method", "metric", "selection", "mean", "std", "seeds", "command"}
    assert all(set(row) == keys for row in rows)
    assert all(row["command"] == f"python -m studies.theorem1 --out {folder.as_posix()} --quick" for row in rows)


@pytest.mark.slow
def test_trained_networks_are_between_the_two_right_hand_sides(quick):
    table = quick[1]["networks"]
    assert bool((table["at_least"] <= table["at_most"]).all())
    assert set(table["at_least_side"]) == {"lower"}
    assert set(table["at_most_side"]) == {"upper"}
    assert bool((table["complexity_lower"] <= table["complexity_upper"]).all())


@pytest.mark.slow
def test_claims_contradicted_by_the_tables_say_so(quick):
    tables = dict(quick[1])
    tables["coverage"] = tables["coverage"].assign(coverage_low=0.5)
    verdicts = {claim.where: claim.verdict for claim in claims(tables)}
    assert verdicts["Theorem 1"] == "NOT REPRODUCED"


def test_coverage_is_counted_and_the_seed_repeats():
    table = coverage(60, (50,), ((8, 4),), 1, nothing)
    assert list(table["corruption"]) == list(KINDS)
    assert bool((table["coverage"] >= 0.95).all())
    pandas.testing.assert_frame_equal(table, coverage(60, (50,), ((8, 4),), 1, nothing))


@pytest.mark.parametrize("setting", settings(), ids=lambda setting: setting.name)
def test_gaps_go_to_their_limits(setting):
    """At n = 100,000 the worst and the chosen gap are within 0.01 of the limits (standard errors: 0.003)."""
    table = gaps((100_000,), 400_000, 16, 4, 0, nothing).set_index("setting").loc[setting.name]
    assert table["worst_gap"] == pytest.approx(table["worst_limit"], abs=0.01)
    assert table["chosen_gap"] == pytest.approx(table["chosen_limit"], abs=0.01)


def test_factor_has_no_sign_without_noise_and_is_minus_the_rate_under_the_adversary():
    table = factor_signs(40, 400, 8, (1, 8), (0.0, 0.2), 0, nothing)
    assert bool((table.loc[table["rate"] == 0, "sign"] == 0).all())
    adversarial = table[(table["corruption"] == "adversarial") & (table["rate"] == 0.2)]
    assert adversarial["factor"].to_numpy() == pytest.approx([-0.2, -0.2], abs=0.02)
    assert list(adversarial["sign"]) == [-1, -1]


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_corruption_is_covered_by_the_theorem(kind):
    generator = torch.Generator().manual_seed(0)
    inputs, targets = ThresholdProblem().sample(1, 5000, generator)
    moved, flipped = require_fixed(corruption(kind, 0.2))(inputs, targets, generator)
    changed = float(((moved != inputs) | (flipped != targets)).double().mean())
    expected = {"none": 0.0, "class-conditional": 0.1, "input noise": 1.0}.get(kind, 0.2)
    assert changed == pytest.approx(expected, abs=0.03)


def test_ramp_is_bounded_lipschitz_and_above_the_zero_one_loss():
    outputs = torch.linspace(-3, 3, 601)[:, None]
    for target in (0, 1):
        losses = ramp(outputs, torch.full((601,), target))
        wrong = (outputs[:, 0] > 0).long() != target
        assert bool((losses >= wrong.float() - 1e-6).all())
        assert float(losses.max()) <= 1
        assert float(losses.diff().abs().max()) <= 0.01 + 1e-6


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--seed", "99999999999999999999"], "got 99999999999999999999"),
        (["--out", "/proc/x"], "--out /proc/x cannot be written"),
    ],
)
def test_user_errors(arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == 2
    message = capsys.readouterr().err
    assert words in message
    assert message.startswith("steelyard: error: ")
    assert message.count("\n") == 1


def test_committed_figures_are_remade_by_the_command_in_their_readme() -> None:
    readme = (RESULTS / "theory" / "README.md").read_text(encoding="utf-8")
    assert "`python -m studies.theorem1 --out results/theory`" in readme
