"""Evaluation mode for a while, and what goes into the last linear layer."""

import pytest
import torch
from torch import nn

from steelyard._support._modules import evaluating, inputs_of_last_linear, last_linear


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
