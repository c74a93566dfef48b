"""What a run says where Ctrl-C ends it: how far it is, and how to resume."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from steelyard.checkpoint import CheckpointError, Journal, Stage

__all__ = ["resumable"]


@contextmanager
def resumable(stage: Stage, journal: Journal, steps: int) -> Iterator[None]:
    """Save the stage where a KeyboardInterrupt ends the block, and say in the interrupt how to resume.

    Args:
        stage: in the state of its last finished step, whenever a KeyboardInterrupt may come.
        journal: its journal.
        steps: how many steps the run has.

    Raises:
        KeyboardInterrupt: that of the block, with a message.
    """
    try:
        yield
    except KeyboardInterrupt as interrupt:
        raise KeyboardInterrupt(f"interrupted after outer step {stage.done} of {steps}{_kept(stage, journal)}") from (
            interrupt
        )


def _kept(stage: Stage, journal: Journal) -> str:
    """Save the stage if it can be; return what is kept, and how to resume."""
    if journal.path is None:
        return (
            ", and nothing is kept; with a journal, fit(..., journal=Journal('run.safetensors')), the same call again "
            "would resume from there"
        )
    resumes = f"the same call again, fit(..., journal=Journal({str(journal.path)!r})), resumes from there"
    if journal.ranks.size > 1:  # the others may be elsewhere, and could not give their share of the state
        return f"; {journal.path} holds the last checkpoint, and {resumes}"
    try:
        stage.save()
    except CheckpointError as error:
        return f", which could not be saved: {error}"
    return f", which is saved in {journal.path}; {resumes}"
