"""Costs of networks, peak rates of devices, and the time that no measurement goes below."""
