"""
A stand-in for Replicate, fal.ai and OpenAI Images: a process that answers their HTTP APIs, sends signed webhooks and
serves outputs, with faults.

It speaks HTTP only and shares no line with the code that is tried against it. What can be asked of it stands in
`faults.py`, its models in `models.py`; what it did stands in its ledger. Start it with `python -m simulation.provider`,
or through `client.Standin`.
"""
