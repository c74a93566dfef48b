"""Theorem 1 term by term, what it predicts, and whether that is so."""
