"""Outbound HTTP to untrusted addresses: guarded sessions and downloads."""
