"""Where teachers and students come from: one kind of source per file, listed in `pipeline.networks.models`."""
