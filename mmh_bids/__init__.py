"""Harmonize T1w and T2w brain MR images of many scanners: a BIDS App."""

__version__ = "0.1.0"
