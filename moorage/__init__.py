"""Base package: settings, errors, model, lifecycle, logs and metrics. Connects to no server."""

VERSION = "0.1.0"
