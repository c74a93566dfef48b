"""The result: sampling from it, and its file."""

import json
import math
import re

import pytest
import torch
from safetensors.torch import save_file
from torch.utils.data import DataLoader, TensorDataset

from steelyard.reweight import Reweighting


def result(n=6, dtype=torch.float32):
    g = torch.Generator().manual_seed(0)
    history = [{"step": 0, "outer_loss": 0.1 + 0.2, "variance": math.nan, "note": "a"}, {"step": 1}]
    weights, probabilities = torch.rand(n, generator=g, dtype=dtype), torch.rand(n, generator=g, dtype=dtype)
    return Reweighting(weights, probabilities, history, torch.arange(n) * 10)


@pytest.mark.parametrize("n", [0, 1, 6])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_round_trip(tmp_path, n, dtype):
    before = result(n, dtype)
    before.save(tmp_path / "r.safetensors")
    after = Reweighting.load(tmp_path / "r.safetensors")
    assert after == before
    assert after.weights.dtype == dtype
    assert after.history[0]["outer_loss"] == 0.1 + 0.2
    assert math.isnan(after.history[0]["variance"])
    assert [p.name for p in tmp_path.iterdir()] == ["r.safetensors"]


def test_equality_sees_every_part():
    base = result()
    for name in ("weights", "probabilities", "index"):
        other = result()
        getattr(other, name)[2] = 0
        assert other != base
    other = result()
    other.history[1]["step"] = 2
    assert other != base
    assert base != result(6, torch.float64)
    assert base != "something else"


def test_a_save_that_fails_leaves_the_old_file(tmp_path):
    path = tmp_path / "r.safetensors"
    result().save(path)
    broken = result()
    broken.history.append({"model": torch.nn.Linear(1, 1)})
    with pytest.raises(TypeError, match="not JSON serializable"):
        broken.save(path)
    assert Reweighting.load(path) == result()


def write(path, metadata, names=("weights", "probabilities", "index"), first=1.0, **others):
    tensors = {name: torch.full((2,), first) for name in names}
    tensors |= {"index": torch.arange(2)} if "index" in names else {}
    save_file({**tensors, **others}, path, metadata)


GOOD = {"format": "steelyard.reweighting", "version": "1", "history": "[]"}


@pytest.mark.usefixtures("unchecked_shapes")
@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda p: p.write_bytes(b"not a file of ours"), "not a readable safetensors file"),
        (lambda p: p.write_bytes(b""), "not a readable safetensors file"),
        (lambda p: (result().save(p), p.write_bytes(p.read_bytes()[:-5])), "not a readable safetensors file"),
        (lambda p: write(p, None), "holds 'no format name'"),
        (lambda p: write(p, {**GOOD, "format": "checkpoint"}), "holds 'checkpoint', not 'steelyard.reweighting'"),
        (lambda p: write(p, {**GOOD, "version": "7"}), "file version '7'; this steelyard reads version 1"),
        (lambda p: write(p, GOOD, names=("weights", "index")), "it has no probabilities"),
        (lambda p: write(p, {**GOOD, "history": "[{"}), "damaged Reweighting file"),
        (lambda p: write(p, {k: v for k, v in GOOD.items() if k != "history"}), "damaged Reweighting file: 'history'"),
        (lambda p: write(p, GOOD, first=2.0), r"must be in \[0, 1\]"),
        (lambda p: write(p, {**GOOD, "history": "[" * 100_000}), "damaged Reweighting file"),
        (lambda p: write(p, {**GOOD, "history": "3"}), "history must be a list with a dict for each outer step, got 3"),
        (lambda p: write(p, {**GOOD, "history": "[1]"}), r"history\[0\] must be a dict"),
        (lambda p: write(p, GOOD, weights=torch.ones(2, 2)), r"weights must have the shape \(n\), got \(2, 2\)"),
        (lambda p: write(p, GOOD, weights=torch.ones(2).long()), "weights must be floating point"),
        (lambda p: write(p, GOOD, index=torch.ones(2)), "index must hold integers, got torch.float32"),
        (lambda p: write(p, GOOD, index=torch.ones(2).int()), "index must hold each id once, got 2 with 1"),
        (lambda p: write(p, GOOD, index=torch.ones(2).long()), "index must hold each id once, got 2 with 1"),
        (lambda p: write(p, GOOD, index=torch.tensor([0, -1])), "ids >= 0, got -1"),
    ],
)
def test_bad_files(tmp_path, make, message):
    path = tmp_path / "r.safetensors"
    make(path)
    with pytest.raises(ValueError, match=message) as caught:
        Reweighting.load(path)
    assert str(path) in str(caught.value)


def test_missing_file(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"none\.safetensors"):
        Reweighting.load(tmp_path / "none.safetensors")


def test_a_folder_is_named(tmp_path):
    with pytest.raises(OSError, match=re.escape(str(tmp_path))):
        Reweighting.load(tmp_path)


def test_tensors_that_share_memory_are_saved(tmp_path):
    same, parts = torch.ones(4), torch.rand(8)
    for one in (Reweighting(same, same), Reweighting(parts[:4], parts[4:]), Reweighting(same, torch.ones(1).expand(4))):
        one.save(tmp_path / "r")
        assert Reweighting.load(tmp_path / "r") == one


def test_no_code_runs_on_load(tmp_path):
    import pickle

    path = tmp_path / "evil"
    path.write_bytes(pickle.dumps({"weights": [1.0]}))
    with pytest.raises(ValueError, match="not a readable"):
        Reweighting.load(path)


def test_sampler_in_a_loader():
    weights, probabilities = torch.tensor([1.0, 3.0, 1.0, 0.0]), torch.tensor([1.0, 1.0, 0.0, 1.0])
    r = Reweighting(weights, probabilities)
    sampler = r.sampler(40_000, torch.Generator().manual_seed(0))
    loader = DataLoader(TensorDataset(torch.arange(4)), batch_size=4000, sampler=sampler)
    counts = torch.bincount(torch.cat([batch[0] for batch in loader]), minlength=4)
    assert counts[2] == counts[3] == 0
    assert abs(counts[1] - 30_000) < 5 * (40_000 * 0.25 * 0.75) ** 0.5  # five standard deviations
    assert len(r.sampler()) == 3


def test_sample_mask_has_the_right_law():
    r = Reweighting(torch.ones(3), torch.tensor([0.0, 1.0, 0.3]))
    g = torch.Generator().manual_seed(0)
    masks = torch.stack([r.sample_mask(g) for _ in range(4000)])
    assert masks.dtype == torch.bool
    mean = masks.float().mean(0)
    assert mean[:2].tolist() == [0, 1]
    assert abs(mean[2] - 0.3) < 5 * (0.21 / 4000) ** 0.5


def test_frame():
    frame = result().to_frame()
    assert list(frame.columns) == ["index", "weight", "probability", "expected_weight"]
    assert frame["index"].tolist() == [0, 10, 20, 30, 40, 50]
    assert frame["weight"].to_numpy().dtype == "float32"


@pytest.mark.usefixtures("unchecked_shapes")
@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: Reweighting(torch.ones(2), torch.ones(2), [], torch.arange(3)), "first dimension.*index has 3"),
        (lambda: Reweighting("1", torch.ones(1)), r"weights must be a tensor, got '1' \(str\)"),
        (lambda: Reweighting(torch.ones(2), torch.ones(2, 1)), r"must have the shape \(n\), got \(2, 1\)"),
        (lambda: Reweighting(torch.ones(2), torch.ones(2), [], torch.ones(2)), "index must hold integers"),
        (lambda: Reweighting(torch.ones(2), torch.ones(2), [], torch.tensor([3, 3])), "index must hold each id once"),
        (lambda: Reweighting(torch.ones(2), torch.ones(2), [], torch.tensor([-3, 3])), "ids >= 0, got -3"),
        (lambda: Reweighting(torch.ones(2), torch.ones(2), [1]), r"history\[0\] must be a dict .*, got 1"),
        (lambda: Reweighting(torch.ones(2), torch.ones(2)).sampler(generator=3), "generator must be a torch.Generator"),
        (lambda: Reweighting(torch.ones(2), torch.ones(2)).sample_mask(3), "generator must be a torch.Generator"),
        (lambda: Reweighting(-torch.ones(2), torch.ones(2)), "weights must be >= 0, the smallest is -1.0"),
        (lambda: Reweighting(torch.tensor([math.nan]), torch.ones(1)), "weights has 1"),
        (lambda: Reweighting(torch.ones(1), torch.tensor([1.5])), r"in \[0, 1\]"),
        (lambda: Reweighting(torch.ones(2), torch.zeros(2)).sampler(), "no sample can be drawn"),
        (lambda: Reweighting(torch.ones(2), torch.ones(2)).sampler(0), "num_samples must be"),
    ],
)
def test_errors(call, message):
    with pytest.raises((ValueError, TypeError), match=message):
        call()


def test_history_is_plain_json(tmp_path):
    result().save(tmp_path / "r")
    header = (tmp_path / "r").read_bytes()
    length = int.from_bytes(header[:8], "little")
    assert json.loads(json.loads(header[8 : 8 + length])["__metadata__"]["history"])[1] == {"step": 1}


def test_sampler_yields_global_ids() -> None:
    part = Reweighting(torch.tensor([1.0, 2.0]), torch.tensor([1.0, 1.0]), index=torch.tensor([8, 11]))
    drawn = list(part.sampler(300, torch.Generator().manual_seed(0)))
    assert set(drawn) == {8, 11}
    assert len(part.sampler(300)) == 300
    # Binomial(300, 2/3): more than six standard deviations from 200 has probability below 1e-8.
    assert abs(drawn.count(11) - 200) < 6 * 8.2
    assert torch.equal(part.expected_weights, torch.tensor([1.0, 2.0]))


def test_suspects_are_those_that_training_can_do_without():
    weights, s = torch.tensor([1.0, 0.0, 2.0, 0.0, 0.5]), torch.tensor([0.5, 0.9, 0.1, 0.3, 1.0])
    found = Reweighting(weights, s, index=torch.tensor([7, 5, 3, 1, 9]))
    assert found.suspects(5).tolist() == [1, 5, 3, 7, 9]  # s w: 0.5, 0, 0.2, 0, 0.5
    assert found.suspects(2).tolist() == [1, 5]
    assert found.suspects(0).tolist() == []
    for k in (-1, 6):
        with pytest.raises(ValueError, match="k must be"):
            found.suspects(k)


def test_the_frame_takes_more_columns():
    found = result()
    frame = found.to_frame(label=[1, 0, 1, 0, 1, 0], split=torch.arange(6))
    assert list(frame) == ["index", "weight", "probability", "expected_weight", "label", "split"]
    assert frame["label"].tolist() == [1, 0, 1, 0, 1, 0]
    assert frame["expected_weight"].tolist() == (found.weights * found.probabilities).tolist()
    with pytest.raises(ValueError, match="label"):
        found.to_frame(label=[1, 0])
    with pytest.raises(ValueError, match="'weight' is there already"):
        found.to_frame(weight=torch.zeros(6))


@pytest.mark.parametrize(("n", "said"), [(0, "0 samples"), (1, "1 samples"), (6, "6 samples")])
def test_the_repr_is_short(n, said):
    assert said in repr(result(n))
    assert len(repr(result(n))) < 120
