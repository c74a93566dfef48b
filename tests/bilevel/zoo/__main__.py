"""Run the whole zoo and print what became of it: ``python -m tests.bilevel.zoo [part of a name ...]``."""

from __future__ import annotations

import re
import sys
import time
from collections import Counter

import torch

from tests.bilevel.zoo import every_case
from tests.bilevel.zoo.outcomes import Outcome, judge


def table(outcomes: list[Outcome]) -> str:
    """Return the counts, the worst errors, and every answer that is wrong or refused."""
    lines = [
        "| T | precision | reuse | right | refused | wrong | worst error of the right |",
        "|---|---|---|---|---|---|---|",
    ]
    groups = sorted({_group(o) for o in outcomes})
    for steps, dtype, reuse in groups:
        some = [o for o in outcomes if _group(o) == (steps, dtype, reuse)]
        count = Counter(o.verdict for o in some)
        worst = max((o.error or 0.0 for o in some if o.verdict == "right"), default=0.0)
        numbers = f"{count['right']} | {count['refused']} | {count['wrong']}"
        lines.append(f"| {steps} | {dtype} | {reuse} | {numbers} | {worst:.1e} |")
    for verdict in ("wrong", "refused"):
        some = [o for o in outcomes if o.verdict == verdict]
        lines.append(f"\n{verdict}: {len(some)} answers, {len({o.case for o in some})} cases")
        for name in dict.fromkeys(o.case for o in some):
            lines += _of_case([o for o in outcomes if o.case == name], verdict)
    return "\n".join(lines)


def _kind(o: Outcome) -> str:
    """Return the beginning of the detail, its numbers left out."""
    return re.sub(r"-?\d+\.[\de+-]+", "...", o.detail)[:150]


def _group(o: Outcome) -> tuple[int, str, bool]:
    return o.question.setting.steps, str(o.question.dtype).rsplit(".")[-1], o.question.reuse


def _of_case(asked: list[Outcome], verdict: str) -> list[str]:
    """Return a line for each kind of detail: how many of what was asked, and the worst."""
    lines = []
    for detail in dict.fromkeys(_kind(o) for o in asked if o.verdict == verdict):
        some = [o for o in asked if o.verdict == verdict and _kind(o) == detail]
        where = []
        for steps, dtype in sorted({_group(o)[:2] for o in asked}):
            group = [o for o in asked if _group(o)[:2] == (steps, dtype)]
            hit = [o for o in group if o in some]
            if hit:
                kinds = "" if len(hit) == len(group) else " " + _in_common(hit)
                where.append(f"T={steps} {dtype} {len(hit)}/{len(group)}{kinds}")
        errors = [o for o in some if o.error is not None]
        worst = max(errors, key=lambda o: o.error or 0.0, default=None)
        size = f"; worst {worst.error:.1e} (truth to {worst.doubt:.0e}) at {worst.label}" if worst else ""
        lines.append(f"  {asked[0].case}: {', '.join(where)}{size}{'; ' + detail if detail else ''}")
    return lines


def _in_common(some: list[Outcome]) -> str:
    """Return what all of them share."""
    shared = [{o.question.setting.optimizer for o in some}, {o.question.setting.normalise for o in some}]
    shared.append({"reuse" if o.question.reuse else "no reuse" for o in some})
    return "(" + " ".join(next(iter(one)) if len(one) == 1 else "*" for one in shared) + ")"


def main(parts: list[str]) -> int:
    torch.set_num_threads(1)
    cases = [case for case in every_case() if not parts or any(part in case.name for part in parts)]
    started, outcomes = time.perf_counter(), []
    for case in cases:
        asked = list(judge(case))
        for verdict in ("wrong", "refused"):
            for line in _of_case(asked, verdict):
                print(f"{verdict} {line}", file=sys.stderr, flush=True)
        outcomes += asked
    print(table(outcomes))
    covered = {c.covers for c in cases}
    print(
        f"\n{len(cases)} cases of {len(covered)} modules and losses, {len(outcomes)} answers, "
        f"{time.perf_counter() - started:.0f} s"
    )
    return int(any(o.verdict == "wrong" for o in outcomes))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
