"""Images by name, prepared as on the device, in batches."""
