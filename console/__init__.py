"""Automated System Recovery: what the person at the keyboard sees."""
