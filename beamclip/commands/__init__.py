"""What the commands in pipelines/ do, each as one function of its configuration."""
