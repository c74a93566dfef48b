"""Weights learned by two processes, each with its share of the samples; both end with what one process finds.

    torchrun --nproc-per-node 2 examples/torchrun.py [FILE]     # or: python examples/torchrun.py, in one process

scikit-learn's digits, two environments by whether the image was darkened, which goes with the label in one of them more
than in the other. Each rank could load no more than its share from disk; here the data are small. Killed and started
again with a FILE, the run resumes from the journal beside it.
"""

import os
import sys
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits

from steelyard import Batch, InnerRun, Journal, Maple, Sqrt, VREx, WeightedLoss
from steelyard.distributed import ALONE, Processes


def samples() -> Batch:
    """Return all samples, the same on every rank: even digits or odd, in two environments."""
    draws = torch.Generator().manual_seed(0)
    pixels, digits = map(torch.tensor, load_digits(return_X_y=True))
    label, environment = digits % 2, torch.arange(len(digits)) % 2
    agrees = torch.rand(len(digits), generator=draws) < torch.tensor([0.95, 0.75])[environment]
    dark = torch.where(agrees, label, 1 - label)
    inputs = pixels / 16 * (1 - 0.5 * dark[:, None])
    return Batch.of(inputs.float(), label, environment=environment)


def main(file: str = "") -> None:
    """Learn the weights; rank 0 prints what came out and saves it in `file`."""
    several = "RANK" in os.environ  # torchrun sets it
    if several:
        torch.distributed.init_process_group("gloo")  # "nccl" where each rank has a GPU
    ranks = Processes() if several else ALONE
    share = samples().take(ranks.share(1797)) if several else samples()

    objective = WeightedLoss(partial(F.cross_entropy, reduction="none"), ranks=ranks)
    inner = InnerRun(lambda: torch.nn.Linear(64, 2), partial(torch.optim.Adam, lr=0.02), objective, steps=30)
    journal = Journal(Path(file).with_suffix(".journal.safetensors"), ranks=ranks) if file else None
    result = Maple(inner, Sqrt(VREx()), budget=0.4, steps=10).fit(share, journal=journal)
    if ranks.rank == 0:
        print(f"{ranks.size} process(es), rank 0 held {len(share)} samples: {result}")
        if file:
            result.save(file)  # of all samples
    if several:
        torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(*sys.argv[1:])
