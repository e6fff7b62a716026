"""My Renders: the page at `/`, made on the server, with one module of JavaScript and no build step."""
