"""Steps on outputs: keep and discard."""
