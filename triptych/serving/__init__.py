"""What the FastAPI apps share, and the factory of a stage's app."""
