"""`moorage doctor`: checks of settings and servers."""
