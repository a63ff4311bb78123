"""The float graph: authoring, canonical form, exact folds, surgery and checkpoint layouts. No torch, no runtime."""
