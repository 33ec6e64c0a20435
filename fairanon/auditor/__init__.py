"""How a text-to-image model, or a folder of its images, portrays people: what ``fairanon audit`` does."""
