"""Hyper data cleaning: weights for 20,000 digits of which most labels are wrong, from 5,000 right ones."""
