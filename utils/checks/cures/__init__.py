"""Known cures of faults, one file per family; each proposes changes of source text and knows neither torch nor models."""
