"""BatchBALD: the batch whose labels together say the most about the model; two of a kind count once."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

from steelyard._support import _check
from steelyard._support._check import Numbers
from steelyard.selectors import _inputs
from steelyard.selectors.stochastic import members
from steelyard.selectors.uncertainty import nats

__all__ = ["batch_bald"]

_BLOCK = 1 << 18  # entries of one block of joint probabilities: small enough for a CPU's second cache


def batch_bald(
    probabilities: Float[Tensor, "draws n classes"] | Numbers,
    k: int,
    *,
    generator: torch.Generator,
    configurations: int = 10_000,
) -> Int[Tensor, " k"]:
    """BatchBALD: k times, add the sample that raises I(y_1 ... y_b; model) = H(y_1 ... y_b) - sum_i E H(y_i) the most.

    The joint entropy is exact while there are at most `configurations` label vectors of the batch so far, classes^b;
    then it is estimated from so many vectors drawn from their distribution, and b may be any number.

    Args:
        probabilities: ``(draws, n, classes)`` softmax outputs, draws >= 2. I is at most log(draws): with few draws a
            large batch is soon as good as any.
        k: how many, in 1 .. n.
        generator: source of the vectors; not used where none are drawn.
        configurations: label vectors at most, >= classes.

    Returns:
        ``(k,)`` int64 indices without duplicates, in the order picked; ties by the lowest index. A pick costs
        O(n classes draws min(configurations, classes^b)) time (a million samples, 10 classes, 10 draws and 10,000
        vectors: 10^12 products, minutes of one core; lower `configurations`), and O(draws n classes) memory in all.

    Warns:
        DegenerateWarning: all draws are identical: no batch says anything about the model.

    Raises:
        ValueError: fewer than 2 draws, NaN, rows that do not sum to 1, k outside of 1 .. n, fewer configurations than
            classes. TypeError: integers.

    References:
        A. Kirsch, J. van Amersfoort, Y. Gal, BatchBALD: efficient and diverse batch acquisition for deep Bayesian
        active learning, NeurIPS 2019, Algorithm 1, eq. 7 and 12 to 14.

    Example:
        >>> copied = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.0, 1.0]])[:, None]  # of three draws
        >>> another = torch.tensor([[0.9, 0.1], [0.2, 0.8], [0.9, 0.1]])[:, None]
        >>> draws = torch.cat([copied, copied, another], dim=1)
        >>> batch_bald(draws, 2, generator=torch.Generator().manual_seed(0)).tolist()
        [0, 2]
    """
    draws = members(probabilities).double()
    t, n, classes = draws.shape
    k = _inputs.count(k, n)
    configurations = _check.integer("configurations", configurations, low=classes)
    _check.generator("generator", generator)
    doubt = nats(draws).mean(0)  # E H(y_i), (n,)
    # joint[s, t] = p(vector s | draw t); share[s] = how much of the sum over vectors the row stands for.
    joint, share, exact = draws.new_ones(1, t), draws.new_ones(1), True
    picked: list[int] = []
    while True:
        gain = _joint_entropy(joint, share, draws) - doubt
        gain[picked] = -torch.inf
        picked.append(int(gain.argmax()))
        if len(picked) == k:
            return torch.tensor(picked, device=draws.device)
        exact = exact and len(joint) * classes <= configurations
        if exact:
            joint = (joint[:, None, :] * draws[:, picked[-1]].T).flatten(0, 1)
            share = draws.new_ones(len(joint))
        else:
            joint = _drawn(draws[:, picked], configurations, generator)
            share = 1 / (len(joint) * joint.mean(1))


def _joint_entropy(joint: Tensor, share: Tensor, draws: Tensor) -> Tensor:
    """Return H(y_1 ... y_b, y_i) ``(n,)`` for every i, up to a constant where the vectors are drawn.

    H = - sum over vectors s and classes c of p log p, p(s, c) = mean_t joint[s, t] draws[t, i, c]; of drawn vectors the
    mean over s of - sum_c p(s, c) / p(s) log p(s, c) (eq. 14).
    """
    t, n, classes = draws.shape
    rows = max(1, _BLOCK // (len(joint) * classes))
    found = draws.new_empty(n)
    for start in range(0, n, rows):
        part = draws[:, start : start + rows].flatten(1)
        p = (joint @ part).div_(t)  # (vectors, rows * classes)
        found[start : start + rows] = (share @ torch.special.entr(p)).view(-1, classes).sum(1)
    return found


def _drawn(batch: Tensor, vectors: int, generator: torch.Generator) -> Tensor:
    """Draw label vectors of `batch` ``(draws, b, classes)``; return their probabilities ``(vectors, draws)``.

    A draw of the model first, then the labels by it. Each vector's row is scaled so that its mean over draws stays a
    float64 however long it is; the scale cancels in p(s, c) / p(s), and in the logarithm it adds the same to all i.
    """
    t, b, _ = batch.shape
    by = torch.randint(t, (vectors,), generator=generator, device=generator.device).to(batch.device)
    log_joint = batch.new_zeros(vectors, t)
    for i in range(b):
        chances = batch[by, i].to(generator.device)
        label = torch.multinomial(chances, 1, generator=generator)[:, 0].to(batch.device)
        log_joint += batch[:, i, label].T.log()
    return (log_joint - log_joint.amax(1, keepdim=True)).exp()
