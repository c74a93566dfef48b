"""Which labels a method, or a way to find groups, reads: what `tune` and `compare` sort methods by."""

from __future__ import annotations

from typing import Any

__all__ = ["Reads", "ReadsAsMaple", "ReadsBy"]


class Reads:
    """No labels but the class: what reads more says so."""

    @property
    def needs_training_groups(self) -> bool:
        """Whether it reads the groups of training samples."""
        return False

    @property
    def needs_validation_groups(self) -> bool:
        """Whether it reads the groups of validation samples (what selects a step does not count)."""
        return False

    @property
    def needs_environments(self) -> bool:
        """Whether it reads the environments of training samples; in data with groups these are an attribute."""
        return False


class ReadsBy(Reads):
    """What reads the labels that `by` names, groups from the source `groups`.

    Attributes:
        by: "group", "environment", or what needs neither.
        groups: where the groups come from, if `by` is "group": the data, or found (`found_groups`).
    """

    by: Any
    groups: Any

    @property
    def needs_training_groups(self) -> bool:
        """Whether it reads the groups of training samples."""
        return self.by == "group" and self.groups.needs_training_groups

    @property
    def needs_validation_groups(self) -> bool:
        """Whether it reads the groups of validation samples (what selects a step does not count)."""
        return self.by == "group" and self.groups.needs_validation_groups

    @property
    def needs_environments(self) -> bool:
        """Whether it reads the environments of training samples; in data with groups these are an attribute."""
        return self.by == "environment" or (self.by == "group" and self.groups.needs_environments)


class ReadsAsMaple(Reads):
    """What begins with a run of MAPLE, `maple`, finds groups in its keep-probabilities, and reads what that reads."""

    maple: Any

    def check_learns(self) -> None:
        """Raise ValueError where the run does not learn keep-probabilities."""
        if self.maple.learn == "weights":
            raise ValueError(
                "maple.learn = 'weights' leaves the keep-probabilities as they begin, and groups are found in them: "
                "take 'probabilities' or 'both'"
            )

    @property
    def needs_training_groups(self) -> bool:
        """Whether it reads the groups of training samples."""
        return self.maple.needs_training_groups

    @property
    def needs_validation_groups(self) -> bool:
        """Whether it reads the groups of validation samples (what selects a step does not count)."""
        return self.maple.needs_validation_groups

    @property
    def needs_environments(self) -> bool:
        """Whether it reads the environments of training samples; in data with groups these are an attribute."""
        return self.maple.needs_environments
