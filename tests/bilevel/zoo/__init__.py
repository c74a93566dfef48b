"""The zoo: every public module and loss of torch, and much that people write beside them, against plain retraining.

``python -m tests.bilevel.zoo`` runs all of it and prints the counts; `test_zoo` runs a sample.
"""

from tests.bilevel.zoo.case import Case
from tests.bilevel.zoo.losses import loss_cases
from tests.bilevel.zoo.modules import module_cases
from tests.bilevel.zoo.odd import odd_cases

__all__ = ["every_case"]


def every_case() -> list[Case]:
    return [*module_cases(), *loss_cases(), *odd_cases()]
