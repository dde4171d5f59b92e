"""From a float graph to int8 or int4: what is rounded, with which ranges, and what repairs it."""
