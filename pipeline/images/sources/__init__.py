"""Where images come from: one kind of source per file, listed in `pipeline.images.data`."""
