"""The command `steelyard`: run recipes, compare runs, look at them."""

from steelyard.cli.command import main

__all__ = ["main"]
