"""DR-IS, EL2N and AUM where an adversary has corrupted labels."""
