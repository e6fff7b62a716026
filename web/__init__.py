"""The read and control API under /v1, and the front that serves it beside the receiver."""
