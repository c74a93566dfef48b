"""Active learning with and without adversarial training, and test selection for retraining."""
