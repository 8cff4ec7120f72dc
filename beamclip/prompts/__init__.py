"""From a class list to text anchors: templates and contexts give prompts, which a text tower embeds."""
