"""Config, device, seeds, run folder, files: what every command needs and no idea lives in."""
