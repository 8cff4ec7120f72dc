"""The report of a run, or of several side by side: one HTML file made from the files of their folders."""
