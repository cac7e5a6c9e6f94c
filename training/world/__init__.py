"""A small world drawn by code: coloured things on coloured grounds and in scenes, and the words for them."""
