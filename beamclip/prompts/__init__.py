"""From a class list to text anchors: templates and contexts make prompts of it, a text tower embeds them."""
