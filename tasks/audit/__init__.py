"""The audit: compare rows with objects, and repair violations."""
