"""A pure media library: format detection, validation, thumbnails, removal of metadata. Imports only moorage."""
