"""How sure one may be asked to be of a measure's limit."""

CONFIDENCES = (90, 95, 99)  # percent, of one-sided intervals
