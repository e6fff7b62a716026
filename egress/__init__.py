"""Outbound HTTP to addresses that others chose: guarded sessions and downloads."""
