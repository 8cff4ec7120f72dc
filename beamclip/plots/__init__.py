"""Pictures of a run, as PNG files, made without pyplot: nothing global is left, and no display is needed."""
