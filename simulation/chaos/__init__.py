"""The drill: faults of everything under load, after which everything that was sent must be accounted for."""
