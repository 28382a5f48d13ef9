"""Automated System Recovery: the recovery engine and the live image it runs in."""
