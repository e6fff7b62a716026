"""The audit's statements: what must hold over all rows."""
