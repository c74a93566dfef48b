"""MAPLE with and without priors on digits that have a spurious colour and corrupted labels."""
