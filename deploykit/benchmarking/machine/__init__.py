"""Conditions of the machine during a measurement."""
