"""My Renders: the server-rendered page at `/`, with one JavaScript module and no build step."""
