"""The demo: the main job with a share of each fault, on real servers, compared between all sources that know of it."""
