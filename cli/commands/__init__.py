"""The sub-commands of `moorage`: a file each, loaded when it is called."""
