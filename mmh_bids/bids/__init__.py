"""BIDS in and out: discovery, sites, names and files of the derivative dataset."""
