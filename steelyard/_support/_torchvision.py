"""Import torchvision beside a torch that cannot load its compiled operators.

A CPU-only build of torch cannot load the shared library inside PyPI's (CUDA) torchvision wheel. The import of
torchvision then fails, not on a missing function that we need, but because its Python side registers fake
implementations for two operators, ``torchvision::nms`` and ``torchvision::qnms``, which the library should have
declared. Declaring the two schemas first is enough for everything used here (data sets, transforms, ResNets).

Import torchvision through this module: ``from steelyard._support._torchvision import torchvision``.
"""

import importlib
from types import ModuleType

import torch

from steelyard._support._packages import needed_by

__all__ = ["torchvision"]

_SCHEMAS = (
    "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
)
_libraries: list[torch.library.Library] = []  # a Library's declarations live as long as the object


def _import() -> ModuleType:
    try:
        return importlib.import_module("torchvision")
    except RuntimeError as error:
        if "torchvision::" not in str(error):
            raise
    library = torch.library.Library("torchvision", "FRAGMENT")
    for schema in _SCHEMAS:
        library.define(schema)
    _libraries.append(library)
    return importlib.import_module("torchvision")


with needed_by("this data set or model", install="torchvision"):
    torchvision = _import()
