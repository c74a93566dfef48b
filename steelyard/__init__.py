"""Steelyard: bilevel sample reweighting for PyTorch.

Rooms (each usable alone): `steelyard.bilevel`, `steelyard.selectors`, `steelyard.theory`,
`steelyard.reweight`, `steelyard.experiments`.
"""

__version__ = "0.1.0"
