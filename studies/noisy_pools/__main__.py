"""`python -m studies.noisy_pools`."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from steelyard.cli.active import grid_command
from studies._command import command_line
from studies.noisy_pools.report import claims_section

__all__ = ["main"]

noisy_pools = grid_command("python -m studies.noisy_pools", claims_section)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the study with the options given and return the exit status."""
    return command_line(noisy_pools, "noisy_pools", arguments)


if __name__ == "__main__":
    sys.exit(main())
