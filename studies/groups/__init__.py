"""Groups found in MAPLE's keep-probabilities: recovery, refusal, and what the weights that follow are worth."""
