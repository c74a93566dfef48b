"""Evaluation mode for a while, what goes into the last linear layer, and walks over the parts of a module."""

import pytest
import torch
from torch import nn

from steelyard._support._modules import (
    evaluating,
    first_parameter,
    inputs_of_last_linear,
    last_linear,
    named_modules_of,
    named_parameters_of,
)


def net() -> nn.Sequential:
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Dropout(0.5), nn.Linear(4, 2), nn.ReLU())


def test_every_module_gets_its_own_mode_back_also_after_an_error() -> None:
    model = net().train()
    model[1].eval()  # frozen statistics
    modes = [module.training for module in model.modules()]
    with pytest.raises(RuntimeError, match="inside"), evaluating(model):
        assert not any(module.training for module in model.modules())
        raise RuntimeError("inside")
    assert [module.training for module in model.modules()] == modes


def test_what_goes_into_the_last_linear_layer() -> None:
    model, inputs = net().eval(), torch.randn(5, 3)
    with inputs_of_last_linear(model) as hidden:
        outputs = [model(part) for part in inputs.split(2)]
    torch.testing.assert_close(torch.relu(last_linear(model)(torch.cat(hidden))), torch.cat(outputs))
    model(inputs)
    assert len(hidden) == 3  # nobody listens any longer
    with pytest.raises(ValueError, match=r"ReLU has no nn\.Linear"):
        last_linear(nn.ReLU())


def test_a_walk_finds_what_torch_finds_in_its_order() -> None:
    shared = nn.Linear(2, 2)
    model = nn.Sequential(nn.Sequential(shared, nn.BatchNorm1d(2)), shared, nn.ModuleDict({"a": nn.Sequential()}))
    model[1].tied = shared.weight  # type: ignore[union-attr]
    model[2].register_module("nothing", None)  # type: ignore[operator]
    model[2].register_parameter("none", None)  # type: ignore[operator]
    assert named_modules_of(model) == list(model.named_modules())
    found, expected = named_parameters_of(model), dict(model.named_parameters())
    assert list(found) == list(expected)
    assert all(found[name] is p for name, p in expected.items())
    assert first_parameter(model) is next(model.parameters())
    assert first_parameter(nn.Sequential(nn.ReLU())) is None
