"""Claims that code judges, case by case: what a study states, and whether its figures bear it out."""

from __future__ import annotations

from dataclasses import dataclass

from steelyard.experiments.compare.table import Table

__all__ = ["Claim", "Judgement", "markdown"]


@dataclass(frozen=True)
class Judgement:
    """One case of a claim.

    Attributes:
        case: which method and noise. figure, against: what is compared, in [0, 1]. held: whether the claim holds here.
    """

    case: str
    figure: float
    against: float
    held: bool


@dataclass(frozen=True)
class Claim:
    """A claim and its cases.

    Attributes:
        text: the claim. judgements: its cases, those of them that the runs cover.
        cause: why it does not hold, where that is known.
    """

    text: str
    judgements: tuple[Judgement, ...]
    cause: str = ""

    @property
    def held(self) -> bool:
        """Whether it holds in every case, of which there must be one."""
        return bool(self.judgements) and all(judgement.held for judgement in self.judgements)


def markdown(judged: list[Claim]) -> str:
    """Return the claims with their cases, figures in per cent."""
    lines = []
    for claim in judged:
        if not claim.judgements:
            lines.append(f"**not judged** (no run is about it): {claim.text}.\n")
            continue
        count = sum(judgement.held for judgement in claim.judgements)
        verdict = "held" if claim.held else "NOT held"
        lines.append(f"**{verdict}** ({count} of {len(claim.judgements)} cases): {claim.text}.\n")
        cases = [
            [one.case, f"{100 * one.figure:.1f}", f"{100 * one.against:.1f}", "yes" if one.held else "no"]
            for one in claim.judgements
        ]
        lines.append(Table(["case", "figure", "against", "held"], cases).markdown())
        if claim.cause and not claim.held:
            lines.append(f"Why not: {claim.cause}.\n")
    return "\n".join(lines)
