"""Programs that measure moorage, beside a floor and peers. docs/performance.md has their tables."""
