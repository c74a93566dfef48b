"""Where the repository and its documents stand."""

from pathlib import Path

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples"
GUIDES = ROOT / "docs" / "guides"
TUTORIALS = ROOT / "docs" / "tutorials"
RESULTS = ROOT / "results"
STUDIES = ROOT / "studies"
