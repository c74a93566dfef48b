"""Run the whole zoo and print what became of it: ``python -m tests.bilevel.zoo [part of a case's name ...]``."""

from __future__ import annotations

import re
import sys
import time
from collections import Counter

import torch

from tests.bilevel.zoo import every_case
from tests.bilevel.zoo.outcomes import Outcome, judge

Group = tuple[str, str, int]


def table(outcomes: list[Outcome]) -> str:
    """Return the counts, the worst errors, and every answer that is wrong or refused."""
    verdicts = ("right", "rounded", "warned", "refused", "wrong")
    lines = [f"| by | precision | T | {' | '.join(verdicts)} | worst error of the right |", "|---|" + "---|" * 8]
    for group in sorted({_group(o) for o in outcomes}):
        some = [o for o in outcomes if _group(o) == group]
        count = Counter(o.verdict for o in some)
        worst = max((o.error or 0.0 for o in some if o.verdict == "right"), default=0.0)
        row = [*group, *(count[verdict] for verdict in verdicts), f"{worst:.1e}"]
        lines.append("| " + " | ".join(map(str, row)) + " |")
    for verdict in ("wrong", "warned", "rounded", "refused"):
        some = [o for o in outcomes if o.verdict == verdict]
        lines.append(f"\n{verdict}: {len(some)} answers, {len({o.case for o in some})} cases")
        for name in dict.fromkeys(o.case for o in some):
            lines += of_case([o for o in outcomes if o.case == name], verdict)
    return "\n".join(lines)


def of_case(asked: list[Outcome], verdict: str) -> list[str]:
    """Return a line for each kind of detail: how many of what was asked, and the worst."""
    lines = []
    for kind in dict.fromkeys(_kind(o) for o in asked if o.verdict == verdict):
        some = [o for o in asked if o.verdict == verdict and _kind(o) == kind]
        where = []
        for group in sorted({_group(o) for o in some}):
            all_of_it = [o for o in asked if _group(o) == group]
            hit = [o for o in some if _group(o) == group]
            where.append(f"{' '.join(map(str, group))} {len(hit)}/{len(all_of_it)}{_shared(hit, all_of_it)}")
        worst = max((o for o in some if o.error is not None), key=lambda o: o.error or 0.0, default=None)
        size = f"; worst {worst.error:.1e} (truth to {worst.doubt:.0e}) at {worst.label}" if worst else ""
        lines.append(f"  {asked[0].case}: {', '.join(where)}{size}{'; ' + kind if kind else ''}")
    return lines


def _group(o: Outcome) -> Group:
    q = o.question
    how = ", reuse" if q.reuse else ", graphs" if q.graphs else ", samples" if q.others else ""
    return f"{q.estimator}{how}", str(q.dtype).rsplit(".")[-1], q.setting.steps


def _kind(o: Outcome) -> str:
    """Return the beginning of the detail, its numbers left out."""
    return re.sub(r"-?\d+(\.\d+)?(e[+-]\d+)?", "...", o.detail)[:150]


def _shared(hit: list[Outcome], of: list[Outcome]) -> str:
    """Return the optimizer and the normalisation of those hit, where they are not of all."""
    if len(hit) == len(of):
        return ""
    kinds = [{o.question.setting.optimizer for o in hit}, {o.question.setting.normalise for o in hit}]
    return " (" + " ".join(next(iter(one)) if len(one) == 1 else "*" for one in kinds) + ")"


def main(parts: list[str]) -> int:
    torch.set_num_threads(1)
    cases = [case for case in every_case() if not parts or any(part in case.name for part in parts)]
    started, outcomes = time.perf_counter(), []
    for case in cases:
        asked = list(judge(case))
        for verdict in ("wrong", "refused"):
            for line in of_case(asked, verdict):
                print(f"{verdict} {line}", file=sys.stderr, flush=True)
        outcomes += asked
    print(table(outcomes))
    covered = {case.covers for case in cases} - {"odd"}
    print(
        f"\n{len(cases)} cases, of {len(covered)} modules and losses and {sum(c.covers == 'odd' for c in cases)} odd "
        f"models; {len(outcomes)} answers, {time.perf_counter() - started:.0f} s"
    )
    return int(any(o.verdict == "wrong" for o in outcomes))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
