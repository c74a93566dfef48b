"""Small data sets in the layouts in which the real ones are published, for the loaders to be tested on."""

from __future__ import annotations

import csv
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

REAL_ROOT = Path(os.environ.get("STEELYARD_DATA", Path(__file__).parents[3] / "shared" / "data"))


def write_adult(root: Path, rows: int = 80, file: str = "adult.data") -> Path:
    """Write adult.data (or adult.test) as UCI publishes it: no header, ", " between values, a blank line at the end."""
    rng = np.random.default_rng(0)
    published_test = file == "adult.test"
    lines = ["|1x3 Cross validator"] if published_test else []
    for row in range(rows):
        values = (
            *(int(rng.integers(17, 90)), rng.choice(["Private", "?", "State-gov"]), 100_000 + row, "Bachelors", 13),
            *("Never-married", rng.choice(["Sales", "?"]), "Unmarried", "White", ("Female", "Male")[row % 2]),
            *(int(rng.choice([0, 2174])), 0, 40, "United-States"),
            ("<=50K", ">50K")[row // 2 % 2] + "." * published_test,
        )
        lines.append(", ".join(map(str, values)))
    root.mkdir(parents=True, exist_ok=True)
    (root / file).write_text("\n".join(lines) + "\n\n", encoding="utf-8")
    return root


# The published header, in which `decile_score` and `priors_count` stand twice.
COMPAS_HEADER = (
    """
    id,name,first,last,compas_screening_date,sex,dob,age,age_cat,race,juv_fel_count,decile_score,juv_misd_count,
    juv_other_count,priors_count,days_b_screening_arrest,c_jail_in,c_jail_out,c_case_number,c_offense_date,
    c_arrest_date,c_days_from_compas,c_charge_degree,c_charge_desc,is_recid,r_case_number,r_charge_degree,
    r_days_from_arrest,r_offense_date,r_charge_desc,r_jail_in,r_jail_out,violent_recid,is_violent_recid,
    vr_case_number,vr_charge_degree,vr_offense_date,vr_charge_desc,type_of_assessment,decile_score,score_text,
    screening_date,v_type_of_assessment,v_decile_score,v_score_text,v_screening_date,in_custody,out_custody,
    priors_count,start,end,event,two_year_recid
""".replace("\n    ", "")
    .strip()
    .split(",")
)


def write_compas(root: Path, rows: int = 120) -> Path:
    """Write compas-scores-two-years.csv; of every ten rows one is screened too late and one never (both left out)."""
    rng = np.random.default_rng(0)
    root.mkdir(parents=True, exist_ok=True)
    with open(root / "compas-scores-two-years.csv", "w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(COMPAS_HEADER)
        for row in range(rows):
            values: dict[str, object] = dict.fromkeys(COMPAS_HEADER, "")
            values |= {"id": row, "age": int(rng.integers(18, 80)), "sex": ("Male", "Female")[row % 2]}
            values |= {name: int(rng.integers(0, 3)) for name in ("juv_fel_count", "juv_misd_count", "juv_other_count")}
            values |= {"priors_count": int(rng.integers(0, 20)), "c_charge_degree": ("F", "M")[row % 3 % 2]}
            values |= {"c_charge_desc": 'Battery, "simple"', "is_recid": row // 5 % 2, "score_text": "Low"}
            values |= {"race": ("African-American", "Caucasian", "Hispanic")[row % 3]}
            values |= {"days_b_screening_arrest": {8: "31", 9: ""}.get(row % 10, "-1.0")}
            values |= {"two_year_recid": row // 5 % 2}
            writer.writerow([values[name] for name in COMPAS_HEADER])
    return root


def replace_line(path: Path, line: int, old: str, new: str) -> None:
    """Replace the first `old` in one line (from 1) of a text file; it must be there."""
    lines = path.read_text(encoding="utf-8").split("\n")
    assert old in lines[line - 1]
    lines[line - 1] = lines[line - 1].replace(old, new, 1)
    path.write_text("\n".join(lines), encoding="utf-8")


def drop_lines(path: Path, keep: Sequence[str]) -> None:
    """Keep only the lines of a text file that have none of these words."""
    lines = path.read_text(encoding="utf-8").split("\n")
    path.write_text("\n".join(line for line in lines if not any(word in line for word in keep)), encoding="utf-8")
