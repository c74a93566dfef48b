"""The section of the README that judges the paper's claims."""

from __future__ import annotations

from steelyard.experiments.active.tables import Cells
from studies._claims import Claim, markdown
from studies.noisy_pools import claims
from studies.noisy_pools.causes import with_causes

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
    notes = [
        f"The same code on the paper's own {tables}, as reported:\n\n{_in_brief(claims.claims(accuracy, selected))}"
        for tables, accuracy, selected in (
            ("Tables 1 and 3 (CIFAR-10, ResNet-18)", claims.REPORTED_ACCURACY, claims.REPORTED_CLEAN),
            ("Tables 2 and 4 (SVHN, ResNet-18)", claims.REPORTED_SVHN, claims.REPORTED_SVHN_CLEAN),
        )
    ]
    judged = with_causes(claims.claims(test, clean), found)
    return "\n\n".join([markdown(judged).rstrip(), *notes, ""])


def _in_brief(judged: list[Claim]) -> str:
    return "\n".join(
        f"- {'held' if claim.held else 'NOT held'} in {sum(one.held for one in claim.judgements)} of "
        f"{len(claim.judgements)} cases: {claim.text}."
        for claim in judged
    )
