"""The benchmark of online reweighting: its ways agree, its noises are what they say, its rows make tables."""

from __future__ import annotations

import json

import pytest
import torch
from torch import nn

from benchmarks.online import FLOOR, WAYS, fitted, main, memory, mlp, resnet, trained, tuned
from benchmarks.online_data import corrupted
from benchmarks.online_tables import LOSSES, drawing, newest, table
from steelyard.bilevel import Batch


@pytest.fixture(scope="module")
def data() -> dict[str, torch.Tensor]:
    """Ten Gaussian classes of 30 features."""
    g = torch.Generator().manual_seed(0)
    centres = 2 * torch.randn(10, 30, generator=g)
    found = {}
    for part, count in (("train", 2000), ("clean", 200), ("test", 300)):
        labels = torch.arange(count) % 10
        found |= {part: centres[labels] + torch.randn(count, 30, generator=g), f"{part}_labels": labels}
    return found


def test_four_in_ten_labels_are_wrong(data) -> None:
    for noise, classes in (("uniform", 10), ("flip", 2)):
        train, wrong = corrupted(data, noise, seed=1)
        assert float(wrong.float().mean()) == pytest.approx(0.4, abs=0.03)
        assert torch.equal(wrong, train.targets != data["train_labels"])
        assert len(train.targets[data["train_labels"] == 3].unique()) == classes
        assert torch.equal(train.targets, corrupted(data, noise, seed=1)[0].targets)


def test_the_last_class_of_a_long_tail_has_a_hundredth(data) -> None:
    train, wrong = corrupted(data, "long tail", seed=1)
    counts = torch.bincount(train.targets).tolist()
    assert (counts[0], counts[-1]) == (200, 2)
    assert counts == sorted(counts, reverse=True)
    assert not wrong.any()


def test_three_ways_to_learning_to_reweight_give_the_same_weights() -> None:
    torch.manual_seed(0)
    batch, clean = (Batch.of(torch.randn(20, 784), torch.arange(20) % 10) for _ in range(2))
    start = mlp().state_dict()
    found = []
    for way in ("LearningToReweight", "learning to reweight, higher", "learning to reweight, TorchOpt"):
        model = mlp()
        model.load_state_dict(start)
        step = WAYS[way](model, 0.01)
        found.append([step(batch, clean) for _ in range(2)][-1])
    for other in found[1:]:
        torch.testing.assert_close(found[0], other, rtol=1e-3, atol=1e-4)
    assert found[0].max() > 0


def test_rows_make_tables_and_a_plot(data, monkeypatch) -> None:
    monkeypatch.setattr("benchmarks.online.STEPS", {"few": 60, "all": 30})
    ways = ("plain step", "MetaWeightNet", "LearningToReweight")
    rows = [trained(data, "uniform", way, seed, rate=0.01) for way in ways for seed in (1, 2)]
    assert all(row["test"] > 50 for row in rows)
    assert len(rows[2]["weight of a loss"]) == len(LOSSES)
    assert rows[-1]["AUROC"] > 70
    lines = table(rows).splitlines()
    assert sum(line.startswith("| features, 3,000 | uniform | 0.01 |") for line in lines) == 1
    assert sum(line.startswith("|  |  | 0.01 | `") for line in lines) == 2
    assert "features, 3,000 images" in drawing(rows)


def test_each_way_has_the_rate_that_suits_clean_images_it_has_not_learned_from(data, monkeypatch) -> None:
    monkeypatch.setattr("benchmarks.online.STEPS", {"all": 30})
    monkeypatch.setattr("benchmarks.online.RATES", {"all": (1e-9, 0.01)})
    given = []

    def noted(own, *arguments):
        given.append(own["clean"])
        return fitted(own, *arguments)

    monkeypatch.setattr("benchmarks.online.fitted", noted)
    for way in ("plain step", "LearningToReweight"):
        row = tuned(data, "uniform", way, "all")
        assert row["rate"] == 0.01
        assert row["accuracies"]["1e-09"] < 30 < row["accuracies"]["0.01"]
    assert torch.equal(torch.cat(given[:2]), data["clean"])


def test_memory_is_measured_of_every_way(monkeypatch) -> None:
    monkeypatch.setattr("benchmarks.online.REMEMBERED", ["plain step"])
    (row,) = memory()
    assert 0 < row["memory"][0] <= row["memory"][1] + 50


def test_the_resnet_has_the_width_that_is_asked_for() -> None:
    first = next(module for module in resnet(8).modules() if isinstance(module, nn.Conv2d))
    assert first.out_channels == 8
    assert resnet(8)(torch.randn(2, 3, 16, 16)).shape == (2, 10)


def test_what_was_measured_again_counts_once(tmp_path, monkeypatch, capsys) -> None:
    """The page's commands add lines: a seed that was run twice would count twice."""
    steps = [{"net": "MLP", "way": way, "seconds": seconds} for seconds in (2.0, 1.0) for way in ("plain step", FLOOR)]
    one = {"images": "few", "noise": "flip", "way": "plain step", "rate": 0.1, "seconds": 1.0}
    runs = [{**one, "seed": seed, "test": test} for seed, test in ((1, 0.0), (2, 40.0), (1, 20.0))]
    assert newest(steps + runs) == [*steps[2:], runs[2], runs[1]]
    assert newest(newest(steps)) == steps[2:]

    file = tmp_path / "online.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in steps))
    monkeypatch.setattr("sys.argv", ["online", "table", "--out", str(file)])
    main()
    assert "| MLP | two plain steps (the floor) | 1000 | 1.00 |" in capsys.readouterr().out
    assert list(tmp_path.iterdir()) == [file]
