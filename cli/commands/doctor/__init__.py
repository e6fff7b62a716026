"""Checks of `moorage doctor`."""
