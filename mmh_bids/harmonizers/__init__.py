"""The harmonizer protocol and one module a method."""
