"""Every public module and loss of torch, retrained: right, or refused with a remedy."""

from __future__ import annotations

from tests.bilevel.zoo.losses import loss_cases, public_losses
from tests.bilevel.zoo.modules import EXCLUDED, module_cases, public_modules


def test_every_module_of_torch_is_covered_or_excluded_with_a_reason() -> None:
    covered = {case.covers for case in [*module_cases(), *loss_cases()]}
    assert public_modules() - covered - set(EXCLUDED) == set()
    assert len(public_modules() & covered) >= 97


def test_every_loss_of_torch_is_covered() -> None:
    covered = {case.covers for case in loss_cases()}
    assert public_losses() - covered == set()
    assert len({name for name in covered if "oss" in name or "entropy" in name or name == "kl_div"}) >= 23
