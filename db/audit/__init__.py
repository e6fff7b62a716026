"""Statements of the audit: rules over all rows."""
