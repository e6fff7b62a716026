"""The ground of moorage: settings, errors, model, lifecycle, logs and metrics. Nothing here talks to a server."""

VERSION = "0.1.0"
