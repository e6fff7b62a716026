"""
A stand-in for Replicate, fal.ai and OpenAI Images: a process that implements their HTTP APIs, sends signed webhooks and
serves outputs, with faults on demand.

It communicates over HTTP only and shares no code with the product. `script.py` describes the faults, `models.py` the
models, `ledger.py` the record of what it did. Start it with `python -m simulation.provider` or `client.Standin`.
"""
