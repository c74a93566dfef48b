"""A dataset that notes how many rows it is asked for."""

from __future__ import annotations

from torch import Tensor
from torch.utils.data import Dataset


class Counted(Dataset[Tensor]):
    """Answers many rows at once, and notes how many were asked for."""

    def __init__(self, inputs: Tensor) -> None:
        self.inputs = inputs
        self.asked: list[int] = []

    def __len__(self) -> int:
        return len(self.inputs)

    def __getitem__(self, row: int) -> Tensor:
        return self.__getitems__([row])[0]

    def __getitems__(self, rows: list[int]) -> Tensor:
        self.asked.append(len(rows))
        return self.inputs[rows]
