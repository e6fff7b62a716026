"""PostgreSQL: one file a table, each statement a constant above its one function."""
