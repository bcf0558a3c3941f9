"""Measures of what harmonization did: numbers out of arrays, no files."""
