"""The old name of `steelyard.checkpoint`, kept for code that was written for 0.1."""

from steelyard.checkpoint import CheckpointError, Journal, Stage, Stateful, Stopped

__all__ = ["CheckpointError", "Journal", "Stage", "Stateful", "Stopped"]
