"""One calling contract for any model. Knows models and their source; leaves checking and training to the rooms above."""
