"""The commands of beamclip, each as one function of its configuration."""
