"""Simulated heads on simulated scanners."""
