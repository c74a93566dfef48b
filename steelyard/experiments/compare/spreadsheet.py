"""Data frames as CSV that spreadsheets open: no cell of text is taken for a formula."""

from __future__ import annotations

import pandas

from steelyard._support._csv import cell, table_text

__all__ = ["cell", "frame_text", "table_text"]


def frame_text(frame: pandas.DataFrame, float_format: str = "%.6g") -> str:
    """Return a data frame as CSV, without its index."""
    texts = frame.select_dtypes(include=["object", "string", "category"]).columns
    safe = frame.assign(**{str(name): frame[name].astype("object").map(cell) for name in texts})
    return safe.rename(columns=cell).to_csv(index=False, float_format=float_format)
