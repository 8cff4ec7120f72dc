"""Teachers and students: open_clip models whose parts come from open_clip and timm."""
