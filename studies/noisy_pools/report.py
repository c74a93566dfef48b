"""The section of the README that judges the paper's claims."""

from __future__ import annotations

from steelyard.experiments.active.tables import Cells
from studies._claims import markdown
from studies.noisy_pools import claims

__all__ = ["claims_section"]


def claims_section(found: Cells) -> str:
    """Return the claims judged by the runs of one recipe, as a section of Markdown."""
    return f"## Claims, judged by code\n\n{_claims(found)}"


def _claims(found: Cells) -> str:
    test, learnable, clean = (
        {cell: spread.mean for cell, spread in found.last(metric).items()}
        for metric in ("test", "test_learnable", "clean_share_selected")
    )
    if learnable:
        return markdown(claims.moons_claims(found.last("test"), found.last("test_learnable")))
    reported = claims.claims(claims.REPORTED_ACCURACY, claims.REPORTED_CLEAN)
    theirs = "\n".join(
        f"- {'held' if claim.held else 'NOT held'} in {sum(judged.held for judged in claim.judgements)} of "
        f"{len(claim.judgements)} cases: {claim.text}."
        for claim in reported
    )
    note = "The same code on the paper's own Tables 1 and 3 (CIFAR-10, ResNet-18, as reported):\n"
    return "\n".join([markdown(claims.claims(test, clean)), note, theirs, ""])
