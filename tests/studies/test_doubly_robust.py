"""DONE's study: data by hand, choices by validation alone, claims on figures made to break them, the command."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from steelyard.experiments.active.images import Digits
from steelyard.experiments.methods.done import DONE
from steelyard.experiments.models import HEADS
from steelyard.experiments.training.adversarial import PGD, robust_accuracy
from studies.doubly_robust import study
from studies.doubly_robust.__main__ import main
from studies.doubly_robust.data import RARE, balanced, imbalanced
from studies.doubly_robust.page import claims, page
from studies.doubly_robust.study import DATA, EPSILONS, PLAIN, TEMPERATURES, Cells, choose, measure, outcome

NAMES = ("validation", "robust_validation", "worst_validation", "weak_validation")


def test_rare_classes_keep_a_fifth_of_their_training_samples() -> None:
    one, other = balanced(3), imbalanced(3)
    before, after = (torch.bincount(parts["train"]["target"], minlength=10) for parts in (one, other))
    for label in range(10):
        assert int(after[label]) == (-(-int(before[label]) // 5) if label in RARE else int(before[label]))
    for part in ("validation", "test"):
        assert torch.equal(one[part]["inputs"], other[part]["inputs"])


class Known(Cells):
    """Figures of a formula instead of trainings; whether test figures move a choice can be asked of it."""

    def __init__(self, tmp_path: Path, test: float = 0.0) -> None:
        super().__init__(tmp_path / "none.json")
        self.test = test

    def __call__(self, data: str, epsilon: float, temperature: float, seed: int, against: float) -> dict[str, float]:
        clean = 0.97 - (epsilon if epsilon > 0.1 else epsilon / 20)  # 0.1 costs half a point, 0.15 costs 15
        weak = 0.5 - abs(temperature - (0.3 if data == "balanced" else 3.0)) / 100
        values = dict(zip(NAMES, (clean, clean - against, weak - 0.1, weak), strict=True))
        return values | {name.replace("validation", "test"): self.test * (temperature + epsilon) for name in NAMES}


@pytest.mark.parametrize("test", [0.0, 1.0, -1.0])
def test_validation_alone_chooses(test: float, tmp_path: Path) -> None:
    chosen = choose(Known(tmp_path, test), (0, 1))
    assert chosen.epsilon == 0.1
    assert chosen.temperature == {"balanced": 0.3, "imbalanced": 3.0}
    assert chosen.kept[0.2]["standard under attack"] == pytest.approx(0.77)
    assert len(chosen.tried) == len(DATA) * len(TEMPERATURES)


def test_the_least_radius_where_none_keeps_the_accuracy(tmp_path: Path) -> None:
    class Costly(Known):
        def __call__(
            self, data: str, epsilon: float, temperature: float, seed: int, against: float
        ) -> dict[str, float]:
            return super().__call__(data, 0.5 if epsilon else 0.0, temperature, seed, against)

    assert choose(Costly(tmp_path), (0,)).epsilon == EPSILONS[0]


def figures(weak: float, robust: float = 0.6) -> dict[str, float]:
    return {"test": 0.9, "robust_test": robust, "weak_test": weak, "worst_test": weak - 0.1}


@pytest.mark.parametrize(
    ("done", "held"),
    [
        ([(0.45, 0.6), (0.47, 0.6)], [True, True, True, True]),  # leads of 5 and 7 points: mean 6, error 1
        ([(0.41, 0.6), (0.55, 0.6)], [True, True, False, True]),  # leads of 1 and 15: mean 8, error 7
        ([(0.39, 0.6), (0.39, 0.6)], [True, False, False, True]),
        ([(0.45, 0.58), (0.47, 0.58)], [True, True, True, False]),
    ],
)
def test_claims(done: list[tuple[float, float]], held: list[bool]) -> None:
    found = {(data, "done"): [figures(*one) for one in done] for data in DATA}
    found |= {(data, "adversarial"): [figures(0.4), figures(0.4)] for data in DATA}
    found |= {(data, "standard"): [figures(0.1, 0.3), figures(0.1, 0.3)] for data in DATA}
    assert [claim.held for claim in claims(found)] == held
    chosen = study.Chosen(
        0.1, dict.fromkeys(DATA, 1.0), {0.1: {"standard": 0.9}}, {(DATA[0], 1.0): dict.fromkeys(NAMES, 0.5)}
    )
    text = page(chosen, found, (0,), (1, 2), "x")
    assert ("one of them is 2 points" in text) is not held[2]
    assert "| balanced | done | 90.0 ± 0.0 |" in text


SMALL = ("method.training.steps=3", "model.hidden=[4]", "method.attack.steps=2")


def test_a_training_is_measured_class_by_class() -> None:
    found = measure("imbalanced", 0.05, 1.0, 0, 0.05, SMALL)
    for part in ("validation", "test"):
        assert 0 <= found[f"worst_{part}"] <= found[f"weak_{part}"] <= found[f"robust_{part}"] <= found[part] <= 1
    assert found == measure("imbalanced", 0.05, 1.0, 0, 0.05, SMALL)
    easy = measure("imbalanced", 0.05, 1.0, 0, 0.0, SMALL)
    assert easy["robust_test"] == easy["test"] == found["test"]


def test_the_robust_accuracy_is_that_of_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    models = []
    fit = DONE.fit
    monkeypatch.setattr(DONE, "fit", lambda *of: models.append(fit(*of)) or models[-1])
    found = measure("balanced", 0.05, 1.0, 2, 0.1, SMALL)
    attack = PGD(epsilon=0.1, step=0.01, steps=50)
    test = Digits(validation_share=0.3).load(2).test
    assert found["robust_test"] == robust_accuracy(models[0].model, test, attack, HEADS["softmax"], seed=2)


def test_the_command_goes_on_where_it_was(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(study, "_STEPS", 2)
    monkeypatch.setattr(study, "EPSILONS", (0.05,))
    monkeypatch.setattr(study, "TEMPERATURES", (1.0,))
    small = ["--out", str(tmp_path), "--chosen-on", "0", "--seeds", "1"]
    small += [word for field in SMALL for word in ("--set", field)]
    assert main(small) == 0
    rows = json.loads((tmp_path / "figures.json").read_text())
    assert len(rows) == 2 + 2 + 6
    summarised = json.loads((tmp_path / "summary.json").read_text())
    figures_of_one = [rows[4]["figures"][name] for name in ("test", "robust_test", "weak_test", "worst_test")]
    assert [row["mean"] for row in summarised[:4]] == pytest.approx(figures_of_one, abs=1e-6)
    text = (tmp_path / "README.md").read_text()
    (tmp_path / "figures.json").write_text(json.dumps(rows[:4]))
    trained = []
    monkeypatch.setattr(study, "measure", lambda *at: trained.append(at) or rows[len(trained) + 3]["figures"])
    assert main(small) == 0
    assert len(trained) == 6
    assert (tmp_path / "README.md").read_text() == text
    assert main([*small, "--seeds", "0"]) == 2
    assert "a seed that chose reports nothing" in capsys.readouterr().err


def test_outcomes_pair_the_seeds(tmp_path: Path) -> None:
    chosen = study.Chosen(0.1, {"balanced": 0.3, "imbalanced": 3.0}, {}, {})
    asked = []

    class Noted(Known):
        def __call__(self, *at: object) -> dict[str, float]:
            asked.append(at)
            return super().__call__(*at)  # type: ignore[arg-type]

    outcome(Noted(tmp_path), chosen, (7, 8))
    assert asked[:6] == [
        ("balanced", *of, seed, 0.1) for of in ((0.0, PLAIN), (0.1, PLAIN), (0.1, 0.3)) for seed in (7, 8)
    ]
    assert asked[10:] == [("imbalanced", 0.1, 3.0, 7, 0.1), ("imbalanced", 0.1, 3.0, 8, 0.1)]
