"""What bundles carry to their devices: its folders lie side by side here as they do there."""
