"""The study of fine-tuning: pairs by seed, by hand; the control's length; the command."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from steelyard.experiments.active.finetuning import MoreEpochs
from steelyard.experiments.active.recipe import load_active_recipe
from steelyard.experiments.active.run import ActiveRun
from studies.fine_tuning import page as pages
from studies.fine_tuning import study
from studies.fine_tuning.__main__ import main

RECIPE = load_active_recipe("digits")


def run(seed: int, test: float, selector: str = "lhd", **figures: float) -> ActiveRun:
    recipe = replace(RECIPE, seed=seed, selector=selector)
    return ActiveRun(Path(), "digits", (), recipe, ({"test": 0.0}, {"test": test, **figures}), (), {})


def results(**arms: tuple[float, ...]) -> dict[str, dict[tuple[str, str], list[ActiveRun]]]:
    return {
        arm: study.by_cell([run(seed, test) for seed, test in enumerate(arms.get(arm, (0.5, 0.7)))])
        for arm in study.ARMS
    }


def test_differences_are_of_one_seed_each() -> None:
    found = results(with_labelled=(0.6, 0.9), paper=(0.4, 0.75))
    gain = study.differences(found, "with_labelled")[("lhd", "noisy_blank")]
    assert gain.values == pytest.approx((0.1, 0.2))
    page = pages.page(found, "x")
    assert "| LHD | noisy_blank | +15.0 ± 5.0 | -2.5 ± 7.5 | +0.0 ± 0.0 |" in page  # 0.0707 / sqrt(2), 0.106 / sqrt(2)
    assert "- `with_labelled`: above 0 in 1 of 1 cases by the mean, in 2 of 2 single seeds; +15.0 points" in page
    assert "- `paper`: above 0 in 0 of 1 cases by the mean, in 1 of 2 single seeds; -2.5 points" in page


def test_the_two_protocols() -> None:
    """LHD 0.8, the other 0.9 measured after training on the labels, 0.7 right after fine-tuning."""
    found = {
        arm: study.by_cell([run(0, 0.8, "lhd", selecting_test=0.6), run(0, 0.9, "conf", selecting_test=0.7)])
        for arm in study.ARMS
    }
    page = pages.page(found, "x")
    assert "| the same for all | 2 of 2 |" in page
    assert "| theirs | 1 of 2 |" in page
    assert "both ways:\n" in page
    more = {
        arm: study.by_cell([*[one for runs in cells.values() for one in runs], run(1, 1.0, "lhd", selecting_test=1.0)])
        for arm, cells in found.items()
    }
    page = pages.page(more, "x")  # LHD's second seed is nobody else's
    assert "both ways, by the seeds that all were run on (0):\n" in page
    assert "| the same for all | 2 of 2 |" in page
    apart = {arm: study.by_cell([run(0, 0.8, "lhd"), run(1, 0.9, "conf")]) for arm in study.ARMS}
    assert "There is no seed that all were run on." in pages.page(apart, "x")


def test_the_control_is_as_long_as_fine_tuning_and_the_training_after_it(tmp_path: Path) -> None:
    plans = study.plan("digits", tmp_path, (0,), ("rand",), ("noisy_class",), ("epochs.epochs=7",))
    control = plans["more_epochs"].planned[0].recipe.fine_tuning
    assert isinstance(control, MoreEpochs)
    assert control.epochs.epochs == 27
    assert [plan.planned[0].recipe.fine_tune for plan in plans.values()] == [False, True, True, True]
    assert len({plan.planned[0].directory for plan in plans.values()}) == 4


def cells(*runs: ActiveRun) -> dict[tuple[str, str], list[ActiveRun]]:
    return study.by_cell(runs)


def test_seeds_that_only_one_of_two_arms_has_are_left_out_of_the_pairs() -> None:
    none = cells(run(1, 0.1), run(2, 0.5), run(3, 0.7))
    found = {"none": none, "with_labelled": cells(run(2, 0.6), run(3, 0.9))}
    assert study.differences(found, "with_labelled")[("lhd", "noisy_blank")].values == pytest.approx((0.1, 0.2))
    assert "Seeds 1, 2, 3 (with_labelled: 2, 3)." in pages.page(found, "x")
    found["none"] = none | cells(run(1, 0.4, "egl"))
    page = pages.page(found, "x")
    assert "Seeds 1, 2, 3 (with_labelled: 2, 3); EGL: 1 alone." in page
    assert "| EGL | 40.0 |  |" in page
    assert "| EGL | noisy_blank |  |" in page


def test_where_fine_tuning_does_not_gain_the_page_tells_training_from_selection() -> None:
    """LHD loses 10 points, 0 of them on the first round's samples; its selection is 30 points less clean."""
    found = {
        "none": cells(run(0, 0.8, clean_share_selected=0.9), run(0, 0.5, "conf", clean_share_selected=0.1)),
        "with_labelled": cells(run(0, 0.7, clean_share_selected=0.6), run(0, 0.6, "conf", clean_share_selected=0.2)),
    }
    page = pages.page(found, "x")
    assert "| LHD | noisy_blank | -10.0 | +0.0 | 90.0 | 60.0 |" in page
    assert "| CONF | noisy_blank | +10.0 | " not in page
    assert "noisy_blank:\n\n| method | none | with_labelled |\n| --- | --- | --- |\n| LHD | 90.0 | 60.0 |" in page


def test_selectors_run_once_and_arms_on_fewer_seeds(tmp_path: Path) -> None:
    plans = study.plan("digits", tmp_path, (3, 4, 5), ("rand",), ("noisy_class",), (), ("paper",), ("egl",), 2)
    ran = {
        arm: [(planned.recipe.selector, planned.recipe.seed) for planned in grid.planned] for arm, grid in plans.items()
    }
    assert ran == {
        "none": [("rand", 3), ("egl", 3), ("rand", 4), ("rand", 5)],
        "paper": [("rand", 3), ("egl", 3), ("rand", 4)],
    }


def test_the_command(tmp_path: Path) -> None:
    small = ["--set", "schedule.rounds=1", "--set", "epochs.epochs=2", "--set", "fine_tuning.epochs.epochs=1"]
    small += ["--set", "data.samples=60", "--set", "schedule.initial=20", "--set", "schedule.per_round=10"]
    small += ["--seeds", "0", "--selectors", "rand", "--noises", "noisy_blank"]
    places = ["--out", str(tmp_path / "out"), "--runs", str(tmp_path / "runs")]
    assert main([*small, *places]) == 0
    page = (tmp_path / "out" / "README.md").read_text()
    assert "| RAND | noisy_blank |" in page
    assert main([*small, *places, "--resume"]) == 0
    assert (tmp_path / "out" / "README.md").read_text() == page
    assert main([*small, *places, "--resume", "--arms", "more_epochs", "--paired-seeds", "1"]) == 0
    page = (tmp_path / "out" / "README.md").read_text()
    assert "--arms more_epochs --paired-seeds 1" in page
    assert "| RAND | noisy_blank |" in page
    assert "with_labelled" not in page
