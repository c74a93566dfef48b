"""Methods, one page each: a frozen dataclass of settings with ``fit(problem, observe) -> Fitted``.

Each page states its paper, its equation, and the labels that it needs.
"""

from typing import get_args, get_type_hints

from steelyard.experiments.data import Splits
from steelyard.experiments.errors import RecipeError
from steelyard.experiments.methods.balanced_softmax import BalancedSoftmax
from steelyard.experiments.methods.bayesian_irm import BayesianIRM
from steelyard.experiments.methods.class_balanced import ClassBalanced
from steelyard.experiments.methods.coral import CORAL
from steelyard.experiments.methods.crt import CRT
from steelyard.experiments.methods.cvar_dro import CVaRDRO
from steelyard.experiments.methods.dfr import DFR
from steelyard.experiments.methods.done import DONE
from steelyard.experiments.methods.erm import ERM
from steelyard.experiments.methods.focal import Focal
from steelyard.experiments.methods.group_dro import GroupDRO
from steelyard.experiments.methods.invrat import InvRat
from steelyard.experiments.methods.irmv1 import IRMv1
from steelyard.experiments.methods.jtt import JTT
from steelyard.experiments.methods.kl_dro import KLDRO
from steelyard.experiments.methods.ldam import LDAM
from steelyard.experiments.methods.lff import LfF
from steelyard.experiments.methods.lisa import LISA
from steelyard.experiments.methods.maple import Maple
from steelyard.experiments.methods.mixup import Mixup
from steelyard.experiments.methods.mmd import MMD
from steelyard.experiments.methods.mrm import MRM
from steelyard.experiments.methods.online import Online
from steelyard.experiments.methods.ordered_sgd import OrderedSGD
from steelyard.experiments.methods.pde import PDE
from steelyard.experiments.methods.refined_maple import RefinedMaple
from steelyard.experiments.methods.self_cleaning import SelfCleaning
from steelyard.experiments.methods.sparse_irm import SparseIRM
from steelyard.experiments.methods.sqrt_reweighting import SqrtReweighting
from steelyard.experiments.methods.subset import Subset
from steelyard.experiments.methods.upweighting import UpWeighting
from steelyard.experiments.methods.vrex import VREx

__all__ = [
    "CORAL",
    "CRT",
    "DFR",
    "DONE",
    "ERM",
    "JTT",
    "KLDRO",
    "LDAM",
    "LISA",
    "MMD",
    "MRM",
    "PDE",
    "BalancedSoftmax",
    "BayesianIRM",
    "CVaRDRO",
    "ClassBalanced",
    "Focal",
    "GroupDRO",
    "IRMv1",
    "InvRat",
    "LfF",
    "Maple",
    "Method",
    "Mixup",
    "Online",
    "OrderedSGD",
    "RefinedMaple",
    "SelfCleaning",
    "SparseIRM",
    "SqrtReweighting",
    "Subset",
    "UpWeighting",
    "VREx",
    "check_groups",
    "check_regression",
]

Method = (
    ERM
    | IRMv1
    | VREx
    | Maple
    | RefinedMaple
    | UpWeighting
    | SqrtReweighting
    | ClassBalanced
    | Focal
    | LDAM
    | BalancedSoftmax
    | CRT
    | Mixup
    | LISA
    | MMD
    | CORAL
    | CVaRDRO
    | GroupDRO
    | KLDRO
    | DONE
    | OrderedSGD
    | LfF
    | JTT
    | SparseIRM
    | BayesianIRM
    | PDE
    | DFR
    | InvRat
    | MRM
    | Subset
    | Online
    | SelfCleaning
)


def check_regression(method: Method) -> None:
    """Raise ValueError if `method` needs classes, and so has nothing to do with a target that is a number."""
    if not method.regression:
        able = ", ".join(str(get_args(get_type_hints(kind)["name"])[0]) for kind in get_args(Method) if kind.regression)
        raise ValueError(f"method {method.name!r} needs classes; with data.task = 'regression' take one of {able}")
    if isinstance(method, Maple) and method.prior.scores:
        raise ValueError("method.prior.scores need classes; leave them out with data.task = 'regression'")


def check_groups(method: Method, splits: Splits) -> None:
    """Raise RecipeError, before anything is trained, if `method` needs groups of training samples that are hidden."""
    if splits.groups_hidden and method.needs_training_groups:
        raise RecipeError(
            f"method {method.name!r} as it is set needs the groups of training samples, and {splits.name} tells those "
            "of validation and test alone; take maple with method.outer_split = 'validation', dfr with "
            "method.fit_on = 'validation', or one that needs no groups in training (erm, jtt, lff, cvar_dro, kl_dro)"
        )
