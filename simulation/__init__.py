"""Providers, load and faults for `moorage demo`, `drill` and `up`; no part of production."""
