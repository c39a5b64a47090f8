"""A model on labelled photographs: errors, intervals, operating points."""
