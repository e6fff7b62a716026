"""Files without their origin: sniffing, validation, thumbnails, removal of metadata. Needs nothing but moorage."""
