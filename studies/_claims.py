"""Claims that code judges, case by case: what a study states, and whether its figures bear it out."""

from __future__ import annotations

from dataclasses import dataclass

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
    """

    text: str
    judgements: tuple[Judgement, ...]

    @property
    def held(self) -> bool:
        """Whether it holds in every case, of which there must be one."""
        return bool(self.judgements) and all(judgement.held for judgement in self.judgements)


def markdown(judged: list[Claim]) -> str:
    """Return the claims with their cases, figures in per cent."""
    lines = []
    for claim in judged:
        count = sum(judgement.held for judgement in claim.judgements)
        verdict = "held" if claim.held else "NOT held"
        lines.append(f"**{verdict}** ({count} of {len(claim.judgements)} cases): {claim.text}.\n")
        lines += ["| case | figure | against | held |", "|---|---|---|---|"]
        for judgement in claim.judgements:
            figures = f"{100 * judgement.figure:.1f} | {100 * judgement.against:.1f}"
            lines.append(f"| {judgement.case} | {figures} | {'yes' if judgement.held else 'no'} |")
        lines.append("")
    return "\n".join(lines)
