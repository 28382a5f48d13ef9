"""Automated System Recovery: what the person at the keyboard sees."""

__version__ = "0.1.0"
