"""Several modules as one: outputs, gradients and optimizers of stacks are those of every member by itself."""

import copy
from functools import partial

import pytest
import torch
from torch import nn

from steelyard.bilevel.optimizers import SUPPORTED
from steelyard.bilevel.stacked import Stacked, stacked_optimizer

D = torch.float64


class Words(nn.Module):
    """An embedding that is read twice, of nested inputs."""

    def __init__(self):
        super().__init__()
        self.words, self.last = nn.Embedding(6, 3, dtype=D), nn.Linear(3, 2, dtype=D)
        self.register_buffer("shift", torch.randn(3, dtype=D))

    def forward(self, ids, scale):
        rows = self.words(ids["of"]).mean(1) * scale[:, None] + self.shift
        return {"logits": self.last(rows), "again": (self.words(ids["of"][:, 0]),)}


def chain():
    return nn.Sequential(
        nn.Flatten(),
        nn.Linear(6, 4, dtype=D),
        nn.Sequential(nn.Tanh(), nn.Identity()),
        nn.Linear(4, 3, bias=False, dtype=D),
        nn.ReLU(),
    )


def tied():
    layer = nn.Linear(6, 6, dtype=D)
    return nn.Sequential(nn.Flatten(), layer, nn.Tanh(), layer)


class Scale(nn.Module):
    """One number."""

    def __init__(self):
        super().__init__()
        self.factor = nn.Parameter(torch.tensor(1.5, dtype=D))

    def forward(self, rows):
        return self.factor * rows


def scaled():
    return nn.Sequential(chain(), Scale())


def convolution():
    return nn.Sequential(nn.Unflatten(1, (1, 2)), nn.Conv2d(1, 2, 2, dtype=D), nn.GELU(), nn.Flatten())


def gradients_of(outputs, module):
    named = dict(module.named_parameters())
    return dict(zip(named, torch.autograd.grad(outputs.square().sum(), list(named.values())), strict=True))


@pytest.mark.parametrize(
    ("make", "inputs", "chained"),
    [
        (chain, (5, 2, 3), True),
        (partial(nn.Linear, 3, 2, dtype=D), (5, 3), True),
        (partial(nn.Linear, 3, 2, dtype=D), (5, 4, 3), True),
        (tied, (5, 2, 3), False),
        (convolution, (5, 2, 3), False),
    ],
)
def test_outputs_and_gradients_are_those_of_each(make, inputs, chained):
    members = [make() for _ in range(3)]
    rows = torch.randn(3, *inputs, dtype=D)
    stacked = Stacked(members)
    outputs = stacked(rows.flatten(0, 1)).unflatten(0, (3, -1))
    assert stacked.chained == chained
    found = dict(
        zip(stacked.stacks, torch.autograd.grad(outputs.square().sum(), list(stacked.stacks.values())), strict=True)
    )
    for number, member in enumerate(members):
        own = member(rows[number])
        torch.testing.assert_close(outputs[number], own)
        for name, gradient in gradients_of(own, member).items():
            torch.testing.assert_close(found[name][number], gradient)


def test_nested_inputs_and_outputs_and_a_buffer_for_each():
    members = [Words() for _ in range(2)]
    ids, scale = torch.randint(0, 6, (2, 4, 5)), torch.rand(2, 4, dtype=D)
    found = Stacked(members)({"of": ids.flatten(0, 1)}, scale=scale.flatten())
    for number, member in enumerate(members):
        own = member({"of": ids[number]}, scale[number])
        torch.testing.assert_close(found["logits"].unflatten(0, (2, 4))[number], own["logits"])
        torch.testing.assert_close(found["again"][0].unflatten(0, (2, 4))[number], own["again"][0])


def test_a_layer_whose_forward_was_replaced_is_not_taken_for_a_product():
    members = [nn.Linear(3, 2, dtype=D) for _ in range(2)]
    for member in members:
        member.forward = lambda rows, member=member: torch.zeros(len(rows), 2, dtype=D) + member.bias
    rows = torch.randn(8, 3, dtype=D)
    assert not Stacked(members).chained
    torch.testing.assert_close(Stacked(members)(rows)[:4], members[0](rows[:4]))


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (nn.Linear(3, 3), r"'weight' is .*\[2, 3\].* in one member and .*\[3, 3\].* in another"),
        (nn.Linear(3, 2, bias=False), "other tensors: .'bias'"),
        (nn.Linear(3, 2, dtype=D), "float32.*float64"),
        (nn.Linear(3, 2).requires_grad_(False), "True.*False"),
    ],
)
def test_members_of_another_architecture_are_refused(other, message):
    with pytest.raises(ValueError, match=message):
        Stacked([nn.Linear(3, 2), other])


@pytest.mark.parametrize("kind", list(SUPPORTED), ids=lambda kind: kind.__name__)
def test_a_stacked_optimizer_steps_as_one_a_member(kind):
    members = [scaled() for _ in range(3)]
    settings = {"lr": 0.1, "weight_decay": 0.01}
    if kind is torch.optim.SGD:
        settings |= {"momentum": 0.9, "nesterov": True}
    if kind is torch.optim.Adagrad:
        settings["initial_accumulator_value"] = 0.3

    def make(member):  # biases and matrices apart, as a look at the number of axes tells them
        flat = [p for p in member.parameters() if p.ndim < 2]
        return kind(
            [{"params": [p for p in member.parameters() if p.ndim > 1]}, {"params": flat, "lr": 0.2}], **settings
        )

    alone = copy.deepcopy(members)
    optimizers = [make(member) for member in alone]
    stacked = Stacked(members)
    together = stacked_optimizer(make(members[0]), members[0], stacked)
    rows = torch.randn(3, 5, 6, dtype=D)
    for _ in range(4):
        together.zero_grad()
        stacked(rows.flatten(0, 1)).square().sum().backward()
        together.step()
        for member, optimizer, own in zip(alone, optimizers, rows, strict=True):
            optimizer.zero_grad()
            member(own).square().sum().backward()
            optimizer.step()
    stacked.put_back(members)
    for member, own in zip(members, alone, strict=True):
        torch.testing.assert_close(dict(member.named_parameters()), dict(own.named_parameters()))
