"""Choosing: which layers are worth quantizing, and which candidate is the fastest that holds the budget."""
