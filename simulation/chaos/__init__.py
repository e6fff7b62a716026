"""The drill: everything is broken while work runs, and afterwards everything sent must be accounted for."""
