"""A model, a target, a recipe and a budget in; an artifact out."""
