"""Draw the keep-probabilities that a run of MAPLE learned, for samples that a fact of the data set tells apart.

    steelyard run coloured_digits/maple --seeds 0 --out runs/picture
    python examples/keep_probabilities.py runs/picture/seed0 keep_probabilities.svg

On coloured digits the colour agrees with the label for most training samples and misleads in the test. MAPLE never
sees which samples those are.
"""

import sys
from pathlib import Path

import pandas
from matplotlib.figure import Figure


def main(run: str, file: str, fact: str = "colour_agrees") -> dict[str, float]:
    """Draw the picture into `file` and return the mean keep-probability on both sides of `fact`."""
    samples = pandas.read_parquet(Path(run) / "result.parquet")
    sides = {"colour agrees with the label": samples[samples[fact]], "colour disagrees": samples[~samples[fact]]}
    figure = Figure(figsize=(7.2, 2.6), layout="constrained")
    axes = figure.subplots()
    bins = [step / 25 for step in range(26)]
    for (label, side), colour in zip(sides.items(), ("#b3b3b3", "#0072b2"), strict=True):
        axes.hist(
            side["probability"], bins=bins, alpha=0.75, color=colour, label=f"{label} ({len(side)})", density=True
        )
    axes.set(xlabel="keep-probability learned by MAPLE", ylabel="density of samples", xlim=(0, 1))
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, loc="upper center")
    figure.savefig(file, metadata={"Date": None} if file.endswith(".svg") else None)
    means = {label: float(side["probability"].mean()) for label, side in sides.items()}
    for label, mean in means.items():
        print(f"{label}: mean keep-probability {mean:.2f}")
    return means


if __name__ == "__main__":
    main(*sys.argv[1:])
