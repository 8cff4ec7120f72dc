"""Pictures of a run, as PNG files, drawn without pyplot: no global state, and no display is needed."""
