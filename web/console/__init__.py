"""The console at `/ops`: pages for operators, rendered on the server; its actions are forms."""
