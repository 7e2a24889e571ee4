"""Work on data before training: is it fit, is it balanced, what gives the label away, and what can be made of it."""
