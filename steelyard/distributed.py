"""Several processes, one computation: what a rank asks of the others.

Each rank holds a share of the samples; the data set is the shares one after the other, in the order of the ranks. All
that is computed here of several shares is the same, bit for bit, on every rank (as DistributedDataParallel, too, has it
of an all-reduce), so that all take the same way on.

    torch.distributed.init_process_group("gloo", timeout=timedelta(minutes=5))   # torchrun says who and where
    ranks = Processes()
    share = data.take(ranks.share(len(data)))

A rank that raises ends; the others learn of it from the next thing that they ask, and raise too (`RankError`), at the
latest after the timeout that the process group was given. What all must have in common (settings, types of the samples,
the shape of the model) is compared before it is relied on (`Ranks.agree`): ranks that differ would give a wrong result
without a word, or wait for each other.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from steelyard._support._agreement import disagreement, model_kinds

if dist.is_available():
    # DistributedDataParallel imports this at its first use, and its defaults (``group=group.WORLD``) would then keep
    # the default group for good: `destroy_process_group` could not join gloo's threads, and one that lets go of a
    # tensor while the interpreter ends aborts the process (torch 2.13). Before there is a group, they are None.
    import torch.distributed.nn.functional

__all__ = ["ALONE", "Processes", "RankError", "Ranks", "launched", "launched_processes"]

T = TypeVar("T")

_ELSEWHERE = "the ranks make different calls: all must make the same ones in the same order"


class RankError(RuntimeError):
    """Another rank failed, ended, did not answer in time or was given something else; the message says which."""


class Ranks:
    """The processes of one computation, here this one alone: what it asks the others it answers itself.

    Attributes:
        rank: number of this process.
        size: how many there are.

    Example:
        >>> ALONE.size, ALONE.sum(torch.tensor(3.0)).item(), ALONE.stack(torch.tensor([1, 2])).tolist()
        (1, 3.0, [[1, 2]])
    """

    rank = 0
    size = 1

    def sum(self, tensor: Tensor) -> Tensor:
        """Return the sum over ranks of `tensor`, which has the same shape on all; one all-reduce."""
        return tensor

    def stack(self, tensor: Tensor) -> Tensor:
        """Return ``(ranks, ...)``, every rank's `tensor`, which has the same shape on all; one all-gather."""
        return tensor[None]

    def wrap(self, model: nn.Module) -> nn.Module:
        """Return `model` such that its gradients are averaged over the ranks."""
        return model

    def gather(self, share: Tensor) -> Tensor:
        """Return ``(total, ...)``, the ranks' `share` ``(own, ...)`` one after the other; shares may be empty."""
        if self.size == 1:
            return share
        lengths = self.lengths(len(share))
        padded = share.new_zeros(max(lengths), *share.shape[1:])
        padded[: len(share)] = share.detach()
        return torch.cat([rows[:length] for rows, length in zip(self.stack(padded), lengths, strict=True)])

    def join(self, rows: Tensor, first: int) -> Tensor:
        """Return ``(total, ...)``, every rank's `rows` ``(own, ...)``, with a graph to this rank's, `first` and on.

        Values are as they were. What flows back through these is multiplied by the number of ranks, so that the average
        over ranks (which DistributedDataParallel takes of gradients, and `mean`) is the gradient of what is computed
        of all rows.
        """
        if self.size == 1:
            return rows
        others = self.gather(rows)
        own = rows.view_as(rows)
        if own.requires_grad:
            own.register_hook(lambda gradient: gradient * self.size)
        return torch.cat([others[:first], own, others[first + len(own) :]])

    def lengths(self, own: int) -> list[int]:
        """Return every rank's number `own`."""
        return [int(length) for length in self.stack(torch.tensor(own))]

    def any(self, own: bool) -> bool:
        """Return whether `own` is true on any rank."""
        return own if self.size == 1 else any(self.lengths(int(own)))

    def count(self, own: int) -> int:
        """Return the sum over ranks of the number `own`."""
        return own if self.size == 1 else sum(self.lengths(own))

    def place(self, own: int) -> tuple[int, int]:
        """Return where this rank's share of `own` entries begins, and how many entries there are in all."""
        if self.size == 1:
            return 0, own
        lengths = self.lengths(own)
        return sum(lengths[: self.rank]), sum(lengths)

    def share(self, total: int) -> Tensor:
        """Return the positions of this rank's share of `total` samples: a block, of equal size up to one."""
        return torch.arange(total).tensor_split(self.size)[self.rank]

    def total(self, values: Tensor) -> float:
        """Return the sum of all entries of all ranks' `values`, in float64."""
        return float(self.sum(values.detach().sum(dtype=torch.float64)))

    def average(self, values: Tensor) -> float:
        """Return the mean of all entries of all ranks' `values`, of which there may be another number on each."""
        own = torch.stack([values.detach().sum(dtype=torch.float64), values.new_tensor(values.numel()).double()])
        total, count = self.sum(own).tolist()
        return total / count

    def norm(self, values: Tensor, p: int = 2) -> float:
        """Return the p-norm of all entries of all ranks' `values`."""
        own = torch.linalg.vector_norm(values.detach(), ord=p, dtype=torch.float64)
        return float(torch.linalg.vector_norm(self.stack(own), ord=p))

    def mean(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the mean over ranks of tensors that have the same names and shapes on all; one all-reduce a dtype."""
        if self.size == 1:
            return dict(tensors)
        found = {}
        for dtype in dict.fromkeys(tensor.dtype for tensor in tensors.values()):
            names = [name for name, tensor in tensors.items() if tensor.dtype == dtype]
            flat = self.sum(torch.cat([tensors[name].detach().flatten() for name in names])) / self.size
            pieces = flat.split([tensors[name].numel() for name in names])
            found.update({n: piece.view(tensors[n].shape) for n, piece in zip(names, pieces, strict=True)})
        return {name: found[name] for name in tensors}

    def together(self, check: Callable[[], T]) -> T:
        """Return what `check` returns, if it does so on every rank.

        Args:
            check: may raise; must itself ask nothing of the other ranks.

        Raises:
            Exception: its own, on a rank where it raised.
            RankError: on the others, with what was said there.
        """
        if self.size == 1:
            return check()
        result, raised = None, None
        try:
            result = check()
        except Exception as error:  # noqa: BLE001 (raised below, once the others know)
            raised = error
        failed = self.lengths(int(raised is not None))
        if not {0, 1}.issuperset(failed):  # a digest: that rank is in `agree`
            raise RankError(_ELSEWHERE) from raised
        if not any(failed):
            return result  # type: ignore[return-value]
        said = self._texts("" if raised is None else f"{type(raised).__name__}: {raised}")
        if raised is not None:
            raise raised
        raise RankError(f"rank {failed.index(1)}: {said[failed.index(1)]}")

    def agree(self, what: str, facts: Mapping[str, object]) -> None:
        """Raise on all ranks unless all give the same; one all-gather of a number where they do.

        Args:
            what: is begun together; it, too, must be the same.
            facts: by name what this rank has there; compared as text.

        Raises:
            RankError: what differs, and on which ranks.
        """
        if self.size == 1:
            return
        text = json.dumps([what, {name: str(value) for name, value in facts.items()}])
        digests = self.lengths(2 + int.from_bytes(hashlib.sha256(text.encode()).digest()[:7], "big"))
        if len(set(digests)) == 1:
            return
        if not {0, 1}.isdisjoint(digests):  # that rank is in `together`
            raise RankError(_ELSEWHERE)
        begun, everywhere = zip(*map(json.loads, self._texts(text)), strict=True)
        if len(set(begun)) > 1:
            calls = ", ".join(f"{name} on rank {begun.index(name)}" for name in dict.fromkeys(begun))
            raise RankError(f"{_ELSEWHERE} ({calls})")
        raise RankError(f"{what} is not the same on all ranks: {disagreement(everywhere)}; give all ranks the same")

    def _texts(self, own: str) -> list[str]:
        """Return every rank's text."""
        data = torch.tensor(list(own.encode("utf-8", "backslashreplace")), dtype=torch.uint8)
        everywhere = self.gather(data).split(self.lengths(len(data)))
        return [bytes(piece.tolist()).decode() for piece in everywhere]

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Make what torch raises where another rank is gone a `RankError`, for a body that asks through torch."""
        yield


ALONE = Ranks()


class Processes(Ranks):
    """The processes of a `torch.distributed` group.

    How long a rank waits for one that is silent is the group's own ``timeout``, given when the group was made (torch's
    default is 30 minutes with gloo). One that has ended is noticed at once.

    Args:
        group: None: the default group.

    Raises:
        RuntimeError: there is no such group yet.
    """

    def __init__(self, group: dist.ProcessGroup | None = None) -> None:
        if not (dist.is_available() and dist.is_initialized()):
            raise RuntimeError(
                "there is no process group: call torch.distributed.init_process_group(backend) first, in a script "
                "that torchrun (or accelerate launch) started"
            )
        self._group = group
        self.rank, self.size = dist.get_rank(group), dist.get_world_size(group)
        if self.rank < 0:
            raise RuntimeError("this process is not in the group that it was given")
        nccl = dist.get_backend(group) == "nccl"
        self._device = torch.device("cuda", torch.cuda.current_device()) if nccl else None

    def sum(self, tensor: Tensor) -> Tensor:
        """Return the sum over ranks; see `Ranks.sum`."""
        carried = self._carried(tensor).clone()
        with self.listening():
            dist.all_reduce(carried, group=self._group)
        return carried.to(tensor.device)

    def stack(self, tensor: Tensor) -> Tensor:
        """Return every rank's tensor; see `Ranks.stack`."""
        carried = self._carried(tensor)
        found = [torch.empty_like(carried) for _ in range(self.size)]
        with self.listening():
            dist.all_gather(found, carried, group=self._group)
        return torch.stack(found).to(tensor.device)

    def wrap(self, model: nn.Module) -> nn.Module:
        """Return `model` in DistributedDataParallel; its parameters become those of rank 0.

        Raises:
            RankError: the models differ in their parameters' names, types or shapes.
        """
        if self.size == 1:
            return model
        self.agree("the model", model_kinds(model))
        with self.listening():
            return nn.parallel.DistributedDataParallel(model, process_group=self._group)

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Make torch's errors of communication `RankError`; see `Ranks.listening`."""
        try:
            yield
        except RankError:
            raise
        except RuntimeError as error:
            if not _is_of_communication(error):
                raise
            raise RankError(
                f"rank {self.rank} of {self.size} lost another rank, which ended or did not answer in time; what went "
                f"wrong stands in that one's own output, and the run can be resumed from its checkpoint ({error})"
            ) from error

    def _carried(self, tensor: Tensor) -> Tensor:
        tensor = tensor.detach().contiguous()
        return tensor if self._device is None else tensor.to(self._device)


@contextmanager
def launched(device: str = "cpu", timeout: float | None = None) -> Iterator[Ranks]:
    """Yield the processes that torchrun (or ``accelerate launch``) started this one with; `ALONE` outside of these.

    Joins the default group, and leaves it on the way out: with "nccl", and the GPU of this process's number on its
    machine, where `device` is "cuda", else with "gloo".

    Args:
        device: of the computation.
        timeout: seconds that a process waits for one that is silent; None: torch's own.

    Raises:
        RankError: the environment names several processes, and they cannot be met.
    """
    if launched_processes() == 1:
        yield ALONE
        return
    cuda = torch.device(device).type == "cuda"
    try:
        if cuda:
            torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
        waiting = None if timeout is None else timedelta(seconds=timeout)
        dist.init_process_group("nccl" if cuda else "gloo", timeout=waiting)
    except (RuntimeError, ValueError) as error:
        raise RankError(
            f"WORLD_SIZE is {os.environ['WORLD_SIZE']}, but the other processes cannot be met: {error}; start all of "
            "them by torchrun, or unset WORLD_SIZE"
        ) from error
    try:
        yield Processes()
    finally:
        dist.destroy_process_group()


def launched_processes() -> int:
    """Return how many processes the environment says were started together (WORLD_SIZE); 1 where it says nothing.

    Raises:
        RankError: it says something else than a number.
    """
    said = os.environ.get("WORLD_SIZE") or "1"
    if not said.isdecimal():
        raise RankError(f"WORLD_SIZE must be the number of processes, got {said!r}; unset it, or use torchrun")
    return max(1, int(said))


def _is_of_communication(error: RuntimeError) -> bool:
    """Whether torch says that the others are gone: gloo's errors have no class, but name a file of its own."""
    return isinstance(error, dist.DistError) or "gloo/" in str(error)
