"""What `import beamclip` offers: models that embed and classify, and the commands as functions."""
